"""The comparison of training steps: its arithmetic, its processes, and that the torch twin is the same model."""

import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import table3_efficiency
from experiments.benchmarks import compare
from experiments.benchmarks.gpu_throughput import Config, execute
from experiments.entry import CONFIGS
from experiments.throughput.contest import rows
from experiments.throughput.kernels import bound, rank
from experiments.throughput.pace import paced
from experiments.throughput.sides import Pairs, SideError, blocks, interval, running
from experiments.throughput.suite import CPU, SUITE, TINY, pick
from jaxlm.decode import ConfigError, decode, read
from jaxlm.session import numerics, resolve, workload_of


def event(name, dur, pid=1, tid=7, **args):
    return {"ph": "X", "name": name, "dur": dur, "pid": pid, "tid": tid, "args": args}


def named(what, pid, name, tid=0):
    return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": {"name": name}}


def test_kernels_of_a_gpu_are_what_its_streams_ran_and_hosts_do_not_count():
    rooms = [named("process_name", 1, "/device:GPU:0"), named("process_name", 2, "/host:CPU")]
    lanes = [named("thread_name", 1, "Stream #7(compute)", 7), named("thread_name", 1, "XLA Ops", 9)]
    run = [event("nvjet_gemm", 30), event("loop_fusion", 10), event("nvjet_gemm", 40)]
    others = [event("whole step", 900, tid=9), event("dispatch", 500, pid=2)]
    first, second = rank([*rooms, *lanes, *run, *others], steps=2, most=20)
    assert (first.name, first.calls, second.name) == ("nvjet_gemm", 1.0, "loop_fusion")
    assert first.seconds == pytest.approx(35e-6)
    assert first.share == pytest.approx(70 / 80)
    assert "matrix units" in first.bound
    assert "memory" in second.bound


def test_kernels_of_a_cpu_leave_out_loops_whose_time_is_that_of_what_they_run():
    events = [event("dot.3", 20, hlo_op="dot.3"), event("while.1", 90, hlo_op="while.1"), event("malloc", 70)]
    (only,) = rank(events, steps=1, most=20)
    assert only.name == "dot.3"
    assert only.share == 1.0


def test_a_name_that_says_nothing_has_no_known_bound():
    assert bound("frobnicate") == "unknown"


def test_the_interval_of_a_ratio_holds_its_median_and_narrows_with_agreement():
    wide = interval(np.array([0.8, 1.0, 1.2, 0.9, 1.1]))
    close = interval(np.array([1.0, 1.01, 0.99, 1.0, 1.0]))
    assert wide[1] <= wide[0] <= wide[2]
    assert close[2] - close[1] < wide[2] - wide[1]
    assert Pairs(ours=(1.0, 1.0), torch=(2.0, 2.0)).ratio() == (2.0, 2.0, 2.0)


def test_blocks_are_medians_of_consecutive_steps():
    assert blocks([1, 1, 9, 4, 4, 4], 2) == [1.0, 4.0]


def report(ours, torch, name="A"):
    entry = {"name": name, "model": {}, "sequence": 8}
    found = {"entry": entry} | ({"pairs": {"ours": ours, "torch": torch}} if torch else {"alone": ours})
    where = {"commit": "c", "date": "d", "devices": "1 x H200"}
    return {"details": {"found": [found]}, "environment": where}


OLD = [1.00, 1.01, 0.99, 1.00, 1.02, 0.98]


def test_a_slower_machine_is_no_regression_where_torch_is_slower_too():
    made, slower = compare.compare(report(OLD, OLD), report([2 * x for x in OLD], [2 * x for x in OLD]))
    assert not slower
    assert "no difference" in made.rows[0].note


def test_a_slower_step_is_found_and_a_faster_one_is_none():
    made, slower = compare.compare(report(OLD, OLD), report([1.2 * x for x in OLD], OLD))
    assert slower
    assert made.rows[0].measured == pytest.approx(1.2, rel=0.02)
    made, slower = compare.compare(report(OLD, None), report([0.8 * x for x in OLD], None))
    assert not slower
    assert "faster" in made.rows[0].note
    assert "machines may differ" in made.rows[0].quantity


def test_results_that_cannot_be_compared_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no entry is in both: A in the first, B in the other"):
        compare.compare(report(OLD, OLD), report(OLD, OLD, name="B"))
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(ConfigError, match="is no report of"):
        compare.load(tmp_path / "x.json")


def test_the_comparison_exits_with_1_where_a_step_became_slower(tmp_path):
    for name, ours in (("old", OLD), ("new", [1.3 * x for x in OLD])):
        (tmp_path / f"{name}.json").write_text(json.dumps(report(ours, OLD)))
    command = [
        sys.executable,
        "-m",
        "experiments.benchmarks.compare",
        *(tmp_path / f"{n}.json" for n in ("old", "new")),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "slower" in done.stdout


def test_the_suite_has_the_published_shapes():
    a, b, c, d, e = SUITE
    assert [entry.tokens for entry in SUITE] == [524_288, 65_536, 65_536, 8_192, 8_192]
    assert [entry.sequence for entry in SUITE] == [1024, 1024, 8192, 4096, 8192]
    run = d.run()
    work = workload_of(run, resolve(run, run.model.vocab), numerics(run.model, "cpu"))
    assert sum(math.prod(t.shape) for t in work.parameters) == pytest.approx(6.74e9, rel=0.001)
    assert a.clip == b.clip == c.clip == 1.0
    assert d.clip == e.clip == 0.0


def test_an_entry_that_is_not_there_is_named():
    assert [entry.name for entry in pick(SUITE, "C, A")] == ["C", "A"]
    with pytest.raises(ConfigError, match="entries: no such entry: F; there are A, B, C, D, E"):
        pick(SUITE, "F")


def test_a_side_says_what_went_wrong_and_goes_on():
    with running("ours") as side:
        with pytest.raises(SideError, match="unknown request 'dance'"):
            side.ask("dance")
        with pytest.raises(SideError, match="unknown request 'rest'"):
            side.ask("rest")


def test_a_side_without_torch_is_told_from_one_that_fails(tmp_path):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")")
    with (
        running("torch", environment={"PYTHONPATH": str(tmp_path)}) as side,
        pytest.raises(SideError, match="torch: ModuleNotFoundError: No module named 'torch'"),
    ):
        side.start(TINY[0])


def test_each_step_is_timed_and_none_is_lost():
    state, seconds = paced(lambda state, batch: (state + batch, {"loss": state}), jnp.zeros(()), jnp.ones(()), 5)
    assert float(state) == 5.0
    assert len(seconds) == 5
    assert min(seconds) > 0.0


def test_rows_say_what_was_asked_for_and_whether_it_was_met():
    entry = {"name": "A", "model": {}, "sequence": 8, "target": 1.1, "mfu": 0.45}
    ours = {"predicted_seconds": 0.9, "predicted_bytes": 2e9, "flops": 5e14, "flops_causal": 4e14}
    found = {"entry": entry, "tokens": 64, "ours": ours, "theirs": {"mode": "default"}, "parity": {"error": 1e-3}}
    found |= {"pairs": {"ours": OLD, "torch": [1.2 * x for x in OLD]}, "memory_ours": 10**9, "memory_torch": None}
    made = {row.quantity: row for row in rows(found, on_gpu=True)}
    assert "aim 1.1: met" in made["tokens/s, ours over torch"].note
    assert made["MFU, attention not halved, %"].note == "aim 45%: met"
    assert made["peak GB, ours"].predicted == pytest.approx(2.0)
    assert "peak GB, torch" not in made


@pytest.mark.slow
def test_the_benchmark_runs_from_end_to_end_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu_throughput"])
    made = execute(Config(smoke=True, rounds=2, steps=2, warm=1, mode="eager"), tmp_path)
    assert any("gpu: not measured" in remark for remark in made.remarks)
    assert len(made.details["found"]) == len(TINY)
    assert all(found["kernels"] for found in made.details["found"])
    assert (tmp_path / "gpu_throughput.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("entry", [*TINY, *CPU], ids=lambda entry: entry.name)
def test_the_torch_twin_trains_the_same_model(entry, tmp_path):
    pytest.importorskip("torch", reason="the twin needs torch, which this project does not install")
    from experiments.throughput.contest import How, parity

    found = parity(entry, How(torch_python=sys.executable, tolerance=1e-5), print)
    assert found["error"] < 1e-5


def test_table_3_keeps_apart_what_others_claim_and_what_was_run(monkeypatch, tmp_path):
    monkeypatch.delenv("JAXLM_SHARED", raising=False)
    fields = "model,seq_len,gpus,gpu,mfu_pct,tokens_per_s_per_gpu,precision"
    lines = ["mpt-1b,512,8,a100_40gb,57.1,21780,bf16", "mpt-1b,2048,8,a100_40gb,56,19270,bf16", "mpt-7b,512,8,a,1,1,b"]
    (tmp_path / "mosaicml_llmfoundry.csv").write_text("\n".join([fields, *lines]))
    raw = read(CONFIGS / "table3_efficiency.yaml") | {"published": str(tmp_path)}
    made = table3_efficiency.measure(decode(raw, table3_efficiency.Config), tmp_path)
    found = {(row.what, row.quantity): row for row in made.rows}
    assert found["the paper's system, 512 A100", "samples/s"].paper == 18_901
    ours = found["jaxlm, 512 A100-80, 1.1 B stand-in", "samples/s"]
    assert ours.predicted is not None
    assert ours.measured is None
    assert found["mpt-1b, T=512, 8 x a100_40gb", "tokens/s per GPU"].published == 21780
    assert len([row for row in made.rows if row.published]) == 1
    assert "no GPU here" in found["jaxlm beside torch, one GPU", "samples/s"].note

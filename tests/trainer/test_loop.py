"""The loop, with a toy model that no language is in: the trainer knows no model."""

import io
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.collectives.sync import Implicit
from jaxlm.optim import decayed
from jaxlm.trainer.loop import Finished, train
from jaxlm.trainer.metrics import JsonLines, Meter, Work, read_jsonl, record_of
from jaxlm.trainer.progress import Progress, seconds_as_text
from jaxlm.trainer.state import init_state
from jaxlm.trainer.step import make_train_step
from jaxlm.trainer.stop import Interrupted, StopSignal

TX = optax.sgd(0.1)


def objective(model, batch, key):
    error = batch["x"] @ model["w"] + model["b"] - batch["y"]
    return jnp.sum(error**2 * batch["weights"]), {"weight": jnp.sum(batch["weights"])}


def toy_batch(seed: int, accumulation: int = 1, bad: bool = False):
    random = np.random.default_rng(seed)
    x = random.normal(size=(accumulation, 8, 3)).astype(np.float32)
    if bad:
        x[0, 0, 0] = np.nan
    weights = (random.random((accumulation, 8)) < 0.7).astype(np.float32)
    return {"x": x, "y": random.normal(size=(accumulation, 8)).astype(np.float32), "weights": weights}


def start():
    return init_state({"w": jnp.ones(3), "b": jnp.zeros(())}, TX, Implicit())


def go(batches, **options):
    step = jax.jit(make_train_step(objective, TX, Implicit()))
    seen: list[Finished] = []
    outcome = train(
        start(), step=step, batches=iter(batches), start=0, steps=len(batches), tensors=["b", "w"],
        report=seen.append, **options,
    )  # fmt: skip
    return outcome, seen


def test_accumulated_microbatches_give_the_gradient_of_the_whole():
    whole = toy_batch(0)
    cut = {name: value.reshape(4, 2, *value.shape[2:]) for name, value in whole.items()}
    assert len({float(w.sum()) for w in cut["weights"]}) > 1, "microbatches must differ in weight for this to mean much"
    step = jax.jit(make_train_step(objective, TX, Implicit()))
    (one, a), (four, b) = step(start(), whole), step(start(), cut)
    np.testing.assert_allclose(one.model["w"], four.model["w"], rtol=1e-6)
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)
    np.testing.assert_allclose(a["norms"], b["norms"], rtol=1e-6)


def test_every_step_is_reported_once_in_order():
    outcome, seen = go([toy_batch(i) for i in range(5)])
    assert [f.step for f in seen] == [1, 2, 3, 4, 5]
    assert (outcome.reason, outcome.step, int(outcome.state.step)) == ("done", 5, 5)


@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_step_that_is_not_finite_stops_with_its_number_its_tensors_and_the_last_good_state(at):
    batches = [toy_batch(i, bad=i == at) for i in range(6)]
    outcome, seen = go(batches)
    assert (outcome.reason, outcome.step) == ("nonfinite", at)
    assert outcome.tensors == ("loss", "b", "w")
    good, _ = go(batches[:at])
    np.testing.assert_array_equal(outcome.state.model["w"], good.state.model["w"])
    assert int(outcome.state.step) == at == len(seen)


def test_hooks_see_the_state_after_their_step():
    class Hook:
        def __init__(self):
            self.steps = []

        def due(self, step):
            return step % 2 == 0

        def __call__(self, step, state):
            self.steps.append((step, int(state.step)))

    hook = Hook()
    go([toy_batch(i) for i in range(5)], hooks=[hook])
    assert hook.steps == [(2, 2), (4, 4)]


def test_a_real_sigterm_ends_the_loop_after_the_step_under_way():
    with StopSignal() as stop, stop.deferred():

        def ask(step):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return stop.agreed()

        outcome, seen = go([toy_batch(i) for i in range(6)], stop=ask)
    assert (outcome.reason, outcome.signal, outcome.step) == ("signal", signal.SIGTERM, 3)
    assert len(seen) == 3
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_hook_that_gives_up_ends_the_loop_with_the_state_of_its_step():
    class GivesUp:
        def due(self, step):
            return step == 3

        def __call__(self, step, state):
            raise Interrupted(signal.SIGINT)

    outcome, seen = go([toy_batch(i) for i in range(6)], hooks=[GivesUp()])
    assert (outcome.reason, outcome.signal, outcome.step) == ("signal", signal.SIGINT, 3)
    assert int(outcome.state.step) == len(seen) == 3


WORK = Work(tokens=1000, flops_full=6e12, flops_causal=5e12, devices=2, peak=1e13, bytes_per_token=4.0)


def test_a_record_holds_both_conventions_of_mfu():
    finished = Finished(7, {"loss": 2.0, "grad_norm": 1.0, "weight": 900.0, "lr": 0.1}, 0.5)
    record = record_of(finished, 0.5, WORK)
    assert record["tokens_per_second"] == 2000
    assert record["mfu"] == pytest.approx(6e12 / 0.5 / 2 / 1e13)
    assert record["mfu_causal"] == pytest.approx(5e12 / 0.5 / 2 / 1e13)
    assert record["bits_per_byte"] == pytest.approx(2.0 / np.log(2) / 4)
    unknown = Work(tokens=1, flops_full=1, flops_causal=1, devices=1, peak=None, bytes_per_token=1)
    assert "mfu" not in record_of(finished, 0.5, unknown)


def test_metrics_of_steps_that_are_done_again_are_dropped_first(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": i}) + "\n" for i in range(1, 9)) + '{"step": 9, "lo')
    writer = JsonLines(path, keep=5)
    writer({"step": 6})
    writer.close()
    assert [r["step"] for r in read_jsonl(path)] == [1, 2, 3, 4, 5, 6]


def test_the_meter_averages_time_between_records_and_always_reports_first_and_last():
    records = []
    meter = Meter(WORK, every=4, last=10, writers=[records.append])
    for step in range(1, 11):
        meter(Finished(step, {"loss": 1.0, "grad_norm": 1.0, "weight": 1.0}, float(step)))
    assert [r["step"] for r in records] == [1, 4, 8, 10]
    assert records[2]["step_seconds"] == (5 + 6 + 7 + 8) / 4


def test_progress_prints_plain_lines_with_eta_where_there_is_no_terminal():
    out, clock = io.StringIO(), iter([0.0, 10.0])
    progress = Progress(0, 100, out=out, clock=lambda: next(clock))
    progress(record_of(Finished(20, {"loss": 1.0, "grad_norm": 1.0, "weight": 1.0, "lr": 1e-3}, 0.5), 0.5, WORK))
    assert "step  20/100" in out.getvalue()
    assert "eta 40s" in out.getvalue()
    assert "mfu 60.0% (50.0% causal)" in out.getvalue()


@pytest.mark.parametrize(("seconds", "text"), [(4, "4s"), (200, "3m20s"), (18120, "5h02m"), (200000, "2d07h")])
def test_durations_read_well(seconds, text):
    assert seconds_as_text(seconds) == text


def test_only_matrices_decay():
    from jaxlm.model.config import ModelConfig
    from jaxlm.model.transformer import Execution, Transformer
    from jaxlm.tree import named_leaves

    config = ModelConfig(layers=1, embed=8, heads=2, mlp=8, vocab=10, bias=True, norm="layer")
    abstract = jax.eval_shape(lambda: Transformer(config, Execution(), key=jax.random.key(0)))
    marked = named_leaves(decayed(abstract))
    assert {name for name, yes in marked.items() if yes} == {
        "table", "blocks/attn/q", "blocks/attn/k", "blocks/attn/v", "blocks/attn/o",
        "blocks/mlp/gate", "blocks/mlp/up", "blocks/mlp/down",
    }  # fmt: skip

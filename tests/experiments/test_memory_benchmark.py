"""The memory benchmark judges steps that nothing was learned from, and can fail."""

import json
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks import memory
from experiments.benchmarks.memory import Config, Result, compare, execute
from experiments.benchmarks.memory_cases import CALIBRATION, DEVELOPMENT, JUDGED, Case
from planners.prices.memory_phases import Habits

COMPILED = {
    ("gpt2-124m", "fsdp=8", "none", 8, 1024): (187810829, 605735752),
    ("gpt2-124m", "data=8", "full", 64, 1024): (1493841933, 1159148360),
    ("llama-7b", "fsdp=8", "none", 8, 2048): (10110451725, 14152995208),
    ("llama-7b", "fsdp=8", "full", 8, 2048): (10110451725, 5050231688),
    ("llama-7b", "fsdp=64", "none", 64, 4096): (1266663437, 18732222344),
    ("llama-7b", "fsdp=64", "full", 64, 4096): (1266663437, 2638168712),
    ("llama-1b", "data=8", "full", 16, 2048): (14829838349, 5524328560),
}
"""Bytes of arguments and temporaries by XLA for H100, jaxlib 0.10.2, 2026-11-27."""


def case(preset: str, mesh: str, remat: str, microbatch: int, sequence: int, **other: Any) -> Case:
    return Case(preset=preset, mesh=mesh, remat=remat, microbatch=microbatch, sequence=sequence, **other)


def result(arguments: int, temporaries: int) -> Result:
    kinds = {"outputs": arguments, "aliased": arguments, "constants": 0, "jaxlib": memory._version(), "seconds": 0.0}
    return {"arguments": arguments, "temporaries": temporaries} | kinds


def test_judged_cases_are_many_and_none_was_learned_from() -> None:
    assert len(set(JUDGED)) == len(JUDGED) >= 60
    assert not set(JUDGED) & set(DEVELOPMENT)
    assert set(CALIBRATION) <= set(DEVELOPMENT)
    for name in {each.preset for each in JUDGED}:
        for remat in ("none", "full"):
            learned = [each for each in CALIBRATION if (each.preset, each.remat) == (name, remat)]
            assert len(learned) == 2, "two compiles for each model and policy"


def test_judged_cases_span_what_is_promised() -> None:
    devices = {len_of(each) for each in JUDGED}
    assert min(devices) == 1
    assert max(devices) == 512
    assert {"gpt2-124m", "llama-70b"} <= {each.preset for each in JUDGED}
    assert {each.chip for each in JUDGED} == {"H100", "A100-80"}


def len_of(each: Case) -> int:
    return memory.plan_of(each).devices


@pytest.mark.parametrize("name", COMPILED, ids=lambda name: " ".join(map(str, name)))
def test_compiled_steps_are_predicted_before_any_compile(name: tuple[Any, ...]) -> None:
    compared = compare(case(*name), result(*COMPILED[name]))
    believed = compared.observation.predicted(Habits())
    assert abs(compared.error(believed)) < 5
    assert abs(compared.error_of_temporaries(believed)) < 5
    assert compared.state == pytest.approx(COMPILED[name][0], rel=1e-3), "arguments are known exactly"


@pytest.mark.parametrize(
    ("chosen", "compiled"),
    [
        (case("gpt2-124m", "data=1", "full", 8, 1024, loss_chunks=4), (1493841933, 847304776)),
        (case("llama-1b", "data=1", "full", 4, 2048, loss_chunks=4), (14829903885, 5836722544)),
    ],
    ids=str,
)
def test_one_gpu_gathers_no_weights_so_no_activation_waits_for_any(chosen: Case, compiled: tuple[int, int]) -> None:
    compared = compare(chosen, result(*compiled))
    assert abs(compared.error_of_temporaries(compared.observation.predicted(Habits()))) < 2


def test_a_miss_is_printed_as_a_miss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ("gpt2-124m", "fsdp=8", "none", 8, 1024)
    monkeypatch.setattr(memory, "JUDGED", (case(*name),))
    monkeypatch.setattr(memory, "CALIBRATION", ())

    def verdicts(temporaries: int) -> list[str]:
        compiled = {str(case(*name)): result(COMPILED[name][0], temporaries)}
        (tmp_path / "compiled.json").write_text(json.dumps(compiled))
        rows = execute(Config(compile=False), tmp_path).rows
        return [row.note for row in rows if row.note.startswith("target")]

    assert any("MISSED" in note for note in verdicts(2 * COMPILED[name][1]))
    assert "target 5%: met, 1 cases" in verdicts(COMPILED[name][1])


def test_results_of_another_compiler_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = ("gpt2-124m", "fsdp=8", "none", 8, 1024)
    monkeypatch.setattr(memory, "JUDGED", (case(*name),))
    old = result(*COMPILED[name]) | {"jaxlib": "0.0.1"}
    (tmp_path / "compiled.json").write_text(json.dumps({str(case(*name)): old}))
    with pytest.raises(memory.ConfigError, match="nothing has been compiled yet"):
        execute(Config(compile=False), tmp_path)

"""Compiling a plan in a process of its own: what comes back, what is remembered, what is said when it fails."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from jaxlm import compiled as module
from jaxlm.compiled import Compiler, Target, complaints, failure, target_of
from jaxlm.config import Run
from jaxlm.data.config import DataConfig
from jaxlm.model.config import ModelConfig
from jaxlm.session import numerics
from jaxlm.trainer.config import TrainConfig
from planners.findings import Alternative
from planners.layout import rules
from planners.machines.cluster_file import load_cluster
from planners.plan import MESH_AXES, Batch, Plan, PlanError, Segment
from planners.programs.compiled import CompileError, OutOfMemory
from planners.programs.hlo import collectives

MODEL = ModelConfig(layers=2, embed=32, heads=2, mlp=64, vocab=64)
RUN = Run(model=MODEL, data=DataConfig(sequence=16), train=TrainConfig(batch=8, steps=10))
MESH = dict.fromkeys(MESH_AXES, 1) | {"fsdp": 2}
PLAN = Plan(
    mesh=MESH,
    rules=rules(MESH),
    batch=Batch(sequences=8, microbatch=4, accumulation=2),
    remat=(Segment(layers=2),),
)
TWO = Target(platform="cpu", kind="cpu", devices=2)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_a_step_is_compiled_once_and_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    compile = Compiler(RUN, 64, TWO, progress=seen.append)
    first = compile(PLAN)
    assert seen, "a compilation of seconds reports that it goes on"
    assert first.target == "2 x cpu"
    assert first.kernel == "xla"
    assert first.versions["jax"]
    assert first.arguments > 0
    assert first.temporaries > 0
    assert first.memory_bytes == first.arguments + first.temporaries + first.outputs - first.aliased
    rows = collectives(first.hlo)
    assert {row.times for row in rows if row.kind == "all-gather"} >= {PLAN.batch.accumulation * MODEL.layers}
    assert all(row.counted for row in rows)

    def never(*arguments: Any) -> Any:
        raise AssertionError("the result is in the cache")

    monkeypatch.setattr(Compiler, "_compile", never)
    lost = Alternative(summary="another", step_seconds=1.0, memory_bytes=1.0, reason="slower")
    assert compile(PLAN) == first
    assert compile(dataclasses.replace(PLAN, alternatives=(lost,))) == first, "why others lost changes no program"
    for other in (
        Compiler(RUN, 64, dataclasses.replace(TWO, platform="gpu", kind="H100")),
        Compiler(dataclasses.replace(RUN, model=dataclasses.replace(MODEL, mlp=96)), 64, TWO),
    ):
        monkeypatch.setattr(Compiler, "require", lambda self: None)
        with pytest.raises(AssertionError, match="in the cache"):
            other(PLAN)


def test_the_time_limit_is_kept_and_said() -> None:
    with pytest.raises(CompileError, match="compiling for 2 x cpu took more than 1 s; allow more with --verify-second"):
        Compiler(RUN, 64, TWO, seconds=1.0)(PLAN)


def test_the_last_words_of_a_worker_become_an_error_here() -> None:
    said = "Traceback (most recent call last):\n  File x\njaxlm.decode.ConfigError: plan.options: no option 'xla_no'\n"
    assert isinstance(failure(TWO, 1, said), PlanError)
    assert str(failure(TWO, 1, said)) == "plan.options: no option 'xla_no'"
    full = "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes\n"
    assert isinstance(failure(TWO, 1, full), OutOfMemory)
    assert "ended by signal 9" in str(failure(TWO, -9, "some log line\n"))
    assert "KeyError: 'x'" in str(failure(TWO, 1, "Traceback\nKeyError: 'x'\n"))


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "missing", lambda: ("jax-cuda12-pjrt",))
    target = target_of(load_cluster("a100-80x512"))
    assert str(target) == "512 x A100-80"
    with pytest.raises(PlanError, match="512 x A100-80 needs jax-cuda12-pjrt; install them with: uv sync --extra aot"):
        Compiler(RUN, 64, target)(PLAN)


def test_a_device_that_the_compiler_does_not_know_is_named(tmp_path: Path) -> None:
    file = tmp_path / "strange.yaml"
    file.write_text(json.dumps({"device": {"kind": "Strange 9", "memory": 2**34}, "count": 1}))
    with pytest.raises(PlanError, match="cannot compile for 'Strange 9': it knows H100, H200, A100-40, A100-80, V100"):
        target_of(load_cluster(file))


def test_unequal_gpus_are_compiled_for_as_the_oldest_of_them() -> None:
    assert str(target_of(load_cluster("configs/clusters/mixed-v100-a100.yaml"))).endswith("x V100")


def test_complaints_are_found_among_the_messages_and_told_once() -> None:
    line = "W0000 1 spmd_partitioner.cc:652] [SPMD] Involuntary full rematerialization. The compiler cannot go from X"
    text = f"{line}\nI0000 something else\n{line}\nUserWarning: Some donated buffers were not usable: f32[3]\n"
    found = complaints(text)
    assert len(found) == 2
    assert found[0] == "Involuntary full rematerialization. The compiler cannot go from X"
    assert found[1].startswith("Some donated buffers were not usable: f32[3]")


@pytest.mark.parametrize(
    ("capability", "attention", "expected"),
    [
        ((7, 0), "auto", ("float32", "xla")),
        ((8, 0), "auto", ("bfloat16", "cudnn")),
        (None, "auto", ("bfloat16", "cudnn")),
    ],
)
def test_a_gpu_without_bfloat16_trains_in_float32(
    capability: tuple[int, int] | None, attention: Any, expected: tuple[str, str]
) -> None:
    model = dataclasses.replace(MODEL, attention=attention)
    how = numerics(model, "gpu", elsewhere=True, capability=capability)
    assert (how.dtype, how.kernel) == expected


def test_flash_attention_asked_for_on_a_v100_is_refused() -> None:
    model = dataclasses.replace(MODEL, attention="cudnn", dtype="bfloat16")
    with pytest.raises(ValueError, match=r"compute capability is 7\.0, it needs 8\.0"):
        numerics(model, "gpu", elsewhere=True, capability=(7, 0))

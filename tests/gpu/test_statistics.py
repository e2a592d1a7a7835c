"""With its softmax statistics kept by name, cuDNN's attention runs forward once; without them, once more."""

import dataclasses

import pytest

from experiments.benchmarks.memory import plan_of, run_of
from experiments.benchmarks.memory_cases import Case
from jaxlm.compiled import Compiler, Target
from jaxlm.runtime import aot
from planners.plan import Segment

FORWARD = 'custom_call_target="__cudnn$fmhaSoftmax"'


@pytest.mark.slow
@pytest.mark.parametrize(
    ("save", "calls"),
    [((), 2), (("q", "k", "v"), 2), (("context",), 2), (("context", "statistics"), 1), (None, 1)],
    ids=["full", "qkv", "context", "context and statistics", "none"],
)
def test_attention_runs_forward_as_often_as_it_must(save: tuple[str, ...] | None, calls: int) -> None:
    if lacking := aot.missing():
        pytest.skip(f"{', '.join(lacking)} not installed: uv sync --extra aot")
    case = Case(preset="llama-1b", mesh="fsdp=8", remat="full", microbatch=8, sequence=1024, layers=4)
    run, plan = run_of(case), dataclasses.replace(plan_of(case), remat=(Segment(layers=4, save=save),))
    made = Compiler(run, run.model.vocab, Target(platform="gpu", kind="H100", devices=8))(plan)
    # One call in the loop that goes forward, and one in the loop that goes back where it is computed again.
    assert made.hlo.count(FORWARD) == calls

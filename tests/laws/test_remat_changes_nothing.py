"""Whatever is kept, recomputed or cut into segments: loss and gradients stay those of a step that keeps everything."""

import dataclasses

import numpy as np
import pytest

from planners.plan import Segment
from tests.laws.work import LLAMA, assert_same, loss_and_gradients, make_plan, packed_batch, reference

DEEP = dataclasses.replace(LLAMA, layers=6)
MIXES = {
    "groups of three": ({}, (Segment(layers=6, save=(), group=3),)),
    "one of everything": (
        {},
        (
            Segment(layers=2, save=(), group=2),
            Segment(layers=2, save=("attn_norm", "q", "context", "attn_out", "mlp_norm", "mlp_hidden")),
            Segment(layers=2),
        ),
    ),
    "three segments, fsdp": (
        {"fsdp": 4},
        (
            Segment(layers=2, save=()),
            Segment(layers=2, save=("k", "v", "mlp_gate", "mlp_up")),
            Segment(layers=2, save=("attn_out",)),
        ),
    ),
}


@pytest.mark.parametrize("name", MIXES)
def test_loss_and_gradients_equal_those_without_rematerialisation(name: str) -> None:
    mesh, remat = MIXES[name]
    assert_same(loss_and_gradients(make_plan(mesh, DEEP, remat=remat), DEEP, packed_batch()), reference(DEEP))


@pytest.mark.slow
def test_layers_read_in_place_are_as_exact_as_layers_of_one_segment() -> None:
    """In bfloat16 every segment reads its layers by index; with one segment there is nothing to read."""
    remat = (Segment(layers=2, save=("q", "k", "v")), Segment(layers=2, save=()), Segment(layers=2))
    batch, exact = packed_batch(), reference(DEEP)
    mixed, whole = (loss_and_gradients(make_plan({}, DEEP, remat=how), DEEP, batch, "bfloat16") for how in (remat, ()))
    assert mixed[0] == pytest.approx(whole[0], rel=1e-3)
    for name, expected in exact[1].items():
        ours, theirs = (np.linalg.norm(got[name] - expected) / np.linalg.norm(expected) for _, got in (mixed, whole))
        assert ours <= 1.5 * theirs + 0.01, f"{name}: {ours:.1e} off, in one segment {theirs:.1e}"

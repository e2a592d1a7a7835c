"""Bytes per device: exact where they must be, close to closed forms elsewhere, and monotone."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import workloads
from hypothesis import given, settings
from hypothesis import strategies as st

from planners.candidates import Candidates
from planners.layout import rules
from planners.machines.presets import host, nodes
from planners.plan import MESH_AXES, Tensor, Workload
from planners.prices import cost
from planners.prices.assumptions import Assumptions
from planners.prices.footprint import footprint
from planners.prices.memory import Remat
from planners.prices.memory_phases import phases, temporaries
from planners.search import price
from planners.wishes import Search


def mesh(**sizes: int) -> dict[str, int]:
    return {axis: sizes.get(axis, 1) for axis in MESH_AXES}


def memory(work: Workload, count: int, microbatch: int, remat: Remat = "none", **sizes: int) -> dict[str, float]:
    return price(work, nodes("H100", count), Search(), mesh(**sizes), microbatch, remat).memory


@pytest.mark.parametrize(("data", "fsdp", "tensor"), [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)])
def test_state_is_exact(data: int, fsdp: int, tensor: int) -> None:
    """Every matrix is split over fsdp x tensor, norms are replicated: nothing of it may be missing."""
    work = workloads.llama_7b()
    norms = sum(t.size for t in work.parameters if "norm" in t.axes)
    share = (work.parameter_count - norms) // (fsdp * tensor) + norms
    parts = memory(work, 8, 8, data=data, fsdp=fsdp, tensor=tensor)
    assert parts["parameters"] == 4 * share
    assert parts["optimizer"] == 8 * share
    assert parts["gradient_accumulator"] == 4 * share
    outside = sum(t.size for t in work.parameters if "layers" not in t.axes and "norm" not in t.axes) // (fsdp * tensor)
    last = sum(t.size for t in work.parameters if "layers" not in t.axes and "norm" in t.axes)
    assert parts["gradients"] == 4 * (share - outside - last), "of the blocks: the others are there before or after"


@pytest.mark.parametrize("tensor", [1, 2, 8])
def test_activations_match_the_closed_form(tensor: int) -> None:
    """A LLaMA layer with fused attention keeps s b (8 h + (12 h + 8 f) / t) bytes (planners.md 3.3)."""
    work, h, f, tokens = workloads.llama_7b(), 4096, 11008, 4096
    parts = memory(work, tensor, 1, tensor=tensor)
    assert parts["activations"] == pytest.approx(32 * tokens * (8 * h + (12 * h + 8 * f) / tensor), rel=0.01)
    full = memory(work, tensor, 1, "full", tensor=tensor)
    assert full["activations"] == 32 * tokens * 2 * h, "the input of every block"
    assert full["block_transient"] > tokens * (8 * h + (12 * h + 8 * f) / tensor), "and all of the block in flight"


@settings(deadline=None, max_examples=30)
@given(
    layers=st.integers(2, 32),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    remat=st.sampled_from(["none", "full"]),
    microbatch=st.sampled_from([8, 16, 64]),
)
def test_more_fsdp_never_needs_more_memory(layers: int, dtype: str, remat: Remat, microbatch: int) -> None:
    work = workloads.nano(64, layers=layers, dtype=dtype)
    totals = [sum(memory(work, 8, microbatch, remat, data=8 // fsdp, fsdp=fsdp).values()) for fsdp in (1, 2, 4, 8)]
    assert totals == sorted(totals, reverse=True)


@settings(deadline=None, max_examples=30)
@given(layers=st.integers(2, 32), microbatch=st.sampled_from([1, 4, 16]), chunks=st.sampled_from([1, 2, 8]))
def test_remat_and_chunks_trade_time_for_memory(layers: int, microbatch: int, chunks: int) -> None:
    work, cluster = workloads.nano(16, layers=layers), nodes("H100", 1)
    none = price(work, cluster, Search(), mesh(), microbatch, "none", chunks)
    full = price(work, cluster, Search(), mesh(), microbatch, "full", chunks)
    assert full.memory_bytes <= none.memory_bytes
    assert full.step_seconds > none.step_seconds
    more = price(work, cluster, Search(), mesh(), microbatch, "none", 2 * chunks)
    # The first cut costs float32 sums of the head's gradient; every further one only saves.
    assert chunks == 1 or more.memory_bytes <= none.memory_bytes
    assert more.step_seconds > none.step_seconds


@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    fsdp=st.integers(1, 8),
    tensor=st.integers(1, 8),
    dtype=st.sampled_from(["float32", "bfloat16", "int8"]),
)
def test_shards_hold_the_whole_tensor(shape: tuple[int, int], fsdp: int, tensor: int, dtype: str) -> None:
    weight = Tensor(name="w", shape=shape, dtype=dtype, axes=("embed", "mlp"))
    sizes = mesh(fsdp=fsdp, tensor=tensor)
    shard = weight.bytes_per_device(rules(sizes).parameters, sizes)
    assert shard * fsdp * tensor >= weight.bytes
    if shape[0] % fsdp == 0 and shape[1] % tensor == 0:
        assert shard * fsdp * tensor == weight.bytes


def test_bytes_per_device_by_eye() -> None:
    sizes = mesh(fsdp=4, tensor=2)
    table = rules(sizes).parameters
    weight = Tensor(name="w", shape=(3, 10, 6), dtype="bfloat16", axes=("layers", "embed", "mlp"))
    assert weight.bytes_per_device(table, sizes) == 3 * 3 * 3 * 2
    assert Tensor(name="n", shape=(10,), dtype="float32", axes=("norm",)).bytes_per_device(table, sizes) == 40
    assert Tensor(name="n", shape=(10,), dtype="float32", axes=(None,)).bytes_per_device(table, sizes) == 40


def test_cast_weights_are_kept_only_without_remat() -> None:
    """Seen in compiled programs: autodiff stacks bfloat16 copies of the weights as residuals of the scan."""
    work = workloads.llama_7b()
    inside = sum(t.size for t in work.parameters if "layers" in t.axes and "norm" not in t.axes)
    assert memory(work, 8, 8, fsdp=8)["cast_weights"] == pytest.approx(2 * inside / 8, rel=0.01)
    assert "cast_weights" not in memory(work, 8, 8, "full", fsdp=8)
    one = host(count=1, memory=2**33, cores=2)
    assert "cast_weights" not in price(workloads.nano(), one, Search(), mesh(), 8).memory


def parts(count: int, **choices: Any) -> dict[str, float]:
    """Predicted bytes by part of the 7B model on `count` GPUs, microbatches of 8 sequences."""
    sizes = {axis: choices.pop(axis) for axis in MESH_AXES if axis in choices}
    candidates = Candidates.of(sizes, microbatch=8, **choices)
    prices = cost.price(workloads.llama_7b(), nodes("H100", count), candidates, assumptions=Assumptions())
    return {name: float(part[0]) for name, part in prices.memory.items()}


def test_activations_between_blocks_are_split_over_tensor_where_chosen() -> None:
    whole, split = parts(8, tensor=8, remat=1), parts(8, tensor=8, remat=1, sequence=True)
    assert split["activations"] == pytest.approx(whole["activations"] / 8)


def test_peak_is_the_worst_phase_and_no_sum_of_all() -> None:
    """Logits are there with the head's weights, or with a block's gradients, never with both."""
    work = workloads.llama_7b()
    candidates = Candidates.of({"fsdp": [8, 8, 8]}, microbatch=8, remat=[0, 1, 1], loss_chunks=[1, 1, 8])
    found = phases(footprint(work, candidates.sizes), work, candidates)
    totals = [np.sum([np.zeros(3) + part for part in phase.values()], axis=0) for phase in found.values()]
    assert np.allclose(temporaries(found, 3), np.max(totals, axis=0))


def test_weights_turned_round_are_cast_first_unless_microbatches_share_them() -> None:
    """Seen in compiled programs: before layers that are computed again a bfloat16 copy of the matrices that are
    gathered along their last dimension; for several microbatches a float32 one, of those outside the layers too."""
    work = workloads.llama_7b()
    last = [t.size for t in work.parameters if t.axes[-1] == "embed"]
    inside = [t.size for t in work.parameters if t.axes[-1] == "embed" and "layers" in t.axes]
    turned = lambda microbatch, remat, **sizes: memory(work, 8, microbatch, remat, **sizes).get("turned_weights", 0)
    assert len(inside) == 2
    assert turned(work.batch, "full", fsdp=8) == 2 * sum(inside) / 8
    assert turned(work.batch // 2, "full", fsdp=8) == turned(work.batch // 2, "none", fsdp=8) == 4 * sum(last) / 8
    assert turned(work.batch, "none", fsdp=8) == turned(work.batch, "full", data=8) == 0


def test_the_gradient_of_the_head_is_there_twice_on_its_way_to_where_it_rests() -> None:
    work = workloads.llama_7b()
    candidates = Candidates.of({"fsdp": [8, 1], "data": [1, 8]}, microbatch=8, remat=1)
    step = footprint(work, candidates.sizes)
    gradient = phases(step, work, candidates)["loss"]["head_gradient"]
    head = 2 * 32000 * 4096
    np.testing.assert_allclose(gradient, [head * (1 + 1 / 8), head])


def test_the_gradient_of_the_embedding_is_there_twice_while_it_is_summed() -> None:
    """It comes last: the gradients of all blocks are there, and the head's waits for the update."""
    work = workloads.llama_7b()
    candidates = Candidates.of({"fsdp": [1, 1, 8], "data": [1, 8, 1]}, microbatch=8, remat=1)
    found = phases(footprint(work, candidates.sizes), work, candidates)["embedding"]
    whole = 2 * 32000 * 4096
    np.testing.assert_allclose(found["embedding_gradient"], [whole, 2 * whole, whole * (1 + 1 / 8)])
    np.testing.assert_allclose(found["head_gradient"], [whole, whole, whole / 8])
    assert np.all(found["gradients"] > found["embedding_gradient"])


def test_gradients_of_single_documents_are_whole_on_every_device() -> None:
    work = dataclasses.replace(workloads.nano(16), documents=2)
    summed, apart = (memory(each, 4, 16, data=2, fsdp=2) for each in (workloads.nano(16), work))
    assert "document_gradients" not in summed
    assert apart["document_gradients"] == 2 * 4 * work.parameter_count
    assert apart["gradient_accumulator"] > 0
    assert apart["activations"] == summed["activations"] / 2, "two of the four sequences of a device at a time"
    few = memory(dataclasses.replace(work, documents=100), 4, 16, data=2, fsdp=2)
    assert few["document_gradients"] == 4 * 4 * work.parameter_count, "no more than the microbatch holds"

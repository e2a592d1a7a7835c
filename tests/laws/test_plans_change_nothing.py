"""A plan changes where the work is done, never what is computed."""

import numpy as np
import pytest

from planners.plan import Segment
from tests.laws.work import (
    GPT2,
    LENGTH,
    LLAMA,
    assert_same,
    loss_and_gradients,
    make_plan,
    packed_batch,
    reference,
    step_text,
)

FULL = (Segment(layers=3, save=()),)
MIXED = (Segment(layers=2, save=("q", "k", "v", "mlp_gate")), Segment(layers=1))

PLANS = {
    "data": ({"data": 8}, {}),
    "fsdp": ({"fsdp": 8}, {}),
    "tensor": ({"tensor": 4}, {}),
    "zone_data": ({"zone": 2, "data": 4}, {}),
    "data_fsdp_tensor": ({"data": 2, "fsdp": 2, "tensor": 2}, {}),
    "accumulation_2": ({}, {"accumulation": 2}),
    "accumulation_4": ({}, {"accumulation": 4}),
    "all_three_accumulation_2": ({"data": 2, "fsdp": 2, "tensor": 2}, {"accumulation": 2}),
    "remat_full": ({}, {"remat": FULL}),
    "remat_mixed_fsdp": ({"fsdp": 4}, {"remat": MIXED}),
    "loss_chunks_tensor": ({"tensor": 2}, {"chunks": 4}),
    "everything": ({"fsdp": 2, "tensor": 4}, {"remat": MIXED, "chunks": 2, "accumulation": 2}),
}


@pytest.mark.parametrize("name", PLANS)
def test_loss_and_gradients_equal_one_device(name):
    mesh, other = PLANS[name]
    got = loss_and_gradients(make_plan(mesh, LLAMA, **other), LLAMA, packed_batch())
    assert_same(got, reference(LLAMA))


@pytest.mark.parametrize("mesh", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 8}], ids=str)
def test_loss_and_gradients_of_a_gpt2_equal_one_device(mesh):
    got = loss_and_gradients(make_plan(mesh, GPT2, accumulation=2, chunks=2), GPT2, packed_batch())
    assert_same(got, reference(GPT2))


@pytest.mark.parametrize("config", [LLAMA, pytest.param(GPT2, marks=pytest.mark.slow)], ids=["llama", "gpt2"])
def test_packed_documents_train_as_if_each_were_alone(config):
    batch = packed_batch(seed=1)
    alone = {name: [] for name in batch}
    for row in range(batch["tokens"].shape[0]):
        for document in range(1, batch["segments"][row].max() + 1):
            where = np.flatnonzero(batch["segments"][row] == document)
            for name, value in batch.items():
                padded = np.zeros(LENGTH, value.dtype)
                padded[: len(where)] = value[row, where]
                alone[name].append(padded)
    rows = len(alone["tokens"]) // 16 * 16 + 16
    empty = {name: np.zeros((rows - len(value), LENGTH), value[0].dtype) for name, value in alone.items()}
    apart = {name: np.concatenate([np.stack(value), empty[name]]) for name, value in alone.items()}
    pieces = rows // 16
    plan = make_plan({}, config)
    parts = [
        loss_and_gradients(plan, config, {name: value[16 * i : 16 * i + 16] for name, value in apart.items()})
        for i in range(pieces)
    ]
    tokens = [apart["weights"][16 * i : 16 * i + 16].sum() for i in range(pieces)]
    share = np.array(tokens) / sum(tokens)
    loss = float(sum(part[0] * s for part, s in zip(parts, share, strict=True)))
    gradients = {
        name: np.sum([part[1][name] * s for part, s in zip(parts, share, strict=True)], axis=0) for name in parts[0][1]
    }
    assert_same((loss, gradients), loss_and_gradients(plan, config, batch))


def test_chunked_losses_never_hold_the_logits_of_all_tokens():
    whole = f"[{16},{LENGTH},{LLAMA.padded_vocab}]"
    assert whole in step_text(make_plan({}, LLAMA), LLAMA, packed_batch())
    assert whole not in step_text(make_plan({}, LLAMA, chunks=4), LLAMA, packed_batch())


def test_bfloat16_compute_stays_near_float32():
    loss, gradients = loss_and_gradients(make_plan({"fsdp": 2}, LLAMA), LLAMA, packed_batch(), dtype="bfloat16")
    want = reference(LLAMA)
    assert loss == pytest.approx(want[0], rel=2e-3)
    assert all(value.dtype == np.float32 for value in gradients.values()), "master gradients are float32"

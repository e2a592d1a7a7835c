"""An optimizer state that is split over the data axis too (ZeRO-1) trains as one device does, on less memory."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.config import Run
from jaxlm.data.config import DataConfig
from jaxlm.optim import AdamW
from jaxlm.session import Session, numerics
from jaxlm.sharding import batch_sharding, make_mesh
from jaxlm.trainer.config import TrainConfig
from jaxlm.tree import named_leaves
from planners.layout import rules
from tests.laws.work import LENGTH, LLAMA, SEQUENCES, make_plan, packed_batch

STEPS = 2
MESHES = {"data_fsdp": {"data": 2, "fsdp": 2}, "data": {"data": 8}, "all": {"data": 2, "fsdp": 2, "tensor": 2}}


def session(mesh: dict[str, int], *, zero: bool) -> Session:
    plan = make_plan(mesh, LLAMA, accumulation=2)
    plan = dataclasses.replace(plan, rules=rules(plan.mesh, zero=zero))
    run = Run(
        model=LLAMA,
        data=DataConfig(sequence=LENGTH),
        optim=AdamW(warmup=0),
        train=TrainConfig(steps=10, batch=SEQUENCES),
    )
    made = Session(run, LLAMA, numerics(LLAMA, "cpu"), plan)
    made.__dict__["mesh"] = make_mesh(plan, jax.devices()[: plan.devices])
    return made


def trained(made: Session) -> tuple[dict[str, np.ndarray], int, int]:
    """Weights after a few steps, and bytes of weights and of optimizer state on the first device."""

    def here(tree: object) -> int:
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    with jax.set_mesh(made.mesh):
        place, cut = batch_sharding(made.mesh), (2, SEQUENCES // 2, LENGTH)
        batches = [
            {name: jax.device_put(value.reshape(cut), place) for name, value in packed_batch(seed).items()}
            for seed in range(STEPS)
        ]
        state, step = made.fresh(), made.compile_step(batches[0])
        for batch in batches:
            state, metrics = step(state, batch)
            assert bool(metrics["finite"])
        weights = {name: np.asarray(leaf) for name, leaf in named_leaves(state.model).items()}
        return weights, here(state.model), here(state.opt)


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return trained(session({}, zero=False))[0]


@pytest.mark.parametrize(
    "name", ["data_fsdp", pytest.param("data", marks=pytest.mark.slow), pytest.param("all", marks=pytest.mark.slow)]
)
def test_training_with_a_split_optimizer_equals_one_device(name: str, reference: dict[str, np.ndarray]) -> None:
    mesh = MESHES[name]
    weights, model_bytes, state_bytes = trained(session(mesh, zero=True))
    for tensor, expected in reference.items():
        error = np.linalg.norm(weights[tensor] - expected) / np.linalg.norm(expected)
        assert error <= 1e-5, f"{tensor}: {error:.1e}"
    assert state_bytes < 2 * model_bytes / (0.8 * mesh["data"]), "two moments, each split over the data axis"

"""A tiny model and batch, and its loss and gradients under any plan."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.collectives.sync import Implicit
from jaxlm.model.config import ModelConfig
from jaxlm.model.loss import next_token
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.sharding import Rules, batch_sharding, make_mesh, shardings
from jaxlm.tree import from_named, named_leaves
from planners.layout import rules
from planners.plan import MESH_AXES, Batch, Compile, Plan, Segment

LENGTH, SEQUENCES = 32, 16

LLAMA = ModelConfig(layers=3, embed=32, heads=8, kv_heads=4, mlp=64, vocab=250, vocab_multiple=32, qk_norm=True)
GPT2 = ModelConfig(
    layers=2, embed=32, heads=4, mlp=64, vocab=250, vocab_multiple=32, norm="layer", position="learned",
    positions=LENGTH, activation="gelu", bias=True, tied=False, z_loss=1e-3,
)  # fmt: skip


def make_plan(
    mesh: Mapping[str, int],
    config: ModelConfig,
    *,
    accumulation: int = 1,
    remat: tuple[Segment, ...] = (),
    chunks: int = 1,
) -> Plan:
    sizes = dict.fromkeys(MESH_AXES, 1) | dict(mesh)
    return Plan(
        mesh=sizes,
        rules=rules(sizes),
        batch=Batch(sequences=SEQUENCES, microbatch=SEQUENCES // accumulation, accumulation=accumulation),
        remat=remat or (Segment(layers=config.layers),),
        compile=Compile(loss_chunks=chunks),
    )


@cache
def weights(config: ModelConfig) -> dict[str, np.ndarray]:
    """The same float32 weights for every plan."""
    model = Transformer(config, Execution(), key=jax.random.key(3))
    return {name: np.asarray(leaf) for name, leaf in named_leaves(model).items()}


def packed_batch(seed: int = 0) -> dict[str, np.ndarray]:
    """Rows of several documents each, unequal numbers of predicted tokens, padding at the end of some rows."""
    random = np.random.default_rng(seed)
    shape = (SEQUENCES, LENGTH)
    segments, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    weight = np.zeros(shape, np.float32)
    for row in range(SEQUENCES):
        start, document = 0, 1
        while start < LENGTH - 4 * (row % 3):
            stop = min(start + int(random.integers(3, 14)), LENGTH)
            segments[row, start:stop] = document
            positions[row, start:stop] = np.arange(stop - start)
            weight[row, start : stop - 1] = 1.0
            start, document = stop, document + 1
    tokens = random.integers(0, 250, (2, *shape)).astype(np.int32)
    return {
        "tokens": tokens[0], "targets": tokens[1], "segments": segments, "positions": positions, "weights": weight,
    }  # fmt: skip


def _prepared(
    plan: Plan, config: ModelConfig, batch: Mapping[str, np.ndarray], dtype: str
) -> tuple[Any, tuple[Any, Any]]:
    """The jitted loss and gradients as the trainer computes them, and their arguments on the mesh of the plan."""
    execution = Execution(
        shard=Rules(plan.rules.activations, rest=plan.rules.parameters),
        remat=plan.remat,
        loss_chunks=plan.compile.loss_chunks,
        dtype=dtype,
    )
    like = jax.eval_shape(lambda: Transformer(config, execution, key=jax.random.key(0)))
    mesh = jax.sharding.get_mesh()
    places = shardings(like, mesh, plan.rules.parameters)
    model = jax.device_put(from_named(like, weights(config)), places)
    cut = (plan.batch.accumulation, plan.batch.microbatch, -1)
    pieces = {name: jax.device_put(value.reshape(cut), batch_sharding(mesh)) for name, value in batch.items()}

    def gradients(model: Transformer, pieces: dict[str, jax.Array]):
        synced = Implicit().gradients(next_token, model, pieces, jax.random.key(0), (), jnp.zeros((), jnp.int32))
        return synced.sums["loss"] / synced.sums["weight"], synced.gradients

    return jax.jit(gradients, out_shardings=(None, places)), (model, pieces)


def loss_and_gradients(
    plan: Plan, config: ModelConfig, batch: Mapping[str, np.ndarray], dtype: str = "float32"
) -> tuple[float, dict[str, np.ndarray]]:
    """Mean loss and gradient by tensor name."""
    with jax.set_mesh(make_mesh(plan, jax.devices()[: plan.devices])):
        gradients, arguments = _prepared(plan, config, batch, dtype)
        loss, grads = gradients(*arguments)
    return float(loss), {name: np.asarray(leaf) for name, leaf in named_leaves(grads).items()}


def step_text(plan: Plan, config: ModelConfig, batch: Mapping[str, np.ndarray]) -> str:
    """The optimized HLO of the same computation."""
    with jax.set_mesh(make_mesh(plan, jax.devices()[: plan.devices])):
        gradients, arguments = _prepared(plan, config, batch, "float32")
        return gradients.lower(*arguments).compile().as_text()


@cache
def reference(config: ModelConfig) -> tuple[float, dict[str, np.ndarray]]:
    """One device, float32, everything at once."""
    return loss_and_gradients(make_plan({}, config), config, packed_batch())


def assert_same(
    got: tuple[float, dict[str, np.ndarray]], want: tuple[float, dict[str, np.ndarray]], *, rtol: float = 1e-6
) -> None:
    """Loss to `rtol`; each gradient tensor to norm(difference) / norm <= 1e-5."""
    np.testing.assert_allclose(got[0], want[0], rtol=rtol)
    assert got[1].keys() == want[1].keys()
    whole = np.sqrt(sum(np.square(np.linalg.norm(g)) for g in want[1].values()))
    for name, expected in want[1].items():
        norm, difference = np.linalg.norm(expected), np.linalg.norm(got[1][name] - expected)
        if name == "blocks/attn/k_bias":
            # It adds one number to all scores of a query, which softmax takes away again: the gradient is zero.
            assert norm <= 1e-6 * whole, f"{name}: norm {norm:.2e}"
            assert difference <= 1e-6 * whole, f"{name}: norm of difference {difference:.2e}"
            continue
        assert difference <= 1e-5 * norm, f"{name}: relative error {difference / norm:.2e}"

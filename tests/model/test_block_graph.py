"""The graph of a block says what jax.checkpoint really keeps and computes again."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.ad_checkpoint import checkpoint_name

from jaxlm.model.block import Block
from jaxlm.model.config import ModelConfig
from jaxlm.model.describe import describe
from jaxlm.sharding import Rules
from planners.machines.presets import device
from planners.plan import MESH_AXES, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.recompute import hull, keeping, keepings
from planners.remat.block import Block as Graph

LLAMA = ModelConfig(layers=4, embed=64, heads=4, kv_heads=2, mlp=192, vocab=256, norm="rms", activation="swiglu")
GPT2 = ModelConfig(layers=4, embed=64, heads=4, mlp=192, vocab=256, norm="layer", activation="gelu", bias=True)
ALONE = dict.fromkeys(MESH_AXES, 1)
T = 32


class Naming(Rules):
    """Names values and constrains nothing."""

    def __call__(self, x: jax.Array, *names: str | None, name: str | None = None) -> jax.Array:
        return x if name is None else checkpoint_name(x, name)


def work(config: ModelConfig, kernel: Any = "xla") -> Workload:
    tx = optax.adam(1e-3)
    return describe(config, tx, batch=8, sequence=T, kernel=kernel, dtype="float32", packed=False)


def products(jaxpr: Any) -> float:
    """FLOPs of all matrix products of a jaxpr, those inside of it included."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            if contracted:
                summed = 1
                for i in contracted:
                    summed *= equation.invars[0].aval.shape[i]
                total += 2.0 * summed * equation.outvars[0].aval.size
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += products(inner)
    return total


def traced(config: ModelConfig, save: tuple[str, ...] | None) -> float:
    """FLOPs of the forward and the backward pass of one block under a policy, as jax traces them."""
    shard = Naming()
    block = jax.eval_shape(lambda key: Block(config, shard, "xla", key=key), jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, T, config.embed), jnp.float32)
    positions = jnp.arange(T)[None]

    def call(block: Block, x: jax.Array) -> jax.Array:
        return block(x, positions, None)

    if save is not None:
        call = jax.checkpoint(call, policy=jax.checkpoint_policies.save_only_these_names(*save))
    gradient = jax.grad(lambda b, x: jnp.sum(call(b, x)), (0, 1))
    return products(jax.make_jaxpr(gradient)(block, x).jaxpr)


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_recomputed_products_are_those_that_jax_recomputes(config: ModelConfig) -> None:
    described, h100 = work(config), device("H100")
    names = Graph.of(described, lambda tensor: 1.0, lambda operation: 1.0).names
    none = traced(config, None)
    for save in ((), ("q",), ("q", "k", "v"), ("context",), ("attn_out", "mlp_up"), names):
        priced = keeping(described, save, h100, ALONE, Assumptions())
        again = traced(config, save) - none
        # The weighted values have a gradient that needs no second forward product; jax counts them once more.
        assert priced.flops == pytest.approx(again, abs=1.0), save


def test_what_the_backward_pass_reads_has_the_names_of_the_model() -> None:
    described = work(LLAMA)
    read = {tensor.name for tensor in described.activations}
    assert {"carry", "attn_norm", "q", "k", "v", "context", "attn_out", "mlp_norm", "mlp_gate", "mlp_up"} <= read
    assert "mlp_out" not in read, "no backward pass needs the block's last product"
    made = {name for operation in described.operations for name in operation.outputs}
    assert read - {"carry"} <= made == {tensor.name for tensor in described.values}


def test_a_fused_kernel_has_statistics_and_no_scores() -> None:
    described = work(dataclasses.replace(LLAMA), "cudnn")
    attention = next(operation for operation in described.operations if operation.attention)
    assert attention.outputs == ("context", "statistics")
    assert all(tensor.shape.count(T) < 2 for tensor in described.activations)
    # By segment offsets the backward pass runs the kernel again by itself: nothing to keep.
    assert "statistics" not in {tensor.name for tensor in work(LLAMA, "cudnn_segments").values}


def test_the_front_goes_from_nothing_kept_to_nothing_computed_again() -> None:
    described, h100 = work(LLAMA, "cudnn"), device("H100")
    found = keepings(described, h100, ALONE, Assumptions())
    assert found[0].save == ()
    assert found[-1].seconds == pytest.approx(0.0, abs=1e-12)
    assert all(a.bytes < b.bytes and a.seconds > b.seconds for a, b in itertools.pairwise(found))
    assert all("context" in each.save for each in found if "statistics" in each.save)
    rates = [(a.seconds - b.seconds) / (b.bytes - a.bytes) for a, b in itertools.pairwise(hull(found))]
    assert rates == sorted(rates, reverse=True)

"""How the weights of many layers are read, by the traced program."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.sharding import Rules, make_mesh
from planners.layout import rules
from planners.plan import MESH_AXES, Batch, Plan, Segment

LAYERS, EMBED, HEADS, MLP = 3, 16, 4, 24
MODEL = ModelConfig(layers=LAYERS, embed=EMBED, heads=HEADS, mlp=MLP, vocab=48)
LAST = {(LAYERS, MLP, EMBED), (LAYERS, HEADS, EMBED // HEADS, EMBED)}
"""Stacked matrices whose last dimension is the model's width: of the feed-forward part and of the attention."""

FULL, NONE = Segment(layers=1, save=()), Segment(layers=2)


def under(segments: tuple[Segment, ...], microbatches: int = 1, **sizes: int) -> tuple[Plan, Execution]:
    """A plan with this mesh, and how a model runs under it in bfloat16."""
    mesh = dict.fromkeys(MESH_AXES, 1) | sizes
    plan = Plan(mesh=mesh, rules=rules(mesh), batch=Batch(sequences=8, microbatch=8, accumulation=1), remat=segments)
    shard = Rules(plan.rules.activations, rest=plan.rules.parameters)
    return plan, Execution(shard=shard, dtype="bfloat16", remat=segments, microbatches=microbatches)


def cast(segments: tuple[Segment, ...], microbatches: int = 1, **sizes: int) -> set[tuple[int, ...]]:
    """Shapes of stacked weights that the forward pass casts whole."""
    plan, how = under(segments, microbatches, **sizes)
    with jax.set_mesh(make_mesh(plan, jax.devices()[: plan.devices])):
        model = jax.eval_shape(lambda key: Transformer(MODEL, how, key=key), jax.random.key(0))
        tokens = jax.ShapeDtypeStruct((8, 4), jnp.int32)
        program = str(jax.make_jaxpr(lambda model, tokens: model(tokens, tokens))(model, tokens))
    shapes = re.findall(r"bf16\[([\d,]+)\] = convert_element_type", program)
    return {shape for shape in (tuple(map(int, s.split(","))) for s in shapes) if len(shape) > 2 and shape[0] == LAYERS}


@pytest.mark.parametrize("segments", [(Segment(layers=3, save=()),), (FULL, NONE)])
def test_matrices_gathered_along_their_last_dimension_are_cast_before_they_are_read(segments) -> None:
    assert cast(segments, fsdp=2) == LAST
    assert cast(segments, fsdp=2, tensor=2) == LAST, "what tensor splits stays split at work"


def test_nothing_is_cast_whole_where_nothing_is_gathered_or_computed_again() -> None:
    assert cast((Segment(layers=3),), fsdp=2) == set()
    assert cast((Segment(layers=3, save=()),), data=2) == set()
    assert cast((Segment(layers=3, save=()),), tensor=2) == set()
    assert cast((Segment(layers=3, save=()),), microbatches=2, fsdp=2) == set(), "XLA turns them once for both"


@pytest.mark.slow
def test_the_cast_changes_no_gradient() -> None:
    tokens = jnp.arange(32, dtype=jnp.int32).reshape(8, 4)

    def gradients(microbatches: int) -> Any:
        plan, how = under((FULL, NONE), microbatches, fsdp=2)
        with jax.set_mesh(make_mesh(plan, jax.devices()[:2])):
            loss = lambda model: jnp.sum(model(tokens, tokens).astype(jnp.float32) ** 3)
            return jax.jit(lambda key: jax.grad(loss)(Transformer(MODEL, how, key=key)))(jax.random.key(0))

    once, shared = (jax.tree.leaves(gradients(microbatches)) for microbatches in (1, 2))
    for one, other in zip(once, shared, strict=True):
        assert one.dtype == jnp.float32
        np.testing.assert_array_equal(one, other)

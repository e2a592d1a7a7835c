"""Attention by XLA's own operations gives what JAX's does, whatever it keeps and however a row is cut."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.attention import same_document
from jaxlm.model.ops import _masked_sum, _read, project
from jaxlm.model.plain_attention import attend, blocks_of


@pytest.mark.parametrize(
    ("length", "heads", "groups", "causal", "packed", "blocks"),
    [
        (12, 3, 3, True, False, 3),
        (12, 4, 2, True, True, 2),
        (10, 4, 1, True, True, 1),
        (10, 4, 2, False, True, 1),
        (10, 2, 2, False, False, 1),
    ],
)
def test_context_and_gradients_are_those_of_jax(
    length: int, heads: int, groups: int, causal: bool, packed: bool, blocks: int
) -> None:
    rng = np.random.default_rng(0)
    q, g = (jnp.asarray(rng.normal(size=(2, length, heads, 8)), jnp.float32) for _ in range(2))
    k, v = (jnp.asarray(rng.normal(size=(2, length, groups, 8)), jnp.float32) for _ in range(2))
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (2, length)), axis=1), jnp.int32)
    mask = same_document(segments) if packed else None

    def ours(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, mask, causal, blocks)

    def jaxs(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation="xla")

    for got, expected in zip(_both(ours, g, q, k, v), _both(jaxs, g, q, k, v), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def _both(call: Any, g: jax.Array, *given: jax.Array) -> list[jax.Array]:
    """A value and its gradients."""

    def run(*given: jax.Array) -> list[jax.Array]:
        y, pull = jax.vjp(call, *given)
        return [y, *pull(g)]

    return jax.jit(run)(*given)


def test_the_backward_pass_keeps_no_scores() -> None:
    x = jnp.ones((1, 64, 2, 4), jnp.float32)
    kept = jax.tree.leaves(jax.eval_shape(lambda x: jax.vjp(lambda x: attend(x, x, x, None, True, 1), x)[1], x))
    assert max(leaf.size for leaf in kept) == x.size < 2 * 64 * 64


def test_a_causal_row_is_cut_into_few_equal_blocks() -> None:
    assert [blocks_of(n, causal=True) for n in (32, 128, 256, 384, 512, 1024, 257)] == [1, 1, 2, 3, 4, 4, 1]
    assert blocks_of(1024, causal=False) == 1


def test_a_label_is_read_as_the_masked_sum_finds_it() -> None:
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.normal(size=(2, 3, 7)), jnp.float32)
    labels = jnp.asarray([[0, 6, 3], [-1, 7, 2]], jnp.int32)  # -1 and 7 are no labels
    g = jnp.asarray(rng.normal(size=(2, 3)), jnp.float32)
    for got, expected in zip(
        _both(lambda x: _read(x, labels), g, logits), _both(lambda x: _masked_sum(x, labels), g, logits), strict=True
    ):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("equation", "left", "right"),
    [
        ("BTD,DF->BTF", (2, 3, 4), (4, 5)),
        ("BTD,DNH->BTNH", (2, 3, 4), (4, 2, 3)),
        ("BTNH,NHD->BTD", (2, 3, 2, 4), (2, 4, 5)),
    ],
)
def test_a_weight_gradient_is_that_of_jax(equation: str, left: tuple[int, ...], right: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (left, right))
    g = jnp.asarray(rng.normal(size=jnp.einsum(equation, x, w).shape), jnp.float32)
    ours, jaxs = (_both(lambda x, w, how=how: how(equation, x, w), g, x, w) for how in (project, jnp.einsum))
    for got, expected in zip(ours, jaxs, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

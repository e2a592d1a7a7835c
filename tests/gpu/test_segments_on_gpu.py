"""Attention by segment offsets on a real Hopper GPU, against attention by mask in float32 without any fused kernel.

    pytest -n 0 -m gpu tests/gpu/test_segments_on_gpu.py

When this passes, set jaxlm.model.attention.SEGMENTS_BY_DEFAULT to True.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.model.attention import same_document
from jaxlm.model.packed_attention import HOPPER, attend
from jaxlm.sharding import Rules

T, H = 512, 64

LENGTHS = {
    "one_document": [[T]] * 4,
    "padding_at_the_end": [[T - 1], [T - 64], [300, 100], [1]],
    "as_many_as_a_call_takes": [[T // 16] * 16] * 4,
    "rows_that_differ": [[T], [200, 312], [3] * 15, [128, 1, 1, 382]],
    "more_than_a_call_takes": [[7] * 73, [1] * T, [T], [16, 480]],
}


def gpu() -> Any:
    try:
        device = jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("no GPU here")
    if tuple(map(int, device.compute_capability.split("."))) < HOPPER:
        pytest.skip(f"{device.device_kind} is older than Hopper")
    return device


def packing(rows: list[list[int]]) -> np.ndarray:
    """Segment numbers of rows of documents of these lengths: 1, 2, ..., and 0 after the last."""
    segments = np.zeros((len(rows), T), np.int32)
    for segment, lengths in zip(segments, rows, strict=True):
        segment[: sum(lengths)] = np.repeat(1 + np.arange(len(lengths)), lengths)
    return segments


def results(attention: Any, arguments: tuple[jax.Array, ...]) -> list[np.ndarray]:
    """The output and the gradients of queries, keys and values, float32."""

    @jax.jit
    def run(q: jax.Array, k: jax.Array, v: jax.Array, g: jax.Array) -> Any:
        out, pull = jax.vjp(attention, q, k, v)
        return out, *pull(g.astype(out.dtype))

    return [np.asarray(a, np.float32) for a in run(*arguments)]


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "both_ways"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (8, 2)], ids=["each_its_own_keys", "grouped"])
@pytest.mark.parametrize("name", LENGTHS)
def test_output_and_gradients_are_those_of_attention_by_mask(
    name: str, heads: int, kv_heads: int, causal: bool
) -> None:
    device = gpu()
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = [(4, T, n, H) for n in (heads, kv_heads, kv_heads, heads)]
    made = [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]
    with jax.default_device(device):
        rows = jnp.asarray(packing(LENGTHS[name]))
        halves = tuple(jax.device_put(x, device) for x in made)
        floats = tuple(x.astype(jnp.float32) for x in halves)
        got = results(lambda q, k, v: attend(q, k, v, rows, causal=causal, shard=Rules()), halves)
        reference = partial(
            jax.nn.dot_product_attention, mask=same_document(rows), is_causal=causal, implementation="xla"
        )
        want = results(reference, floats)
    for part, one, other in zip(("output", "dq", "dk", "dv"), got, want, strict=True):
        assert np.all(np.isfinite(one)), f"{part} holds memory that no kernel has written"
        error = np.linalg.norm(one - other) / np.linalg.norm(other)
        assert error < 2e-2, f"{part}: relative error {error:.1e}"
        np.testing.assert_allclose(one, other, atol=0.06 * np.abs(other).max(), rtol=0.1, err_msg=part)

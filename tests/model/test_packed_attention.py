"""Attention by the offsets of documents: everything but cuDNN itself, whose reading of them is imitated on the CPU."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from jaxlm.model import attention, packed_attention
from jaxlm.model.attention import choose_kernel, require_kernel, same_document, say_kernel
from jaxlm.model.config import ModelConfig
from jaxlm.model.describe import describe
from jaxlm.model.packed_attention import DOCUMENTS, attend, extents, obstacles, ranks
from jaxlm.sharding import Rules, make_mesh
from planners.layout import rules
from planners.machines.cluster_file import load_cluster
from planners.plan import MESH_AXES, Batch, Plan, Segment
from planners.search import price
from planners.wishes import Search

B, T, N, K, H = 8, 24, 4, 2, 8


def packing(lengths: list[int], total: int = T) -> np.ndarray:
    """Segment numbers of one row: documents of these lengths until the row is full, then padding."""
    row = np.zeros(total, np.int32)
    start = 0
    for number, length in enumerate(lengths, start=1):
        row[start : start + length] = number
        start += length
    return row


ROWS = st.lists(st.lists(st.integers(1, T), max_size=T).map(packing), min_size=1, max_size=4).map(np.stack)


@settings(max_examples=60, deadline=None)
@given(segments=ROWS, first=st.integers(0, 6), documents=st.integers(2, 7))
def test_lengths_and_starts_are_those_of_the_documents(segments, first, documents):
    lengths, starts = (np.asarray(a) for a in _extents(segments, first, documents))
    for row, got_lengths, got_starts in zip(segments, lengths, starts, strict=True):
        begins = [0, *(np.flatnonzero(np.diff(row)) + 1)]
        ends = [*begins[1:], T]
        wanted = list(zip(begins, ends, strict=True))[first : first + documents]
        none = [-1] * (documents - len(wanted))
        assert got_lengths.tolist() == [end - begin for begin, end in wanted] + none
        assert got_starts.tolist() == [begin for begin, _ in wanted] + none + [-1]


@jax.jit(static_argnums=2)
def _extents(segments, first, documents):
    return extents(ranks(jnp.asarray(segments)), jnp.asarray(first, jnp.int32), documents)


@jax.custom_vjp
def spoil_gradient(x: jax.Array, written: jax.Array) -> jax.Array:
    """The identity, whose gradient is NaN where `written` is false, as memory that no kernel has written may be."""
    return x


spoil_gradient.defvjp(lambda x, written: (x, written), lambda written, g: (jnp.where(written, g, jnp.nan), None))


def imitation(q, k, v, **how: Any) -> jax.Array:
    """The fused call as cuDNN documents it: document i has `lengths[i]` tokens, the first at element `offsets[i]` of
    the tensor, for all rows one after the other as JAX itself lines them up. All else is left unwritten."""
    lengths, kv_lengths, starts, kv_starts = cudnn._fix_seqlen_offsets(
        how["q_seqlen"], how["kv_seqlen"], how["q_offsets"], how["kv_offsets"], q, k
    )
    causal = how["mask_type"] == cudnn.MaskType.PADDING_CAUSAL

    def owner(lengths: jax.Array, starts: jax.Array, x: jax.Array) -> jax.Array:
        """Which document each token of all rows is in; -1 for none."""
        width = x.shape[2] * x.shape[3]
        at = jnp.arange(x.shape[0] * x.shape[1])[:, None] * width
        begin, length = (a.ravel()[: lengths.size][None, :] for a in (starts, lengths))
        inside = (at >= begin) & (at < begin + length * width)
        return jnp.where(inside.any(1), inside.argmax(1), -1)

    q_owner, k_owner = owner(lengths, starts, q), owner(kv_lengths, kv_starts, k)
    written = (q_owner >= 0).reshape(q.shape[0], q.shape[1], 1, 1)
    q, k, v = (spoil_gradient(x, written) for x in (q, k, v))
    queries, keys, values = (x.reshape(1, -1, *x.shape[2:]) for x in (q, k, v))
    mask = (q_owner[:, None] == k_owner[None, :])[None, None]
    made = jax.nn.dot_product_attention(
        queries, keys, values, mask=mask, is_causal=causal, scale=how["scale"], implementation="xla"
    )
    return jnp.where(written, made.reshape(q.shape), jnp.nan)


def masked(q, k, v, segments, causal: bool) -> jax.Array:
    return jax.nn.dot_product_attention(q, k, v, mask=same_document(segments), is_causal=causal, implementation="xla")


def inputs(seed: int = 0) -> tuple[jax.Array, ...]:
    """Queries, keys, values and a gradient of the result, and rows of one document up to one per position."""
    keys = jax.random.split(jax.random.key(seed), 4)
    q, k, v, g = (jax.random.normal(key, (B, T, n, H)) for key, n in zip(keys, (N, K, K, N), strict=True))
    lengths = [[T], [T - 1], [5, 9], [1] * T, [3] * 7, [2, 1, 20], [7, 7, 7, 3], [1]]
    return q, k, v, jnp.asarray(np.stack([packing(some) for some in lengths])), g


def both(f: Any, *arguments: jax.Array) -> list[jax.Array]:
    """The output of `f(q, k, v)` and the gradients for the cotangent that comes last in the arguments."""

    @jax.jit
    def run(q, k, v, g) -> list[jax.Array]:
        out, pull = jax.vjp(f, q, k, v)
        return [out, *pull(g)]

    return run(*arguments)


@pytest.mark.parametrize(
    ("documents", "causal"), [(5, True), (5, False), (32, True)], ids=["turns", "turns_both_ways", "one_turn"]
)
def test_attention_by_offsets_equals_attention_by_mask(monkeypatch, documents, causal):
    """Rows hold up to 24 documents, so calls of 5 documents take several turns."""
    monkeypatch.setattr(cudnn, "dot_product_attention", imitation)
    monkeypatch.setattr(packed_attention, "DOCUMENTS", documents)
    q, k, v, segments, g = inputs()
    got = both(lambda q, k, v: attend(q, k, v, segments, causal=causal, shard=Rules()), q, k, v, g)
    want = both(lambda q, k, v: masked(q, k, v, segments, causal), q, k, v, g)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_every_device_counts_the_documents_of_its_own_rows(monkeypatch):
    shapes = set()

    def local(q, k, v, **how: Any) -> jax.Array:
        shapes.add((q.shape, how["q_seqlen"].shape))
        return imitation(q, k, v, **how)

    monkeypatch.setattr(cudnn, "dot_product_attention", local)
    monkeypatch.setattr(packed_attention, "DOCUMENTS", 5)
    mesh = dict.fromkeys(MESH_AXES, 1) | {"data": 2, "fsdp": 2, "tensor": 2}
    plan = Plan(
        mesh=mesh, rules=rules(mesh), batch=Batch(sequences=B, microbatch=B, accumulation=1), remat=(Segment(layers=1),)
    )
    shard = Rules(plan.rules.activations)
    q, k, v, segments, g = inputs(1)
    want = both(lambda q, k, v: masked(q, k, v, segments, True), q, k, v, g)

    @jax.jit
    def sharded(q, k, v, segments, g):
        q, g = (shard(x, "batch", "length", "heads", None) for x in (q, g))
        k, v = (shard(x, "batch", "length", "kv_heads", None) for x in (k, v))
        return both(lambda q, k, v: attend(q, k, v, segments, causal=True, shard=shard), q, k, v, g)

    with jax.set_mesh(make_mesh(plan)):
        got = sharded(q, k, v, segments, g)
    assert shapes == {((B // 4, T, N // 2, H), (B // 4, 5))}
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_layouts_that_it_cannot_split_are_refused():
    q, k, v, segments, _ = inputs()
    mesh = dict.fromkeys(MESH_AXES, 1) | {"tensor": 2, "fsdp": 4}
    plan = Plan(
        mesh=mesh, rules=rules(mesh), batch=Batch(sequences=B, microbatch=B, accumulation=1), remat=(Segment(layers=1),)
    )
    unlike = Rules(tuple(row for row in plan.rules.activations if row[0] != "kv_heads"))
    with jax.set_mesh(make_mesh(plan)), pytest.raises(ValueError, match="heads and kv_heads split alike"):
        attend(q, k, v, segments, causal=True, shard=unlike)
    huge = jax.ShapeDtypeStruct((2**12, 2**12, 2**4, 2**4), jnp.bfloat16)
    rows = jax.ShapeDtypeStruct((2**12, 2**12), jnp.int32)
    with pytest.raises(ValueError, match=r"32 bits, at most 2147483647; use more microbatches"):
        jax.eval_shape(lambda q, s: attend(q, q, q, s, causal=True, shard=Rules()), huge, rows)


GPU = ModelConfig(layers=2, embed=128, heads=2, mlp=64, vocab=50, head_dim=64, attention="segments")


def test_segment_offsets_are_chosen_when_asked_for_and_refused_with_the_reason():
    assert choose_kernel(GPU, "gpu", "bfloat16") == "cudnn_segments"
    assert choose_kernel(GPU, "gpu", "bfloat16", (9, 0)) == "cudnn_segments"
    with pytest.raises(ValueError, match=r"needs a Hopper GPU.*this one has 8\.0.*Set model\.attention=cudnn"):
        choose_kernel(GPU, "gpu", "bfloat16", (8, 0))
    with pytest.raises(ValueError, match=r"the platform is cpu.*Set model\.attention=xla"):
        choose_kernel(GPU, "cpu", "bfloat16")


def test_auto_takes_segment_offsets_only_once_they_are_proven(monkeypatch):
    auto = dataclasses.replace(GPU, attention="auto")
    assert choose_kernel(auto, "gpu", "bfloat16", (9, 0)) == "cudnn"
    monkeypatch.setattr(attention, "SEGMENTS_BY_DEFAULT", True)
    assert choose_kernel(auto, "gpu", "bfloat16", (9, 0)) == "cudnn_segments"
    assert choose_kernel(auto, "gpu", "bfloat16", (8, 0)) == "cudnn"
    assert choose_kernel(dataclasses.replace(GPU, attention="cudnn"), "gpu", "bfloat16", (9, 0)) == "cudnn"
    assert choose_kernel(auto, "cpu", "float32") == "xla"


def test_the_kernel_says_how_it_keeps_documents_apart():
    assert say_kernel("cudnn", packed=True) == "cudnn kernel (masked)"
    assert say_kernel("cudnn_segments", packed=True) == "cudnn kernel (segment offsets)"
    assert say_kernel("cudnn", packed=False) == "cudnn kernel"
    assert say_kernel("xla", packed=True) == "xla kernel"
    with pytest.raises(RuntimeError, match="no __cudnn"):
        require_kernel("cudnn_segments", "HloModule step")


def test_a_jax_whose_private_call_has_changed_is_named(monkeypatch):
    assert obstacles() == []
    monkeypatch.setattr(cudnn, "dot_product_attention", lambda query, key, value, q_seqlen, kv_seqlen, scale: None)
    (sentence,) = obstacles()
    assert sentence == (
        f"jax {jax.__version__} has changed the private call behind it (no q_offsets, kv_offsets, mask_type)"
    )
    monkeypatch.setattr(packed_attention, "_MODULE", "jax._src.gone")
    assert obstacles() == [f"jax {jax.__version__} has changed the private call behind it (no jax._src.gone)"]
    with pytest.raises(ValueError, match="has changed the private call"):
        choose_kernel(GPU, "gpu", "bfloat16")


LONG, H100 = 8192, load_cluster("h100x8")


@pytest.mark.parametrize(
    ("kernel", "heads", "needed"),
    [
        ("cudnn", (32, 8), 2 * 2 * LONG**2),
        ("cudnn_segments", (32, 32), 4 * DOCUMENTS * 32 * LONG),
        ("cudnn_segments", (32, 8), 4 * DOCUMENTS * 32 * LONG + 4 * 2 * 32 * 64 * LONG),
        ("xla", (32, 8), 0),
    ],
    ids=["mask", "offsets", "offsets_grouped", "xla"],
)
def test_the_plan_prices_what_a_kernel_needs_for_packed_rows(kernel, heads, needed):
    """Bytes for each of the two sequences of a device; statistics and keys are split over the heads, a mask is not."""
    config = ModelConfig(layers=2, embed=2048, heads=heads[0], kv_heads=heads[1], mlp=512, vocab=100)
    how: Any = dict(batch=8, sequence=LONG, kernel=kernel, dtype="bfloat16")
    packed, whole = (describe(config, optax.sgd(1e-3), **how, packed=packed) for packed in (True, False))
    mesh = {"fsdp": 4, "tensor": 2}
    memory = price(packed, H100, Search(), mesh, 8).memory
    assert memory.get("attention_scratch", 0) == 2 * needed / (1 if kernel == "cudnn" else 2)
    assert "attention_scratch" not in price(whole, H100, Search(), mesh, 8).memory


def test_attention_by_offsets_pays_for_a_forward_pass_more():
    config = ModelConfig(layers=2, embed=2048, heads=32, mlp=512, vocab=100)
    how: Any = dict(batch=8, sequence=LONG, dtype="bfloat16", packed=True)
    mask, offsets = (describe(config, optax.sgd(1e-3), **how, kernel=kernel) for kernel in ("cudnn", "cudnn_segments"))
    seconds = [price(work, H100, Search(), {"fsdp": 8}, 8).seconds["compute"] for work in (mask, offsets)]
    attention = mask.tokens / 8 * mask.attention_flops / 2 / H100.device.peak["bfloat16"]
    assert attention < seconds[1] - seconds[0] < 2 * attention

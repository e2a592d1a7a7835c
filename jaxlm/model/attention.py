"""Grouped-query attention, and the one place that chooses its kernel.

Axes: B batch, T query position, S key position, D embed, N query heads, K key/value heads, H head_dim.
"""

import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from jaxlm.model import packed_attention, plain_attention
from jaxlm.model.config import ModelConfig
from jaxlm.model.norm import RMSNorm
from jaxlm.model.ops import project
from jaxlm.model.param import constant, param
from jaxlm.sharding import Rules, mesh_axes

Kernel = Literal["xla", "cudnn", "cudnn_segments"]
"""`cudnn` keeps the documents of a packed row apart by a mask, `cudnn_segments` by their offsets."""

AMPERE = (8, 0)
"""The first compute capability with cuDNN flash attention (jax/_src/cudnn/fused_attention_stablehlo.py)."""

SEGMENTS_BY_DEFAULT = False
"""Whether `auto` takes `cudnn_segments` where it can. It has been compiled for H100 and its arithmetic checked, but it
has never run on one: set this to True once `pytest -m gpu tests/gpu/test_segments_on_gpu.py` has passed there."""

FUSED_CALL = "__cudnn$fmha"
"""What a fused cuDNN attention is called in the optimized HLO."""


STATISTICS = "statistics"
"""The name by which a Plan keeps the statistics of the softmax; without them the fused forward pass runs again."""

FUSED_FORWARD = "dot_product_attention_fwd_wrapper"
"""The primitive of cuDNN's attention in a jaxpr, whose results are the context and these statistics."""


def choose_kernel(config: ModelConfig, platform: str, dtype: str, capability: tuple[int, int] | None = None) -> Kernel:
    """The attention kernel for a platform; ValueError where the configured one cannot run.

    `capability` is the GPU's compute capability; None where it is not known, as when planning for another machine.
    cuDNN limits: half precision, head_dim a multiple of 8 and at most 256 on Hopper, 128 before
    (jax/_src/cudnn/fused_attention_stablehlo.py).
    """
    on_gpu = platform in ("gpu", "cuda")
    old = capability is not None and capability < AMPERE
    problems = []
    if not on_gpu:
        problems.append(f"the platform is {platform}")
    if capability is not None and old:
        problems.append(f"the GPU's compute capability is {capability[0]}.{capability[1]}, it needs 8.0")
    if dtype != "bfloat16":
        problems.append(f"model.dtype is {dtype}, it needs bfloat16")
    if config.per_head % 8 or config.per_head > 256:
        problems.append(f"head_dim={config.per_head} is not a multiple of 8 up to 256")
    if config.attention == "xla" or (config.attention == "auto" and (old or not on_gpu)):
        return "xla"
    if config.attention == "segments" and (found := problems + packed_attention.obstacles(capability)):
        raise ValueError(
            f"model.attention=segments means cuDNN flash attention by segment offsets, but {'; '.join(found)}. "
            f"Set model.attention={'xla' if problems else 'cudnn'} instead."
        )
    if problems:
        raise ValueError(
            f"model.attention={config.attention} means cuDNN flash attention here, but {'; '.join(problems)}. "
            "Set model.attention=xla to accept the slower kernel."
        )
    by_default = config.attention == "auto" and SEGMENTS_BY_DEFAULT and not packed_attention.obstacles(capability)
    return "cudnn_segments" if config.attention == "segments" or by_default else "cudnn"


def say_kernel(kernel: Kernel, *, packed: bool) -> str:
    """The kernel in words, and how it keeps the documents of packed rows apart: `cudnn kernel (masked)`."""
    if kernel == "xla":
        return "xla kernel"
    how = {"cudnn": "masked", "cudnn_segments": "segment offsets"}[kernel]
    return f"cudnn kernel ({how})" if packed else "cudnn kernel"


def require_kernel(kernel: Kernel, optimized_hlo: str) -> None:
    """Raises RuntimeError if the compiled step does not hold the fused kernel it was planned with."""
    if kernel != "xla" and FUSED_CALL not in optimized_hlo:
        raise RuntimeError(f"planned with cuDNN flash attention, but the compiled step has no {FUSED_CALL} call")


def rotate(x_BTNH: Float[Array, "B T N H"], positions_BT: Int[Array, "B T"], theta: float) -> Float[Array, "B T N H"]:
    """Rotary position embedding, halves convention of Llama, https://arxiv.org/abs/2104.09864; float32 inside."""
    half = x_BTNH.shape[-1] // 2
    frequency_H = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BTH = jnp.einsum("BT,H->BTH", positions_BT.astype(jnp.float32), frequency_H)
    cos, sin = jnp.cos(angle_BTH)[:, :, None, :], jnp.sin(angle_BTH)[:, :, None, :]
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)


def same_document(segments_BT: Int[Array, "B T"]) -> Bool[Array, "B 1 T T"]:
    """Which pairs of positions of a packed row belong to one document."""
    return (segments_BT[:, :, None] == segments_BT[:, None, :])[:, None]


def attend(
    q_BTNH: Float[Array, "B T N H"],
    k_BTKH: Float[Array, "B T K H"],
    v_BTKH: Float[Array, "B T K H"],
    mask_B1TT: Bool[Array, "B 1 T T"] | None = None,
    *,
    causal: bool,
    fused: bool,
    shard: Rules,
) -> Float[Array, "B T N H"]:
    """Attention by XLA's own operations, or `fused` by cuDNN. Those of float32 are ours (see `plain_attention`), of
    other dtypes JAX's, which choose how a GPU multiplies them.

    Inside a shard_map that leaves mesh axes to the partitioner, JAX's partitioning of the cuDNN kernel fails, so there
    every device is handed its own rows and heads.
    """

    mesh = jax.sharding.get_abstract_mesh()
    whole = mesh.empty or all(mesh.shape[axis] == 1 for axis in mesh_axes(shard.here("length")[0]))

    def call(q: jax.Array, k: jax.Array, v: jax.Array, *mask: jax.Array) -> jax.Array:
        if not fused and q.dtype == jnp.float32:
            blocks = plain_attention.blocks_of(q.shape[1], causal=causal) if whole else 1
            return plain_attention.attend(q, k, v, mask[0] if mask else None, causal, blocks)
        kernel = "cudnn" if fused else "xla"
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask[0] if mask else None, is_causal=causal, implementation=kernel
        )

    free = set(mesh.axis_names) - set(mesh.manual_axes)
    masks = () if mask_B1TT is None else (mask_B1TT,)
    if not fused or not mesh.manual_axes or not free:
        return call(q_BTNH, k_BTKH, v_BTKH, *masks)
    if not whole:
        raise ValueError("cuDNN attention of unequal replicas needs whole rows; set the mesh axis context to 1")
    heads, groups = (shard.here("batch", "length", name, None) for name in ("heads", "kv_heads"))
    specs = (heads, groups, groups, *(shard.here("batch", None, None, None) for _ in masks))
    each = jax.shard_map(call, in_specs=specs, out_specs=heads, axis_names=free, check_vma=False)
    return each(q_BTNH, k_BTKH, v_BTKH, *masks)


class Attention(nnx.Module):
    def __init__(self, config: ModelConfig, shard: Rules, kernel: Kernel, *, key: PRNGKeyArray):
        c, (kq, kk, kv, ko) = config, jax.random.split(key, 4)
        D, N, K, H = c.embed, c.heads, c.groups, c.per_head
        self.shard, self.config, self.fp8 = shard, config, config.products == "fp8"
        self.kernel: Kernel = kernel
        self.q = param(kq, (D, N, H), ("embed", "heads", "head_dim"), std=1 / math.sqrt(D))
        self.k = param(kk, (D, K, H), ("embed", "kv_heads", "head_dim"), std=1 / math.sqrt(D))
        self.v = param(kv, (D, K, H), ("embed", "kv_heads", "head_dim"), std=1 / math.sqrt(D))
        self.o = param(ko, (N, H, D), ("heads", "head_dim", "embed"), std=1 / math.sqrt(2 * c.layers * N * H))
        self.q_bias = constant(0.0, (N, H), ("heads", "head_dim")) if c.bias else None
        self.k_bias = constant(0.0, (K, H), ("kv_heads", "head_dim")) if c.bias else None
        self.v_bias = constant(0.0, (K, H), ("kv_heads", "head_dim")) if c.bias else None
        self.o_bias = constant(0.0, (D,), ("embed",)) if c.bias else None
        self.q_norm = RMSNorm(H, c.norm_eps) if c.qk_norm else None
        self.k_norm = RMSNorm(H, c.norm_eps) if c.qk_norm else None

    def queries_keys_values(
        self, x_BTD: Float[Array, "B T D"], positions_BT: Int[Array, "B T"]
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B T K H"], Float[Array, "B T K H"]]:
        with jax.named_scope("qkv"):
            q = project("BTD,DNH->BTNH", x_BTD, self.q[...], _value(self.q_bias), eight_bits=self.fp8)
            k = project("BTD,DKH->BTKH", x_BTD, self.k[...], _value(self.k_bias), eight_bits=self.fp8)
            v = project("BTD,DKH->BTKH", x_BTD, self.v[...], _value(self.v_bias), eight_bits=self.fp8)
            if self.q_norm is not None and self.k_norm is not None:
                q, k = self.q_norm(q), self.k_norm(k)
            if self.config.position == "rope":
                q = rotate(q, positions_BT, self.config.rope_theta)
                k = rotate(k, positions_BT, self.config.rope_theta)
            q = self.shard(q, "batch", "length", "heads", None, name="q")
            k = self.shard(k, "batch", "length", "kv_heads", None, name="k")
            v = self.shard(v, "batch", "length", "kv_heads", None, name="v")
        return q, k, v

    def output(self, context_BTNH: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        with jax.named_scope("attention_output"):
            return project("BTNH,NHD->BTD", context_BTNH, self.o[...], _value(self.o_bias), eight_bits=self.fp8)

    def __call__(
        self, x_BTD: Float[Array, "B T D"], positions_BT: Int[Array, "B T"], segments_BT: Int[Array, "B T"] | None
    ) -> Float[Array, "B T D"]:
        """`segments_BT` numbers the documents of a row, 0 for padding. None: each row is one document, to its end, or
        the model is causal, so that no document sees the padding after it."""
        q, k, v = self.queries_keys_values(x_BTD, positions_BT)
        causal = self.config.causal
        with jax.named_scope("attention"):
            if segments_BT is not None and self.kernel == "cudnn_segments":
                context = packed_attention.attend(q, k, v, segments_BT, causal=causal, shard=self.shard)
            else:
                mask = () if segments_BT is None else (same_document(segments_BT),)
                context = attend(q, k, v, *mask, causal=causal, fused=self.kernel != "xla", shard=self.shard)
            context = self.shard(context, "batch", "length", "heads", None, name="context")
        return self.output(context)


def _value(bias: nnx.Param | None) -> jax.Array | None:
    return None if bias is None else bias[...]

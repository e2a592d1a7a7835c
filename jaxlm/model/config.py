"""The shape of a model, and presets with the true shapes of published ones."""

import dataclasses
from dataclasses import dataclass
from typing import Literal

MODEL_DOC = "https://huggingface.co/docs/transformers/model_doc"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """A Transformer: a decoder (causal), or an encoder that sees both ways.

    Attributes:
        preset: published shape to start from (see `jaxlm train --help`); other keys override it.
        layers: number of blocks.
        embed: width of the residual stream.
        heads: query heads.
        kv_heads: key/value heads, a divisor of heads (grouped-query attention); 0 means as many as heads.
        head_dim: width of one head; 0 means embed / heads.
        mlp: hidden width of the feed-forward layer.
        vocab: size of the vocabulary; 0 means the tokenizer's.
        positions: most positions a learned position table can hold (rope has no limit); 0 means data.sequence.
        norm: `rms` or `layer`.
        position: `rope` or `learned`.
        activation: `swiglu` or `gelu`.
        tied: whether the output head is the embedding table.
        bias: whether projections and layer norms carry a bias, as in GPT-2.
        causal: whether a position sees only itself and what comes before it, as a language model must; false sees its
            whole document, for classification.
        qk_norm: whether queries and keys are normalised per head.
        rope_theta: base of the rotary frequencies.
        norm_eps: epsilon of the normalisation.
        dropout: probability of dropping an embedding or residual entry during training.
        z_loss: weight of the squared log-partition penalty in the loss.
        vocab_multiple: the tables are padded to a multiple of this; padded rows never get probability.
        dtype: compute dtype: `auto` is bfloat16 on accelerators and float32 on CPU; weights stay float32.
        products: matrix products of the blocks (embedding, attention scores and head never): `auto` computes them in
            `dtype`, `fp8` of eight-bit floats that are scaled tensor by tensor (Hopper and newer GPUs; elsewhere slow
            but the same). Plans price them as bfloat16. Not yet run on a GPU.
        attention: kernel: `auto` is cuDNN flash attention on GPU and XLA elsewhere; never a silent fallback. cuDNN
            keeps the documents of packed rows apart by a mask; `segments` does it by their offsets (Hopper GPUs;
            compiled and checked, but not yet run on one).
    """

    preset: str | None = None
    layers: int = 4
    embed: int = 128
    heads: int = 4
    kv_heads: int = 0
    head_dim: int = 0
    mlp: int = 384
    vocab: int = 0
    positions: int = 0
    norm: Literal["rms", "layer"] = "rms"
    position: Literal["rope", "learned"] = "rope"
    activation: Literal["swiglu", "gelu"] = "swiglu"
    tied: bool = True
    bias: bool = False
    causal: bool = True
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    z_loss: float = 0.0
    vocab_multiple: int = 128
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    products: Literal["auto", "fp8"] = "auto"
    attention: Literal["auto", "xla", "cudnn", "segments"] = "auto"

    def __post_init__(self) -> None:
        for name in ("layers", "embed", "heads", "mlp", "vocab_multiple"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}={getattr(self, name)} must be positive")
        for name in ("kv_heads", "head_dim", "vocab", "positions"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name}={getattr(self, name)} must not be negative")
        if not self.head_dim and self.embed % self.heads:
            raise ValueError(
                f"model.embed={self.embed} is not divisible by model.heads={self.heads}; "
                f"choose heads among {_divisors(self.embed)} or set model.head_dim"
            )
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(
                f"model.heads={self.heads} is not divisible by model.kv_heads={self.kv_heads}; "
                f"choose kv_heads among {_divisors(self.heads)}"
            )
        if self.position == "rope" and self.per_head % 2:
            raise ValueError(f"model.head_dim={self.per_head} must be even for rotary positions")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"model.dropout={self.dropout} must be in [0, 1)")

    @property
    def per_head(self) -> int:
        return self.head_dim or self.embed // self.heads

    @property
    def groups(self) -> int:
        """Key/value heads."""
        return self.kv_heads or self.heads

    @property
    def padded_vocab(self) -> int:
        return -(-self.vocab // self.vocab_multiple) * self.vocab_multiple


def _divisors(n: int) -> str:
    return ", ".join(str(d) for d in range(1, min(n, 256) + 1) if n % d == 0)


def _gpt2(layers: int, heads: int, embed: int) -> dict[str, object]:
    """GPT-2: https://github.com/openai/gpt-2 (hparams of each size)."""
    return dict(
        layers=layers, heads=heads, embed=embed, mlp=4 * embed, vocab=50257, positions=1024, norm="layer",
        position="learned", activation="gelu", tied=True, bias=True, norm_eps=1e-5,
    )  # fmt: skip


def _llama(
    layers: int, embed: int, mlp: int, heads: int, kv_heads: int, vocab: int, **other: object
) -> dict[str, object]:
    shape = dict(layers=layers, embed=embed, mlp=mlp, heads=heads, kv_heads=kv_heads, vocab=vocab)
    return shape | dict(norm="rms", position="rope", activation="swiglu", tied=False, norm_eps=1e-5) | other


PRESETS: dict[str, dict[str, object]] = {
    "nano": dict(layers=4, embed=128, heads=4, mlp=384),
    "gpt2-124m": _gpt2(12, 12, 768),
    "gpt2-350m": _gpt2(24, 16, 1024),
    "gpt2-774m": _gpt2(36, 20, 1280),
    "gpt2-1558m": _gpt2(48, 25, 1600),
    # Llama 3.2 1B, Llama 2 7B, 13B and 70B, and Llama 3 8B: config.json of the published checkpoints (MODEL_DOC/llama);
    # the 13B and 70B shapes also in https://arxiv.org/abs/2307.09288.
    "llama-1b": _llama(16, 2048, 8192, 32, 8, 128256, rope_theta=500_000.0, tied=True),
    "llama-7b": _llama(32, 4096, 11008, 32, 32, 32000),
    "llama-13b": _llama(40, 5120, 13824, 40, 40, 32000),
    "llama-70b": _llama(80, 8192, 28672, 64, 8, 32000),
    "llama-8b": _llama(32, 4096, 14336, 32, 8, 128256, rope_theta=500_000.0),
}
"""True shapes of published models. `llama-1b` leaves out Llama 3.2's frequency scaling, which acts beyond 8,192
positions only."""


def preset(name: str) -> ModelConfig:
    """The configuration of a published model. Raises KeyError for an unknown name."""
    return ModelConfig(preset=name, **PRESETS[name])  # pyright: ignore[reportArgumentType]


def fields() -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(ModelConfig))

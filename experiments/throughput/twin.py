# pyright: reportMissingImports=false
"""The same Transformers in torch, written for speed there: fused attention, fused AdamW, one weight for q, k and v.

Only imported by the process that runs the torch side; `jaxlm` itself never imports torch.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

PIECE = 2**32
"""Bytes of float32 logits beyond which the loss is computed in pieces."""


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def _norm(c: Any) -> nn.Module:
    return nn.LayerNorm(c.embed, eps=c.norm_eps) if c.norm == "layer" else RMSNorm(c.embed, c.norm_eps)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Halves convention; x [B, N, T, H], float32 inside."""
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


class Block(nn.Module):
    def __init__(self, c: Any):
        super().__init__()
        self.c = c
        N, K, H = c.heads, c.groups, c.per_head
        self.attn_norm, self.mlp_norm = _norm(c), _norm(c)
        self.qkv = nn.Linear(c.embed, (N + 2 * K) * H, bias=c.bias)
        self.o = nn.Linear(N * H, c.embed, bias=c.bias)
        gated = c.activation == "swiglu"
        self.up = nn.Linear(c.embed, c.mlp * (2 if gated else 1), bias=c.bias)
        self.down = nn.Linear(c.mlp, c.embed, bias=c.bias)

    def forward(self, x: torch.Tensor, cos: torch.Tensor | None, sin: torch.Tensor | None) -> torch.Tensor:
        c, (B, T, _) = self.c, x.shape
        N, K, H = c.heads, c.groups, c.per_head
        q, k, v = self.qkv(self.attn_norm(x)).split([N * H, K * H, K * H], -1)
        q, k, v = (t.view(B, T, -1, H).transpose(1, 2) for t in (q, k, v))
        if cos is not None and sin is not None:
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=N != K)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, N * H))
        h = self.up(self.mlp_norm(x))
        if c.activation == "swiglu":
            gate, up = h.chunk(2, -1)
            h = F.silu(gate) * up
        else:
            h = F.gelu(h, approximate="tanh")
        return x + self.down(h)


class Twin(nn.Module):
    """Mean next-token loss in nats of rows of tokens, with the padding of the vocabulary never probable."""

    def __init__(self, c: Any, recompute: bool):
        super().__init__()
        self.c, self.recompute = c, recompute
        self.table = nn.Embedding(c.padded_vocab, c.embed)
        self.places = nn.Embedding(c.positions, c.embed) if c.position == "learned" else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.norm = _norm(c)
        self.head = None if c.tied else nn.Linear(c.embed, c.padded_vocab, bias=False)

    def forward(self, tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        c, T = self.c, tokens.shape[1]
        x, cos, sin = self.table(tokens), None, None
        at = torch.arange(T, device=tokens.device)
        if self.places is not None:
            x = x + self.places(at)
        else:
            half = c.per_head // 2
            rate = c.rope_theta ** (-torch.arange(half, device=tokens.device, dtype=torch.float32) / half)
            angle = at.float()[:, None] * rate
            cos, sin = angle.cos(), angle.sin()
        if torch.is_autocast_enabled(tokens.device.type):
            x = x.to(torch.get_autocast_dtype(tokens.device.type))
        for block in self.blocks:
            x = checkpoint(block, x, cos, sin, use_reentrant=False) if self.recompute else block(x, cos, sin)
        x = self.norm(x)
        pieces = max(1, -(-x.shape[0] * T * c.padded_vocab * 4 // PIECE))
        while T % pieces:
            pieces += 1
        if pieces == 1:
            return self._loss(x, targets)
        parts = zip(x.chunk(pieces, 1), targets.chunk(pieces, 1), strict=True)
        losses = [checkpoint(self._loss, a, b, use_reentrant=False) for a, b in parts]
        return torch.stack([loss for loss in losses if loss is not None]).mean()

    def _loss(self, x: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = self.table.weight if self.head is None else self.head.weight
        logits = F.linear(x, weight).float()
        logits = logits[..., : self.c.vocab] if self.c.vocab < self.c.padded_vocab else logits
        return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.reshape(-1))


def load(twin: Twin, weights: dict[str, np.ndarray]) -> None:
    """Copies the weights of a jaxlm model, by the names that its checkpoints give them, float32."""
    c = twin.c

    def put(to: torch.Tensor, value: np.ndarray) -> None:
        assert tuple(to.shape) == value.shape, (tuple(to.shape), value.shape)
        with torch.no_grad():
            to.copy_(torch.from_numpy(np.ascontiguousarray(value)))

    def norm(to: Any, name: str, layer: int | None = None) -> None:
        at = (lambda a: a) if layer is None else (lambda a: a[layer])
        put(to.weight, at(weights[f"{name}/gain"]))
        if c.norm == "layer":
            put(to.bias, at(weights[f"{name}/bias"]))

    put(twin.table.weight, weights["table"])
    if twin.places is not None:
        put(twin.places.weight, weights["places"])
    if twin.head is not None:
        put(twin.head.weight, weights["head"].T)
    norm(twin.norm, "norm")
    for n, block in enumerate(twin.blocks):
        assert isinstance(block, Block)
        norm(block.attn_norm, "blocks/attn_norm", n)
        norm(block.mlp_norm, "blocks/mlp_norm", n)
        attn = {name: weights[f"blocks/attn/{name}"][n] for name in ("q", "k", "v", "o")}
        rows = [attn[name].reshape(c.embed, -1).T for name in ("q", "k", "v")]
        put(block.qkv.weight, np.concatenate(rows))
        put(block.o.weight, attn["o"].reshape(-1, c.embed).T)
        ups = ("gate", "up") if c.activation == "swiglu" else ("up",)
        put(block.up.weight, np.concatenate([weights[f"blocks/mlp/{name}"][n].T for name in ups]))
        put(block.down.weight, weights["blocks/mlp/down"][n].T)
        if c.bias:
            biases = [weights[f"blocks/attn/{name}_bias"][n].reshape(-1) for name in ("q", "k", "v")]
            put(block.qkv.bias, np.concatenate(biases))
            put(block.o.bias, weights["blocks/attn/o_bias"][n])
            put(block.up.bias, weights["blocks/mlp/up_bias"][n])
            put(block.down.bias, weights["blocks/mlp/down_bias"][n])

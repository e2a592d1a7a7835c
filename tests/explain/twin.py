"""The tiny classifier written a second time, by `einsum` and `exp` alone: torch and jax.numpy can both run it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlm.model.classifier import Classifier
from jaxlm.tree import named_leaves


def weights_of(model: Classifier) -> dict[str, np.ndarray]:
    return {name: np.array(leaf) for name, leaf in named_leaves(model).items()}


def rotations(length: int, size: int, theta: float) -> np.ndarray:
    """The rotary embedding of each position as a matrix, float32 [T, H, H]."""
    half, found = size // 2, np.zeros((length, size, size), np.float32)
    angle = np.arange(length)[:, None] * theta ** (-np.arange(half) / half)
    for i in range(half):
        found[:, i, i] = found[:, half + i, half + i] = np.cos(angle[:, i])
        found[:, half + i, i] = np.sin(angle[:, i])
        found[:, i, half + i] = -np.sin(angle[:, i])
    return found


def log_odds(t: Any, tensor: Callable[[Any], Any], model: Classifier, w: Mapping[str, Any], x_BTD: Any) -> Any:
    """Log odds of class 1 from embeddings of whole rows: RMSNorm, rotary positions, SwiGLU, mean pooling; `t` is the
    library, `tensor` makes one of its arrays."""
    c = model.config
    turn_THG = tensor(rotations(x_BTD.shape[1], c.per_head, c.rope_theta))

    def norm(x: Any, gain: Any) -> Any:
        return x / t.sqrt(t.einsum("btd,btd->bt", x, x) / c.embed + c.norm_eps)[:, :, None] * gain[None, None, :]

    x = x_BTD
    for layer in range(c.layers):
        get = lambda name, layer=layer: w[f"blocks/{name}"][layer]
        h = norm(x, get("attn_norm/gain"))
        q, k, v = (t.einsum("btd,dnh->btnh", h, get(f"attn/{name}")) for name in "qkv")
        q, k = (t.einsum("tgh,btnh->btng", turn_THG, y) for y in (q, k))
        e = t.exp(t.einsum("btnh,bsnh->bnts", q, k) / c.per_head**0.5)
        p = e / t.einsum("bnts->bnt", e)[:, :, :, None]
        x = x + t.einsum("btnh,nhd->btd", t.einsum("bnts,bsnh->btnh", p, v), get("attn/o"))
        h = norm(x, get("mlp_norm/gain"))
        gate, up = (t.einsum("btd,df->btf", h, get(f"mlp/{name}")) for name in ("gate", "up"))
        x = x + t.einsum("btf,fd->btd", gate / (1 + t.exp(-gate)) * up, get("mlp/down"))
    pooled = t.einsum("btd->bd", norm(x, w["norm/gain"])) / x.shape[1]
    logits = t.einsum("bd,dc->bc", pooled, w["label"]) + w["label_bias"][None, :]
    return logits[:, 1] - logits[:, 0]

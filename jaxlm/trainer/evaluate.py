"""Held-out evaluation: sums over every token, bits per byte of the original text."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`loss` is nats per predicted token; `bits_per_byte` spreads -log2 p of all tokens over the text's UTF-8 bytes."""

    loss: float
    bits_per_byte: float
    perplexity: float
    tokens: int
    bytes: int


def evaluate(
    sums: Callable[[Any, Any], dict[str, jax.Array]], model: Any, batches: Iterable[Any], bytes_per_token: float
) -> Evaluation:
    """`sums(model, batch)` gives `nll` (nats) and `weight` (tokens) of a batch; they are added in float64.

    `bytes_per_token` is that of the whole split (its UTF-8 bytes over its predicted tokens), so that the bits per byte
    of a complete evaluation are spread over exactly the bytes of the text.
    """
    nll = weight = 0.0
    for batch in batches:
        values = jax.device_get(sums(model, batch))
        nll, weight = nll + float(values["nll"]), weight + float(values["weight"])
    loss = nll / max(weight, 1.0)
    return Evaluation(
        loss=loss,
        bits_per_byte=loss / math.log(2) / bytes_per_token,
        perplexity=math.exp(min(loss, 700.0)),
        tokens=round(weight),
        bytes=round(weight * bytes_per_token),
    )

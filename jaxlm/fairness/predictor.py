"""A classifier of table rows: a linear part and an MLP beside it, one logit of label 1.

Axes: B rows, F features, Z representation.
"""

import math
from collections.abc import Sequence
from typing import cast

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from jaxlm.model.mlp import dropout
from jaxlm.model.param import constant, param


class Predictor(nnx.Module):
    """`logit = x @ linear + relu(... relu(x @ W1 + b1) ...) @ head + bias`; without hidden layers, logistic regression.

    The representation is the last hidden layer, or the logit itself where there is none.
    """

    def __init__(self, features: int, *, hidden: Sequence[int] = (64,), rate: float = 0.0, key: PRNGKeyArray):
        if features < 1 or any(h < 1 for h in hidden):
            raise ValueError(f"sizes of a predictor must be positive: {[features, *hidden]}")
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"dropout={rate} must be in [0, 1)")
        sizes = [features, *hidden]
        keys = jax.random.split(key, len(sizes))
        pairs = list(zip(keys, sizes[:-1], sizes[1:], strict=False))
        self.rate = rate
        self.weights = nnx.List([param(k, (i, o), ("features", "hidden"), std=math.sqrt(2 / i)) for k, i, o in pairs])
        self.biases = nnx.List([constant(0.0, (o,), ("hidden",)) for _, _, o in pairs])
        self.linear = constant(0.0, (features,), ("features",))
        # A head of small weights: the linear part is fitted first, the rest where it helps.
        self.head = param(keys[-1], (sizes[-1],), ("hidden",), std=0.1 / math.sqrt(sizes[-1])) if hidden else None
        self.bias = constant(0.0, (), ())

    def __call__(
        self, x_BF: Float[Array, "B F"], key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " B"], Float[Array, "B Z"]]:
        """Logits and representations; with a key, entries of each hidden layer are dropped."""
        z_BZ, logits_B = x_BF, x_BF @ self.linear[...] + self.bias[...]
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            z_BZ = jax.nn.relu(z_BZ @ cast(nnx.Param, weight)[...] + cast(nnx.Param, bias)[...][None, :])
            z_BZ = dropout(z_BZ, self.rate, None if key is None else jax.random.fold_in(key, i))
        if self.head is None:
            return logits_B, logits_B[:, None]
        return logits_B + z_BZ @ self.head[...], z_BZ


def probability(logits_B: Float[Array, " B"]) -> Float[Array, " B"]:
    """P(label 1)."""
    return jax.nn.sigmoid(jnp.asarray(logits_B))

"""Sums of clipped per-document gradients: the only module that imports jax-privacy, whose API moves between releases.

Its clipping turns what is not finite into zeros, so one document cannot stop a run, which would be told from outside.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.privacy.errors import PrivacyError

Rows = Mapping[str, jax.Array]


def clipped_sums(
    loss: Callable[[Any, Rows], jax.Array], clip_norm: float, loss_bound: float, axes: Sequence[str] = ()
) -> Callable[[Any, Rows, jax.Array], tuple[Any, jax.Array]]:
    """`sums(model, rows, real) -> (gradients, losses)`: sums over the real rows, of gradients cut to norm `clip_norm`
    and of losses cut to [0, `loss_bound`], both float32.

    Args:
        loss: of a model and one row, whose arrays keep a leading axis of 1.
        clip_norm: norm over all tensors together.
        loss_bound: largest loss of a row; what is not finite counts as this.
        axes: mesh axes along which rows lie.

    `rows` are [rows, ...], `real` [rows] is false for padding, which adds nothing.

    Raises:
        PrivacyError: the extra is not installed, or gives no such guarantee.
    """
    try:
        from jax_privacy import clipping  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("jax_privacy"):
            raise
        raise PrivacyError(
            "private training needs jax-privacy: install the extra with uv sync --extra privacy"
        ) from None
    gradients = clipping.clipped_grad(
        loss,
        l2_clip_norm=clip_norm,
        batch_argnums=1,
        keep_batch_dim=True,
        return_values=True,
        nan_safe=True,
        dtype=jnp.float32,
        spmd_axis_name=tuple(axes) or None,  # pyright: ignore[reportArgumentType]
    )
    if (bound := gradients.sensitivity()) != clip_norm:
        raise PrivacyError(f"jax-privacy bounds the sensitivity by {bound}, and {clip_norm} was asked for")

    def sums(model: Any, rows: Rows, real: jax.Array) -> tuple[Any, jax.Array]:
        with warnings.catch_warnings():  # while it is traced: 2.0 calls what optax 0.2.8 renamed
            warnings.filterwarnings("ignore", "optax.global_norm is deprecated", DeprecationWarning)
            gradient, beside = gradients(model, rows, is_padding_example=~real)
        losses = jnp.nan_to_num(beside.values, nan=loss_bound, posinf=loss_bound, neginf=0.0)
        return gradient, jnp.sum(jnp.clip(losses, 0.0, loss_bound) * real)

    return sums

"""PowerSGD: a matrix as the product of two thin ones, by one step of subspace iteration per training step.

Vogels, Karimireddy and Jaggi, 2019, https://arxiv.org/abs/1905.13727. Both products are linear in the matrix, so the
sum over workers of their factors is the factor of the sum; `jaxlm.collectives.reduce.low_rank` adds them up.
"""

import jax
import jax.numpy as jnp


def project(matrix: jax.Array, q: jax.Array) -> jax.Array:
    """P = M Q, float32 [..., m, r], of matrices [..., m, n] and q [..., n, r]."""
    return jnp.matmul(matrix, q, precision="highest")


def back(matrix: jax.Array, p: jax.Array) -> jax.Array:
    """Q = M^T P, float32 [..., n, r], for the next step too: it starts where this one ended."""
    return jnp.matmul(jnp.swapaxes(matrix, -1, -2), p, precision="highest")


def decode(p: jax.Array, q: jax.Array) -> jax.Array:
    """P Q^T, float32 [..., m, n]. With orthonormal P it is the projection of M onto P, hence never farther from M than
    zero is: |M - P Q^T| <= |M| in the Frobenius norm."""
    return jnp.matmul(p, jnp.swapaxes(q, -1, -2), precision="highest")


def orthonormal(p: jax.Array) -> jax.Array:
    """The columns of p [..., m, r] made orthonormal one after another (modified Gram-Schmidt, twice).

    Plain arithmetic in a fixed order, so that every device gets the same bits; a column that the others span, or that
    is zero, becomes zero.
    """
    columns: list[jax.Array] = []
    for k in range(p.shape[-1]):
        column = p[..., k]
        before = jnp.linalg.norm(column, axis=-1, keepdims=True)
        for _ in range(2):
            for other in columns:
                column = column - jnp.sum(column * other, axis=-1, keepdims=True) * other
        norm = jnp.linalg.norm(column, axis=-1, keepdims=True)
        kept = norm > 1e-6 * before
        columns.append(jnp.where(kept, column / jnp.where(kept, norm, 1.0), 0.0))
    return jnp.stack(columns, axis=-1)

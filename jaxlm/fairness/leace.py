"""LEACE: the smallest linear change of a representation after which no linear classifier finds a concept.

Belrose et al., arXiv 2306.03819, theorem 4.3: r(x) = x - W^+ P W (x - mean), where W whitens x and P projects onto the
columns of W Cov(x, z). A closed form, hence a strong baseline for a trained adversary; it guards against linear readers
only.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Eraser:
    """`mean` [D] and `change` [D, D], float64."""

    mean: np.ndarray
    change: np.ndarray

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x [N, D] without the concept."""
        x = np.asarray(x, np.float64)
        return x - (x - self.mean) @ self.change.T


def fit(x: np.ndarray, z: np.ndarray, tolerance: float = 1e-6) -> Eraser:
    """The eraser of concept z [N, K] (one-hot groups, any number of attributes side by side) from x [N, D].

    Directions of x with less than `tolerance` of the largest variance are left as they are.
    """
    x, z = np.asarray(x, np.float64), np.asarray(z, np.float64)
    if x.ndim != 2 or z.ndim != 2 or len(x) != len(z):
        raise ValueError(f"LEACE needs x [N, D] and z [N, K] of the same rows: {x.shape}, {z.shape}")
    mean = x.mean(0)
    xc, zc = x - mean, z - z.mean(0)
    cov, cross = xc.T @ xc / len(x), xc.T @ zc / len(x)
    values, vectors = np.linalg.eigh(cov)
    kept = values > tolerance * max(float(values[-1]), 1e-300)
    root = np.sqrt(np.where(kept, values, 1.0))
    whiten = (vectors * np.where(kept, 1 / root, 0.0)) @ vectors.T
    colour = (vectors * np.where(kept, root, 0.0)) @ vectors.T
    u, s, _ = np.linalg.svd(whiten @ cross, full_matrices=False)
    # In whitened units a singular value is a correlation times the spread of z: below this nothing is there to erase.
    u = u[:, s > 1e-9 * max(float(z.std(0).max()), 1e-300)]
    return Eraser(mean=mean, change=colour @ u @ u.T @ whiten)

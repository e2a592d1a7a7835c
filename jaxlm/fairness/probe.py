"""A fresh probe: what can still be read off frozen representations, by an adversary that the model never met.

An adversary at chance during training does not mean that the attribute is gone (Elazar and Goldberg 2018): the model
may have learned to fool that one network. So new ones, linear and not, are trained on what it leaves behind.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.fairness.adversary import Adversaries, discriminator_auc
from jaxlm.fairness.groups import Attribute, balance


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Held-out AUC, from 0.5 (nothing) to 1, of a linear probe and of an MLP, over all attributes.

    Under equalized odds it is taken within each label: what the label itself tells about the group is no leak.
    """

    linear: float
    mlp: float


def leak(
    attributes: Sequence[Attribute],
    seen: np.ndarray,
    labels: np.ndarray,
    codes: Sequence[np.ndarray],
    held_seen: np.ndarray,
    held_labels: np.ndarray,
    held_codes: Sequence[np.ndarray],
    *,
    steps: int = 300,
    seed: int = 0,
) -> Leak:
    """Trains both probes on some rows (`seen` [N, Z], labels [N], codes per attribute) and judges them on others."""
    mean, scale = seen.mean(0), seen.std(0) + 1e-9
    z, held = (jnp.asarray((part - mean) / scale, jnp.float32) for part in (seen, held_seen))
    targets = tuple(jnp.asarray(a.targets(c)) for a, c in zip(attributes, codes, strict=True))
    held_targets = tuple(jnp.asarray(a.targets(c)) for a, c in zip(attributes, held_codes, strict=True))
    weights = tuple(jnp.asarray(balance(np.asarray(t))) for t in targets)
    y, held_y = jnp.asarray(labels, jnp.int32), jnp.asarray(held_labels, jnp.int32)
    found = [
        float(_probe(tuple(attributes), hidden, steps, z, y, targets, weights, held, held_y, held_targets, seed))
        for hidden in ((), (64,))
    ]
    return Leak(linear=found[0], mlp=found[1])


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _probe(
    attributes: tuple[Attribute, ...],
    hidden: tuple[int, ...],
    steps: int,
    z: jax.Array,
    y: jax.Array,
    targets: tuple[jax.Array, ...],
    weights: tuple[jax.Array, ...],
    held: jax.Array,
    held_y: jax.Array,
    held_targets: tuple[jax.Array, ...],
    seed: jax.Array,
) -> jax.Array:
    probe = Adversaries(attributes, z.shape[1], 2, hidden=hidden, key=jax.random.key(seed))
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        probe, state = carry
        gradient = jax.grad(lambda p: p.loss(z, y, targets, weights) / z.shape[0])(probe)
        change, state = optimizer.update(gradient, state, probe)
        return (optax.apply_updates(probe, change), state), None

    (probe, _), _ = jax.lax.scan(step, (probe, optimizer.init(probe)), None, steps)  # pyright: ignore[reportArgumentType]
    return discriminator_auc(probe, held, held_y, held_targets, attributes)

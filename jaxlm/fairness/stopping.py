"""When debiasing is done, and when it has broken the task.

The paper stops when the discriminator's AUC changes by less than 0.005 in three consecutive checks (section 4.6). That
alone would also stop at a plateau where the adversary is simply strong, so it must be near 0.5 too. A check looks at
held-out rows. Should the task's own AUC fall below a floor, training ends and the last good state is given back.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The stopping rule.

    Attributes:
        early: whether to stop before the last epoch at all.
        change: of the discriminator's AUC, below which it is at rest.
        checks: consecutive ones that must find it so.
        near: how far from 0.5 it may be.
        floor: of the task's AUC, once that has been above it; below it the task has collapsed.
    """

    early: bool = False
    change: float = 0.005
    checks: int = 3
    near: float = 0.05
    floor: float = 0.55


class Watch(NamedTuple):
    """What the checks have seen: scalars. `epoch` is the last one that trained, `calm` counts checks at rest."""

    skill: jax.Array
    found: jax.Array
    calm: jax.Array
    was_good: jax.Array
    stopped: jax.Array
    collapsed: jax.Array
    epoch: jax.Array


def begin() -> Watch:
    """Nothing seen yet."""
    no = jnp.zeros((), bool)
    zero = jnp.zeros((), jnp.int32)
    nothing = jnp.full((), jnp.nan)
    return Watch(skill=nothing, found=nothing, calm=zero, was_good=no, stopped=no, collapsed=no, epoch=zero)


def check(
    rule: Rule, watch: Watch, skill: jax.Array, found: jax.Array, epoch: jax.Array
) -> tuple[Watch, Bool[Array, ""]]:
    """One check: the task's AUC `skill`, the discriminator's AUC `found`. Also says whether the state is worth keeping.

    Until the task has been above its floor once, every state is kept: training has only begun.
    """
    still = jnp.abs(found - watch.found) < rule.change
    calm = jnp.where(still & (jnp.abs(found - 0.5) <= rule.near), watch.calm + 1, 0)
    collapsed = watch.was_good & ~(skill >= rule.floor)
    stopped = collapsed | (calm >= rule.checks) if rule.early else collapsed
    fine = ~collapsed
    return (
        Watch(
            skill=skill,
            found=found,
            calm=calm,
            was_good=watch.was_good | (skill >= rule.floor),
            stopped=stopped,
            collapsed=collapsed,
            epoch=jnp.asarray(epoch, jnp.int32),
        ),
        fine,
    )


def auc(positive: Bool[Array, " N"], scores: Float[Array, " N"], counted: Array | None = None) -> Float[Array, ""]:
    """AUC inside a compiled program, ties for half; 0.5 where a label is missing. `counted` says which rows count."""
    counted = jnp.ones(scores.shape, jnp.float32) if counted is None else counted.astype(jnp.float32)
    up, down = positive * counted, (~positive) * counted
    rank = jnp.argsort(scores)
    ordered = scores[rank]
    below = jnp.concatenate([jnp.zeros(1), jnp.cumsum(down[rank])])
    left, right = jnp.searchsorted(ordered, scores, side="left"), jnp.searchsorted(ordered, scores, side="right")
    pairs = jnp.sum(up) * jnp.sum(down)
    won = jnp.sum(up * (below[left] + below[right]) / 2)
    return jnp.where(pairs > 0, won / jnp.maximum(pairs, 1.0), 0.5)

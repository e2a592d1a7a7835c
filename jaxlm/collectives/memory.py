"""What a scheme remembers from step to step, and one bucket's step through it: feedback, momentum, masks, DGC.

Everything is in units of the mean gradient, and packed: rows [H, n] as in `jaxlm.collectives.reduce`. For every bucket
and over any number of steps, what arrived plus the mean of what is remembered equals the mean of what was given.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxlm.collectives.codecs.sparse import pack_bits, unpack_bits
from jaxlm.collectives.reduce import Exchanged, across

Memory = dict[str, jax.Array]
"""Packed state of one bucket, some of: `error` [H, n] (what this worker owes), `owner` [n] (what is owed to the mean
of its own row), `momentum` [H, n] (the workers' common one), `alive` [H, n] (weights that ever had a gradient on any
worker), `velocity` [H, n] (this worker's momentum, DGC)."""

Move = Callable[[jax.Array, jax.Array | None, jax.Array | None], Exchanged]
"""`move(rows, owner, alive)`: an exchange of `jaxlm.collectives.reduce`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How one bucket goes through a step.

    Attributes:
        axis: the slow mesh axis.
        feedback: whether what was not sent is remembered.
        momentum: decay of the momentum that is sent instead of the gradient; None sends the gradient.
        correction: decay of the momentum that each worker keeps for itself (DGC); None has none.
    """

    axis: str
    feedback: bool
    momentum: float | None = None
    correction: float | None = None

    def lossy(self, rows: jax.Array, memory: Memory, move: Move) -> tuple[jax.Array, Memory]:
        """The mean as the codes tell it, and what is remembered of the rest."""
        after = dict(memory)
        given = self._given(rows, after)
        got = move(given, memory.get("owner"), memory.get("alive"))
        if self.feedback:
            after["error"] = given - got.sent
        if "owner" in memory:
            after["owner"] = got.owner
        if self.correction is not None:
            # Factor masking: the momentum of what is sent now is stale by the time more of it would be sent.
            after["velocity"] = jnp.where(got.sent != 0.0, 0.0, after["velocity"])
        if self.momentum is not None:
            after["momentum"] = got.mean
        return got.mean, after

    def dense(self, rows: jax.Array, memory: Memory, move: Move, *, warm: bool) -> tuple[jax.Array, Memory]:
        """The mean of what is given and of all that was owed, after which nothing is owed.

        `warm`: in the warm-up the gradient travels, and the momentum is only kept; after it the momentum travels.
        """
        after = dict(memory)
        if warm and self.momentum is not None:
            given = rows + memory["error"] if "error" in memory else rows
        else:
            given = self._given(rows, after)
        got = move(given, memory.get("owner"), None)
        if "error" in memory:
            after["error"] = jnp.zeros_like(memory["error"])
        if "owner" in memory:
            after["owner"] = jnp.zeros_like(memory["owner"])
        if self.momentum is not None and not warm:
            after["momentum"] = got.mean
        return got.mean, after

    def keep(self, mean: jax.Array, memory: Memory) -> Memory:
        """The momentum after a warm-up step with this mean gradient."""
        if self.momentum is None:
            return memory
        return memory | {"momentum": self.momentum * memory["momentum"] + (1.0 - self.momentum) * mean}

    def _given(self, rows: jax.Array, after: Memory) -> jax.Array:
        """What this worker has to say: its gradient or momentum, and what it owes."""
        if self.momentum is not None:
            rows = self.momentum * after["momentum"] + (1.0 - self.momentum) * rows
        if self.correction is not None:
            rows = after["velocity"] = self.correction * after["velocity"] + rows
        return rows + after["error"] if "error" in after else rows

    def look(self, rows: jax.Array, memory: Memory) -> Memory:
        """`alive` with what has a gradient now on any worker. One bit per weight crosses."""
        here = (rows != 0.0) | (memory["momentum"] != 0.0)
        here = here | (memory["error"] != 0.0) if "error" in memory else here
        everyone = unpack_bits(across("all_gather", (pack_bits(here),), self.axis)[0])
        return memory | {"alive": memory["alive"] | jnp.any(everyone != 0, axis=0)}

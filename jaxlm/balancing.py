"""Keeps the shares of a run's replicas: reads what each step measured, says what the next ones compute."""

import dataclasses
from collections.abc import Callable
from typing import Any

from jaxlm.trainer.loop import Finished
from planners.balance import Shares, begin, forget, observe, resume
from planners.plan import Plan


class Balancer:
    """The shares of a run whose plan has a `balance`, the same on every process.

    What a step measured reaches the batch after next: the loop has one step in flight, and one batch is prepared ahead.
    `say` is told of every move.
    """

    def __init__(
        self, plan: Plan, length: int, saved: dict[str, Any] | None = None, say: Callable[[str], None] = lambda _: None
    ):
        balance = plan.batch.balance
        if balance is None:
            raise ValueError("the plan has no balance: its replicas share the batch evenly")
        self.balance, self.say = balance, say
        total = plan.batch.accumulation * plan.groups
        self.sequences = plan.batch.microbatch // plan.groups
        self.tokens = self.sequences * length
        self.slots = balance.bounds(plan.groups, total)[1]
        self.shares: Shares = (
            begin(balance, plan.groups, total, plan.batch.shares)
            if saved is None
            else resume(balance, saved, plan.groups, total)
        )

    def now(self) -> tuple[int, ...]:
        """Microbatches of each replica in the next batch to be prepared."""
        return self.shares.microbatches

    def observe(self, finished: Finished) -> Finished:
        """Takes note of a step, and adds `alpha` to what is reported of it."""
        ran, seconds = finished.vectors["shares"], finished.vectors["replica_seconds"]
        rates = [count * self.tokens / taken for count, taken in zip(ran, seconds, strict=True)]
        before, self.shares = self.shares, observe(self.balance, self.shares, rates)
        if self.shares.microbatches != before.microbatches:
            self.say(
                f"after step {finished.step} the replicas share the batch {_text(self.shares.microbatches)}, "
                f"before {_text(before.microbatches)} microbatches (alpha {_percent(self.shares.alpha)})"
            )
        return dataclasses.replace(finished, vectors={**finished.vectors, "alpha": self.shares.alpha})

    def machine_changed(self) -> None:
        """What was measured so far says nothing any more; every process calls it after the same step."""
        self.shares = forget(self.shares)

    def to_json(self) -> dict[str, Any]:
        return self.shares.to_json()


def _text(counts: tuple[int, ...]) -> str:
    return ":".join(map(str, counts))


def _percent(alpha: tuple[float, ...]) -> str:
    return " ".join(f"{share:.1%}" for share in alpha)

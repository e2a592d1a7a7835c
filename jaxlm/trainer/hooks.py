"""What happens between steps and needs the state: saving it and evaluating it."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxlm.checkpoints.schedule import Schedule
from jaxlm.checkpoints.store import Store
from jaxlm.trainer.state import TrainState
from jaxlm.tree import named_leaves


class Saving:
    """Saves the state when the schedule says so, and once more when training ends, with `facts` and what `moving` says
    then. `report` is called before each save, so that what has been reported reaches as far as any checkpoint from
    which a run may go on."""

    def __init__(
        self,
        store: Store,
        schedule: Schedule,
        facts: Mapping[str, Any],
        enabled: bool,
        report: Callable[[], None] = lambda: None,
        moving: Callable[[], Mapping[str, Any]] = dict,
    ):
        self.store, self.schedule, self.facts, self.enabled = store, schedule, dict(facts), enabled
        self.report, self.moving = report, moving

    def due(self, step: int) -> bool:
        return self.schedule.due(step)

    def __call__(self, step: int, state: TrainState[Any]) -> None:
        self.report()
        self.store.save(step, named_leaves(state), {**self.facts, **self.moving(), "step": step})

    def finally_save(self, step: int, state: TrainState[Any]) -> bool:
        """Saves unless this step is saved already, and waits; true if a checkpoint of this step is on disk."""
        if not self.enabled:
            return False
        if self.store.saved != step:
            self(step, state)
        self.store.wait()
        return True


class Every:
    """Calls `do(step, state)` every so many steps (0: never): evaluation, comparison of the replicas."""

    def __init__(self, every: int, do: Callable[[int, TrainState[Any]], object]):
        self.every, self.do = every, do

    def due(self, step: int) -> bool:
        return self.every > 0 and step % self.every == 0

    def __call__(self, step: int, state: TrainState[Any]) -> None:
        self.do(step, state)

"""The monitor of a run, and what its events change: shares are measured anew, the agent decides again."""

from collections.abc import Callable
from typing import Any

import jax

from jaxlm.balancing import Balancer
from jaxlm.checkpoints.processes import first_does
from jaxlm.replan import Replanner
from jaxlm.runtime.monitor import Monitor
from jaxlm.setup import Setup
from jaxlm.trainer.loop import Finished


def monitor_of(setup: Setup, say: Any) -> Monitor:
    """The agent of this host."""
    told = setup.options.cluster_file is not None and jax.process_count() > 1
    return Monitor(
        setup.folder.hosts,
        jax.process_index(),
        jax.process_count(),
        enabled=setup.run.train.monitor,
        say=say,
        link=setup.cluster.tiers[-1].bandwidth if told and setup.cluster.tiers else None,
    )


def note(monitor: Monitor, finished: Finished) -> None:
    """Hands a finished step to the monitor, with what each replica measured of itself."""
    seconds = finished.vectors.get("replica_seconds", ())
    shares = finished.vectors.get("shares", ())
    each = [took / count for took, count in zip(seconds, shares, strict=True)]
    monitor.observe(finished.step, finished.seconds, each)


class Fallback:
    """Says once when the exchange of gradients falls back to dense steps. `known`: it was said when the run went on."""

    def __init__(self, say: Callable[[str], None], *, known: bool = False):
        self.say, self.known = say, known

    def __call__(self, finished: Finished) -> None:
        if self.known or not finished.scalars.get("fallback"):
            return
        self.known = True
        owed = finished.scalars.get("residual_ratio")
        ratio = "" if owed is None else f", {owed:.4g} times the gradient's norm was owed"
        self.say(
            f"step {finished.step}: what is owed or the loss left its bounds (loss {finished.scalars['loss']:.4g}"
            f"{ratio}); gradients travel dense from here on, also after a resume with the same scheme, limit and spike"
        )


def react(monitor: Monitor, balancer: Balancer | None, chooser: object) -> None:
    """Lets shares and agent know of devices that have become faster or slower. All processes call it after the same
    step, and process 0's events are those of all."""
    told = [each for each in (balancer, chooser) if isinstance(each, Balancer | Replanner)]
    if not told:
        return
    if not first_does(lambda: any(event["slows"] for event in monitor.take())):
        return
    for each in told:
        each.machine_changed()

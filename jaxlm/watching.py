"""The monitor of a run, and what its events change: shares are measured anew, the agent decides again."""

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
    return Monitor(
        setup.folder.hosts, jax.process_index(), jax.process_count(), enabled=setup.run.train.monitor, say=say
    )


def note(monitor: Monitor, finished: Finished) -> None:
    """Hands a finished step to the monitor, with what each replica measured of itself."""
    seconds = finished.vectors.get("replica_seconds", ())
    shares = finished.vectors.get("shares", ())
    each = [took / count for took, count in zip(seconds, shares, strict=True)]
    monitor.observe(finished.step, finished.seconds, each)


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

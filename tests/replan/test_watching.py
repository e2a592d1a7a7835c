"""Events of the monitor reach shares and agent, and only those that change how fast devices are."""

from types import SimpleNamespace
from typing import Any

from jaxlm.balancing import Balancer
from jaxlm.replan import Replanner
from jaxlm.trainer.loop import Finished
from jaxlm.watching import note, react
from planners.balance import Balance, begin, observe


class Events:
    """As much of a monitor as is used."""

    def __init__(self, *kinds: bool):
        self.slows, self.seen = list(kinds), []

    def take(self):
        events, self.slows = [{"slows": slows} for slows in self.slows], []
        return events

    def observe(self, step, seconds, replicas):
        self.seen.append((step, seconds, list(replicas)))


def balancer() -> Any:
    """One that has measured two steps."""
    made, balance = object.__new__(Balancer), Balance()
    shares = begin(balance, 2, 8)
    for _ in range(2):
        shares = observe(balance, shares, [100.0, 50.0])
    made.shares = shares
    return made


def replanner(*, probing: bool) -> Any:
    made: Any = object.__new__(Replanner)
    made.alarm, made.conductor = False, SimpleNamespace(probing=probing)
    return made


def test_a_hot_device_makes_shares_and_agent_measure_anew():
    monitor: Any = Events(False, True)
    shares, agent = balancer(), replanner(probing=False)
    assert len(shares.shares.measured) == 2
    before = shares.shares.microbatches
    react(monitor, shares, agent)
    assert shares.shares.measured == ()
    assert shares.shares.microbatches == before
    assert agent.alarm
    react(monitor, None, agent := replanner(probing=False))
    assert not agent.alarm, "an event counts once"


def test_an_agent_that_probes_decides_anyway_and_other_events_change_nothing():
    probing, calm, shares = replanner(probing=True), replanner(probing=False), balancer()
    react(Events(True), None, probing)  # pyright: ignore[reportArgumentType]
    react(Events(False), shares, calm)  # pyright: ignore[reportArgumentType]
    assert not probing.alarm
    assert not calm.alarm
    assert len(shares.shares.measured) == 2
    react(Events(True), None, object())  # pyright: ignore[reportArgumentType]


def test_what_replicas_measured_of_themselves_is_noted_per_microbatch():
    monitor: Any = Events()
    note(monitor, Finished(3, {}, 0.5, vectors={"shares": (4.0, 2.0), "replica_seconds": (0.4, 0.4)}))
    note(monitor, Finished(4, {}, 0.6))
    assert monitor.seen == [(3, 0.5, [0.1, 0.2]), (4, 0.6, [])]

"""Goes over from one plan to another while a run trains: each program is compiled once, the state moves live."""

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

import jax

from jaxlm.feedback import Feedback
from jaxlm.replan import Replanner
from jaxlm.running import Running, running
from jaxlm.session import Session
from jaxlm.task import AnyCorpus, AnyLoader
from jaxlm.trainer.state import TrainState
from jaxlm.tree import from_named, named_leaves
from planners.learning.arms import program

Chooser: TypeAlias = Replanner | Feedback
"""Says at a pause which plan runs next: the agent among plans of the search, or the measured costs of recomputing."""


class Changes:
    """The programs that a run has compiled, and the way between them.

    Args:
        chooser: says which plan is next, and is told what the change has cost.
        first: what runs at the beginning.
        corpus, loader: of the run.
        meshes: where the mesh of each plan is entered, until the run ends.
        say: is told of every compilation.
    """

    def __init__(
        self,
        chooser: Chooser,
        first: Running,
        corpus: AnyCorpus,
        loader: AnyLoader,
        meshes: ExitStack,
        say: Callable[[str], None],
    ):
        self.chooser, self.corpus, self.loader, self.meshes, self.say = chooser, corpus, loader, meshes, say
        self.programs = {program(first.setup.plan): first}

    def follow(self, now: Running, state: TrainState[Any], done: int) -> tuple[Running, TrainState[Any], float]:
        """Goes over to the plan of the chooser after `done` steps: what runs then, the state laid out for it, and the
        seconds of compiling. Where the compiled plan does not fit, all is as before."""
        chooser = self.chooser
        setup, shares = dataclasses.replace(now.setup, plan=chooser.plan), now.shares()
        known, seconds = self.programs.get(program(chooser.plan)), 0.0
        if known is not None:
            after = known.under(setup, shares)
        else:
            session = Session(setup.run, now.session.model, setup.how, setup.plan)
            with jax.set_mesh(session.mesh):
                after = running(setup, session, self.corpus, shares)
                seconds = after.compile(after.feed(self.loader)[done], self.say)
            memory = after.memory()
            if memory is not None and chooser.refuse(memory.used):
                after.close()
                return now, state, seconds
            self.programs[program(chooser.plan)] = after
            chooser.compiled(seconds)
        self.meshes.enter_context(jax.set_mesh(after.session.mesh))
        if after.session is not now.session:
            state, moved = reshard(state, after.session)
            chooser.moved(moved)
        return after, state, seconds

    def close(self) -> None:
        for each in self.programs.values():
            each.close()


def reshard(state: TrainState[Any], session: Session) -> tuple[TrainState[Any], float]:
    """The state laid out as another session's plan says, bit for bit, tensor by tensor; and how long it took."""
    began = time.monotonic()
    named, places = named_leaves(state), named_leaves(session.places)
    moved = {}
    for name in list(named):
        moved[name] = jax.device_put(named.pop(name), places[name])
    after = jax.block_until_ready(from_named(session.abstract, moved))
    return after, time.monotonic() - began

"""Tries other plans while a run trains: arms from the search, decisions of the agent, alike on every process.

Every step of a probe is a step of the run: the batch of a step is the same under every plan, and so is its loss.
"""

import dataclasses
import itertools
import json
import statistics
from collections.abc import Callable
from typing import Any

import jax

from jaxlm.checkpoints.processes import first_decides, first_does
from jaxlm.folder import write_json
from jaxlm.ledger import calibration_for, ledger_path, machine_of
from jaxlm.setup import Setup
from jaxlm.trainer.loop import Finished
from jaxlm.trainer.metrics import JsonLines
from planners.learning.agent import Agent, Decision
from planners.learning.arms import LINKS, arm, candidates, program
from planners.learning.belief import Evidence
from planners.learning.conductor import Conductor, Pace, decision_of
from planners.learning.evidence import evidence, job
from planners.learning.ledger import LATEST, read
from planners.plan import Plan
from planners.search import shortlist

Say = Callable[[str], None]


class Replanner:
    """Which plan the next steps run under.

    Args:
        setup: of the run; its plan is the one that runs now.
        done: steps that are done.
        saved: what `facts` said when the checkpoint was written from which the run goes on; None at its beginning.
        say: is told of every change, and where a saved agent cannot go on.
    """

    def __init__(self, setup: Setup, done: int, saved: dict[str, Any] | None, say: Say):
        self.setup, self.say = setup, say
        self.config, self.folder = setup.run.train.replan, setup.folder
        self.leader = jax.process_index() == 0
        self.plans = self._plans(saved)
        search, memory = setup.run.plan, setup.cluster.device.memory
        arms = [arm(plan, setup.workload) for plan in self.plans]
        # What runs already has proved that it fits, whatever is predicted of it.
        arms[0] = dataclasses.replace(arms[0], memory=0.0)
        agent = Agent(
            arms,
            memory * search.fraction(memory),
            links=LINKS,
            evidence=self._evidence(),
            job=job(setup.workload, setup.cluster),
        )
        kept = {each.key for each in agent.arms}
        self.plans = tuple(plan for plan in self.plans if plan.digest in kept)
        pace = Pace(warm=self.config.warm, steps=self.config.steps)
        self.conductor = Conductor(agent, pace, [program(plan) for plan in self.plans])
        if saved is not None:
            self._resume(saved)
        self.log = JsonLines(self.folder.decisions, keep=done) if self.leader else None
        self.ready = self.alarm = False
        self.recent: list[float] = []
        self.before = self.conductor.current
        if self.leader:
            self.folder.plans.mkdir(exist_ok=True)
            for plan in self.plans:
                write_json(self.folder.plans / f"{plan.digest[:12]}.json", plan.to_json())

    def _plans(self, saved: dict[str, Any] | None) -> tuple[Plan, ...]:
        """As they were when the run was left, where that can be read; else the plan that runs and a new search."""
        if saved is not None:
            files = [self.folder.plans / f"{key[:12]}.json" for key in saved["agent"]["arms"]]
            if all(first_does(lambda: [file.exists() for file in files])):
                plans = tuple(Plan.load(file) for file in files)
                if self.setup.plan.digest in {plan.digest for plan in plans}:
                    return plans
            self.say("the plans that the agent chose among are not those of this run any more: it begins anew")
        setup, config = self.setup, self.config
        search, cluster = setup.run.plan, setup.cluster
        known = calibration_for(cluster, search).assumptions
        others = shortlist(setup.workload, cluster, search, 2 * config.plans, known)
        settings = list(itertools.product(config.gammas, config.hystereses))
        return tuple(candidates(setup.plan, others, config.plans, settings))

    def _evidence(self) -> tuple[Evidence, ...]:
        """What earlier runs of this user on this kind of machine took, where plans are priced by them too. The process
        that decides is the one that knows."""
        setup = self.setup
        if not self.leader or not setup.run.plan.calibrate:
            return ()
        known = calibration_for(setup.cluster, setup.run.plan).assumptions
        return evidence(read(ledger_path(), machine_of(setup.cluster))[-LATEST:], known)

    def _resume(self, saved: dict[str, Any]) -> None:
        try:
            self.conductor.restore(saved)
        except ValueError as other:
            self.say(f"the agent begins anew: {other}")
            return
        here = [plan.digest for plan in self.plans].index(self.setup.plan.digest)
        if here != self.conductor.current:  # the checkpoint was written under another plan than the run was left with
            self.conductor.current, self.conductor.probing = here, True

    @property
    def plan(self) -> Plan:
        return self.plans[self.conductor.current]

    def observe(self, finished: Finished) -> None:
        """Takes note of the seconds of a step."""
        self.recent = [*self.recent[-31:], finished.seconds]
        probing = self.conductor.probing
        if self.ready or not self.conductor.finished(finished.seconds):
            return
        self.ready, self.alarm = probing, not probing

    def machine_changed(self) -> None:
        """Asks for a decision at the next log line, unless one is due anyway."""
        self.alarm = self.alarm or not self.conductor.probing

    def pause(self, step: int) -> bool:
        """Whether a decision is due after this step; the same on every process. They agree at each log line."""
        if self.ready:
            return True
        if jax.process_count() == 1:
            return self.alarm
        if step % self.setup.run.train.log_every:
            return False
        return first_decides(self.alarm)

    def decide(self, step: int) -> bool:
        """Decides what runs after `step`; true when that is another plan."""
        self.before = self.conductor.current
        before, measured = self.plan, statistics.median(self.recent) if self.recent else None
        left = self.setup.run.train.steps - step
        raw = first_does(lambda: dataclasses.asdict(self.conductor.decide(left)))
        decision = decision_of(raw)
        if not self.leader:
            self.conductor.take(decision)
        cause = "the machine has changed" if self.alarm else "a probe has ended"
        self.ready, self.alarm, self.recent = False, False, []
        self._record(step, decision, before, measured, cause)
        return program(self.plan) != program(before) or self.plan.batch.balance != before.batch.balance

    def _record(self, step: int, decision: Decision, before: Plan, measured: float | None, cause: str) -> None:
        plan = self.plan
        if self.log is not None:
            predicted = plan.predicted.step_seconds if plan.predicted else None
            self.log(
                {
                    "step": step,
                    "event": f"plan.{decision.kind}",
                    "cause": cause,
                    "plan": plan.digest,
                    "summary": plan.summary(),
                    "reason": decision.reason,
                    "predicted_seconds": predicted,
                    "expected_seconds": decision.seconds,
                    "expected_spread": decision.spread,
                    "expected_gain_seconds": decision.gain,
                    "before": before.digest,
                    "measured_seconds_before": measured,
                }
            )
            if decision.kind != "probe":
                write_json(self.folder.plan, plan.to_json())
        if decision.kind != "keep":
            self.say(f"after step {step} the agent {decision.kind}s {plan.summary()}: {decision.reason}")

    def refuse(self, used: float) -> bool:
        """Whether the compiled plan does not fit by the compiler's count of `used` bytes per device: it is then left
        for good, and the one before it runs on."""
        device, conductor = self.setup.cluster.device, self.conductor
        if used + device.overhead <= device.memory * self.setup.run.plan.fraction(device.memory):
            return False
        self.say(f"{self.plan.summary()} does not fit: XLA counts {used / 2**30:.2f} GiB; the agent leaves it for good")
        conductor.agent.refuse(conductor.current)
        conductor.back(self.before)
        return True

    def compiled(self, seconds: float) -> None:
        """The plan that runs now was compiled."""
        self.conductor.compiled(seconds)

    def moved(self, seconds: float) -> None:
        """The state was moved to the layout of the plan that runs now."""
        self.conductor.moved(seconds)

    def facts(self) -> dict[str, Any]:
        """For the checkpoint: the plan that runs and all that the agent knows, as JSON."""
        return {"plan": self.plan.digest, "replan": json.loads(json.dumps(self.conductor.to_json()))}

    def close(self) -> None:
        if self.log is not None:
            self.log.close()

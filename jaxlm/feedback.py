"""What layers keep and what they compute again, decided anew at the end of each epoch by what steps really took.

The costs of the dynamic program begin as predicted and are corrected by each epoch's median step and by the peak of the
program that ran (eq. 13). The peak is what the compiler counts for the compiled step; where the device tells a higher
one of its own, it is that. Step times are those of the run. Whatever is decided, the steps compute the same.
"""

import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from jaxlm.checkpoints.processes import first_does
from jaxlm.folder import write_json
from jaxlm.ledger import constants
from jaxlm.measured import peak_memory
from jaxlm.setup import Setup
from jaxlm.trainer.loop import Finished
from jaxlm.trainer.metrics import JsonLines
from planners.learning.remat_costs import RematCosts, key
from planners.learning.remat_feedback import Runs, Toggle, decide, named
from planners.plan import Plan, PlanError, Segment, describe, structure
from planners.search import OURS
from planners.space.mixes import Blocks, between
from planners.space.remat_strategies import ends_of_plan

Say = Callable[[str], None]

WARM = 2
"""Steps after a change that do not count: caches and allocators fill up."""


class _Peak(NamedTuple):
    """Bytes that a mix needs by the compiler or the device (`origin`), and its segments as JSON."""

    bytes: float
    origin: str
    segments: list[dict[str, Any]]


class Feedback:
    """Which layers recompute in the next epoch.

    Args:
        setup: of the run; its plan is the one that runs now.
        done: steps that are done.
        saved: what `facts` said when the checkpoint was written from which the run goes on; None at its beginning.
        used: bytes per device of the compiled step, by the compiler; None where it does not tell.
        seconds: of compiling it.
        say: is told of every change.

    Raises PlanError where the model does not say what its blocks compute.
    """

    def __init__(
        self,
        setup: Setup,
        done: int,
        saved: dict[str, Any] | None,
        used: int | None,
        seconds: float,
        say: Say,
    ):
        self.setup, self.say, self.folder = setup, say, setup.folder
        self.plan = self.before = setup.plan
        self.every = setup.run.plan.remat_feedback.every
        self.leader = jax.process_index() == 0
        workload, cluster, search = setup.workload, setup.cluster, setup.run.plan
        if not workload.operations:
            raise PlanError("plan.remat_feedback.every must be 0: this model does not say what its blocks compute")
        a = constants(cluster, workload, search)[0]
        self.blocks = Blocks(workload, cluster.device, search, a)
        self.ends = ends_of_plan(self.plan, workload, cluster, a)
        runs = self._runs(self.plan.remat)
        policies = self.blocks.policies(self.plan.mesh, self.ends)
        mine = {key(run.policy): run.policy for run in runs}
        policies += [policy for kind, policy in mine.items() if kind not in map(key, policies)]
        self.costs = RematCosts(policies, self.ends.none.step_seconds, around=self.ends.around)
        self.budget = cluster.device.memory * search.fraction(cluster.device.memory)
        self.runtime = self.ends.none.memory.get("runtime", 0.0)
        self.now: Runs = self.costs.predicted_runs(runs)
        self.seen: list[Runs] = [self.now]
        self.plans = {named(self.now): self.plan}
        self.banned: set[Any] = set()
        self.peaks: dict[Any, _Peak] = {}
        self.compiling = [seconds]
        self.highest = peak_memory() or 0
        self.done = done
        self.seconds: list[float] = []
        if saved is not None:
            self._resume(saved)
        self._peak(used)
        self.log = JsonLines(self.folder.remat, keep=done) if self.leader else None

    def _runs(self, segments: Sequence[Segment]) -> Runs:
        return self.blocks.of(segments, self.plan.mesh, self.ends).runs

    def _of(self) -> dict[str, Any]:
        """What measured seconds and bytes are those of: elsewhere they say little."""
        batch = self.plan.batch
        return {
            "mesh": dict(self.plan.mesh),
            "microbatch": batch.microbatch,
            "accumulation": batch.accumulation,
            "loss_chunks": self.plan.compile.loss_chunks,
        }

    def _resume(self, saved: dict[str, Any]) -> None:
        try:
            if saved.get("of") != self._of():
                raise ValueError("those that were saved are of another mesh or microbatch")
            self.costs.restore(saved["costs"])
        except ValueError as other:
            self.say(f"the costs of rematerialisation are learned anew: {other}")
            return
        for each in saved["peaks"]:
            runs = self.costs.predicted_runs(self._runs([structure(part, Segment) for part in each["segments"]]))
            self.peaks[named(runs)] = _Peak(each["bytes"], each["origin"], each["segments"])
            if each["bytes"] > self.budget:
                self.banned.add(named(runs))

    def _peak(self, used: float | None, origin: str = "compiler") -> None:
        """Learns the peak of what runs, once from each origin."""
        if used is None or named(self.now) in self.peaks:
            return
        peak = used + self.runtime
        self.peaks[named(self.now)] = _Peak(peak, origin, _plain([run.policy.segment(run.layers) for run in self.now]))
        self.costs.learn_peak(self.now, peak)
        if peak > self.budget:
            self.banned.add(named(self.now))

    def observe(self, finished: Finished) -> None:
        """Takes note of the seconds of a step."""
        self.seconds.append(finished.seconds)
        self.done = finished.step

    def pause(self, step: int) -> bool:
        """Whether an epoch ends with this step; the same on every process."""
        return step % self.every == 0

    def decide(self, step: int) -> bool:
        """Decides what the layers do after `step`; true when that is another mix."""
        segments = [structure(each, Segment) for each in first_does(lambda: self._decided(step))]
        self.seconds = []
        self.before, before = self.plan, self.now
        runs = self.costs.predicted_runs(self._runs(segments))
        if named(runs) == named(before):
            return False
        self.now, self.plan = runs, self.plans.setdefault(named(runs), self._plan(runs))
        self._write()
        return True

    def _write(self) -> None:
        """Leaves the plan for a run that goes on."""
        if self.leader:
            write_json(self.folder.plan, self.plan.to_json())

    def _decided(self, step: int) -> list[dict[str, Any]]:
        """What the first process decides: segments as JSON, the record of it written."""
        counted = self.seconds[WARM:] or self.seconds
        if counted:
            self.costs.learn_seconds(self.now, counted)
        measured = peak_memory() or 0
        if measured > self.highest:  # a peak never falls: only a higher one is that of this epoch
            self.highest = measured
            told = self.peaks.pop(named(self.now), None)
            if told is None or measured + self.runtime > told.bytes:
                self._peak(measured, "device")
            else:
                self.peaks[named(self.now)] = told
        left = self.setup.run.train.steps - step
        toggle = decide(
            self.costs,
            self.budget,
            self.now,
            self.seen,
            epoch=step // self.every,
            left=max(left, self.setup.run.plan.remat_feedback.horizon),
            trial=min(self.every, left),
            price=sum(self.compiling) / len(self.compiling),
            banned=lambda runs: named(runs) in self.banned,
        )
        segments = [run.policy.segment(run.layers) for run in toggle.runs]
        self._record(step, toggle, segments)
        return _plain(segments)

    def _plan(self, runs: Runs) -> Plan:
        """The plan with these runs: what is predicted of it stays what the cost model says, whatever was measured.

        `unrematerialised` is left out: a compiled peak other than predicted ends no run here, it is learned from."""
        mix = self.blocks.of([run.policy.segment(run.layers) for run in runs], self.plan.mesh, self.ends)
        predicted = dataclasses.replace(between(self.ends, mix), unrematerialised=None)
        options = OURS | dict(self.plan.compile.options)
        return dataclasses.replace(
            self.plan,
            remat=mix.segments(),
            compile=dataclasses.replace(self.plan.compile, options=options),
            predicted=predicted,
            assumptions=self.plan.assumptions
            | {"remat": f"costs as measured in {self.costs.measured} epochs (eq. 13)"},
            alternatives=(),
        )

    def _record(self, step: int, toggle: Toggle, segments: Sequence[Segment]) -> None:
        """What ran in the epoch that ends, what that taught, what comes next, and why."""
        if self.log is None:
            return
        believed = zip(self.costs.policies, self.costs.believed(), self.costs.spread(), strict=True)
        self.log(
            self._ran(step, step // self.every)
            | {
                "event": f"remat.{toggle.kind}",
                "next": _plain(segments),
                "reason": toggle.reason,
                "expected_seconds": toggle.seconds,
                "expected_gain_seconds": toggle.gain,
                "expected_peak_bytes": toggle.peak,
                "costs": [
                    {
                        "policy": policy.name,
                        "predicted_seconds": policy.seconds,
                        "seconds": after.seconds,
                        "spread": float(spread),
                        "predicted_kept_bytes": policy.kept,
                        "kept_bytes": after.kept,
                    }
                    for policy, after, spread in believed
                ],
            }
        )
        if toggle.kind != "keep":
            what = ", ".join(map(describe, segments))
            self.say(f"after step {step} (epoch {step // self.every}) layers go over to {what}: {toggle.reason}")

    def _ran(self, step: int, epoch: int) -> dict[str, Any]:
        """What ran in the epoch that ends after `step`, and what that took."""
        counted = self.seconds[WARM:] or self.seconds
        peak = self.peaks.get(named(self.now))
        return {
            "step": step,
            "epoch": epoch,
            "segments": _plain(self.plan.remat),
            "measured_seconds": statistics.median(counted) if counted else None,
            "peak_bytes": None if peak is None else peak.bytes,
            "peak_from": None if peak is None else peak.origin,
            "predicted_seconds": None if self.plan.predicted is None else self.plan.predicted.step_seconds,
            "budget_bytes": self.budget,
        }

    def refuse(self, used: float) -> bool:
        """Whether the mix that was just compiled needs more than the budget by the compiler's count of `used` bytes per
        device. Either way its peak is learned; refused, it never runs, and what ran before goes on."""
        self._peak(used)
        if named(self.now) not in self.banned:
            return False
        self.say(
            f"{', '.join(map(describe, self.plan.remat))} does not fit: XLA counts {used / 2**30:.3f} GiB; "
            "that is learned, and the layers do what they did"
        )
        refused = {"step": self.done, "event": "remat.refuse", "segments": _plain(self.plan.remat)}
        if self.log is not None:
            self.log(refused | {"peak_bytes": used + self.runtime, "budget_bytes": self.budget})
        self.plan, self.now = self.before, self.costs.predicted_runs(self._runs(self.before.remat))
        self._write()
        return True

    def compiled(self, seconds: float) -> None:
        """Another mix was compiled, and runs."""
        self.compiling.append(seconds)
        self.seen.append(self.now)

    def moved(self, seconds: float) -> None:
        """The state lies as it lay: no mix moves it."""

    def facts(self) -> dict[str, Any]:
        """For the checkpoint: the plan that runs and the costs as learned, as JSON."""
        peaks = [each._asdict() for each in self.peaks.values()]
        saved = {"of": self._of(), "costs": self.costs.to_json(), "peaks": peaks}
        return {"plan": self.plan.digest, "remat_feedback": saved}

    def close(self) -> None:
        """Records the epoch that the end of the run has cut short, too."""
        if self.log is None:
            return
        if self.seconds:
            self.log(self._ran(self.done, math.ceil(self.done / self.every)) | {"event": "remat.end"})
        self.log.close()


def _plain(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    """As JSON gives them back: facts of a checkpoint must be equal to what is read from it."""
    return json.loads(json.dumps([dataclasses.asdict(each) for each in segments]))

"""Where training meets its policy: facts of each step go to the engine of process 0, and all processes do as it says.

Process 0 judges a step while the next one runs, and says what all do after that one: go on, or save, verify and stop or
wait. So a run that breaks a rule in step k ends after step k + 1, on all hosts alike.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxlm.checkpoints.processes import first_does
from jaxlm.checkpoints.store import Store
from jaxlm.folder import Folder
from jaxlm.governance import approvals
from jaxlm.governance.approvals import Open
from jaxlm.governance.audit import read_log
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.judging import Judging, action_of
from jaxlm.governance.policy import Review, facts_of, train_facts
from jaxlm.governance.trail import Trail
from jaxlm.runtime.monitor import REVIEWING
from jaxlm.runtime.orders import Orders
from jaxlm.setup import Setup
from jaxlm.trainer.loop import Finished, Halted, Outcome
from jaxlm.trainer.metrics import read_jsonl
from jaxlm.trainer.state import TrainState
from jaxlm.trainer.stop import Interrupted

GO, HALT, REVIEW, SIGNAL = "go", "halt", "review", "signal"
POLL_SECONDS = 0.5
"""Between two looks for an approval."""


class Policing:
    """A hook of the training loop; use as a context.

    Args:
        setup: of the run.
        trail: of this process.
        log: what is known of the log, for rules.
        signal: the signal that this process has received, if any.
        say: is told what happens.
        phase: is told what the training thread does.

    Attributes:
        sources: what else rules may read, by namespace, asked on process 0 before each judgement; `dp` is one.
        save: saves the state of a step, and says whether it did.
    """

    def __init__(
        self,
        setup: Setup,
        trail: Trail,
        log: Callable[[], Mapping[str, float]],
        signal: Callable[[], int | None],
        say: Callable[[str], None],
        phase: Callable[[str], AbstractContextManager[None]],
    ):
        self.phase = phase
        self.trail, self.say, self._log = trail, say, log
        self.store: Store | None = None
        self.leader = jax.process_index() == 0
        self.orders = Orders(signal)
        self.sources: dict[str, Callable[[], Mapping[str, float]]] = {}
        self.save: Callable[[int, TrainState[Any]], bool] = lambda step, state: False
        self.tokens = setup.workload.tokens
        self.folder, self.layers_every = setup.folder, setup.run.governance.layers_every
        path = setup.run.governance.policy
        self.followed = path is not None
        self.judging = Judging(Path(path), trail, self._tell) if path is not None and self.leader else None
        self.open: list[Open] = []
        self._tensors: list[str] = []
        self._known: dict[str, Any] = {"eval": {}, "fairness": {}, "dp": {}}
        self._waiting: list[Finished] = []
        self._todo = GO
        self._told: set[str] = set()

    def __enter__(self) -> "Policing":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if self.judging is None:
            return
        try:
            self.judging.close()
        except GovernanceError as failure:
            if error is None:
                raise
            error.add_note(str(failure))

    def started(self, step: int, tensors: list[str], store: Store) -> None:
        """A run goes on from `step`. Waits where a review is open.

        Raises:
            Halted: a policy halted the run and nobody has approved that it goes on, or halts it now.
        """
        self._tensors, self.store = tensors, store
        order = GO
        if self.leader:
            before = read_jsonl(self.folder.evaluations) if self.folder.evaluations.exists() else []
            for record in [record for record in before if record["step"] <= step][-1:]:
                self.evaluated(record)  # what an earlier start of the run knew
            self.open = approvals.undecided(self.trail.history)
            if self.judging is not None:
                self.open += self.judging.begin(step)
            elif (before := approvals.in_force(self.trail.history)) is not None:
                self.trail.commit("policy.load", {"policy": None, "before": before, "step": step})
                self.say(f"WARNING: this run obeyed a policy ({before[:12]}) and now obeys none, which is logged")
            self._take_approvals()
            order = action_of(self.open)
        self._follow(self._order(order), step)

    def observe(self, finished: Finished) -> None:
        """One finished step."""
        if self.followed:
            self._waiting.append(finished)

    def evaluated(self, record: Mapping[str, Any]) -> None:
        self._learn(facts_of({k: v for k, v in record.items() if k != "step"}, "eval"))

    def due(self, step: int) -> bool:
        """Whether anything is to be done after `step`: the steps that were observed are judged."""
        waiting, self._waiting = self._waiting, []
        self._todo = GO
        for finished in waiting:
            if self.leader:
                assert self.judging is not None
                logged = self.judging.judge(finished.step, partial(self._facts, finished))
                self.open += [verdict for verdict in logged if asks(verdict)]
            self._todo = self._order(action_of(self.open))
            if self._todo != GO:
                break
        return self._todo != GO

    def __call__(self, step: int, state: TrainState[Any]) -> None:
        """Saves, verifies what was saved, and does what `due` found.

        Raises:
            Halted: the run ends here.
            Interrupted: a signal came while it waited.
        """
        if self.save(step, state) and self.store is not None:
            store = self.store
            first_does(lambda: [str(store.good(step)[0])])  # reads and verifies every byte and the signature
        self._follow(self._todo, step)

    def concluded(self, step: int, record: Callable[[], Mapping[str, Any]]) -> str | None:
        """Judges the last evaluation of a run with the record of its last step. Returns the verdicts that are more than
        alerts, in words; None where there are none."""
        if not self.followed:
            return None
        order = GO
        if self.leader:
            assert self.judging is not None
            known = lambda: {**train_facts(record()), **self._known, "log": dict(self._log())}
            self.open += [verdict for verdict in self.judging.judge(step, known, always=True) if asks(verdict)]
            order = action_of(self.open)
        if self._order(order) == GO:
            return None
        return self._order("; ".join(map(str, self.open)))

    def last(self, outcome: Outcome) -> Outcome:
        """How a loop ended that did all its steps, once the last of them are judged."""
        if outcome.reason != "done" or not self.due(outcome.step):
            return outcome
        try:
            self(outcome.step, outcome.state)
        except Halted as halted:
            return dataclasses.replace(outcome, reason="halted", why=str(halted))
        except Interrupted as signal:
            return dataclasses.replace(outcome, reason="signal", signal=signal.number)
        return outcome

    def _facts(self, finished: Finished) -> dict[str, Any]:
        """What rules read of a step."""
        scalars = {k: v for k, v in finished.scalars.items() if k not in ("nll", "weight")}
        rates = {"step_seconds": finished.seconds, "tokens_per_second": self.tokens / max(finished.seconds, 1e-9)}
        record = {"step": finished.step, **scalars, "tokens": finished.scalars["weight"], **rates}
        layers: dict[str, Any] = {}
        if finished.layers is not None and self.layers_every and finished.step % self.layers_every == 0:
            names = ("gradient", "weight", "update")
            columns = zip(self._tensors, finished.layers.T.tolist(), strict=True)
            layers = {"layers": {tensor: dict(zip(names, norms, strict=True)) for tensor, norms in columns}}
        for namespace, source in self.sources.items():
            self._learn(facts_of(source(), namespace))
        found = train_facts(record)
        self._learn({namespace: values for namespace, values in found.items() if namespace in ("fairness", "dp")})
        return {**found, **self._known, **layers, "log": dict(self._log())}

    def _learn(self, facts: Mapping[str, Any]) -> None:
        for namespace, values in facts.items():
            self._known[namespace] = {**self._known.get(namespace, {}), **values}

    def _order(self, order: str) -> str:
        return self.orders.give(order) if self.leader else self.orders.take()

    def _follow(self, order: str, step: int) -> None:
        if order == REVIEW:
            with self.phase(REVIEWING):
                order = self._order(self._wait(step) if self.leader else "")
        kind, _, rest = order.partition(" ")
        if kind == SIGNAL:
            raise Interrupted(int(rest))
        if kind == HALT:
            raise Halted(self._order(self._sentence()) if self.leader else self.orders.take())

    def _sentence(self) -> str:
        """What is said of a halt: its verdict, and what lets the run go on."""
        halts = [each for each in self.open if each.body["action"] == HALT]
        said = "; ".join(f"rule {v.body['rule']}, step {v.body['step']}: {v.body['why']}" for v in halts)
        if any(v.body.get("approval") for v in halts):
            said += f". It goes on once that is approved: jaxlm audit approve {self.folder.path} --key KEY --reason WHY"
        return said

    def _wait(self, step: int) -> str:
        """Until all open reviews are decided on, on process 0: what all do then."""
        review = self._review()
        until = None if review.timeout_seconds is None else time.monotonic() + review.timeout_seconds
        named = ", ".join(f"{each.index} ({each.body['rule']})" for each in self.open)
        self.say(
            f"policy: training waits for a decision on verdict {named}, "
            + (f"for {review.timeout_seconds:g} s, then: {review.outcome}" if review.timeout_seconds else "for ever")
            + f": jaxlm audit approve {self.folder.path} --key KEY --reason WHY"
        )
        while True:
            self._take_approvals()
            if action_of(self.open) != REVIEW:
                return action_of(self.open)
            if (number := self.orders.signalled()) is not None:
                return f"{SIGNAL} {number}"
            if until is not None and time.monotonic() > until:
                self._decide(self.open, review.outcome, f"nobody decided within {review.timeout_seconds:g} s", step)
                return action_of(self.open)
            time.sleep(POLL_SECONDS)

    def _review(self) -> Review:
        """How long a review waits: what the policies of the open verdicts say, not what has come since."""
        said = [approvals.kept(self.trail.audit, each.body["policy"]).policy.review for each in self.open]
        return min(said, key=lambda review: review.timeout_seconds or float("inf"))

    def _take_approvals(self) -> None:
        """Logs what has been signed about the open verdicts, and forgets those that are approved."""
        for each in list(self.open):
            if not each.body.get("approval"):
                continue
            try:
                approvers = approvals.kept(self.trail.audit, each.body["policy"]).approvers
                arrived = approvals.arrived(self.trail.audit, each)
            except GovernanceError as error:
                self._tell_once(f"policy: no approval of verdict {each.index} can be taken: {error}")
                continue
            for name, content in arrived:
                try:
                    said, by = approvals.read(content, self.trail.run, each, approvers)
                except Rejected as error:
                    self._tell_once(f"policy: {name} decides nothing: {error}")
                    continue
                self._log_approval(each, said, by.name, content)
                break

    def _log_approval(self, verdict: Open, said: approvals.Approval, by: str, content: bytes) -> None:
        facts = {"verdict": verdict.index, "decision": said.decision, "by": by, "reason": said.reason}
        self.trail.commit("policy.approval", {**facts, "note": content.decode()})
        self.say(f"policy: {by} says {said.decision} on verdict {verdict.index}: {said.reason}")
        if said.decision == "approve":
            self.open.remove(verdict)
            if self.judging is not None:
                self.judging.standing.held.add(verdict.body["rule"])  # is known to be broken, and not told again
        elif verdict.body["action"] == REVIEW:
            self._decide([verdict], HALT, f"{by} rejected it: {said.reason}", verdict.body["step"])

    def _decide(self, opened: list[Open], outcome: str, why: str, step: int) -> None:
        action = HALT if outcome == HALT else "alert"
        rule = opened[0].body["rule"]
        more: dict[str, Any] = {"step": step, "resolves": [each.index for each in opened], "why": why}
        more |= {"approval": True} if action == HALT else {}
        body = {"rule": rule, "policy": opened[0].body["policy"], "action": action, **more}
        made = Open(self.trail.commit("policy.verdict", body), body)
        self.say(f"policy: {action} by rule {rule}: {why}")
        self.open = [each for each in self.open if each not in opened] + ([made] if action == HALT else [])

    def _tell(self, text: str) -> None:
        self.say(text)

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self.say(text)


def asks(verdict: Open) -> bool:
    """Whether a verdict is more than something to be told."""
    return verdict.body["action"] != "alert"


class Unpoliced:
    """In place of `Policing` where governance.enabled is false: judges nothing.

    Raises Halted where the log that an earlier start left says that a policy halted or paused the run, and nobody has
    decided on that: switching governance off is no way past it.
    """

    say: Callable[[str], None]
    save: Callable[[int, TrainState[Any]], bool]

    def __init__(self, folder: Folder, say: Callable[[str], None]) -> None:
        if jax.process_index() != 0 or not (folder.audit / "log").exists():
            return
        try:
            found = approvals.undecided(read_log(folder.audit, keys=None).entries)
        except GovernanceError as error:
            say(f"WARNING: nobody can tell whether a policy halted this run before: {error}")
            return
        if found:
            raise Halted(f"{found[0]}. Set governance.enabled to true, and have that approved: jaxlm audit approve")

    def __enter__(self) -> "Unpoliced":
        return self

    def __exit__(self, *_: object) -> None: ...

    def started(self, step: int, tensors: list[str], store: Store) -> None: ...

    def observe(self, finished: Finished) -> None: ...

    def evaluated(self, record: Mapping[str, Any]) -> None: ...

    def due(self, step: int) -> bool:
        return False

    def __call__(self, step: int, state: TrainState[Any]) -> None: ...

    def concluded(self, step: int, record: Callable[[], Mapping[str, Any]]) -> None: ...

    def last(self, outcome: Outcome) -> Outcome:
        return outcome

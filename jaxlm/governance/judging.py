"""A policy that is followed: its engine, what stays broken, and its entries in the log, each made before it acts."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxlm.decode import ConfigError
from jaxlm.governance import approvals
from jaxlm.governance.approvals import Open
from jaxlm.governance.engine import Engine, EngineFailed
from jaxlm.governance.errors import GovernanceError
from jaxlm.governance.policy import Loaded, load
from jaxlm.governance.trail import Trail
from jaxlm.governance.verdicts import Standing, Verdict, gravest

AGAIN_SECONDS = 60.0
"""Between two starts of an engine that failed, where the run goes on without it."""


class Judging:
    """Judges steps by the rules over training of a policy file, which may change while the run trains.

    Args:
        path: of the policy.
        trail: where verdicts go.
        say: is told what happens.

    Raises:
        ConfigError: the file is no policy.
        GovernanceError: an approver is the run itself.
    """

    def __init__(self, path: Path, trail: Trail, say: Callable[[str], None]):
        self.path, self.trail, self.say = path, trail, say
        self.loaded = self._load()
        self.standing = Standing(approvals.approved_rules(trail.history))
        self._stamp = self._stat()
        self._tried = time.monotonic()
        self._engine: Engine | None = None
        self._why = "it was never started"
        self._judged: list[int] = []
        self._slowest = 0.0
        self._start()

    @property
    def every(self) -> int:
        return self.loaded.policy.every

    @property
    def sandbox(self) -> list[str]:
        """What the engine gave up; empty where it is not up."""
        return [] if self._engine is None else self._engine.sandbox

    def begin(self, step: int) -> list[Open]:
        """Logs which policy is followed from here on, and waits for its engine; what follows where that fails."""
        failed: list[Verdict] = []
        try:
            self._ready()
        except EngineFailed as error:
            failed = self._failed(str(error))
        before = approvals.in_force(self.trail.history)
        if before not in (None, self.loaded.digest):
            self.say(f"policy: {self.path} is not the policy that this run obeyed before ({before[:12]}); logged")
        self._log_load(step, before)
        rules, requests = (len(self.loaded.rules(requests=over)) for over in (False, True))
        self.say(
            f"policy: {rules} rules over training and {requests} over requests from {self.path}, on failure "
            f"{self.loaded.policy.fail}; engine: {'; '.join(self.sandbox) or 'not up'}"
        )
        return self._log(failed, step)

    def judge(self, step: int, facts: Callable[[], Mapping[str, Any]], *, always: bool = False) -> list[Open]:
        """The new verdicts on a step, logged. `always`: also of a step that `every` leaves out."""
        self._reload(step)
        if step % self.every and not always:
            return []
        known: Mapping[str, Any] = {}
        try:
            known = facts()
            engine = self._ready()
            began = time.monotonic()
            rules = self.loaded.rules(requests=False)
            rules = [rule for rule in rules if "layers" in known or rule.name not in self.loaded.layered]
            said = engine.judge(known, rules)
            self._slowest = max(self._slowest, time.monotonic() - began)
            self._judged.append(step)
        except EngineFailed as error:
            return self._log(self._failed(str(error)), step)
        except GovernanceError:
            raise
        except Exception as error:  # a fault of ours is a failure of the engine too
            return self._log(self._failed(f"{type(error).__name__}: {error}"), step)
        self.standing.answered()
        fail = self.loaded.policy.fail
        return self._log(self.standing.verdicts(rules, said, fail, known), step)

    def close(self) -> None:
        """Logs how much was judged, and ends the engine. What is not logged, because the run was killed, shows as well:
        there is no such entry."""
        try:
            self._log_judged()
        finally:
            if self._engine is not None:
                self._engine.close()

    def _log(self, verdicts: list[Verdict], step: int) -> list[Open]:
        listed = bool(self.loaded.approvers)
        logged = []
        for verdict in verdicts:
            asks = {"approval": True} if listed and verdict.action in ("halt", "review") else {}
            body = verdict.body(self.loaded.digest, step=step, sandbox=self.sandbox, **asks)
            logged.append(Open(self.trail.commit("policy.verdict", body), body))
            self.say(f"policy: {logged[-1]}{_read(verdict)}")
        return logged

    def _failed(self, why: str) -> list[Verdict]:
        return self.standing.failure(why, self.loaded.policy.fail)

    def _start(self) -> None:
        self._tried = time.monotonic()
        try:
            self._engine = Engine(self.loaded.rules(requests=False), self.loaded.policy.deadline_seconds)
        except EngineFailed as error:
            self._why = str(error)

    def _ready(self) -> Engine:
        """The engine, started anew where it failed some time ago."""
        if self._engine is not None and self._engine.failed is not None:
            self._why = self._engine.failed
            self._engine.close()
            self._engine = None
        if self._engine is None:
            if time.monotonic() - self._tried < AGAIN_SECONDS:
                raise EngineFailed(self._why)
            self._start()
        if self._engine is None:
            raise EngineFailed(self._why)
        self._engine.ready()
        return self._engine

    def _load(self) -> Loaded:
        loaded = load(self.path)
        own = self.trail.verifier.key
        if mine := [key.name for key in loaded.approvers if key.key == own]:
            raise GovernanceError(
                f"{self.path}: the approver {mine[0]} has the key of this run's own log, and would approve itself: "
                "make a key for whoever approves with `jaxlm audit key --file KEY --name NAME`, kept elsewhere"
            )
        return loaded

    def _log_judged(self) -> None:
        """That these steps were judged by the policy in force, broken rules or none."""
        steps, self._judged = self._judged, []
        if steps:
            body = {"policy": self.loaded.digest, "steps": len(steps), "first": steps[0], "last": steps[-1]}
            self.trail.record("policy.judged", {**body, "slowest_seconds": round(self._slowest, 6)})

    def _log_load(self, step: int, before: str | None) -> None:
        approvals.keep(self.trail.audit, self.loaded)
        body = {"policy": self.loaded.digest, "before": before, "step": step, "sandbox": self.sandbox}
        policy = self.loaded.policy
        body |= {"rules": [rule.name for rule in policy.rules], "fail": policy.fail, "every": policy.every}
        self.trail.commit("policy.load", body)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _reload(self, step: int) -> None:
        """Follows the file as it is now where it has changed; keeps the old rules where it is no policy any more."""
        if (stamp := self._stat()) == self._stamp:
            return
        self._stamp = stamp
        before = self.loaded
        try:
            found = self._load()
        except (ConfigError, GovernanceError) as error:
            why = str(error)
            self.trail.commit("policy.load", {"policy": None, "before": before.digest, "step": step, "refused": why})
            self.say(f"policy: {self.path} has changed, and the rules stay as they were: {why}")
            return
        if found.digest == before.digest:
            return
        self._log_judged()
        self.loaded = found
        self._log_load(step, before.digest)
        self.say(f"policy: {self.path} has changed: {len(found.policy.rules)} rules from step {step} on, logged")
        if self._engine is not None and self._engine.failed is None:
            try:
                self._engine.load(found.rules(requests=False), found.policy.deadline_seconds)
            except EngineFailed as error:
                self._why = str(error)  # the next judgement fails, and says so


def action_of(logged: Iterable[Open]) -> str:
    """What all that was logged comes to: go, review or halt."""
    found = gravest(Verdict(each.body["rule"], each.body["action"], "") for each in logged)
    return "go" if found is None or found.action == "alert" else found.action


def _read(verdict: Verdict) -> str:
    return f" ({', '.join(f'{k}={v:g}' for k, v in verdict.values.items())})" if verdict.values else ""

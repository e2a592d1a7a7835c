"""What a run writes into its audit trail: the only place where training and the trail meet."""

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxlm.checkpoints.processes import all_say, first_does
from jaxlm.checkpoints.store import Found, Store
from jaxlm.copies import Copying
from jaxlm.governance import node
from jaxlm.governance.errors import GovernanceError
from jaxlm.governance.keys import Keys, public_pem, write_public
from jaxlm.governance.notary import Notary
from jaxlm.governance.trail import Trail
from jaxlm.governance.trust import load_policy, without
from jaxlm.governance.witnessing import Witnessing
from jaxlm.reading import GO_BACK, UNVERIFIED, GoingBack, going_back, left_by_governance, parent_of, tensor_root
from jaxlm.setup import Setup
from jaxlm.state import config_digest
from jaxlm.trainer.loop import Finished
from planners.plan import Plan

Say = Callable[[str], None]
_PRECISION = 6
"""Digits of a norm in the log."""


class Auditing:
    """The trail of one process of a run that trains. Use as a context.

    Every process writes a log of its own; process 0 signs checkpoints, judges them, and logs steps.

    Raises:
        GovernanceError: the trail that is there is not as it was left, or is not ours.
    """

    def __init__(self, setup: Setup, say: Say):
        run, folder, process = setup.run, setup.folder, jax.process_index()
        self.setup, self.say, self.leader = setup, say, process == 0
        self.every = run.governance.layers_every
        keys = Keys(outside=folder.path)
        open_trail = lambda name, of: Trail(
            folder.audit, name, keys=keys, flush_seconds=run.governance.flush_seconds, run=of
        )
        self.trail: Trail | None = None

        def lead() -> str:
            self.trail = open_trail("log", None)
            return self.trail.run

        identity = first_does(lead)
        self.trail = self.trail or open_trail(f"log-{process}", identity)
        self.notary: Notary | None = None
        self.forgiven: list[str] = []
        self._back: GoingBack | None = None
        self.witnessing: Witnessing | None = None
        self._ask: Callable[[], Witnessing] | None = None
        if not self.leader:
            return
        write_public(folder.audit / "signer.pem", public_pem(keys.checkpoint().public_key()))
        if run.governance.witnesses is not None:
            self._ask = self._witnesses(Path(run.governance.witnesses))
        facts = {"config": config_digest(run), "plan": setup.plan.digest, "host": self.trail.host}
        forgive = self._forgive if setup.options.allow_unverified else None
        self.notary = Notary(self.trail, facts, forgive, self._copying())

    def _copying(self) -> Copying | None:
        """What makes encrypted copies of the checkpoints, where there is somebody to read them."""
        assert self.trail is not None
        run, folder = self.setup.run, self.setup.folder
        if not run.governance.recipients:
            return None
        place = run.checkpoint.build(folder.checkpoints).directory
        to = Path(run.governance.copies) if run.governance.copies is not None else folder.copies
        return Copying(self.trail, place, run.governance.recipients, to, run.name)

    def __enter__(self) -> "Auditing":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        assert self.trail is not None
        try:
            self.trail.__exit__(kind, error, trace)
        finally:
            if self.witnessing is not None:
                self.witnessing.close()

    def check(self, found: Found, store: Store) -> None:
        """Judges, for every process, a newest good checkpoint that is older than the newest that the log knows.

        Where that one lies here as it was signed, and only its content is damaged, the run goes back, which is said
        and logged. Raises CheckpointError where it is gone or was put in the place of another: nobody can tell then
        what was lost from what somebody wants forgotten.
        """

        def judge() -> None:
            assert self.notary is not None
            options = self.setup.options
            allowed = options.allow_rollback or options.allow_unverified
            self._back = going_back(self.notary.judge, found, store.damaged, allowed, GO_BACK)
            if self._back is not None:
                self.say(f"WARNING: {self._back}")

        first_does(judge)

    def restored(self, store: Store, step: int) -> None:
        """A run goes on from `step`, 0 where it begins."""
        if not self.leader or (step == 0 and self._back is None):
            return
        assert self.notary is not None
        entry: dict[str, Any] = {"step": step, "manifest": None, "tensor_root": None}
        if step:
            folder, body = store.good(step)
            self.notary.catch_up(folder, body)
            entry |= {"manifest": body["digest"], "tensor_root": tensor_root(body)}
        if self._back is not None:
            entry |= {"rollback_from": self._back.newest, "automatic": self._back.automatic, "why": self._back.why}
        entry |= {"unverified": self.forgiven} if self.forgiven else {}
        self.notary.restored(entry)

    def started(self, corpus_digest: str, step: int, tensors: Sequence[str]) -> None:
        """Everything that defines the run, once all of it is known; `tensors` names the columns of `train.layer`."""
        assert self.trail is not None
        run, plan = self.setup.run, self.setup.plan
        signer = public_pem(self.trail.keys.checkpoint().public_key())
        body = {
            "run": self.trail.run,
            "name": run.name,
            "stage": "pretrain" if run.parent is None else "finetune",
            "step": step,
            "config": config_digest(run),
            "plan": plan.digest,
            "data": corpus_digest,
            "signer": hashlib.sha256(signer).hexdigest(),
            "node": node.facts(jax.process_index(), jax.default_backend()),
            "processes": jax.process_count(),
            "tensors": list(tensors),
            "jaxlm": version("jaxlm"),
            "jax": jax.__version__,
        }
        if (mine := self.trail.keys.own_witness()) is not None:
            body["own_witness"] = mine.hex()
        if run.parent is not None:
            body["parent"] = parent_of(run)
        self._record("access", {"command": "train", "account": node.account()})
        self._commit("run.start", body)
        self.adopted(step, plan)
        self.witnessing = None if self._ask is None else self._ask()
        nodes = all_say(body["node"])
        if self.leader and (alerts := node.watch(self.trail, nodes)):
            self.say("\n".join(f"audit: {alert}" for alert in alerts))

    def adopted(self, step: int, plan: Plan) -> None:
        """A plan is followed from here on."""
        if self.leader:
            self._record("plan.adopt", {"step": step, "plan": plan.digest, "summary": plan.summary()})

    def observe(self, finished: Finished) -> None:
        """One finished step."""
        if not self.leader:
            return
        self._record("train.step", {"step": finished.step, "batch": finished.batch, **finished.scalars})
        if self.every and finished.layers is not None and finished.step % self.every == 0:
            gradient, weight, update = (_short(row) for row in finished.layers)
            self._record(
                "train.layer", {"step": finished.step, "gradient": gradient, "weight": weight, "update": update}
            )

    def evaluated(self, record: dict[str, Any]) -> None:
        if self.leader:
            self._record("eval", record)

    def log_facts(self) -> dict[str, float]:
        """What rules may read of the log: durable entries, waiting ones, seconds since witnesses vouched for all."""
        assert self.trail is not None
        facts: dict[str, float] = {"size": self.trail.size, "waiting": self.trail.waiting}
        if self.witnessing is not None:
            facts["witness_age"] = time.monotonic() - self.witnessing.since
        return facts

    def _witnesses(self, path: Path) -> Callable[[], Witnessing]:
        """Begins to ask the witnesses of a policy, which is read now. One that is down is asked while the log can
        still take that, however short the run is."""
        assert self.trail is not None
        trail, policy = self.trail, load_policy(path)
        mine = trail.keys.own_witness()
        policy = dataclasses.replace(without(policy, [mine] if mine else []), logs=(trail.verifier,))

        def alert(why: str) -> None:
            self.say(f"audit: {why}")
            verdict = {"rule": "witnesses", "policy": hashlib.sha256(path.read_bytes()).hexdigest(), "action": "alert"}
            with suppress(GovernanceError):  # the trail may be closed already, or has failed, which is said elsewhere
                trail.record("policy.verdict", {**verdict, "why": why})

        return lambda: Witnessing(trail.audit / trail.name, policy, alert)

    def _forgive(self, fault: str) -> None:
        if fault not in self.forgiven:
            self.forgiven.append(fault)
            self.say(f"WARNING: restoring what cannot be verified, as --allow-unverified says: {fault}")

    def _record(self, kind: str, body: dict[str, Any]) -> None:
        assert self.trail is not None
        self.trail.record(kind, body)

    def _commit(self, kind: str, body: dict[str, Any]) -> None:
        assert self.trail is not None
        self.trail.commit(kind, body)


class Unaudited:
    """In place of `Auditing` where governance.enabled is false: does nothing."""

    notary = None

    def __enter__(self) -> "Unaudited":
        return self

    def __exit__(self, *_: Any) -> None: ...

    def check(self, found: Found, store: Store) -> None: ...

    def restored(self, store: Store, step: int) -> None: ...

    def started(self, corpus_digest: str, step: int, tensors: Sequence[str]) -> None: ...

    def adopted(self, step: int, plan: Plan) -> None: ...

    def observe(self, finished: Finished) -> None: ...

    def evaluated(self, record: dict[str, Any]) -> None: ...


def auditing(setup: Setup, say: Say) -> "Auditing | Unaudited":
    """The trail of this process, as the configuration says."""
    if setup.run.governance.enabled:
        return Auditing(setup, say)
    if (left := left_by_governance(setup.folder, setup.run)) is not None:
        say(f"WARNING: {UNVERIFIED.format(left)}")
    return Unaudited()


def _short(row: np.ndarray) -> list[float]:
    return [float(f"{value:.{_PRECISION}g}") for value in row]

"""`jaxlm audit policy ...` and `jaxlm audit approve`: what a policy would do, does, and is allowed to go on after."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from jaxlm.cli.common import Common, Refused


@dataclass(kw_only=True)
class Check(Common):
    """Say whether a policy can be followed, and with RUN what it would have done there. Logs and stops nothing.

    Example: jaxlm audit policy check configs/policies/sample.yaml runs/quickstart
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """A policy, as governance.policy names it."""
    folder: Annotated[Positional[Path | None], arg(metavar="RUN")] = None
    """Run directory whose metrics.jsonl is judged."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.folder import open_run
        from jaxlm.governance.policy import load
        from jaxlm.governance.rehearsal import rehearse
        from jaxlm.trainer.metrics import read_jsonl

        loaded = load(self.file)
        rules = len(loaded.policy.rules)
        print(f"{self.file}: {rules} rules, on failure {loaded.policy.fail}, SHA-256 {loaded.digest}")
        if self.folder is not None:
            folder, _ = open_run(self.folder)
            evaluations = read_jsonl(folder.evaluations) if folder.evaluations.exists() else []
            done = rehearse(loaded, read_jsonl(folder.metrics) if folder.metrics.exists() else [], evaluations)
            span = f"steps {done.steps[0]} to {done.steps[-1]}" if done.steps else "nothing recorded yet"
            print(f"{self.folder}: {len(done.steps)} records, {span}")
            print("\n".join(done.lines(loaded)))
        return 0


@dataclass(kw_only=True)
class Show(Common):
    """Print the policy that a run obeys, as its log names it, and the verdicts that wait for a decision.

    Example: jaxlm audit policy show runs/quickstart
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.consulting import policy_of, waiting

        loaded = policy_of(self.folder)
        print("no policy is in force" if loaded is None else f"# SHA-256 {loaded.digest}\n{loaded.content.decode()}")
        for verdict in waiting(self.folder)[1]:
            print(f"verdict {verdict.index} waits for a decision: {verdict}")
        return 0


@dataclass(kw_only=True)
class Approve(Common):
    """Sign that a run may go on after a verdict that paused or halted it, or with --reject that it may not.

    The key must be one of those that the policy of the verdict lists under `approvers`. A run that waits takes the
    decision within a second; one that was halted takes it when it is started again.

    Example: jaxlm audit approve runs/quickstart --key alice.pem --name alice --reason "looked at the batch: fine"
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    key: Path
    """Your private key, as `jaxlm audit key --file` made it."""
    reason: str
    """Why, for the log; name nobody whom it should forget."""
    verdict: int | None = None
    """Which verdict, as `jaxlm audit policy show` prints it; default every one that waits."""
    reject: bool = False
    """It may not go on: a paused run is halted."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.consulting import approve

        if not self.reason.strip():
            raise Refused("--reason must say why")
        for verdict, by in approve(self.folder, self.key, self.reason, self.verdict, reject=self.reject):
            print(f"{'rejected' if self.reject else 'approved'} by {by}: verdict {verdict.index}, {verdict}")
        return 0


@dataclass(kw_only=True)
class Policies(Common):
    """Try a policy before a run obeys it, or print the one that a run obeys."""

    what: Annotated[Check, subcommand("check")] | Annotated[Show, subcommand("show")]

    def run(self) -> int:
        self.what.rest = self.rest
        return self.what.run()

"""`jaxlm audit ...`: verify, show, prove and witness the audit trail of a run."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg, subcommand

from jaxlm.cli.common import Common, Refused
from jaxlm.cli.custody import DOES_NOT_HOLD, Report, Restore, Rotate, Snapshot, trusted
from jaxlm.cli.policies import Approve, Policies


@dataclass(kw_only=True)
class Verify(Common):
    """Verify a run, or one proof, offline. Exit code 1 when something does not hold.

    Every entry, hash, signature and checkpoint is checked. Without --key or --policy the answer can only be that the
    trail agrees with itself: whoever can write the run directory could have made all of it.

    Example: jaxlm audit verify runs/quickstart --key node.vkey
    """

    target: Annotated[Positional[Path], arg(metavar="RUN|BUNDLE")]
    """Run directory, or a file that `jaxlm audit proof` wrote."""
    key: str | None = None
    """The log's public key (vkey, or a file with it) as you got it from whom you trust, not from the run directory."""
    policy: Path | None = None
    """A tlog-policy file: which logs, which witnesses, and how many must have cosigned."""
    checkpoint: Path | None = None
    """With a proof: a checkpoint folder that must be the one it names."""
    signer: Path | None = None
    """With --checkpoint: the public key of the run's checkpoints (audit/signer.pem)."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.auditor import verify_bundle, verify_run

        trust = trusted(self.key, self.policy)
        if self.target.is_file():
            report = verify_bundle(self.target, trust, self.checkpoint, self.signer)
        elif self.checkpoint is not None:
            raise Refused("--checkpoint goes with a proof; a run's own checkpoints are verified anyway")
        else:
            report = verify_run(self.target, trust)
        print(report.text())
        return DOES_NOT_HOLD if report.faults else 0


@dataclass(kw_only=True)
class Show(Common):
    """Print the entries of a run's log.

    Example: jaxlm audit show runs/quickstart --type ckpt.commit ckpt.restore
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    type: list[str] = field(default_factory=list)
    """Only entries of these types, such as run.start or ckpt.commit."""
    last: int | None = None
    """Only the last so many."""
    log: str = "log"
    """Which log: `log` of process 0, `log-1` ..., or `readers`."""
    json: bool = False
    """One JSON object per line."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.auditor import as_json, show
        from jaxlm.governance.audit import body_text

        for entry in show(self.folder, tuple(self.type), self.last, self.log):
            if self.json:
                print(json.dumps(as_json(entry)))
            else:
                when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(entry.t_wall))
                print(f"{entry.index:>6}  {when}Z  {entry.host}  {entry.kind:<14}  {body_text(entry)}")
        return 0


@dataclass(kw_only=True)
class Prove(Common):
    """Write a proof that a checkpoint, or any entry, is in the log; `jaxlm audit verify FILE` reads it anywhere.

    Example: jaxlm audit proof runs/quickstart --step 300
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    step: int | None = None
    """Of the checkpoint with this step."""
    index: int | None = None
    """Of the entry with this index, as `jaxlm audit show` prints it."""
    out: Path | None = None
    """Where to; default RUN-STEP.tlog-proof here."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.auditor import prove

        if (self.step is None) == (self.index is None):
            raise Refused("give either --step or --index")
        proof = prove(self.folder, step=self.step, index=self.index)
        out = self.out or Path(f"{self.folder.name}-{self.index if self.step is None else self.step}.tlog-proof")
        out.write_bytes(bytes(proof))
        print(f"saved {out}: entry {proof.index}, {len(proof.path)} hashes, {len(proof.note.signatures)} signatures")
        return 0


@dataclass(kw_only=True)
class Witness(Common):
    """Be a witness: cosign the heads of logs over HTTP (https://c2sp.org/tlog-witness), until interrupted.

    Run it on another machine or account than the logs': whoever holds the key of a log is no witness of it.

    Example: jaxlm audit witness --port 8901 --node node.vkey
    """

    port: int
    """Where to listen; 0 takes a free port."""
    log: list[str] = field(default_factory=list)
    """Public keys of the logs to witness: vkeys, or files with them."""
    node: list[str] = field(default_factory=list)
    """Public keys whose logs are witnessed whatever their name, as `jaxlm audit key` prints them."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    name: str | None = None
    """Of this witness in its signatures; default HOSTNAME/witness."""
    folder: Path | None = None
    """Where it remembers heads; default beside the keys."""

    def run(self) -> int:
        self.no_overrides()
        import socket

        from jaxlm.governance.errors import GovernanceError
        from jaxlm.governance.keys import Keys
        from jaxlm.governance.notes import WitnessKey
        from jaxlm.governance.trust import load_key
        from jaxlm.governance.witness import Witness as Works
        from jaxlm.governance.witness import serve

        keys, logs, nodes = Keys(), *([load_key(text) for text in texts] for texts in (self.log, self.node))
        if not logs and not nodes:
            raise Refused("name the logs to witness: --log or --node")
        for log in (*logs, *nodes):
            if keys.has_log(log.key):
                raise GovernanceError(
                    f"the key of the log {log.name} lies in {keys.folder}, so this witness would be the log itself: "
                    "run it under another account, or with JAXLM_KEYS set to another folder"
                )
        key = WitnessKey(self.name or f"{socket.gethostname()}/witness", keys.witness())
        try:
            server = serve(
                Works(key, logs, self.folder or keys.folder / "witnessed", nodes=[node.key for node in nodes]),
                self.host,
                self.port,
            )
        except OSError as error:
            raise Refused(f"--host {self.host} --port {self.port}: {error.strerror}") from None
        url = f"http://{self.host}:{server.server_address[1]}"
        print(f"witness {self.name or 'w'} {key.verifier} {url}", flush=True)  # a line for a policy file
        try:
            server.serve_forever()
        finally:
            server.server_close()
        return 0


@dataclass(kw_only=True)
class Reveal(Common):
    """Print what one inference record says; only the account that made it can.

    Example: jaxlm audit reveal runs/quickstart --request 9f2c...
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    request: str
    """Its id, as `jaxlm audit show RUN --log readers --type infer.io` prints it."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.auditor import revealed

        print(json.dumps(revealed(self.folder, self.request), ensure_ascii=False, indent=2))
        return 0


@dataclass(kw_only=True)
class Erase(Common):
    """Destroy inference records for good and log that; every proof stays valid.

    Copies that somebody else made of the keys are out of reach.

    Example: jaxlm audit erase runs/quickstart --request 9f2c... --basis "request of the person"
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    request: list[str]
    """Ids of the records."""
    basis: str
    """Why, for the log; name nobody."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.auditor import erase

        erase(self.folder, self.request, self.basis)
        print(f"erased {len(self.request)} records; the log says so")
        return 0


@dataclass(kw_only=True)
class Key(Common):
    """Print the public key of this account's logs: what `verify --key` and a witness's --node need from you.

    With --file, that of an approver, whose private key is made in the file where there is none.

    Example: jaxlm audit key > node.vkey
    """

    file: Path | None = None
    """The private key of somebody who approves what a policy paused or halted; keep it away from the run."""
    name: str | None = None
    """With --file: the approver's name, which verdicts are signed with."""

    def run(self) -> int:
        self.no_overrides()
        import socket

        from jaxlm.governance.keys import Keys, private_key
        from jaxlm.governance.notes import LogKey

        if (self.file is None) != (self.name is None):
            raise Refused("--file and --name go together")
        if self.file is not None and self.name is not None:
            print(LogKey(self.name, private_key(self.file, make=True)).verifier)
            return 0
        print(LogKey(socket.gethostname(), Keys().log()).verifier)
        return 0


@dataclass(kw_only=True)
class Privacy(Common):
    """Add up the privacy budget that a run has spent, from its log alone. Exit code 1 when something does not hold.

    Example: jaxlm audit privacy runs/private
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    ledger: Path | None = None
    """The ledger that must hold every charge of the log; default privacy.ledger of the run, where it is there."""
    json: bool = False
    """One JSON object."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.replaying import as_json, as_text, replay_run

        found = replay_run(self.folder, self.ledger)
        print(json.dumps(as_json(found), indent=2) if self.json else as_text(found))
        return DOES_NOT_HOLD if found.faults else 0


@dataclass(kw_only=True)
class Audit(Common):
    """Verify, show, prove and witness the audit trail that a run leaves."""

    action: (
        Annotated[Verify, subcommand("verify")]
        | Annotated[Show, subcommand("show")]
        | Annotated[Prove, subcommand("proof")]
        | Annotated[Witness, subcommand("witness")]
        | Annotated[Reveal, subcommand("reveal")]
        | Annotated[Erase, subcommand("erase")]
        | Annotated[Key, subcommand("key")]
        | Annotated[Privacy, subcommand("privacy")]
        | Annotated[Rotate, subcommand("rotate")]
        | Annotated[Snapshot, subcommand("snapshot")]
        | Annotated[Restore, subcommand("restore")]
        | Annotated[Policies, subcommand("policy")]
        | Annotated[Approve, subcommand("approve")]
        | Annotated[Report, subcommand("report")]
    )

    def run(self) -> int:
        self.action.rest = self.rest
        return self.action.run()

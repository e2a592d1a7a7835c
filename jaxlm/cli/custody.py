"""`jaxlm audit rotate | snapshot | restore | report`: keys, copies, and what the trail amounts to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from jaxlm.cli.common import Common

if TYPE_CHECKING:
    from jaxlm.governance.trust import Trust

DOES_NOT_HOLD = 1


@dataclass(kw_only=True)
class Rotate(Common):
    """Replace this account's keys of logs and checkpoints; the old ones sign the new ones into the logs of these runs.

    Runs that are not named are handed over when they are opened next. Give the new key (`jaxlm audit key`) to whoever
    verifies: a stolen old one can still sign a log as it was before. Witnesses follow no handover by themselves: start
    them again with the new key as --node, or they refuse the log from then on.

    Example: jaxlm audit rotate runs/quickstart
    """

    folders: Annotated[Positional[list[Path]], arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    destroy: bool = False
    """Destroy the replaced private keys; runs that are not named can then not go on."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.custody import rotate

        found = rotate(self.folders, destroy=self.destroy)
        for each in found.handed:
            print(f"handed over {each}")
        for each in found.left:
            print(f"not this account's: {each}")
        if found.destroyed:
            print(f"destroyed {found.destroyed} private keys")
        return 0


@dataclass(kw_only=True)
class Snapshot(Common):
    """Encrypt a checkpoint into one file in the age format; `age -d -i KEY FILE | tar x` opens it anywhere.

    It is bound to the run, the step, the path and the name of the file, and the log knows its digest.

    Example: jaxlm audit snapshot runs/quickstart --step 300 --recipient age1... --out quickstart-300.age
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    step: int
    """Of the checkpoint."""
    recipient: list[str]
    """Who can read it: public keys as `age-keygen` prints them."""
    out: Path
    """The new file."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.copies import take

        written = take(self.folder, self.step, self.recipient, self.out)
        print(f"saved {self.out}: {written.size:,} bytes, SHA-256 {written.digest}")
        return 0


@dataclass(kw_only=True)
class Restore(Common):
    """Decrypt a snapshot into a checkpoint, once everything that it is bound to and signed with holds.

    Example: jaxlm audit restore quickstart-300.age --identity key.txt --of runs/quickstart
    """

    file: Annotated[Positional[Path], arg(metavar="FILE")]
    """What `jaxlm audit snapshot` wrote."""
    identity: Path
    """The private key, a file as `age-keygen -o` writes it."""
    of: Path | None = None
    """The run that it must belong to, whose log must know it; the checkpoint goes back to its place there."""
    signer: Path | None = None
    """Where there is no run: the public key of its checkpoints (audit/signer.pem)."""
    step: int | None = None
    """The step that it must be of."""
    out: Path | None = None
    """The new checkpoint folder, in place of the one in the run."""
    renamed: bool = False
    """Take it though it has another name than it was made with."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.copies import bring_back

        found = bring_back(
            self.file,
            self.identity,
            run=self.of,
            signer=self.signer,
            step=self.step,
            out=self.out,
            renamed=self.renamed,
        )
        known = "known to its log" if found.logged else "signed with the key given; its log was not asked"
        print(f"restored {found.folder}: step {found.binding.step} of run {found.binding.run[:12]}, {known}")
        return 0


@dataclass(kw_only=True)
class Report(Common):
    """Verify a run and write what its audit trail says as one HTML page, with nothing from any network.

    Timeline, verdicts, privacy budget, checkpoints, witnesses, and which entries support which controls of ISO/IEC
    27001, 23894, 38507, 42001 and the EU AI Act. Exit code 1 when something does not hold; it is written then too.

    Example: jaxlm audit report runs/quickstart --key node.vkey --out report.html
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    out: Path | None = None
    """The page; default RUN-audit.html here."""
    key: str | None = None
    """The log's public key, as for `verify`."""
    policy: Path | None = None
    """A tlog-policy file, as for `verify`."""
    json: bool = False
    """Print the same facts as JSON instead, and write a page only with --out."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.dossier import facts
        from jaxlm.dossier_page import page

        found = facts(self.folder, trusted(self.key, self.policy))
        out = self.out or (None if self.json else Path(f"{self.folder.absolute().name}-audit.html"))
        if out is not None:
            out.write_text(page(found), encoding="utf-8")
        print(json.dumps(found) if self.json else f"saved {out}: {found['verification']['state']}")
        return DOES_NOT_HOLD if found["verification"]["faults"] else 0


def trusted(key: str | None, policy: Path | None) -> "Trust":
    """Whom the flags --key and --policy name."""
    from jaxlm.governance.trust import Trust, load_key, load_policy

    return Trust(None if key is None else load_key(key), None if policy is None else load_policy(policy))

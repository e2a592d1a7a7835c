"""Whom whoever verifies trusts: a key, a policy, or nobody yet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxlm.governance import notes, quorum
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.notes import Note, Verifier
from jaxlm.governance.quorum import NoQuorum, Policy

UNKNOWN = "self-consistent, signer unknown"


@dataclass(frozen=True, slots=True)
class Trust:
    """Attributes:
    key: the log's public key as it was learnt elsewhere; its name does not matter, a key signs the logs of many runs.
    policy: which logs, and which quorum of witnesses.
    """

    key: Verifier | None = None
    policy: Policy | None = None

    def judge(
        self, key: Verifier, notes: Iterable[Note], own: Iterable[bytes] = (), former: Sequence[Verifier] = ()
    ) -> tuple[str, Head | None]:
        """Who vouches for a log with the public key that lies beside it, and the newest head that witnesses saw.

        Args:
            key: of the log, not trusted yet; the notes are signed by it.
            notes: its heads, the newest first; at least one.
            own: raw public keys of witnesses that the log's operator runs, which vouch for nothing.
            former: keys of the log that handed over, up to `key`, each as the log shows it; whoever trusts one of them
                trusts those after it.

        Raises:
            NoQuorum: no head has a quorum, and nothing else is wrong.
            Rejected: it is another log than the trusted one, or a signature does not hold.
        """
        known = {each.key for each in (key, *former)}
        if self.key is not None and self.key.key not in known:
            raise Rejected(f"signed by another key than --key: {key}")
        if self.policy is None:
            return (UNKNOWN if self.key is None else f"signed by {key.name} with the key given"), None
        listed = [log for log in self.policy.logs if log.key in known]
        if not listed and self.key is None:
            raise Rejected(f"the policy does not list the log's key {key}")
        policy = without(Policy((key, *former), *_rest(self.policy)), own)
        faults: list[Rejected] = []
        for note in notes:
            try:
                head, names = policy.check(note)
                said = f"cosigned by {', '.join(names)}" if names else "no witness asked for"
                return f"signed by {key.name}, known to the policy; {said}", head
            except Rejected as error:
                faults.append(error)
        raise next((fault for fault in faults if not isinstance(fault, NoQuorum)), faults[-1])


def without(policy: Policy, own: Iterable[bytes]) -> Policy:
    """The policy with the witnesses of these raw public keys counting for nothing."""
    mine = set(own)
    witnesses = {
        name: Verifier(f"{key.name}/of-the-log", key.kind, bytes(len(key.key))) if key.key in mine else key
        for name, key in policy.witnesses.items()
    }
    return Policy(policy.logs, witnesses, policy.groups, policy.quorum, policy.urls)


def load_key(text: str) -> Verifier:
    """A vkey, or a file that holds one. Raises GovernanceError naming it."""
    try:
        return notes.parse_verifier(text if text.count("+") >= 2 and "\n" not in text else Path(text).read_text())
    except (OSError, Rejected, UnicodeDecodeError) as error:
        raise GovernanceError(f"--key {text}: {getattr(error, 'strerror', None) or error}") from None


def load_policy(path: Path) -> Policy:
    """A tlog-policy file. Raises GovernanceError naming it."""
    try:
        return quorum.parse(path.read_bytes())
    except (OSError, Rejected) as error:
        raise GovernanceError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _rest(policy: Policy) -> tuple:
    return policy.witnesses, policy.groups, policy.quorum, policy.urls

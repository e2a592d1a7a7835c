"""A key hands over to the next one: a statement in the log, signed by both, bound to the entries before it.

    {"of": "log", "old": VKEY, "new": VKEY, "size": 120, "root": "...", "signatures": {"old": "...", "new": "..."}}

`size` and `root` are the log before this entry, so the old key vouches for exactly these entries, and the statement
fits nowhere else. From then on the old key signs nothing: heads of more entries (`of` log) and checkpoints that are
logged later, or not at all (`of` checkpoint), are refused under it, by their place in the log and not by any clock.
Whoever steals an old key and shows a log that lacks the statement is found out by what was seen of that log before: by
witnesses, by the heads that an account remembers, or by a reader who was given the new key.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey, EllipticCurvePublicKey

from jaxlm.governance import entries, notes
from jaxlm.governance.entries import Entry
from jaxlm.governance.errors import Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.keys import Keys, load_public, public_pem, write_public
from jaxlm.governance.log import Log
from jaxlm.governance.notes import ED25519, LogKey, Verifier

LOG, CHECKPOINT = "log", "checkpoint"
_FIRST = "jaxlm key rotation v1"
"""No head of a log begins like this and no DSSE envelope, so a signature of one is none of the other."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What both keys sign.

    Attributes:
        of: LOG or CHECKPOINT.
        before: the log before the entry that says so.
        old, new: a vkey, or the SubjectPublicKeyInfo in base64.
    """

    of: str
    before: Head
    old: str
    new: str

    @property
    def text(self) -> str:
        return f"{_FIRST}\n{self.of}\n{self.before.text}{self.old}\n{self.new}\n"

    def body(self, old: bytes, new: bytes) -> dict[str, Any]:
        """Of the entry, with the signatures of both keys."""
        return {
            "of": self.of,
            "old": self.old,
            "new": self.new,
            "size": self.before.size,
            "root": self.before.root.hex(),
            "signatures": {"old": notes.encode(old), "new": notes.encode(new)},
        }


def of_log(before: Head, old: LogKey, new: LogKey) -> dict[str, Any]:
    """The body of the entry by which the key of a log hands over."""
    statement = Statement(LOG, before, str(old.verifier), str(new.verifier))
    return statement.body(old.sign(statement.text).value, new.sign(statement.text).value)


def of_checkpoints(before: Head, old: EllipticCurvePrivateKey, new: EllipticCurvePrivateKey) -> dict[str, Any]:
    """The body of the entry by which the key of a run's checkpoints hands over."""
    statement = Statement(CHECKPOINT, before, spki(old.public_key()), spki(new.public_key()))
    made = [key.sign(statement.text.encode(), ECDSA(hashes.SHA256())) for key in (old, new)]
    return statement.body(*made)


def spki(key: EllipticCurvePublicKey) -> str:
    """A public key on one line: DER in base64, what PEM has between its two lines."""
    return "".join(public_pem(key).decode().splitlines()[1:-1])


def of_spki(text: str) -> EllipticCurvePublicKey:
    """Raises Rejected unless it is a public key on P-256."""
    body = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return load_public(f"-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n".encode())


@dataclass(frozen=True, slots=True)
class Chain:
    """The keys of a log one after the other.

    Attributes:
        present: the key that signs now.
        log, checkpoint: each handover: the index of its entry, and the old key.
    """

    present: Verifier
    log: Sequence[tuple[int, Verifier]] = field(default_factory=list)
    checkpoint: Sequence[tuple[int, EllipticCurvePublicKey]] = field(default_factory=list)

    def signers(self, size: int) -> list[Verifier]:
        """The keys that may sign a head of so many entries: the one of its time; both where the newest entry hands
        over, which is the last thing that the old key signs."""
        rest = [(index, key) for index, key in self.log if size <= index + 1]
        if not rest:
            return [self.present]
        index, key = rest[0]
        return [key] if size <= index else [rest[1][1] if len(rest) > 1 else self.present, key]

    @property
    def former(self) -> list[Verifier]:
        return [key for _, key in self.log]


def follow(present: Verifier, known: Iterable[Entry], root: Callable[[int], bytes], size: int) -> Chain:
    """Checks every handover in a log up to its present key.

    Args:
        present: the key that lies beside the log, which has signed its head.
        known: entries of the log, all of type `key.rotate` among them.
        root: of the first so many entries.
        size: of the log.

    Raises:
        Rejected: a handover that is not signed by the key before it, or bound to another place; or the chain does not
            lead to `present`.
    """
    log: list[tuple[int, Verifier]] = []
    checkpoint: list[tuple[int, EllipticCurvePublicKey]] = []
    newest: dict[str, str] = {}
    for entry in known:
        if entry.kind != "key.rotate":
            continue
        try:
            said = checked(entry, present.name, root)
        except Rejected as error:
            raise Rejected(f"entry {entry.index} (key.rotate): {error}") from None
        if newest.get(said.of, said.old) != said.old:
            raise Rejected(f"entry {entry.index} (key.rotate) is signed by another key than the one before it")
        newest[said.of] = said.new
        if said.of == LOG:
            log.append((entry.index, notes.parse_verifier(said.old)))
        else:
            checkpoint.append((entry.index, of_spki(said.old)))
    if log and newest[LOG] != str(present):
        if log[-1] != (size - 1, present):
            raise Rejected(f"the log's key handed over to another one than {present}, which lies beside it")
        present = notes.parse_verifier(newest[LOG])  # the process was stopped before it replaced the public key
    return Chain(present, log, checkpoint)


def checked(entry: Entry, origin: str, root: Callable[[int], bytes]) -> Statement:
    """What an entry of type `key.rotate` says, once both keys have signed it for this place.

    Args:
        entry: of the log `origin`.
        origin: the name of the log.
        root: of the first so many entries of that log; asked for `entry.index` only.

    Raises:
        Rejected: it is not of the form, not signed by both, or signed for another place.
    """
    body = entry.body
    try:
        if not all(isinstance(body[name], str) for name in ("of", "old", "new")):
            raise TypeError("a key is text")
        before = Head(origin, body["size"], bytes.fromhex(body["root"]))
        said = Statement(body["of"], before, body["old"], body["new"])
        old, new = (notes.decode(body["signatures"][name]) for name in ("old", "new"))
    except (KeyError, TypeError, ValueError) as error:
        raise Rejected(f"not of the form of a handover: {error}") from None
    if before.size != entry.index or root(entry.index) != before.root:
        raise Rejected("it was signed for another place or another log")
    if said.of not in (LOG, CHECKPOINT):
        raise Rejected(f"unknown key {said.of!r}")
    for name, key, signature in (("old", said.old, old), ("new", said.new, new)):
        _verify(said, name, key, signature)
    return said


def _verify(said: Statement, name: str, key: str, signature: bytes) -> None:
    if said.of == LOG:
        verifier = notes.parse_verifier(key)
        if verifier.name != said.before.origin or verifier.kind != ED25519:
            raise Rejected(f"the {name} key is none of this log: {key}")
        try:
            return verifier.check(said.text, signature)
        except Rejected:
            raise Rejected(f"the {name} key has not signed it") from None
    try:
        of_spki(key).verify(signature, said.text.encode(), ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Rejected(f"the {name} key has not signed it") from None


def former_signers(known: Iterable[Entry]) -> list[tuple[int, EllipticCurvePublicKey]]:
    """The former keys of checkpoints, in a log whose handovers were checked, each with the index of its last word."""
    found = [entry for entry in known if entry.kind == "key.rotate" and entry.body["of"] == CHECKPOINT]
    return [(entry.index, of_spki(entry.body["old"])) for entry in found]


def signer_digest(known: Iterable[Entry]) -> str | None:
    """The SHA-256 of the PEM of the key that signs the checkpoints of a run now, by its log; None before it starts.

    Raises:
        Rejected: a start names another key, and the one before it did not hand over.
    """
    present: str | None = None
    for entry in known:
        if entry.kind == "run.start":
            if present not in (None, entry.body["signer"]):
                raise Rejected(f"entry {entry.index} names another key of the checkpoints, to which none handed over")
            present = entry.body["signer"]
        elif entry.kind == "key.rotate" and entry.body["of"] == CHECKPOINT:
            present = digest(of_spki(entry.body["new"]))
    return present


def digest(key: EllipticCurvePublicKey) -> str:
    """What `run.start` calls `signer`, hex."""
    return hashlib.sha256(public_pem(key)).hexdigest()


def hand_over(log: Log, chain: entries.Chain, signer: LogKey, keys: Keys, audit: Path, known: list[Entry]) -> None:
    """Hands a log, and the checkpoints that it knows, over to the present keys of this account, where older ones have
    signed them until now. Whatever a kill leaves of it, the next call completes.

    Args:
        log: open, with nobody else writing.
        chain: of this host.
        signer: the key that signs the log.
        keys: of this account, the retired ones among them.
        audit: the folder that the log lies in.
        known: its entries; new ones are added.
    """

    def say(body: dict[str, Any]) -> None:
        raw = chain.entry("key.rotate", body)
        known.append(entries.parse(log.append([raw]), raw))

    if log.folder.name == "log" and (named := signer_digest(known)) is not None:
        mine = keys.checkpoint()
        if named != digest(mine.public_key()) and (old := keys.retired_checkpoint(named)) is not None:
            say(of_checkpoints(log.head, old, mine))
        if former_signers(known) and signer_digest(known) == digest(mine.public_key()):
            write_public(audit / "signer.pem", public_pem(mine.public_key()))
    present = LogKey(signer.name, keys.log())
    if present.verifier == signer.verifier:
        return
    newest = next((e.body for e in reversed(known) if e.kind == "key.rotate" and e.body["of"] == LOG), {})
    if newest.get("new") != str(present.verifier):
        say(of_log(log.head, signer, present))
    log.hand_over(present)
    write_public(audit / f"{log.folder.name}.vkey", f"{present.verifier}\n".encode())

"""Whom a verifier trusts: logs, witnesses and how many of them (https://c2sp.org/tlog-policy)."""

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass

from jaxlm.governance import heads, notes
from jaxlm.governance.errors import Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.notes import COSIGNATURE, ED25519, SUBTREE, Note, Verifier

_MOST = 1000
_FORBIDDEN = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


class NoQuorum(Rejected):
    """Every signature there holds, and too few witnesses gave one."""


@dataclass(frozen=True, slots=True)
class Group:
    """Witnessed when at least `least` of `members` (names of witnesses or groups) are."""

    least: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """Which heads count.

    Attributes:
        logs: keys of logs, each with its origin as name.
        witnesses: keys of witnesses by the names of the policy.
        groups: by name; members were defined before.
        quorum: the witness or group that must have cosigned; None asks for none.
        urls: where witnesses take heads, by name.
    """

    logs: tuple[Verifier, ...]
    witnesses: dict[str, Verifier]
    groups: dict[str, Group]
    quorum: str | None
    urls: dict[str, str]

    def check(self, note: Note) -> tuple[Head, list[str]]:
        """The head in `note`, signed by one of the logs and by a quorum; and the witnesses that cosigned it.

        Raises:
            NoQuorum: too few witnesses signed it.
            Rejected: no known log signed it, or a known key's signature does not hold.
        """
        head = heads.parse(note.text)
        mine = [log for log in self.logs if log.name == head.origin]
        if not mine:
            raise Rejected(f"log {head.origin} is not in the policy")
        if not note.signed_by(mine):
            raise Rejected(f"the head is not signed by a key that the policy knows for {head.origin}")
        valid = note.signed_by(self.witnesses.values())
        names = [name for name, key in self.witnesses.items() if key in valid]
        if self.quorum is not None and not self._met(self.quorum, set(names)):
            raise NoQuorum(f"no quorum: {len(names)} of {len(self.witnesses)} witnesses cosigned ({self.describe()})")
        return head, names

    def describe(self) -> str:
        """What the quorum asks for."""
        if self.quorum is None:
            return "none asked for"
        group = self.groups.get(self.quorum)
        return f"asked for: {self.quorum}" if group is None else f"asked for: {group.least} of {len(group.members)}"

    def _met(self, name: str, cosigned: set[str]) -> bool:
        if name in self.witnesses:
            return name in cosigned
        group = self.groups[name]
        return sum(self._met(member, cosigned) for member in group.members) >= group.least


def parse(content: bytes) -> Policy:
    """A policy file. Raises Rejected naming the line."""
    if _FORBIDDEN.search(content):
        raise Rejected("a policy holds no control characters but tab and newline")
    logs: list[Verifier] = []
    witnesses: dict[str, Verifier] = {}
    groups: dict[str, Group] = {}
    urls: dict[str, str] = {}
    member: set[str] = set()
    quorum: list[str] = []
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    if len(lines) > _MOST:
        raise Rejected(f"a policy of {len(lines):,} lines is too much")
    for at, line in enumerate(lines, 1):
        words = [word for word in re.split(r"[ \t]+", line) if word]
        if not words or words[0].startswith("#"):
            continue
        try:
            match words:
                case ["log", key, *url] if len(url) < 2:
                    logs.append(_fresh(key, (ED25519,), logs))
                case ["witness", name, key, *url] if len(url) < 2:
                    _unused(name, witnesses, groups)
                    witnesses[name] = _fresh(key, (COSIGNATURE, SUBTREE), witnesses.values())
                    urls |= {name: url[0]} if url else {}
                case ["group", name, least, *members] if members:
                    _unused(name, witnesses, groups)
                    for each in members:
                        if each not in witnesses and each not in groups:
                            raise Rejected(f"{each} is not defined above")
                        if each in member:
                            raise Rejected(f"{each} is a member twice")
                        member.add(each)
                    groups[name] = Group(_threshold(least, len(members)), tuple(members))
                case ["quorum", name]:
                    if name != "none" and name not in witnesses and name not in groups:
                        raise Rejected(f"{name} is not defined above")
                    quorum.append(name)
                case _:
                    raise Rejected("not a line of a policy (log, witness, group, quorum)")
        except Rejected as error:
            raise Rejected(f"policy, line {at}: {error}") from None
    if len(quorum) != 1:
        raise Rejected(f"a policy has one quorum line, this one {len(quorum)}")
    if both := {log.key for log in logs} & {key.key for key in witnesses.values()}:
        raise Rejected(f"a log is no witness of itself: {len(both)} keys are listed as both")
    return Policy(tuple(logs), witnesses, groups, None if quorum == ["none"] else quorum[0], urls)


def _fresh(text: str, kinds: tuple[int, ...], known: Iterable[Verifier]) -> Verifier:
    key = notes.parse_verifier(text)
    if key.kind not in kinds:
        raise Rejected(f"key {key.name} is of a type that cannot do this")
    if any(each.key == key.key for each in known):
        raise Rejected(f"key {key.name} is there twice")
    return key


def _unused(name: str, *taken: Container[str]) -> None:
    if name == "none" or any(name in each for each in taken):
        raise Rejected(f"the name {name} is taken")


def _threshold(text: str, count: int) -> int:
    least = {"any": 1, "all": count}.get(text) or heads.number(text)
    if not 1 <= least <= count:
        raise Rejected(f"{text} of {count} is no threshold")
    return least

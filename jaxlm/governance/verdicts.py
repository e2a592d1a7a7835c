"""From what an engine says of each rule to verdicts: a rule that stays broken is told once."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxlm.governance import cel
from jaxlm.governance.policy import SEVERITY, Rule

ENGINE = "engine"
"""The rule of a verdict on the engine itself."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an engine says of one rule: whether it is broken, or why nobody can say."""

    broken: bool = False
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What follows from a rule.

    Attributes:
        rule: its name, or ENGINE.
        action: of the rule; what the policy says of failures where it could not be judged.
        why: in words.
        failed: it could not be judged.
        values: the numbers it read.
    """

    rule: str
    action: str
    why: str
    failed: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)

    def body(self, policy: str, **more: Any) -> dict[str, Any]:
        """The entry in the log, under the policy with this digest."""
        facts: dict[str, Any] = {"rule": self.rule, "policy": policy, "action": self.action, "why": self.why}
        facts |= {"failed": True} if self.failed else {}
        facts |= {"values": dict(self.values)} if self.values else {}
        return facts | more


def gravest(verdicts: Iterable[Verdict]) -> Verdict | None:
    """The one whose action is done; the first of several."""
    return max(verdicts, key=lambda verdict: SEVERITY.index(verdict.action), default=None)


class Standing:
    """Which rules are broken at the moment.

    Args:
        held: names of rules that were broken before and approved: they are told again only once they have held.
    """

    def __init__(self, held: Iterable[str] = ()):
        self.held = set(held)

    def verdicts(
        self, rules: Sequence[Rule], said: Mapping[str, Said], fail: str, facts: Mapping[str, Any]
    ) -> list[Verdict]:
        """Of the rules that are broken, or cannot be judged, and were neither the last time."""
        found: list[Verdict] = []
        for rule in rules:
            answer = said[rule.name]
            if not answer.broken and answer.fault is None:
                self.held.discard(rule.name)
            elif rule.name not in self.held:
                self.held.add(rule.name)
                found.append(verdict(rule, answer, fail, facts))
        return found

    def failure(self, why: str, fail: str) -> list[Verdict]:
        """Of an engine that gave no answer, unless it gave none the last time."""
        if ENGINE in self.held:
            return []
        self.held.add(ENGINE)
        return [Verdict(ENGINE, fail, why, failed=True)]

    def answered(self) -> None:
        """The engine gave an answer."""
        self.held.discard(ENGINE)


def verdict(rule: Rule, answer: Said, fail: str, facts: Mapping[str, Any]) -> Verdict:
    """Of one rule that is broken or cannot be judged."""
    if answer.fault is not None:
        return Verdict(rule.name, fail, f"{rule.when}: {answer.fault}", failed=True)
    return Verdict(rule.name, rule.action, rule.message or rule.when, values=numbers(rule, facts))


def numbers(rule: Rule, facts: Mapping[str, Any]) -> dict[str, float]:
    """What a rule read, by its dotted names; never text, which may be somebody's."""
    values = {".".join(path): cel.value(facts, path) for path in cel.compile(rule.when).reads}
    return {k: v for k, v in sorted(values.items()) if isinstance(v, int | float) and not isinstance(v, bool)}

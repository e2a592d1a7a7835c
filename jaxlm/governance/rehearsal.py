"""What a policy would have done in a run that has been, from its metrics: a dry run, which logs and stops nothing."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxlm.governance import cel
from jaxlm.governance.policy import Loaded, Rule, facts_of, train_facts
from jaxlm.governance.verdicts import Said, Standing, Verdict

NOT_RECORDED = ("layers", "log", "dp")
"""Namespaces that only a run itself knows."""


@dataclass
class Rehearsal:
    """What came of it.

    Attributes:
        steps: the steps that were judged.
        acts: by rule, the steps at which it would have acted, and its first verdict.
        unknown: by rule, why it cannot be judged from metrics alone.
    """

    steps: list[int] = field(default_factory=list)
    acts: dict[str, list[tuple[int, Verdict]]] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)

    def first(self, action: str) -> tuple[int, Verdict] | None:
        """The first verdict with this action and its step."""
        found = [each for acts in self.acts.values() for each in acts if each[1].action == action]
        return min(found, key=lambda each: each[0], default=None)

    def lines(self, loaded: Loaded) -> list[str]:
        """A table for people."""
        rules = loaded.policy.rules
        width = max(len(rule.name) for rule in rules)
        said = [f"{rule.name:<{width}}  {rule.action:<6}  {self._of(rule)}" for rule in rules]
        firsts = [(action, self.first(action)) for action in ("halt", "review")]
        return said + [
            f"the first {a} would come after step {first[0]}: {first[1].why}" for a, first in firsts if first
        ]

    def _of(self, rule: Rule) -> str:
        if rule.name in self.unknown:
            return f"not judged: {self.unknown[rule.name]}"
        acts = self.acts[rule.name]
        if not acts:
            return "never acts"
        steps = ", ".join(str(step) for step, _ in acts[:5]) + (f" and {len(acts) - 5} more" if len(acts) > 5 else "")
        first = acts[0][1]
        values = ", ".join(f"{name}={value:g}" for name, value in first.values.items())
        if first.failed:
            return f"cannot be judged, which is {first.action}, from step {steps}: {first.why}"
        return f"acts after step {steps}" + (f" ({values} at the first)" if values else "")


def rehearse(
    loaded: Loaded, records: Iterable[Mapping[str, Any]], evaluations: Iterable[Mapping[str, Any]] = ()
) -> Rehearsal:
    """Judges each record in order, with the newest evaluation of an earlier step."""
    done, later = Rehearsal(), sorted(evaluations, key=lambda record: record["step"])
    programs: dict[str, tuple[Rule, cel.Program]] = {}
    for rule in loaded.policy.rules:
        program = cel.compile(rule.when)
        absent = sorted({path[0] for path in program.reads} & set(NOT_RECORDED))
        if rule.name in loaded.requests:
            done.unknown[rule.name] = "it is over requests"
        elif absent:
            done.unknown[rule.name] = f"metrics.jsonl holds no {' and no '.join(absent)}"
        else:
            programs[rule.name] = (rule, program)
            done.acts[rule.name] = []
    standing, facts = Standing(), {"eval": {}}
    rules = [rule for rule, _ in programs.values()]
    for record in records:
        while later and later[0]["step"] < record["step"]:
            facts |= facts_of({k: v for k, v in later.pop(0).items() if k != "step"}, "eval")
        facts |= train_facts(record)
        done.steps.append(record["step"])
        said = {name: _said(program, facts) for name, (_, program) in programs.items()}
        for verdict in standing.verdicts(rules, said, loaded.policy.fail, facts):
            done.acts[verdict.rule].append((record["step"], verdict))
    return done


def _said(program: cel.Program, facts: Mapping[str, Any]) -> Said:
    try:
        return Said(program(facts))
    except cel.Fault as fault:
        return Said(fault=str(fault))

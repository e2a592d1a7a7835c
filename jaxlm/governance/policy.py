"""Policies: rules over what a run reports, in YAML, each an expression in CEL and what happens when it is true.

    fail: halt
    rules:
      - name: loss
        when: step > 100 && train.loss > 8.0
        action: halt

What rules may read:

    step                the number of the step that is judged
    train.NAME          loss, grad_norm, lr, step_seconds, tokens, tokens_per_second, and what else a step reports
    layers["NAME"].X    gradient, weight and update: norms of each tensor; a rule that reads them is judged when they
                        are new, as often as governance.layers_every says
    eval.NAME           what the last evaluation said, such as bits_per_byte
    fairness.NAME       any number reported as fairness/NAME; the same for dp.NAME
    dp.spent, dp.budget the privacy budget, where there is one
    log.size, log.waiting, log.witness_age    entries that are durable, entries that are not yet, and seconds since
                        witnesses last vouched for the log (only where a run has witnesses)
    request.NAME        of `jaxlm generate` and `jaxlm eval`: command, prompt, prompt_chars, prompt_tokens, tokens,
                        temperature, data, checkpoint

A name that is not there is an error, and every error is what `fail` says; `has(eval.loss) && ...` asks first.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from jaxlm.decode import ConfigError, decode, parse, suggest
from jaxlm.governance import cel
from jaxlm.governance.cel import DIVIDED, MISSING
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.notes import Verifier, parse_verifier

Action = Literal["alert", "review", "halt", "deny"]
SEVERITY: tuple[str, ...] = ("alert", "review", "halt")
"""What a rule over training may do, the mildest first."""
LARGEST = 1 << 20
"""Bytes of a policy file."""
TRAIN = ("loss", "grad_norm", "lr", "step_seconds", "tokens", "tokens_per_second")
"""What every step reports; what only some runs report is read with has()."""
LOG = ("size", "waiting", "witness_age")
REQUEST: dict[str, Any] = {
    "command": "generate",
    "prompt": "text",
    "prompt_chars": 4,
    "prompt_tokens": 1,
    "tokens": 100,
    "temperature": 0.8,
    "data": "text",
    "checkpoint": 1,
}
"""What a request says of itself, with a value of the right kind."""
OPEN = ("eval", "fairness", "dp", "layers")
"""Namespaces of which nobody knows beforehand what is in them."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        name: for the log.
        when: an expression in CEL that is true when the rule is broken.
        action: alert (say and log it), review (wait for a signed approval), halt (stop all hosts after a checkpoint);
            deny for rules over `request`.
        message: what to tell whoever reads the verdict.
    """

    name: str
    when: str
    action: Action
    message: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name={self.name!r} must be made of letters, digits and ._-, 64 at most")


@dataclass(frozen=True, slots=True, kw_only=True)
class Review:
    """How long a review waits.

    Attributes:
        timeout_seconds: for an approval; null waits for ever.
        outcome: what happens then.
    """

    timeout_seconds: float | None = None
    outcome: Literal["halt", "continue"] = "halt"

    def __post_init__(self) -> None:
        if self.timeout_seconds is not None and self.timeout_seconds <= 0:
            raise ValueError(f"review.timeout_seconds={self.timeout_seconds} must be positive; null waits for ever")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A policy file.

    Attributes:
        rules: in the order in which they are told.
        fail: what a failure of the engine is: a rule that cannot be judged, a process that died or is late.
        every: steps between two judgements.
        deadline_seconds: for one judgement of all rules.
        review: how long a review waits.
        approvers: public keys (vkeys) of those who may approve; none of them may be the run's own.
    """

    rules: tuple[Rule, ...]
    fail: Literal["alert", "review", "halt"] = "halt"
    every: int = 1
    deadline_seconds: float = 10.0
    review: Review = field(default_factory=Review)
    approvers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.rules:
            raise ValueError("rules: a policy without rules allows everything; leave governance.policy out instead")
        if self.every < 1:
            raise ValueError(f"every={self.every} must be positive")
        if self.deadline_seconds <= 0:
            raise ValueError(f"deadline_seconds={self.deadline_seconds} must be positive")
        names = [rule.name for rule in self.rules]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"rules: {sorted(twice)[0]} is the name of two rules")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy that can be followed.

    Attributes:
        policy: what it says.
        digest: SHA-256 of the file, hex.
        content: the file.
        requests: the names of the rules over requests; all others are over training.
        layered: the names of the rules that read `layers`.
        approvers: the parsed public keys.
    """

    policy: Policy
    digest: str
    content: bytes
    requests: frozenset[str]
    layered: frozenset[str]
    approvers: tuple[Verifier, ...]

    def rules(self, *, requests: bool) -> list[Rule]:
        """Those over requests, or those over training."""
        return [rule for rule in self.policy.rules if (rule.name in self.requests) is requests]


def load(path: Path) -> Loaded:
    """Raises ConfigError where the file is missing or is no policy, with the rule, its expression and the column."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"governance.policy: {path} cannot be read: {error.strerror}") from None
    return loads(content, str(path))


def loads(content: bytes, origin: str, *, compiled: bool = True) -> Loaded:
    """As `load`, of the content of a file. Without `compiled` no rule is looked into, which needs no package of CEL:
    for who only asks who may approve. `requests` is empty then."""
    if len(content) > LARGEST:
        raise ConfigError(f"{origin}: {len(content):,} bytes are too much for a policy")
    try:
        raw = parse(content.decode(), origin)
    except UnicodeDecodeError:
        raise ConfigError(f"{origin} is not text") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{origin} must hold a mapping with the key rules")
    try:
        policy = decode(raw, Policy)
        if compiled:
            cel.require()
        reads = {rule.name: _checked(rule) for rule in policy.rules if compiled}
        approvers = tuple(_approver(text) for text in policy.approvers)
        waits = [rule.name for rule in policy.rules if rule.action == "review"]
        waits += ["fail"] if policy.fail == "review" else []
        if waits and not approvers:
            raise ConfigError(f"approvers: {waits[0]} asks for a review, and nobody is listed who may approve")
    except (ConfigError, cel.Invalid) as error:
        raise ConfigError(f"{origin}: {error}") from None
    requests, layered = (frozenset(k for k, heads in reads.items() if name in heads) for name in ("request", "layers"))
    return Loaded(policy, hashlib.sha256(content).hexdigest(), content, requests, layered, approvers)


def _checked(rule: Rule) -> frozenset[str]:
    """The namespaces that it reads. Raises ConfigError where it cannot work."""
    try:
        program = cel.compile(rule.when)
    except cel.Invalid as error:
        raise _wrong(rule, error.column, error.why) from None
    if not program.reads:
        raise _wrong(rule, 1, "reads nothing, so it is the same at every step")
    for path in sorted(program.reads):
        _check_known(rule, program, path)
    over = any(path[0] == "request" for path in program.reads)
    if over and (others := sorted(path for path in program.reads if path[0] != "request")):
        column = cel.column_of(program, others[0])
        raise _wrong(rule, column, f"reads request and {others[0][0]}, which are never there at once")
    if over and rule.action not in ("deny", "alert"):
        raise ConfigError(f"rule {rule.name}: a rule over request can deny or alert, not {rule.action}")
    if not over and rule.action == "deny":
        raise ConfigError(f"rule {rule.name}: only a rule over request can deny")
    _try(rule, program)
    return frozenset(path[0] for path in program.reads)


def _try(rule: Rule, program: cel.Program) -> None:
    """Tries an expression on facts of the right kinds. Raises ConfigError where that shows that it cannot work."""
    try:
        program.tried(_sample(program))
    except cel.Fault as fault:
        if not str(fault).startswith((MISSING, DIVIDED)):  # of a namespace nobody knows; by a number of the sample
            raise _wrong(rule, 1, str(fault)) from None


def _check_known(rule: Rule, program: cel.Program, path: cel.Path) -> None:
    known: dict[str, tuple[str, ...]] = {"train": TRAIN, "log": LOG, "request": tuple(REQUEST), "step": ()}
    head, column = path[0], cel.column_of(program, path)
    if head not in (*known, *OPEN):
        raise _wrong(rule, column, f"there is no {head}{suggest(head, (*known, *OPEN))}")
    if head == "step" and len(path) > 1:
        raise _wrong(rule, column, "step is a number and has no fields")
    asks = re.search(rf"has\(\s*{re.escape('.'.join(path))}\s*\)", rule.when) and head == "train"
    if head in ("train", "log", "request") and len(path) > 1 and path[1] not in known[head] and not asks:
        hint = "; what only some runs report is asked for with has()" if head == "train" else ""
        raise _wrong(rule, column, f"there is no {'.'.join(path)}{suggest(path[1], known[head])}{hint}")


def _sample(program: cel.Program) -> dict[str, Any]:
    """Facts of the right kinds, to try an expression on."""
    norms = {"gradient": 1.0, "weight": 1.0, "update": 1.0}
    facts: dict[str, Any] = {
        "step": 1,
        "train": {name: 1.0 for name in TRAIN},
        "log": {"size": 1, "waiting": 0, "witness_age": 1.0},
        "request": dict(REQUEST),
        "layers": {"tensor": dict(norms)},
        "eval": {},
        "fairness": {},
        "dp": {},
    }
    for path in program.reads:
        if path[0] in (*OPEN, "train") and len(path) > 1:
            at = facts
            for name in path[:-1]:
                at = at.setdefault(name, {})
                if not isinstance(at, dict):
                    break
            else:
                at.setdefault(path[-1], dict(norms) if path[0] == "layers" and len(path) == 2 else 1.0)
    return facts


def _wrong(rule: Rule, column: int, why: str) -> ConfigError:
    return ConfigError(f"rule {rule.name}, column {column}: {why}\n  {rule.when}\n  {' ' * (column - 1)}^")


def _approver(text: str) -> Verifier:
    try:
        return parse_verifier(text.strip())
    except Rejected as error:
        raise ConfigError(f"approvers: {text[:60]!r} is no public key (vkey): {error}") from None


def facts_of(values: Mapping[str, Any], namespace: str) -> dict[str, Any]:
    """Numbers by name as rules read them: `loss` lies in the namespace, `fairness/auc_gap` in fairness. Whole numbers
    become floats, so that a rule means the same whatever a metric happens to be."""
    found: dict[str, Any] = {namespace: {}}
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            continue
        *parents, last = name.split("/")
        at = found if parents else found[namespace]
        for parent in parents:
            at = at.setdefault(parent, {})
            if not isinstance(at, dict):
                raise GovernanceError(f"{name} is a number below {parent}, which is a number itself")
        at[last] = float(value)
    return found


def train_facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of one step, from what it reports: a record of metrics.jsonl, or the same names while it trains."""
    return {"step": int(record["step"]), **facts_of({k: v for k, v in record.items() if k != "step"}, "train")}

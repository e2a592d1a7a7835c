"""Which entries of an audit trail support which controls of standards and law. Support is all they can do: whether an
organisation conforms is for people to judge, who see more than a log.

Numbers and short titles only. ISO/IEC 27001:2022 Annex A and 42001 Annex A as public lists name them; the clauses of
23894 and 38507 are from general knowledge of how these standards are built: check a licensed copy before printing them
in anything like a certificate. AI Act: Regulation (EU) 2024/1689. Art. 12 asks for records and not for proofs against
tampering, so these go beyond it. Stages are named after ISO/IEC 22989.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jaxlm.governance.entries import Entry

STAGES = (
    "inception",
    "design and development",
    "verification and validation",
    "deployment",
    "operation and monitoring",
    "re-evaluation",
    "retirement",
)
INCEPTION, DEVELOPMENT, VALIDATION, DEPLOYMENT, OPERATION, REEVALUATION, RETIREMENT = STAGES
ALL = STAGES
A27001, A23894, A38507, A42001, AI_ACT = (
    "ISO/IEC 27001 Annex A",
    "ISO/IEC 23894",
    "ISO/IEC 38507",
    "ISO/IEC 42001 Annex A",
    "EU AI Act",
)
FRAMEWORKS = (A27001, A23894, A38507, A42001, AI_ACT)

WITNESSED, CONSISTENT, EXPORTABLE = "witnessed", "consistent", "exportable"
"""What the trail as a whole shows, beside its entries: a quorum cosigned it; all of it leads to its signed heads and
falls behind nothing seen before; every entry can leave as a proof that verifies offline."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What would support a control.

    Attributes:
        kind: of entries; or WITNESSED, CONSISTENT, EXPORTABLE, of the whole trail.
        words: what it shows.
        counts: which of these entries; all by default.
    """

    kind: str
    words: str
    counts: Callable[[Mapping[str, Any]], bool] = lambda _: True


@dataclass(frozen=True, slots=True)
class Control:
    """Attributes:
    framework: one of FRAMEWORKS.
    number: such as A.5.9.
    title: short.
    stages: in which it asks for something.
    evidence: what would support it.
    """

    framework: str
    number: str
    title: str
    stages: tuple[str, ...]
    evidence: tuple[Evidence, ...]


def stage_of(entry: Entry) -> str:
    """The stage of the life of a system in which an entry was made."""
    command = str(entry.body.get("command", ""))
    match entry.kind:
        case "eval":
            return VALIDATION
        case "infer.io":
            return VALIDATION if command == "eval" else OPERATION
        case "access":
            return {"train": DEVELOPMENT, "eval": VALIDATION}.get(command, OPERATION)
        case "erasure":
            return RETIREMENT
        case "ckpt.snapshot" | "key.rotate":
            return OPERATION
        case "ckpt.restore" if "snapshot" in entry.body:
            return OPERATION
    return DEVELOPMENT


def _some(*keys: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda body: all(body.get(key) for key in keys)


def _is(key: str, *values: object) -> Callable[[Mapping[str, Any]], bool]:
    return lambda body: body.get(key) in values


_START = Evidence("run.start", "configuration, data, plan and node of each start, by digest")
_PARENT = Evidence("run.start", "the weights that it was fine-tuned from, by tensor root", _some("parent"))
_NODE = Evidence("run.start", "the machines, with how far their word goes", _some("node"))
_DATA = Evidence("run.start", "the data, by digest", _some("data"))
_COMMIT = Evidence("ckpt.commit", "each release candidate, signed, with files and tensors by digest")
_RESTORE = Evidence("ckpt.restore", "what the run went on from, and every going back with its reason")
_PLAN = Evidence("plan.adopt", "each change of how it is computed")
_STEPS = Evidence("train.step", "each step with its batch, by digest, and loss")
_LAYERS = Evidence("train.layer", "norms of gradients, weights and updates by tensor")
_EVAL = Evidence("eval", "results on held-out data")
_INFER = Evidence("infer.io", "each use, as commitments to input and output")
_ACCESS = Evidence("access", "who opened it, with which command")
_ERASURE = Evidence("erasure", "destroyed records, with the basis; proofs still hold")
_BUDGET = Evidence("dp.charge", "what was spent of the privacy budget")
_VERDICT = Evidence("policy.verdict", "what a policy found, with its digest, and what followed")
_HALT = Evidence("policy.verdict", "halts, reviews and refusals", _is("action", "halt", "review", "deny"))
_POLICY = Evidence("policy.load", "each policy that was in force, by digest")
_APPROVAL = Evidence("policy.approval", "what people decided on a halt or review, signed")
_ROTATE = Evidence("key.rotate", "keys that handed over, signed by both")
_SNAPSHOT = Evidence("ckpt.snapshot", "encrypted copies, by digest")
_TESTED = Evidence("ckpt.restore", "copies that were restored and verified", _some("snapshot"))
_WITNESSED = Evidence(WITNESSED, "independent witnesses cosigned the log")
_CONSISTENT = Evidence(CONSISTENT, "all entries lead to the signed heads and follow each other")
_EXPORTABLE = Evidence(EXPORTABLE, "any entry leaves as a proof that verifies offline (`jaxlm audit proof`)")


def _of(framework: str, *rows: tuple[str, str, tuple[str, ...], tuple[Evidence, ...]]) -> list[Control]:
    return [Control(framework, *row) for row in rows]


_BUILDING, _RUNNING = (DEVELOPMENT, VALIDATION), (OPERATION, REEVALUATION)
CONTROLS: tuple[Control, ...] = (
    *_of(
        A27001,
        ("A.5.9", "inventory of assets", _BUILDING, (_START, _DATA, _PARENT, _NODE, _COMMIT)),
        ("A.5.15-5.18", "access control, identity, access rights", ALL, (_ACCESS, _ROTATE)),
        ("A.5.24-5.27", "handling of incidents", (DEVELOPMENT, OPERATION), (_VERDICT, _APPROVAL, _RESTORE)),
        ("A.5.28", "collection of evidence", (DEVELOPMENT, OPERATION), (_EXPORTABLE, _CONSISTENT)),
        ("A.5.33", "protection of records", ALL, (_CONSISTENT, _WITNESSED)),
        ("A.5.34", "privacy and personal data", (DEVELOPMENT, OPERATION, RETIREMENT), (_INFER, _ERASURE, _BUDGET)),
        ("A.5.36", "compliance with policies", ALL, (_POLICY, _VERDICT)),
        ("A.8.2-8.5", "privileged access, restriction, authentication", ALL, (_ACCESS, _ROTATE)),
        ("A.8.9", "configuration management", (DEVELOPMENT, DEPLOYMENT), (_START, _PLAN)),
        ("A.8.10", "deletion of information", (OPERATION, RETIREMENT), (_ERASURE,)),
        ("A.8.11-8.12", "masking, prevention of leakage", (DEVELOPMENT, OPERATION), (_INFER, _BUDGET)),
        ("A.8.13", "backup", (OPERATION,), (_SNAPSHOT, _TESTED)),
        ("A.8.15", "logging", ALL, (_CONSISTENT, _STEPS, _ACCESS, _INFER)),
        ("A.8.16", "monitoring", (DEVELOPMENT, OPERATION), (_LAYERS, _VERDICT)),
        ("A.8.24", "use of cryptography", ALL, (_COMMIT, _ROTATE, _SNAPSHOT)),
        ("A.8.31, 8.33", "separation of environments, test information", (VALIDATION,), (_EVAL, _DATA)),
        ("A.8.32", "change management", (DEVELOPMENT, DEPLOYMENT), (_PLAN, _POLICY, _APPROVAL, _RESTORE)),
    ),
    *_of(
        A23894,
        ("cl. 6.4", "assessment of risk", (INCEPTION, DEVELOPMENT), (_VERDICT, _EVAL)),
        ("cl. 6.5", "treatment of risk", (DEVELOPMENT,), (_HALT, _APPROVAL, _BUDGET)),
        ("cl. 6.6", "monitoring and review", _RUNNING, (_VERDICT, _INFER)),
        ("cl. 6.7", "recording and reporting", ALL, (_CONSISTENT, _EXPORTABLE, _STEPS)),
    ),
    *_of(
        A38507,
        ("cl. 4", "accountability", ALL, (_ACCESS, _APPROVAL, _START)),
        ("cl. 6.2", "oversight", (DEVELOPMENT, OPERATION), (_HALT, _APPROVAL)),
        ("cl. 6.3", "governance of decisions", (DEVELOPMENT, OPERATION), (_APPROVAL, _RESTORE)),
        ("cl. 6.4", "use of data", (DEVELOPMENT, OPERATION), (_DATA, _STEPS, _BUDGET)),
        ("cl. 6.6", "compliance", (DEVELOPMENT, OPERATION), (_VERDICT, _CONSISTENT)),
        ("cl. 6.7", "risk", (DEVELOPMENT, OPERATION), (_VERDICT, _BUDGET)),
    ),
    *_of(
        A42001,
        ("A.4.2-4.5", "resources: data, tools, computing", (DEVELOPMENT,), (_START, _NODE, _PLAN)),
        (
            "A.5.2-5.4",
            "assessment of impact",
            (INCEPTION,),
            (Evidence("policy.verdict", "a gate before the start", _is("rule", "impact-assessment")),),
        ),
        ("A.6.2.3", "documentation of design and development", (DEVELOPMENT,), (_START, _PLAN, _STEPS, _LAYERS)),
        ("A.6.2.4", "verification and validation", (VALIDATION,), (_EVAL, _INFER)),
        ("A.6.2.5", "deployment", (DEVELOPMENT, DEPLOYMENT), (_COMMIT,)),
        ("A.6.2.6", "operation and monitoring", (OPERATION,), (_INFER, _VERDICT)),
        ("A.6.2.8", "logs of events", (VALIDATION, OPERATION), (_INFER, _ACCESS)),
        ("A.7.2-7.4, 7.6", "data for development, its quality and preparation", (DEVELOPMENT,), (_DATA,)),
        ("A.7.5", "provenance of data", (DEVELOPMENT,), (_DATA, _STEPS, _PARENT)),
        ("A.8.3-8.5, A.10", "reporting, third parties", (DEVELOPMENT, OPERATION), (_EXPORTABLE, _WITNESSED)),
    ),
    *_of(
        AI_ACT,
        ("Art. 9, 17", "risk management, quality management", ALL, (_POLICY, _VERDICT)),
        ("Art. 10", "data and data governance", (DEVELOPMENT,), (_DATA, _STEPS)),
        ("Art. 11, Annex IV, 18", "technical documentation", _BUILDING, (_START, _PLAN, _COMMIT, _EVAL)),
        ("Art. 12(1)", "events are recorded by themselves", ALL, (_CONSISTENT, _STEPS, _INFER)),
        ("Art. 12(2)(a)", "situations of risk, substantial modification", ALL, (_VERDICT, _COMMIT, _RESTORE, _PLAN)),
        ("Art. 12(2)(b)", "post-market monitoring", (OPERATION,), (_INFER, _VERDICT)),
        ("Art. 12(2)(c)", "monitoring of operation", (OPERATION,), (_INFER, _ACCESS)),
        ("Art. 13, 14", "transparency, human oversight", (DEVELOPMENT, OPERATION), (_HALT, _APPROVAL)),
        (
            "Art. 15",
            "accuracy, robustness, cybersecurity",
            (DEVELOPMENT, VALIDATION, OPERATION),
            (_EVAL, _COMMIT, _CONSISTENT, _ROTATE),
        ),
        (
            "Art. 19, 26(6)",
            "logs are kept",
            (OPERATION,),
            (Evidence("policy.verdict", "a policy of retention", _is("rule", "retention")),),
        ),
        (
            "Art. 20, 72, 73",
            "correction, post-market monitoring, serious incidents",
            (OPERATION,),
            (_HALT, Evidence("ckpt.restore", "going back to an older checkpoint", _some("rollback_from"))),
        ),
        (
            "Art. 53, 55",
            "general-purpose models: records of training and evaluation",
            _BUILDING,
            (_START, _NODE, _STEPS, _EVAL, _PARENT),
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class Support:
    """What a trail has for one piece of evidence.

    Attributes:
        evidence: which.
        entries: as LOG/INDEX, the first ones; nothing for evidence of the whole trail.
        count: of all of them.
    """

    evidence: Evidence
    entries: tuple[str, ...]
    count: int


_SHOWN = 12
ByKind = Mapping[str, Sequence[tuple[str, Entry]]]
"""The entries of all logs by type, each with the name of its log."""


def by_kind(logs: Mapping[str, Iterable[Entry]]) -> ByKind:
    found: dict[str, list[tuple[str, Entry]]] = {}
    for name, entries in logs.items():
        for entry in entries:
            found.setdefault(entry.kind, []).append((name, entry))
    return found


def supports(control: Control, known: ByKind, whole: Mapping[str, bool]) -> list[Support]:
    """What supports a control in this trail: only what is there. `whole` says which of WITNESSED, CONSISTENT and
    EXPORTABLE hold. Entries of a stage that the control does not ask about support nothing."""
    found = []
    for evidence in control.evidence:
        if whole.get(evidence.kind):
            found.append(Support(evidence, (), 1))
        names = [
            f"{name}/{entry.index}"
            for name, entry in known.get(evidence.kind, ())
            if evidence.counts(entry.body) and stage_of(entry) in control.stages
        ]
        if names:
            found.append(Support(evidence, tuple(names[:_SHOWN]), len(names)))
    return found


def by_stage(control: Control, known: ByKind) -> dict[str, int]:
    """How many entries support a control in each stage that it asks about; each counts once."""
    found = dict.fromkeys(control.stages, 0)
    for kind in {evidence.kind for evidence in control.evidence}:
        tests = [evidence.counts for evidence in control.evidence if evidence.kind == kind]
        for _, entry in known.get(kind, ()):
            if (stage := stage_of(entry)) in found:
                found[stage] += any(test(entry.body) for test in tests)
    return found

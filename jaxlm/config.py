"""A whole run as one frozen object: composed here from the configurations that live beside the code they steer."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from jaxlm.checkpoints.schedule import CheckpointConfig
from jaxlm.data.config import DataConfig
from jaxlm.decode import ConfigError, Raw, decode, dotted, encode, override, read, suggest
from jaxlm.fairness.config import FairnessConfig
from jaxlm.governance.config import GovernanceConfig
from jaxlm.model.classify import ClassifyConfig
from jaxlm.model.config import PRESETS, ModelConfig
from jaxlm.model.generate import Sampling
from jaxlm.optim import AdamW, Optimizer
from jaxlm.privacy.config import PrivacyConfig
from jaxlm.trainer.config import TrainConfig
from planners.wishes import Search


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The text printed at the end of a run.

    Attributes:
        prompt: what the sample starts with; null prints none.
        tokens: length of the sample.
        temperature: 0 takes the most likely token, 1 samples from the model as it is.
        top_k: sample among this many tokens; 0 means all.
        top_p: sample among the most likely tokens that hold this much probability.
    """

    prompt: str | None = ""
    tokens: int = 100
    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"tokens={self.tokens} must be positive")
        self.sampling()

    def sampling(self) -> Sampling:
        return Sampling(temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parent:
    """The run whose weights this one starts from.

    Attributes:
        run: its run directory.
        step: the step whose weights they are; null takes its newest checkpoint.
        manifest: digest of the manifest of that checkpoint; filled in when the run starts.
    """

    run: str
    step: int | None = None
    manifest: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything that defines a training run.

    Attributes:
        name: names the run directory, runs/NAME, unless --run-dir says otherwise.
        seed: of initialisation, data order and dropout.
        parent: the run whose weights this one starts from, as `--from` sets it; null starts from random ones.
        data: the text, its tokenizer and how documents become rows.
        model: the shape of the model.
        classify: learn to classify labelled texts instead of a language; null learns a language.
        fairness: debias a classifier while it trains, and report its gaps; null does neither.
        optim: optimizer and learning-rate schedule.
        plan: what the planner may choose; empty fields are chosen for the devices found.
        train: length, batch and reporting.
        checkpoint: when to save and what to keep.
        governance: the audit trail: what is logged, signed and witnessed.
        privacy: whether training is differentially private, and the budget of that.
        sample: the text printed at the end.
    """

    name: str = "run"
    seed: int = 0
    parent: Parent | None = None
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    classify: ClassifyConfig | None = None
    fairness: FairnessConfig | None = None
    optim: Optimizer = field(default_factory=AdamW)
    plan: Search = field(default_factory=Search)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    governance: GovernanceConfig = field(default_factory=GovernanceConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    sample: Sample = field(default_factory=Sample)

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"name={self.name!r} must be usable as a folder name")
        if self.fairness is not None and self.classify is None:
            raise ValueError("fairness debiases classifiers: add a section classify, or leave fairness out")
        if self.classify is not None:
            self._check_classify(self.classify)
        elif not self.model.causal:
            raise ValueError(
                "model.causal=false: a run trains a language model, and a bidirectional one sees the token that it "
                "should predict; set model.causal to true, or classify with it (section classify)"
            )
        if self.privacy.enabled:
            self._check_privacy()
        if self.plan.remat_feedback.every and self.train.replan.enabled:
            raise ValueError(
                "plan.remat_feedback.every and train.replan.enabled would both change the plan while the run trains; "
                "set plan.remat_feedback.every to 0, or leave --replan out"
            )
        if self.model.position == "learned" and 0 < self.model.positions < self.data.sequence:
            raise ValueError(
                f"data.sequence={self.data.sequence} is longer than the model's "
                f"{self.model.positions} learned positions"
            )

    def _check_privacy(self) -> None:
        """Raises ValueError for what would let out more than the noise covers, or cannot be clipped row by row."""
        data, sure = self.data, "privacy.enabled"
        refused = {
            f"data.mode={data.mode}: what is protected is a document, and packed rows hold pieces of several; set "
            "data.mode to truncate": data.mode == "pack",
            "data.limit_bytes: a document would decide which others are read; leave it out": data.limit_bytes
            is not None,
            "data.mixture: the parts would be sampled at different rates; train on data.path": bool(data.mixture),
            "data.tokenizer: a vocabulary learned from the protected text tells of it; set data.tokenizer.path to one "
            "that was made from other text": data.tokenizer.path is None,
            "governance.enabled=false: every charge belongs into the audit log; set it to true": not (
                self.governance.enabled
            ),
            "classify: what is clipped are documents of a language model; leave the section out": self.classify
            is not None,
            "train.replan.enabled: probes would take steps; leave --replan out": self.train.replan.enabled,
            "plan.remat_feedback.every: it measures steps of its own; set it to 0": self.plan.remat_feedback.every > 0,
        }
        for why, is_so in refused.items():
            if is_so:
                raise ValueError(f"{sure} and {why}")

    def _check_classify(self, how: ClassifyConfig) -> None:
        if how.pooling == "first" and self.model.causal:
            raise ValueError("classify.pooling=first needs model.causal=false: choose mean, last or attention")
        if self.data.mode != "truncate":
            raise ValueError(
                f"data.mode={self.data.mode} would put several texts into one row, and a class belongs to one: set "
                "data.mode to truncate"
            )
        if self.data.mixture or self.data.parallel is not None:
            raise ValueError("classify takes one data set at data.path: leave data.mixture and data.parallel out")
        if self.parent is not None:
            raise ValueError("parent: a classifier starts from random weights or word vectors, not from another run")

    @property
    def apart(self) -> bool:
        """Whether rows say which of their positions belong together, or to nothing."""
        return self.data.mode == "pack" or self.classify is not None


def load(path: Path, arguments: Sequence[str] = ()) -> Run:
    """The run in a YAML file, with overrides such as `--model.layers 4` on top. Raises ConfigError."""
    origin = f"{path} with the command line" if arguments else str(path)
    return build(override(read(path), dotted(list(arguments))), origin)


def build(raw: Raw, origin: str) -> Run:
    """A Run from plain values; a model preset is filled in first."""
    try:
        return decode(with_preset(raw), Run)
    except ConfigError as error:
        lines = str(error).splitlines()
        listed = "\n".join(f"  {line}" for line in lines)
        raise ConfigError(f"{origin}: {lines[0]}" if len(lines) == 1 else f"{origin}:\n{listed}") from None


def with_preset(raw: Raw) -> Raw:
    """A copy whose model section holds what its preset says, where it does not say otherwise itself."""
    model = raw.get("model")
    if not isinstance(model, dict) or model.get("preset") is None:
        return raw
    name = model["preset"]
    if name not in PRESETS:
        raise ConfigError(f"model.preset: {name!r} is unknown{suggest(str(name), PRESETS)}")
    return {**raw, "model": {**PRESETS[name], **model}}


FREE = {"name", "plan", "checkpoint", "governance", "sample"}
"""Sections that a resumed run may change; of `train`, everything but the batch."""

ELSEWHERE = ("data.cache ", "data.tokenizer.path ", "model.preset ")
"""Keys that may change because what they stand for is compared by content: prepared data, tokenizer, model."""


def differences(before: Run, now: Run) -> list[str]:
    """What a resumed run may not change and yet does: `model.layers was 4, is 8`."""
    changed = []
    for section in fields(Run):
        if section.name in FREE:
            continue
        old, new = encode(getattr(before, section.name)), encode(getattr(now, section.name))
        if section.name == "train":
            old, new = {"batch": old["batch"]}, {"batch": new["batch"]}
        if section.name == "optim" and old["kind"] != new["kind"]:
            old, new = {"kind": old["kind"]}, {"kind": new["kind"]}  # the other keys depend on it
        changed += _differ(section.name, old, new)
    # The attention kernel is how a model is computed, not what: like the plan, it may change.
    return [c for c in changed if not c.startswith((*ELSEWHERE, "model.attention "))]


def schedule_change(before: Run, now: Run) -> str | None:
    """What a new number of steps does to the learning rate of a resumed run, if anything."""
    steps = now.train.steps
    if before.train.steps == steps or now.optim.schedule == "constant":
        return None
    return f"the learning-rate schedule ({now.optim.schedule}) now ends at step {steps:,}, not {before.train.steps:,}"


def _differ(path: str, old: object, new: object) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in _differ(f"{path}.{key}", old.get(key), new.get(key))]
    return [] if old == new else [f"{path} was {old}, is {new}"]

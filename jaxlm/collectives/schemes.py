"""What a Plan says about a slow axis, as the exchange reads it: defaults, limits, and which combinations are unsafe.

The defaults and rules S1 to S17 are those of compressed training as it is practised: bfloat16 and int8 as they are,
error feedback from four bits down, signs and top-K of the momentum under a variance that is frozen after a dense
warm-up (1-bit Adam, https://arxiv.org/abs/2102.02888), deep gradient compression for momentum SGD
(https://arxiv.org/abs/1712.01887).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from jaxlm.collectives.codecs import BFloat16, Codec, Exact, Float8, Int4, Int8, Sign, TopK
from planners.plan import REPLICA_AXES, Communication, PlanError
from planners.suggestions import suggest

Dense = Literal["bf16", "int8"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How gradients travel over one slow axis, every default filled in.

    Attributes:
        axis: the mesh axis.
        kind: the scheme's name in the Plan; `exact` is the float32 oracle of tests.
        feedback: whether what was not sent is kept and sent later.
        momentum: whether the momentum is sent instead of the gradient, from the end of the warm-up on.
        stochastic: whether codes are rounded at random, without bias (rule S12).
        warmup: dense steps before anything lossy beyond `dense` is sent: a share of all steps below 1, else steps.
        dense_bits: 16 or 8: how dense steps travel, in the warm-up and after a fallback.
        density: share of values that top-K keeps.
        small: whether top-K sends int8 values.
        rank: of PowerSGD's factors.
        ramp: steps over which DGC's density falls to its own (rule S5), a share of all steps below 1.
        masked_every: steps between looks at which weights never had a gradient (rule S13).
        limit: residual over gradient norm beyond which steps are dense again for good (rule S15); 0 never.
        spike: loss over its running mean beyond which likewise; 0 never.
        bucket_mb: megabytes of float32 gradient that travel at once.
        every: steps between exchanges (local_sgd).
        outer_rate, outer_momentum: of the outer optimizer (local_sgd).
        decay: what is kept of the residual from one exchange to the next (local_sgd).
        bits: 32, 16, 8 or 4 of the exchanged difference, or 0 for top-K at `density` (local_sgd).
    """

    axis: str
    kind: str
    feedback: bool = False
    momentum: bool = False
    stochastic: bool = False
    warmup: float = 0.0
    dense_bits: int = 16
    density: float = 0.01
    small: bool = False
    rank: int = 4
    ramp: float = 0.1
    masked_every: int = 50
    limit: float = 0.0
    spike: float = 0.0
    bucket_mb: float = 64.0
    every: int = 1
    outer_rate: float = 0.7
    outer_momentum: float = 0.9
    decay: float = 1.0
    bits: int = 32

    def __post_init__(self) -> None:
        where = f"communication.{self.axis}"
        if self.dense_bits not in (8, 16):
            raise PlanError(f"{where}.dense_bits={self.dense_bits} must be 16 or 8")
        if not 0.0 < self.density <= 0.5:
            raise PlanError(
                f"{where}.density={self.density} must be in (0, 0.5]: half of all values, with their places"
            )
        if self.rank < 1 or self.masked_every < 1 or self.every < 1:
            raise PlanError(f"{where}: rank, masked_every and every must be at least 1")
        if self.warmup < 0 or self.ramp < 0 or self.limit < 0 or self.spike < 0 or self.bucket_mb <= 0:
            raise PlanError(f"{where}: warmup, ramp, limit and spike must not be negative, bucket_mb must be positive")
        if self.bits not in (32, 16, 8, 4, 0) or not 0.0 <= self.decay <= 1.0:
            raise PlanError(f"{where}: bits must be 32, 16, 8, 4 or 0 (top-K), decay in [0, 1]")

    @property
    def codec(self) -> Codec:
        """Of both legs of the exchange."""
        kind = {"bf16": BFloat16(), "int8": Int8(), "int8_shared": Int8(), "fp8": Float8(), "int4": Int4()}
        kind |= {"sign": Sign(), "exact": Exact()}
        if self.kind in ("topk", "dgc"):
            return top(self.density, self.small)
        if self.kind == "local_sgd":
            return {32: Exact(), 16: BFloat16(), 8: Int8(), 4: Int4(), 0: top(self.density, self.small)}[self.bits]
        return kind.get(self.kind, Exact())

    @property
    def dense(self) -> Codec:
        return BFloat16() if self.dense_bits == 16 else Int8()

    @property
    def lossy(self) -> bool:
        """Whether there is a dense way of travelling to warm up with and fall back to."""
        return self.kind in ("int4", "sign", "topk", "dgc", "powersgd")

    def warm_steps(self, steps: int) -> int:
        """Of a run of so many steps. One at least, where a warm-up is asked for: a variance that was frozen before the
        first gradient would be zero."""
        share = self.warmup * steps if self.warmup < 1.0 else self.warmup
        return max(round(share), 1) if self.warmup else 0

    def ramp_steps(self, steps: int) -> int:
        return round(self.ramp * steps) if self.ramp < 1.0 else round(self.ramp)


def top(density: float, small: bool = False) -> TopK:
    """Top-K of blocks of 1,024."""
    return TopK(keep=max(round(1024 * density), 1), small=small)


DEFAULTS: Mapping[str, Mapping[str, float | int | bool]] = {
    "exact": {},
    "bf16": {},
    "int8": {},
    "fp8": {},
    "int8_shared": {},
    "int4": {"feedback": True, "limit": 10.0, "spike": 3.0},
    "sign": {"feedback": True, "momentum": True, "warmup": 0.2, "limit": 100.0, "spike": 3.0},
    "topk": {"feedback": True, "momentum": True, "warmup": 0.2, "limit": 2000.0, "spike": 3.0},
    "dgc": {"feedback": True, "limit": 5000.0, "spike": 3.0},
    "powersgd": {"feedback": True, "warmup": 0.1, "limit": 2000.0, "spike": 3.0},
    "local_sgd": {"every": 30},
}
"""By scheme, what differs from the defaults of `Scheme`. The limits are several times what healthy runs show: top-1 %
with error feedback holds about a hundred steps of gradient."""

COMMON = {"stochastic", "bucket_mb"}
KEYS: Mapping[str, set[str]] = {
    "exact": {"bucket_mb"},
    "bf16": COMMON,
    "int8": COMMON | {"feedback"},
    "fp8": {"bucket_mb", "feedback"},
    "int8_shared": COMMON | {"feedback"},
    "int4": COMMON | {"feedback", "warmup", "dense_bits", "limit", "spike"},
    "sign": {"bucket_mb", "feedback", "momentum", "warmup", "dense_bits", "limit", "spike", "masked_every"},
    "topk": {"bucket_mb", "feedback", "momentum", "warmup", "dense_bits", "limit", "spike", "density", "small"},
    "dgc": {"bucket_mb", "warmup", "dense_bits", "limit", "spike", "density", "small", "ramp"},
    "powersgd": {"bucket_mb", "feedback", "warmup", "dense_bits", "limit", "spike", "rank"},
    "local_sgd": {"bucket_mb", "outer_rate", "outer_momentum", "decay", "bits", "density", "small"},
}
"""The parameters of each scheme."""


def scheme(said: Communication, workers: int) -> Scheme:
    """The scheme with every default filled in, for an axis of so many workers. Raises PlanError for a parameter that
    the scheme does not have."""
    known = KEYS[said.scheme]
    for name in said.parameters:
        if name not in known:
            raise PlanError(
                f"communication.{said.axis}: {said.scheme} has no parameter {name!r}{suggest(name, known)}; "
                f"it has {', '.join(sorted(known))}"
            )
    values: dict[str, float | int | bool] = dict(DEFAULTS[said.scheme])
    if said.scheme == "int8_shared" and workers > 2:
        values["feedback"] = True  # 31 steps each way and fewer are not free without it
    kinds = {field.name: field.type for field in fields(Scheme)}
    for name, value in said.parameters.items():
        values[name] = _as(kinds[name], value, f"communication.{said.axis}.{name}")
    if said.every is not None:
        values["every"] = said.every
    return Scheme(axis=said.axis, kind=said.scheme, **values)  # pyright: ignore[reportArgumentType]


def _as(kind: object, value: float, where: str) -> float | int | bool:
    if kind in (float, "float"):
        return float(value)
    if value != int(value):
        raise PlanError(f"{where}={value} must be a whole number")
    if kind in (bool, "bool"):
        if value not in (0, 1):
            raise PlanError(f"{where}={value} must be 1 (on) or 0 (off)")
        return bool(value)
    return int(value)


def compressed(communication: Sequence[Communication]) -> Communication | None:
    """What travels in another way than the partitioner's exact sums; None where nothing does."""
    said = [each for each in communication if each.scheme != "none"]
    if len(said) > 1:
        named = " and ".join(each.axis for each in said)
        raise PlanError(f"communication: {named} are both compressed; choose the slower of the two")
    return said[0] if said else None


def check(scheme: Scheme, optimizer: str, workers: int, *, momentum: float = 0.0, allow_unsafe: bool = False) -> None:
    """Raises PlanError where a scheme cannot work (always) or is known to spoil training (unless `allow_unsafe`).

    Args:
        scheme: what is asked.
        optimizer: its kind in the configuration: adamw, lion, adafactor, muon, sgd.
        workers: size of the axis.
        momentum: of an `sgd` optimizer.
        allow_unsafe: let the second kind pass, to measure what it costs.
    """
    where = f"communication.{scheme.axis}: {scheme.kind}"
    if scheme.axis not in REPLICA_AXES:
        raise PlanError(
            f"{where}: only {' and '.join(REPLICA_AXES)} can be compressed. Along {scheme.axis} the compiler moves "
            "weights or activations, not gradients of whole replicas; put the slow link on zone"
        )
    if scheme.every != 1 and scheme.kind != "local_sgd":
        raise PlanError(f"{where} with every={scheme.every}: only local_sgd trains between exchanges; leave every out")
    if scheme.kind == "dgc" and optimizer != "sgd":
        raise PlanError(
            f"{where} corrects the momentum of SGD; optim.kind={optimizer} has another one. Use topk, which sends the "
            "momentum under a frozen variance, or optim.kind=sgd"
        )
    if scheme.momentum and optimizer != "adamw":
        raise PlanError(
            f"{where} sends Adam's momentum under a frozen variance; optim.kind={optimizer} has none to freeze. Use "
            f"optim.kind=adamw{', or dgc' if optimizer == 'sgd' else ''}, or int8"
        )
    if scheme.momentum and scheme.warmup == 0:
        raise PlanError(
            f"{where}: without a dense warm-up there is no variance to freeze; set warmup, such as 0.2 (S4)"
        )
    if scheme.kind == "int8_shared" and workers > 32:
        raise PlanError(f"{where}: {workers} workers leave {127 // workers} steps of 127 to each; use int8")
    if allow_unsafe:
        return
    how = "train with --allow-unsafe to do it all the same"
    if scheme.kind in ("topk", "sign") and not scheme.momentum and not (optimizer == "sgd" and momentum == 0.0):
        state = {"sgd": "momentum"}.get(optimizer, "its moments")
        raise PlanError(
            f"{where} of raw gradients into {optimizer}: {state} treat a burst of stored gradient like a fresh one, "
            "and training stays far behind (rule S1: 0.75 nats at top-1 %, with error feedback or without). Leave "
            "momentum out, which sends the momentum under a frozen variance"
            f"{', or use dgc' if optimizer == 'sgd' else ''}; or {how}"
        )
    if scheme.kind in ("int4", "sign", "topk", "powersgd") and not scheme.feedback:
        raise PlanError(
            f"{where} without error feedback loses what it does not send (rule S2); drop feedback=0, or {how}"
        )
    if scheme.kind == "int8_shared" and workers > 2 and not scheme.feedback:
        raise PlanError(f"{where} of {workers} workers has {127 // workers} steps and needs feedback; or {how}")

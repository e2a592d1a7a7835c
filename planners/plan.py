"""The contract between planning and training: a Workload and a Cluster go in, a Plan comes out.

Everything here is plain data. `jaxlm` describes its work as a `Workload` (read off the model by abstract
evaluation) and obeys a `Plan`; `planners` knows clusters, costs and search and never imports `jaxlm`.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import cattrs
import numpy as np
from cattrs.v import format_exception

from planners.balance import Balance
from planners.findings import Alternative, Compilation, Prediction

MESH_AXES: tuple[str, ...] = ("zone", "data", "fsdp", "stage", "context", "tensor")
"""Every mesh axis, slowest link first. Axes of size 1 are kept, so sharding rules never change."""

BATCH_AXES: tuple[str, ...] = ("zone", "data", "fsdp")
"""The mesh axes that split the batch: together they are the data-parallel replicas."""

REPLICA_AXES = ("zone", "data")
"""The mesh axes whose replicas hold whole weights each, and may have unequal shares of the batch (eqs. 5 and 6)."""

FORMAT = 1
"""Version of the JSON form of a Plan."""

Table: TypeAlias = tuple[tuple[str, tuple[str, ...]], ...]
"""Logical axis -> mesh axes that shard it; a logical axis that is not listed is replicated."""

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1}
BYTES |= {"uint64": 8, "uint32": 4, "uint16": 2, "uint8": 1, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}


class PlanError(ValueError):
    """No plan can be made, or a plan cannot be used. The message says what would help."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One array of the model: its name, shape, dtype and the logical axis of each dimension."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[str | None, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.axes):
            raise ValueError(f"{self.name}: shape {self.shape} has {len(self.shape)} dimensions, axes {self.axes}")
        if self.dtype not in BYTES:
            raise ValueError(f"{self.name}: unknown dtype {self.dtype!r}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.size * BYTES[self.dtype]

    def bytes_per_device(self, table: Table, mesh: Mapping[str, int]) -> int:
        """Bytes of the largest shard when each logical axis is split as `table` says (uneven shards round up)."""
        rows = dict(table)
        shards = (math.prod(mesh.get(axis, 1) for axis in rows.get(name or "", ())) for name in self.axes)
        dims = (-(-dim // parts) for dim, parts in zip(self.shape, shards, strict=True))
        return math.prod(dims) * BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of the forward pass of ONE block, for ONE sequence: what computing its outputs once more costs.

    Attributes:
        outputs: names of the values it computes.
        inputs: names of the values it reads; `carry` is the input of the block. Weights are not named.
        flops: of its matrix products, 2 per multiply-add, every pair of positions counted.
        moved: bytes that cross the memory bus for what is no matrix product, weights left out.
        axes: logical axes over which its work is split.
        attention: whether this is the attention kernel, which skips what a causal mask hides.
    """

    outputs: tuple[str, ...]
    inputs: tuple[str, ...]
    flops: float = 0.0
    moved: float = 0.0
    axes: tuple[str | None, ...] = ()
    attention: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one training step asks of a machine, read off the model; nothing here depends on a mesh.

    `activations` are the named values that the backward pass of ONE block keeps when nothing is rematerialised, for
    ONE sequence (the axes `batch` = 1 and `length` = sequence are among them), in the order they are computed; `carry`
    is the input of a block and `logits` the output of the head, likewise for one sequence. `scratch` is what the
    attention kernel needs beside them for one block at a time, for one sequence. FLOPs are those of a forward pass for
    one token (2 per multiply-add); `attention_flops` counts every pair of positions. Where the model is `causal`, half
    of the pairs are never needed.

    `operations` are the forward pass of one block in the order in which it runs, and `values` all that they compute,
    for one sequence; `activations` are those of them that the backward pass reads. A name that starts with `residual_`
    is no name in the program: such a value cannot be saved by name. Empty where the block is unknown.
    `trained_by` is the optimizer's kind. `documents` is the most sequences whose gradients a device keeps apart at
    once, as differential privacy asks for; 0 where gradients are summed as they arise.
    """

    name: str
    parameters: tuple[Tensor, ...]
    optimizer: tuple[Tensor, ...]
    activations: tuple[Tensor, ...]
    carry: Tensor
    logits: Tensor
    layers: int
    batch: int
    sequence: int
    block_flops: float
    head_flops: float
    attention_flops: float
    compute_dtype: str
    kernel: str
    causal: bool = True
    scratch: tuple[Tensor, ...] = ()
    operations: tuple[Operation, ...] = ()
    values: tuple[Tensor, ...] = ()
    trained_by: str = "adamw"
    documents: int = 0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.sequence < 1 or self.layers < 1:
            raise ValueError(f"workload {self.name}: batch, sequence and layers must be positive")

    def save(self, path: Path) -> None:
        """Writes the JSON form, from which a machine without the model can plan."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> "Workload":
        """Raises PlanError when the file is missing, is no JSON or is no workload."""
        return _load(path, Workload, "workload")

    @property
    def parameter_count(self) -> int:
        return sum(t.size for t in self.parameters)

    def at_once(self, sequences: np.ndarray) -> np.ndarray:
        """How many of a device's sequences of a microbatch it has in work at once."""
        return np.minimum(sequences, self.documents) if self.documents else sequences

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each logical axis of the parameters; the greatest common divisor where tensors differ."""
        sizes: dict[str, int] = {}
        for tensor in self.parameters:
            for axis, dim in zip(tensor.axes, tensor.shape, strict=True):
                if axis is not None:
                    sizes[axis] = math.gcd(sizes.get(axis, dim), dim)
        return sizes

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.sequence

    def step_flops(self, *, causal: bool) -> float:
        """FLOPs of forward and backward of one step (no recomputation).

        With `causal`, attention counts half for a causal model; a bidirectional one needs all of it.
        """
        attention = self.attention_flops * (0.5 if causal and self.causal else 1.0)
        return 3.0 * self.tokens * (self.block_flops + self.head_flops + attention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Where each logical axis lives: at rest (parameters, optimizer) and at work (activations)."""

    parameters: Table = ()
    optimizer: Table = ()
    activations: Table = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """How the global batch is cut. `sequences = accumulation x microbatch`; `microbatch` counts all devices.

    With a `balance`, the replicas along REPLICA_AXES share the microbatches of a step unevenly, as they are measured to
    be fast; `shares` are those of the first step, one positive number per replica (none: even). What they have become
    is state of the run, kept in its checkpoints.
    """

    sequences: int
    microbatch: int
    accumulation: int
    shares: tuple[float, ...] = ()
    balance: Balance | None = None

    def __post_init__(self) -> None:
        if self.sequences != self.microbatch * self.accumulation:
            raise ValueError(
                f"batch {self.sequences} is not microbatch {self.microbatch} x accumulation {self.accumulation}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A run of consecutive layers under one rematerialisation choice.

    `save` names the values kept for the backward pass (z = 1 in eq. 8 means stored); everything else is recomputed
    from the segment's input. `save=None` keeps everything: no rematerialisation. `offload` names values that wait
    in host memory instead. `group` layers are rematerialised together: only the input of the first of them is kept, and
    all of them run forward once more before the first goes back; with `save=()` only.
    """

    layers: int
    save: tuple[str, ...] | None = None
    offload: tuple[str, ...] = ()
    group: int = 1

    def __post_init__(self) -> None:
        if self.layers < 1 or self.group < 1 or self.layers % self.group:
            raise PlanError(f"remat: a segment of {self.layers} layers cannot be cut into groups of {self.group}")
        if self.group > 1 and (self.save != () or self.offload):
            raise PlanError(f"remat: groups of {self.group} layers keep nothing inside; save must be empty")


Scheme: TypeAlias = Literal[
    "none", "bf16", "int8", "int8_shared", "fp8", "int4", "sign", "topk", "dgc", "powersgd", "local_sgd"
]
"""What is sent over a slow axis instead of float32 gradients."""

Budget: TypeAlias = Literal["exact", "16-bit", "8-bit", "feedback"]
"""What may be lost of one exchange: nothing; what 16 bits lose; what 8 bits lose; anything that error feedback brings
later (which wants an optimizer that bears it, see `jaxlm.collectives.schemes`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Communication:
    """How gradients travel over one mesh axis. `every`: steps between exchanges, None where the scheme's default."""

    axis: str
    scheme: Scheme = "none"
    parameters: dict[str, float] = field(default_factory=dict)
    every: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compile:
    """What the compiler is told. `options` go to `jax.jit(compiler_options=...)`; `loss_chunks` 1 means one piece."""

    options: dict[str, str | int | float | bool] = field(default_factory=dict)
    unroll: int = 1
    loss_chunks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The order in which the operations of a step run (paper, eq. 11). The default leaves it to the compiler.

    Attributes:
        pipeline: order of forward and backward passes over the stages; without stages it says nothing.
        virtual: chunks of layers that each stage holds, for `interleaved`.
        bucket_bytes: gradients are summed in buckets of at least this size; 0 is one per layer, None is the compiler's
            choice.
        bucket_order: `reverse` sends the last layer's gradients first, `forward` the first layer's, `size` the largest
            bucket.
        reduce_every: microbatches whose gradients are added up before they are summed over the replicas.
    """

    pipeline: Literal["gpipe", "1f1b", "interleaved", "zero_bubble"] = "1f1b"
    virtual: int = 1
    bucket_bytes: int | None = None
    bucket_order: Literal["reverse", "forward", "size"] = "reverse"
    reduce_every: int = 1

    def __post_init__(self) -> None:
        if self.virtual < 1 or self.reduce_every < 1 or (self.bucket_bytes is not None and self.bucket_bytes < 0):
            raise PlanError("schedule: virtual and reduce_every must be at least 1, bucket_bytes not negative")
        if self.virtual > 1 and self.pipeline != "interleaved":
            raise PlanError(f"schedule: {self.pipeline} has one chunk per stage, not {self.virtual}; use interleaved")

    def summary(self) -> str:
        """A few words: pipeline, buckets, and how often gradients are summed."""
        chunks = f" x{self.virtual}" if self.virtual > 1 else ""
        if self.bucket_bytes is None:
            size = "buckets as compiled"
        else:
            size = f"buckets >= {self.bucket_bytes:,} B" if self.bucket_bytes else "one bucket per layer"
        return f"{self.pipeline}{chunks}, {size}, {self.bucket_order}, summed every {self.reduce_every} microbatch(es)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Every decision about how one training step runs. A plan changes where work is done, never what is computed."""

    mesh: dict[str, int]
    rules: Rules
    batch: Batch
    remat: tuple[Segment, ...]
    communication: tuple[Communication, ...] = ()
    compile: Compile = field(default_factory=Compile)
    schedule: Schedule = field(default_factory=Schedule)
    device_order: tuple[int, ...] = ()
    predicted: Prediction | None = None
    compiled: Compilation | None = None
    assumptions: dict[str, str] = field(default_factory=dict)
    alternatives: tuple[Alternative, ...] = ()
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise PlanError(f"plan format {self.format} is not supported; this version reads format {FORMAT}")
        if tuple(self.mesh) != MESH_AXES:
            raise PlanError(f"mesh axes {tuple(self.mesh)} must be {MESH_AXES}, in this order")
        if any(size < 1 for size in self.mesh.values()):
            raise PlanError(f"mesh sizes must be positive: {self.mesh}")
        if self.batch.microbatch % self.replicas:
            raise PlanError(
                f"microbatch {self.batch.microbatch} cannot be split over {self.replicas} data-parallel replicas"
            )
        if self.batch.accumulation % self.schedule.reduce_every:
            raise PlanError(
                f"schedule: reduce_every={self.schedule.reduce_every} must divide the {self.batch.accumulation} "
                "microbatches of a step"
            )
        if self.batch.shares and len(self.batch.shares) != self.groups:
            raise PlanError(f"batch.shares has {len(self.batch.shares)} entries for {self.groups} replicas")
        if self.device_order and sorted(self.device_order) != list(range(self.devices)):
            raise PlanError(f"device_order must be a permutation of 0..{self.devices - 1}")
        for table in (self.rules.parameters, self.rules.optimizer, self.rules.activations):
            for logical, axes in table:
                if unknown := set(axes) - set(MESH_AXES):
                    raise PlanError(f"rule for {logical!r} names unknown mesh axes {sorted(unknown)}")

    @property
    def devices(self) -> int:
        return math.prod(self.mesh.values())

    @property
    def replicas(self) -> int:
        """Ways in which the batch is split."""
        return math.prod(self.mesh[axis] for axis in BATCH_AXES)

    @property
    def groups(self) -> int:
        """Replicas that hold whole weights, and may have unequal shares of the batch."""
        return math.prod(self.mesh[axis] for axis in REPLICA_AXES)

    @property
    def layers(self) -> int:
        return sum(segment.layers for segment in self.remat)

    def summary(self) -> str:
        """One line: the mesh, the batch split and the rematerialisation."""
        axes = " ".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1) or "one device"
        remat = ", ".join(describe(segment) for segment in self.remat)
        balanced = " | shares by measured throughput" if self.batch.balance else ""
        coded = "".join(f" | {each.axis} in {each.scheme}" for each in self.communication if each.scheme != "none")
        return (
            f"{axes} | {self.batch.accumulation} x {self.batch.microbatch} sequences | remat {remat}{balanced}{coded}"
        )

    def to_json(self) -> dict[str, Any]:
        """Without what decides nothing (schedule, balance, group) or is unknown: older plans keep their digest."""
        raw = dataclasses.asdict(self)
        if self.batch.balance is None:
            del raw["batch"]["balance"]
        if self.schedule == Schedule():
            del raw["schedule"]
        if self.predicted is not None and self.predicted.unrematerialised is None:
            del raw["predicted"]["unrematerialised"]
        for segment in raw["remat"]:
            if segment["group"] == 1:
                del segment["group"]
        return raw

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the canonical JSON form."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self.to_json(), indent=2) + "\n")

    @staticmethod
    def load(path: Path) -> "Plan":
        """Raises PlanError when the file is missing, is no JSON or is no plan."""
        return _load(path, Plan, "plan")


def _load(path: Path, kind: type[Any], name: str) -> Any:
    try:
        return structure(json.loads(path.read_text()), kind)
    except FileNotFoundError:
        raise PlanError(f"{name} file {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"{name} file {path} is not JSON: {error}") from None
    except PlanError as error:
        raise PlanError(f"{name} file {path}: {error}") from None


def describe(segment: Segment) -> str:
    """A few words: what the layers of a segment keep, and how many they are."""
    if segment.save is None:
        return f"none x{segment.layers}"
    kept = "+".join(segment.save) or ("full" if segment.group == 1 else f"full by {segment.group}")
    return f"{kept} x{segment.layers}" + (f" (offload {'+'.join(segment.offload)})" if segment.offload else "")


T = Any


def structure(raw: Any, kind: type[T]) -> T:
    """Builds a contract dataclass from its JSON form. Raises PlanError naming every key that is wrong."""
    converter = cattrs.Converter(forbid_extra_keys=True)
    scalar = str | int | float | bool
    converter.register_structure_hook_func(lambda t: t == scalar, lambda value, _: value)
    try:
        return converter.structure(raw, kind)
    except cattrs.BaseValidationError as error:
        raise PlanError("; ".join(cattrs.transform_error(error, format_exception=_say))) from None


def _say(error: BaseException, kind: type | None) -> str:
    """The sentence of our own checks as it stands; cattrs' words for everything else."""
    ours = isinstance(error, PlanError) or (
        type(error) is ValueError and (kind is None or dataclasses.is_dataclass(kind))
    )
    return str(error) if ours else format_exception(error, kind)

"""Step time of the Aleph-Alpha layouts by the planner's own functions: rows as work, footprint, candidates, habits."""

from dataclasses import dataclass

import numpy as np

from experiments.benchmarks.published.alephalpha_memory import Layouts
from experiments.benchmarks.published.megatron_style import a100
from experiments.benchmarks.published.step_bytes import StepBytes
from experiments.benchmarks.published.tables import Table
from planners.prices.assumptions import Assumptions
from planners.prices.cost import seconds
from planners.work import Matmul, Work

NETWORK = 25e9
"""Bytes/s of one device in one direction: the sheet does not say; A100 nodes with one 200 Gb/s card per GPU."""

HABITS = Assumptions(
    dispatch=30e-6,  # PyTorch in eager mode: 20 to 40 us of Python and dispatcher per operation
    kernels=25.0,  # counted: rotary positions, norms and the gated unit beside the products
    loss_passes=12.0,  # counted: casts, log-softmax, its gradient and casts back, all ranks with the whole vocabulary
    hides_gradients=False,  # gradients are reduced in buckets after the last backward pass
    sync_every_microbatch=False,
    order=("zone", "stage", "data", "fsdp", "context", "tensor"),  # tensor ranks next to each other, then data
)
"""Habits of github.com/Aleph-Alpha/scaling, counted from its source."""


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """How one attention kernel and norm work, for `planners.prices.block`.

    Attributes:
        name: as `planners.work` knows it.
        scores: bytes kept per pair of positions and head.
        norm: bytes that unfused norms keep per token and unit of width.
    """

    name: str
    scores: float
    norm: float


def kernel_of(name: str) -> Kernel:
    """How a kernel of the sheet works: what stores its scores keeps what `alephalpha_memory.PRIORS` count."""
    norm = 0.0 if "RMS" in name else 12.0
    if "flash" in name:
        return Kernel("flash", 0.0, norm)
    return Kernel("xla", 6.0 if name == "fused" else 8.0, norm)


def predict(rows: Table, assumptions: Assumptions = HABITS) -> np.ndarray:
    """Seconds of one step of each row."""
    found = np.zeros(len(rows))
    kernels = rows.text("kernel")
    for name in dict.fromkeys(kernels):
        mine = kernels == name
        found[mine] = _one_kernel(rows.take(mine), kernel_of(name), assumptions)
    return found


def parts(rows: Table, assumptions: Assumptions = HABITS) -> list[dict[str, float]]:
    """Seconds of each row by part, for a look at one row."""
    found = []
    for position, name in enumerate(rows.text("kernel")):
        one = rows.take(np.array([position]))
        priced = _priced(one, kernel_of(name), assumptions)
        found.append({part: float(column[0]) for part, column in priced.items()})
    return found


def _one_kernel(rows: Table, kernel: Kernel, assumptions: Assumptions) -> np.ndarray:
    return np.sum(list(_priced(rows, kernel, assumptions).values()), axis=0)


def _priced(rows: Table, kernel: Kernel, assumptions: Assumptions) -> dict[str, np.ndarray]:
    layouts = Layouts.of(rows)
    shape, candidates = layouts.shape, layouts.candidates
    h, f, s, vocabulary = (np.asarray(x) for x in (shape.width, shape.feedforward, shape.sequence, shape.vocabulary))
    t, p = candidates.sizes["tensor"], candidates.sizes["stage"]
    layers = np.asarray(shape.layers)
    matmuls = (
        Matmul(inputs=h, outputs=3 * h, split="outputs"),
        Matmul(inputs=h, outputs=h, split="inputs"),
        Matmul(inputs=h, outputs=f, split="outputs"),
        Matmul(inputs=h, outputs=f, split="outputs"),
        Matmul(inputs=f, outputs=h, split="inputs"),
    )
    scores = kernel.scores * np.asarray(shape.heads) * s
    work = Work(
        batch=layouts.batch,
        sequence=s,
        layers=layers,
        width=h,
        block_flops=2.0 * layers * shape.block_parameters,
        attention_flops=4.0 * layers * h * s,
        head_flops=2.0 * h * vocabulary,
        compute_dtype="bfloat16",
        kernel=kernel.name,
        matmuls=matmuls,
        heads=shape.heads,
        keys_values=2.0 * h,
        scores_bytes=scores,
    )
    around = np.where(candidates.sequence, t, 1)
    here = np.ceil(layers / p) * shape.block_parameters / t + vocabulary * h / t
    where = StepBytes(
        parameters=2.0 * here,
        optimizer=12.0 * here,
        gradients=2.0 * here,
        layer=2.0 * shape.block_parameters / t,
        others=2.0 * vocabulary * h / t,
        activations=s * ((8.0 + kernel.norm) * h / around + (14.0 * h + 8.0 * f) / t + scores / t),
        carry=2.0 * s * h / around,
        logits=2.0 * s * vocabulary,
    )
    cluster = a100(NETWORK)
    priced, _ = seconds(work, where, cluster, candidates, assumptions)
    return priced

"""Says in plain text what a plan does, what it is predicted to cost, and why the others lost."""

import textwrap
from collections.abc import Mapping, Sequence

from planners.machines.topology import Cluster
from planners.plan import BATCH_AXES, Plan, Schedule

BYTES_OF = {
    "parameters": "weights at rest, sharded",
    "optimizer": "optimizer state, sharded",
    "gradients": "gradients of the blocks' weights, float32",
    "gradient_accumulator": "float32 sums over microbatches",
    "document_gradients": "gradients of single documents, until they are clipped",
    "working_parameters": "weights in use: gathered, compute dtype",
    "working_gradients": "a layer's gradient before it is scattered",
    "cast_weights": "weights cast for each layer, kept without remat",
    "activations": "kept for the backward pass",
    "attention_scratch": "scores, mask or statistics of the attention kernel, one block at a time",
    "block_transient": "a block's gradients in flight",
    "logits": "logits, or their gradient",
    "head_gradient": "the head's gradient, summed over pieces of the loss",
    "embedding_gradient": "the embedding's gradient, and its sum over devices",
    "turned_weights": "weights turned round before they are gathered",
    "update_excess": "optimizer's copies beyond the backward pass",
    "batch": "token arrays",
    "runtime": "runtime libraries",
}
"""What each part of the predicted memory holds."""

ARGUMENTS = ("parameters", "optimizer", "batch")
"""Parts of the predicted memory that are arguments of the compiled step; the others are its temporaries."""

OUTSIDE = ("runtime",)
"""Parts of the predicted memory that no compiler sees: what runtime libraries keep for themselves."""

NOTHING_HIDDEN = (
    "no collective travels beside matrix products, as XLA schedules this target by itself; try\n"
    "  --plan.options.xla_gpu_enable_latency_hiding_scheduler true"
)
"""Seen for 512 A100 with jax 0.10.2: with the option 58% of the bytes do, for H100 they do without it."""

MEMORY_NOTES = {
    "arguments": "state and batch",
    "temporaries": "what lives during the step only",
    "memory": "without runtime libraries, which no compiler sees",
}
"""What the rows of the compiled memory hold."""

SECONDS_OF = {
    "compute": "matrix products, forward and backward",
    "elementwise": "activations over the memory bus",
    "recompute": "blocks computed once more",
    "loss_recompute": "logits computed once more",
    "dispatch": "waiting for the host to issue kernels",
    "tensor_parallel": "sums over tensor inside each block",
    "context_ring": "keys and values sent round the context axis, not hidden by attention",
    "pipeline_hops": "activations and gradients between stages",
    "pipeline_bubble": "stages waiting at the ends of the pipeline",
    "fsdp_gather": "weights gathered, not hidden by compute",
    "gradient_sync": "gradients summed, not hidden by compute",
    "optimizer": "weights and optimizer state read and written",
    "weight_gather": "weights updated in parts, gathered over data",
    "stragglers": "all nodes waiting for the slowest",
    "overhead": "of the trainer, once per step",
}
"""What each part of the predicted step time is spent on."""


def gib(size: float) -> str:
    """Bytes in GiB; in MiB below a tenth of a GiB."""
    return f"{size / 2**30:,.2f} GiB" if size >= 0.1 * 2**30 else f"{size / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """Seconds, in the unit that reads best."""
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.1f} ms"


def memory_table(parts: Mapping[str, float], capacity: float, fraction: float = 1.0) -> str:
    """Predicted bytes per device by part, largest first, with total and capacity.

    Args:
        parts: bytes per device.
        capacity: bytes of one device.
        fraction: share of it that a plan may use.
    """
    budget = capacity * fraction
    total = sum(parts.values())
    rows = [
        (name, f"{size:,.0f}", gib(size), f"{size / total:.1%}", BYTES_OF.get(name, ""))
        for name, size in sorted(parts.items(), key=lambda row: -row[1])
    ]
    rows.append(("total", f"{total:,.0f}", gib(total), "100.0%", f"{total / budget:.0%} of what a plan may use"))
    note = f"{fraction:.0%} of {gib(capacity)}" if fraction < 1 else "memory of one device"
    rows.append(("capacity", f"{budget:,.0f}", gib(budget), "", note))
    return table(("predicted memory per device", "bytes", "size", "share", ""), rows, rule=-2)


def time_table(parts: Mapping[str, float]) -> str:
    """Predicted seconds of one step by part, largest first."""
    total = sum(parts.values())
    rows = [
        (name, duration(value), f"{value / total:.1%}", SECONDS_OF.get(name, ""))
        for name, value in sorted(parts.items(), key=lambda row: -row[1])
    ]
    rows.append(("total", duration(total), "100.0%", ""))
    return table(("predicted time of one step", "time", "share", ""), rows, rule=-1)


def compiled_table(plan: Plan) -> str:
    """What the compiler says beside what was predicted: memory per device and bytes over each mesh axis."""
    assert plan.compiled is not None
    compiled, predicted = plan.compiled, plan.predicted
    memory = predicted.memory if predicted else {}
    groups = {
        "arguments": (sum(memory.get(name, 0.0) for name in ARGUMENTS), compiled.memory.get("arguments", 0.0)),
        "temporaries": (
            sum(size for name, size in memory.items() if name not in (*ARGUMENTS, *OUTSIDE)),
            compiled.memory_bytes - compiled.memory.get("arguments", 0.0),
        ),
        "memory": (sum(size for name, size in memory.items() if name not in OUTSIDE), compiled.memory_bytes),
    }
    links = predicted.link_bytes if predicted else {}
    sent = {
        axis: (links.get(axis, 0.0), compiled.link_bytes.get(axis, 0.0)) for axis in {**links, **compiled.link_bytes}
    }
    rows = [(name, *map(gib, pair), _error(*pair), MEMORY_NOTES[name]) for name, pair in groups.items()]
    for axis, pair in sent.items():
        hidden = compiled.hidden_bytes.get(axis, 0.0) / pair[1] if pair[1] else 0.0
        rows.append((f"sent over {axis}", *map(gib, pair), _error(*pair), f"{hidden:.0%} beside matrix products"))
    if compiled.step_seconds is not None and predicted is not None:
        pair = (predicted.step_seconds, compiled.step_seconds)
        rows.append(("step", *map(duration, pair), _error(*pair), "predicted compute, compiled collectives"))
    body = table((f"compiled for {compiled.target}, per device", "predicted", "compiled", "error", ""), rows)
    if compiled.link_bytes and not compiled.hidden_bytes and not compiled.target.endswith("cpu"):
        body += f"\n{NOTHING_HIDDEN}"
    warned = [textwrap.fill(f"the compiler warns: {text}", 118, subsequent_indent="  ") for text in compiled.warnings]
    return "\n".join([body, *warned])


def traffic_table(plan: Plan, count: int = 8) -> str:
    """The collectives of a compiled step, those that send most first."""
    assert plan.compiled is not None
    rows = [
        (f"{row.kind} {row.dtype}", row.axes, f"{row.calls:,}", gib(row.size), gib(row.sent), row.beside)
        for row in plan.compiled.traffic[:count]
    ]
    if rest := plan.compiled.traffic[count:]:
        sent = gib(sum(row.sent for row in rest))
        rows.append((f"{len(rest)} more kinds", "", f"{sum(row.calls for row in rest):,}", "", sent, ""))
    if not rows:
        return "no collectives"
    return table(("collectives of one step, compiled", "over", "calls", "tensors of a call", "sent", "beside"), rows)


def _error(predicted: float, compiled: float) -> str:
    """How far the prediction is from what was compiled."""
    return f"{predicted / compiled - 1.0:+.1%}" if compiled else ""


def explain(plan: Plan, cluster: Cluster) -> str:
    """The whole plan as text for a terminal: layout, memory, time, alternatives, assumptions."""
    sections = [_decisions(plan, cluster)]
    if plan.predicted:
        fraction = float(plan.assumptions.get("memory_fraction", "1"))
        sections.append(memory_table(plan.predicted.memory, cluster.device.memory, fraction))
        sections.append(time_table(plan.predicted.seconds) + "\n" + _rates(plan, cluster))
    if plan.compiled:
        sections.append(compiled_table(plan))
        sections.append(traffic_table(plan))
    if plan.alternatives:
        rows = [(item.summary, duration(item.step_seconds), gib(item.memory_bytes)) for item in plan.alternatives]
        lines = table(("what lost", "predicted step", "predicted memory"), rows).splitlines()
        reasons = [textwrap.indent(textwrap.fill(item.reason, 104), "      ") for item in plan.alternatives]
        body = [line for pair in zip(lines[2:], reasons, strict=True) for line in pair]
        sections.append("\n".join([*lines[:2], *body]))
    if plan.assumptions:
        width = max(map(len, plan.assumptions))
        rows = [f"  {name:<{width}}  {value}" for name, value in plan.assumptions.items()]
        sections.append("\n".join(["assumptions", *rows]))
    return "\n\n".join(sections)


def _decisions(plan: Plan, cluster: Cluster) -> str:
    axes = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    unused = ", ".join(axis for axis, size in plan.mesh.items() if size == 1)
    batch = plan.batch
    share = batch.microbatch // plan.replicas
    splitting = " x ".join(axis for axis in BATCH_AXES if plan.mesh[axis] > 1)
    remat = "; ".join(
        f"{segment.layers} layers keep "
        + ("everything" if segment.save is None else ", ".join(segment.save) or "their input only, and recompute")
        for segment in plan.remat
    )
    rows = [
        ("cluster", cluster.describe()),
        ("mesh", axes + (f"   (size 1: {unused})" if axes != "one device" else "")),
        (
            "batch",
            " x ".join(
                [
                    f"{batch.sequences} sequences = {_count(batch.accumulation, 'microbatch', 'es')}",
                    _count(plan.replicas, "replica") + (f" ({splitting})" if splitting else ""),
                    _count(share, "sequence"),
                ]
            ),
        ),
        ("remat", remat),
        *([("order", plan.schedule.summary())] if plan.schedule != Schedule() else []),
        (
            "loss",
            "in one piece" if plan.compile.loss_chunks == 1 else f"in {plan.compile.loss_chunks} pieces",
        ),
    ]
    if plan.compile.options:
        rows.append(("compiler", ", ".join(f"{key}={value}" for key, value in plan.compile.options.items())))
    return table(("plan", plan.digest[:12]), rows)


def _count(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{plural if number != 1 else ''}"


def _rates(plan: Plan, cluster: Cluster) -> str:
    assert plan.predicted is not None
    if plan.predicted.mfu is None:
        return f"MFU is not predicted: no peak is known for {cluster.device.kind}; times rank plans, no more"
    return f"predicted MFU {plan.predicted.mfu:.1%} (attention not halved for causality)"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], rule: int | None = None) -> str:
    """Aligned columns, numbers to the right. `rule` is the index of the row that a line is drawn above."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    numeric = [all(row[column][:1].isdigit() or not row[column] for row in rows) for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        pairs = zip(cells, widths, numeric, strict=True)
        return "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in pairs).rstrip()

    dashes = "-" * max(len(line(row)) for row in (header, *rows))
    body = [line(row) for row in rows]
    if rule is not None:
        body.insert(len(body) + rule, dashes)
    return "\n".join([line(header), dashes, *body])

"""How fast is a training step on one GPU, beside a torch twin with torch's best settings, in the same run?

Question: tokens per second of ours and of torch, in turns on one card; the share of the card's FLOP/s; peak memory;
          what the planner predicted of each; which kernels take the time.
Suite:    A GPT-2 124M (T 1,024), B GPT-2 1558M (1,024), C Llama 3.2 1B (8,192), D Llama 2 7B (4,096), E Llama 3 8B
          (8,192); random tokens, AdamW, float32 weights, bfloat16 products.
Aims:     at least 1.10 times torch's tokens/s on A to D; MFU (attention not halved, 989.5 TFLOP/s) of 45 % on A, 55 %
          on B and D, 50 % on C and E.
Cost:     under 8 minutes for each model on one H200; no network.
Run:      python -m experiments.benchmarks.gpu_throughput [--entries A,C] [--mode max-autotune-no-cudagraphs] [--json]
          python -m experiments.benchmarks.gpu_throughput --smoke true      (two tiny models, on any machine)
          python -m experiments.benchmarks.gpu_throughput --compile_for H200   (no GPU: XLA compiles every step for one)

Without a GPU nothing is measured and the report says so. What is there is saved after each model.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.entry import main
from experiments.report import Report, Row
from experiments.throughput.contest import How, contest, kernel_table, rows
from experiments.throughput.sides import running
from experiments.throughput.suite import SUITE, TINY, Entry, pick
from jaxlm.compiled import Compiler, Target
from jaxlm.decode import ConfigError
from jaxlm.model.attention import FUSED_CALL
from jaxlm.runtime.aot import CHIPS
from jaxlm.session import numerics, resolve, workload_of
from planners.machines.presets import nodes
from planners.plan import PlanError
from planners.search import plan as search_plan

GB = 1e9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is timed.

    Attributes:
        entries: of the suite, apart by commas; empty: all.
        smoke: two tiny models instead, whatever the machine.
        mode: of torch.compile; `eager` leaves it out.
        torch_python: the Python with torch; empty: this one.
        first_moment: dtype of our first moment of Adam; bfloat16 leaves E more room.
        rounds: in which both sides take turns.
        steps: of each side in a round.
        warm: steps before the first round.
        profile: list our kernels.
        cold: also take the time to the first step, with and without compiled programs on the disk.
        compile_for: a GPU to compile every step for, where there is none here; empty: none.
    """

    entries: str = ""
    smoke: bool = False
    mode: str = "default"
    torch_python: str = ""
    first_moment: str = "float32"
    rounds: int = 6
    steps: int = 10
    warm: int = 20
    profile: bool = True
    cold: bool = True
    compile_for: str = "H200"

    def __post_init__(self) -> None:
        if min(self.rounds, self.steps, self.warm) < 1:
            raise ValueError("rounds, steps and warm must be at least 1")
        if self.compile_for and self.compile_for not in CHIPS:
            raise ValueError(f"compile_for={self.compile_for} is not one of {', '.join(CHIPS)}")


def execute(config: Config, out: Path) -> Report:
    """Times every entry on this machine's GPU, or compiles it for one that is not here."""
    entries = pick(TINY if config.smoke else SUITE, config.entries)
    on_gpu = jax.default_backend() == "gpu"
    if on_gpu or config.smoke:
        return _measured(config, entries, out, on_gpu)
    return _compiled(config, entries, out)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _measured(config: Config, entries: Sequence[Entry], out: Path, on_gpu: bool) -> Report:
    how = How(
        rounds=config.rounds,
        steps=config.steps,
        warm=config.warm,
        mode=config.mode,
        torch_python=config.torch_python or sys.executable,
        first_moment=config.first_moment,
        profile=config.profile,
        cold=config.cold,
        tolerance=1e-2 if on_gpu else 1e-4,
    )
    with running("ours") as side:
        ceilings = side.ask("ceilings", size=8192 if on_gpu else 1024)
    found: list[dict[str, Any]] = []
    for entry in entries:
        _say(f"{entry.name}: {entry.model}, {entry.tokens:,} tokens per step")
        found.append(contest(entry, how, out, _say))
        _report(found, ceilings, on_gpu).save(out, "gpu_throughput")
    return _report(found, ceilings, on_gpu)


def _report(found: list[dict[str, Any]], ceilings: dict[str, float], on_gpu: bool) -> Report:
    size = int(ceilings["size"])
    top = [
        Row(what="this device", quantity=f"TFLOP/s, product of {size} x {size}", measured=ceilings["flops"] / 1e12),
        Row(what="this device", quantity="GB/s, copy", measured=ceilings["bytes"] / GB),
    ]
    remarks = [] if on_gpu else ["gpu: not measured (there is none here; these are tiny models on its processor)"]
    remarks += [f"{f['entry']['name']}: torch: {f['no_torch']}" for f in found if "no_torch" in f]
    remarks += [table for f in found if (table := kernel_table(f))]
    return Report(
        title="A training step on one GPU, beside torch",
        rows=top + [row for f in found for row in rows(f, on_gpu)],
        remarks=remarks,
        details={"found": found, "ceilings": ceilings},
    )


def _compiled(config: Config, entries: Sequence[Entry], out: Path) -> Report:
    """No GPU here: what the planner chooses and predicts for one, and what XLA says of the compiled step."""
    if not config.compile_for:
        raise ConfigError("there is no GPU here: set compile_for to a GPU, or smoke to true")
    made: list[Row] = []
    for entry in entries:
        made += _compile(config, entry, _say)
        _unmeasured(made).save(out, "gpu_throughput")
    return _unmeasured(made)


def _unmeasured(made: list[Row]) -> Report:
    return Report(
        title="A training step on one GPU, beside torch",
        rows=made,
        remarks=["gpu: not measured (there is none here): plans are predicted, memory is XLA's for a GPU not here"],
    )


def _compile(config: Config, entry: Entry, say: Callable[[str], None]) -> list[Row]:
    # Weights, gradients and moments of D and E in float32 leave room for activations on no card.
    run = entry.run(first_moment="bfloat16" if entry.alone else config.first_moment)
    chip = config.compile_for
    machine = nodes(chip, 1)
    how = numerics(run.model, "gpu", elsewhere=True, capability=CHIPS[chip].capability)
    model = resolve(run, run.model.vocab)
    work = workload_of(run, model, how)
    what = f"{entry.name}: {entry.model['preset']} T={entry.sequence}, {entry.tokens:,} tokens, {chip}"
    try:
        plan = search_plan(work, machine, run.plan)
    except PlanError as error:
        return [Row(what=what, quantity="plan", note=f"refused: {str(error).splitlines()[0]}")]
    say(f"{what}: {plan.summary()}: compiling")
    result = Compiler(run, model.vocab, Target(platform="gpu", kind=chip, devices=1))(plan)
    predicted = plan.predicted
    assert predicted is not None
    seconds = predicted.step_seconds
    mfu = work.step_flops(causal=False) / seconds / machine.device.peak["bfloat16"]
    room = machine.device.memory
    used = sum(result.memory.values())
    return [
        Row(what=what, quantity="plan", note=plan.summary()),
        Row(what=what, quantity="seconds per step", predicted=seconds),
        Row(what=what, quantity="tokens/s", predicted=entry.tokens / seconds),
        Row(what=what, quantity="MFU, attention not halved, %", predicted=100 * mfu, note=f"aim {entry.mfu:.0%}"),
        Row(
            what=what,
            quantity="peak GB",
            predicted=predicted.memory_bytes / GB,
            compiled=used / GB,
            note=f"of {room / GB:.0f}: {'fits' if used <= room else 'does not fit'}",
        ),
        Row(what=what, quantity="cuDNN attention calls in the program", compiled=result.hlo.count(FUSED_CALL)),
    ]


if __name__ == "__main__":
    main("gpu_throughput", __doc__, Config, execute)

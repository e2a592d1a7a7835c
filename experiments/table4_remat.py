"""Table 4: what does rematerialisation save and cost, and what does it do to BLEU?

Question: under each policy, what does a step of `model` on `cluster` need and take; and is the BLEU of a translation
          model, trained with equal seeds, the same under each?
Cost:     seconds for the first question, with `compile` a minute for each policy that was not compiled before; for the
          second one training of the model in `run` per policy, and one with another seed.
Run:      python -m experiments.table4_remat [--model llama-1b --cluster a100-40x512 --sequence 512 --budgets [0.2,0.5]]
          python -m experiments.table4_remat --parallel DIR --source en --target de
Needs:    for BLEU pairs of sentences (none is shipped), as train.en and train.de, val.*, test*.* in DIR, or a .tsv or
          .jsonl file, and the extra `translate`; for `compile` the extra `aot`.
Leaves:   the runs in runs/ and their translations in translations/, beside the report.
"""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import remat_quality
from experiments.entry import main
from experiments.remat_cases import Subject, planned_subject
from experiments.remat_quality import (
    ALONE,
    PAPER,
    Policy,
    measure_quality,
    price_rows,
    quality_details,
    quality_remarks,
    quality_rows,
)
from experiments.report import Report, Row
from planners.plan import PlanError, describe
from planners.programs.compiled import CompileError
from planners.remat.policy import Mix

GB = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(remat_quality.Config):
    """Policies side by side.

    Attributes:
        policies: name -> policy; the first is what the others are compared with. The names `none`, `static` and
            `dynamic` stand beside the paper's.
        model: preset of the model whose step is priced; the paper's is not named, and this size is what its throughput
            implies.
        cluster: what it is priced and compiled for, as a preset or file.
        sequence: tokens of one of its sequences.
        sequences: of them per device.
        loss_chunks: pieces of its loss.
        budgets: further budgets for the dynamic program, from 0 (what `full` is predicted to need) to 1 (`none`).
        compile: compile its step under each policy too.
    """

    policies: dict[str, Policy] = dataclasses.field(default_factory=dict)
    model: str = "llama-1b"
    cluster: str = "a100-40x512"
    sequence: int = 512
    sequences: int = 32
    loss_chunks: int = 8
    budgets: tuple[float, ...] = ()
    compile: bool = False

    def __post_init__(self) -> None:
        remat_quality.Config.__post_init__(self)
        if wrong := [share for share in self.budgets if not 0.0 <= share <= 1.0]:
            raise ValueError(f"budgets: {wrong[0]:g} must be from 0 (as full) to 1 (as none)")
        if min(self.sequence, self.sequences, self.loss_chunks) < 1:
            raise ValueError("sequence, sequences and loss_chunks must be positive")


def measure(config: Config, out: Path) -> Report:
    """Prices, and where pairs are given trains, translates and compares."""
    priced, facts, said = cluster_rows(config)
    found = measure_quality(config, config.policies, out)
    return Report(
        title="Table 4: rematerialisation policies",
        rows=priced + quality_rows(found, config.policies) + (price_rows(found) if found else []),
        remarks=[said, *quality_remarks(found)],
        details=quality_details(found) | {"cluster": facts},
    )


def cluster_rows(config: Config) -> tuple[list[Row], dict[str, Any], str]:
    """What each policy is predicted to need and to cost, and what the compiler counts."""
    subject = planned_subject(
        config.model, config.cluster, sequence=config.sequence, sequences=config.sequences,
        loss_chunks=config.loss_chunks,
    )  # fmt: skip
    least, most = subject.ends.full.memory_bytes, subject.ends.none.memory_bytes
    extra = {f"dynamic {share:g}": Policy(remat="dp", memory=share) for share in config.budgets}
    rows, facts = [], {}
    where = f"{config.model} on {config.cluster}"
    for name, policy in {**config.policies, **extra}.items():
        what, paper = f"{where}, {name}", PAPER.get(name)
        try:
            mix = _mix(subject, policy, least, most)
        except PlanError as error:
            rows.append(Row(what=what, quantity="peak of a step, GB", note=str(error).splitlines()[0]))
            continue
        predicted, (made, why) = subject.predicted(mix), _compiled(subject, mix, what) if config.compile else (None, "")
        seconds = predicted.step_seconds - subject.ends.none.step_seconds
        flops = {how: 100 * subject.extra_flops(mix, causal=how == "causal") for how in ("causal", "counted")}
        rows += [
            Row(what=what, quantity="peak of a step, GB", paper=None if paper is None else paper.peak_gb,
                predicted=predicted.memory_bytes / GB, compiled=None if made is None else made / GB,
                note=", ".join(map(describe, mix.segments())) + why),
            Row(what=what, quantity="extra seconds per step", paper=None if paper is None else paper.recompute_seconds,
                predicted=seconds, note=f"of {subject.ends.none.step_seconds:.3g} s; the paper does not say per what"),
            Row(what=what, quantity="extra FLOPs, %", predicted=flops["causal"],
                note=f"{flops['counted']:.1f}% with masked pairs counted"),
        ]  # fmt: skip
        facts[name] = {
            "remat": [dataclasses.asdict(segment) for segment in mix.segments()],
            "predicted_bytes": predicted.memory_bytes,
            "compiled_bytes": made,
            "extra_seconds": seconds,
            "extra_flops": flops["causal"] / 100,
        }
    said = (
        f"{where}: mesh {subject.case.mesh} as the planner chooses it, {config.sequences} sequences of "
        f"{config.sequence} tokens per device in one microbatch. Peak: arguments and temporaries of the step, without "
        "runtime libraries."
    )
    return rows, facts, said


def _mix(subject: Subject, policy: Policy, least: float, most: float) -> Mix:
    if policy.remat in ALONE:
        return subject.uniform(policy.remat)
    assert policy.memory is not None
    return subject.mix(policy.remat, least + policy.memory * (most - least))


def _compiled(subject: Subject, mix: Mix, what: str) -> tuple[float | None, str]:
    """Bytes of the real step by XLA; or why there are none."""
    print(f"compiling {what}", file=sys.stderr, flush=True)
    try:
        return subject.compile(mix).memory_bytes, ""
    except CompileError as error:
        return None, f"; not compiled: {str(error).splitlines()[0][:200]}"


if __name__ == "__main__":
    main("table4_remat", __doc__, Config, measure)

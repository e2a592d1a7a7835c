"""Compiles training steps for GPUs that are not there and reports what came out; run as a program of its own.

    python tests/gpu/absent.py llama-truncate gpt2-tensor

One JSON object on standard output, {name: report}; XLA's warnings go to standard error, after a line `== name`.
"""

import dataclasses
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from typing import Any

from jaxlm.compile_worker import compile_step
from jaxlm.config import Run
from jaxlm.data.config import DataConfig
from jaxlm.model.config import ModelConfig
from jaxlm.runtime.aot import CHIPS, target
from jaxlm.session import Session, numerics, resolve
from jaxlm.trainer.config import TrainConfig
from planners.layout import rules
from planners.plan import MESH_AXES, Batch, Plan, Segment

LLAMA = ModelConfig(layers=2, embed=512, heads=8, kv_heads=8, mlp=1024, vocab=1000, tied=False)
GPT2 = dataclasses.replace(
    LLAMA, norm="layer", position="learned", positions=256, activation="gelu", bias=True, tied=True
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A model on a mesh of H100s; `packed` rows hold several documents."""

    model: ModelConfig
    mesh: dict[str, int]
    packed: bool = False
    remat: bool = False
    accumulation: int = 1
    length: int = 256
    sequences: int = 16


LONG: dict[str, Any] = dict(mesh={"fsdp": 4, "tensor": 2}, packed=True, length=8192, sequences=8)
NARROW = dataclasses.replace(LLAMA, embed=128, heads=2, kv_heads=2, mlp=256, head_dim=64)
"""So small that masks of `LONG` rows stand out."""

PROGRAMS = {
    "llama-truncate": Program(model=LLAMA, mesh={"fsdp": 8}),
    "llama-pack": Program(model=LLAMA, mesh={"fsdp": 8}, packed=True, remat=True, accumulation=2),
    "gpt2-tensor": Program(model=GPT2, mesh={"fsdp": 4, "tensor": 2}),
    "long-masked": Program(model=NARROW, **LONG),
    "long-segments": Program(model=dataclasses.replace(NARROW, attention="segments"), **LONG),
    "long-segments-grouped-remat": Program(
        model=dataclasses.replace(NARROW, attention="segments", heads=4, kv_heads=2), **LONG, remat=True, accumulation=2
    ),
}


def session(program: Program) -> Session:
    sizes = dict.fromkeys(MESH_AXES, 1) | program.mesh
    plan = Plan(
        mesh=sizes,
        rules=rules(sizes),
        batch=Batch(
            sequences=program.sequences,
            microbatch=program.sequences // program.accumulation,
            accumulation=program.accumulation,
        ),
        remat=(Segment(layers=program.model.layers, save=() if program.remat else None),),
    )
    run = Run(
        model=program.model,
        data=DataConfig(sequence=program.length, mode="pack" if program.packed else "truncate"),
        train=TrainConfig(batch=program.sequences),
    )
    model = resolve(run, program.model.vocab)
    how = numerics(model, "gpu", elsewhere=True, capability=CHIPS["H100"].capability)
    return Session(run, model, how, plan, tuple(target("H100", plan.devices)))


def report(program: Program) -> dict[str, Any]:
    """Fused attention calls by name, collectives by kind, and bytes, of the compiled training step.

    `pairs` are the dtypes of arrays with a number for each pair of positions.
    """
    made = session(program)
    compiled = compile_step(made)
    text, memory = compiled.as_text() or "", compiled.memory_analysis()
    assert memory is not None
    return {
        "kernel": made.how.kernel,
        "attention": Counter(re.findall(r'custom_call_target="(__cudnn\$fmha\w+)"', text)),
        "collectives": Counter(re.findall(r" (all-gather|all-reduce|reduce-scatter|all-to-all)(?:-start)?\(", text)),
        "documents": sorted({int(n) for n in re.findall(r'"max_seg_per_batch": ?(\d+)', text)}),
        "masks": sorted(set(re.findall(r'"mask_type": ?"(\w+)"', text))),
        "pairs": sorted(set(re.findall(rf" = (\w+)\[(?:\d+,)*{program.length},{program.length}\]", text))),
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }


def main(names: list[str]) -> None:
    reports = {}
    for name in names:
        print(f"== {name}", file=sys.stderr, flush=True)
        reports[name] = report(PROGRAMS[name])
    print(json.dumps(reports))


if __name__ == "__main__":
    main(sys.argv[1:])

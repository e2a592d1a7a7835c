"""Compiles compressed training steps for 512 GPUs that are not there, and says what crosses the slow axis.

    python tests/gpu/codes.py int8_shared sign

One JSON object on standard output: for each scheme, bytes that one device moves over the zone axis by type.
"""

import json
import sys
from typing import Any

from jaxlm.compile_worker import compile_step
from jaxlm.config import Run
from jaxlm.data.config import DataConfig
from jaxlm.model.config import ModelConfig
from jaxlm.runtime.aot import CHIPS, target
from jaxlm.session import Session, numerics, resolve
from jaxlm.trainer.config import TrainConfig
from planners.layout import rules
from planners.plan import MESH_AXES, Batch, Communication, Plan, Segment
from planners.programs import hlo, replicas

MODEL = ModelConfig(layers=2, embed=1024, heads=16, kv_heads=16, mlp=2048, vocab=1000, tied=False)
MESH = {"zone": 2, "data": 32, "fsdp": 8}


def main(names: list[str]) -> None:
    found: dict[str, Any] = {}
    sizes = dict.fromkeys(MESH_AXES, 1) | MESH
    for name in names:
        said: Any = Communication(axis="zone", scheme=name) if name != "none" else None  # pyright: ignore
        plan = Plan(
            mesh=sizes,
            rules=rules(sizes),
            batch=Batch(sequences=512, microbatch=512, accumulation=1),
            remat=(Segment(layers=MODEL.layers),),
            communication=(said,) if said else (),
        )
        run = Run(model=MODEL, data=DataConfig(sequence=256, mode="truncate"), train=TrainConfig(batch=512))
        how = numerics(MODEL, "gpu", elsewhere=True, capability=CHIPS["H100"].capability)
        made = Session(run, resolve(run, 1000), how, plan, tuple(target("H100", plan.devices)))
        types: dict[str, float] = {}
        for each in hlo.collectives(compile_step(made).as_text() or ""):
            if "zone" in replicas.axes(replicas.groups(each.groups, plan.devices), sizes):
                types[each.dtype] = types.get(each.dtype, 0.0) + each.size
        found[name] = types
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])

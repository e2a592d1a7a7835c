"""What is printed beside a plan: rules of thumb obey memory, the Pareto front is one, a saved workload needs no JAX."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import workloads

from planners.machines.presets import nodes
from planners.plan import MESH_AXES, Workload
from planners.search import plan
from planners.space.baselines import data_parallel, megatron_heuristic, simple_rule
from planners.space.ranking import pareto
from planners.space.rivals import compare
from planners.wishes import Search


def test_rules_of_thumb_pick_what_fits_and_are_never_predicted_faster() -> None:
    work, cluster = workloads.llama_7b(64), nodes("H100", 16)
    made = plan(work, cluster, Search(), None, MESH_AXES)
    compared = compare(made, work, cluster, Search(), MESH_AXES)
    fits, seconds = compared.choices.fits, compared.choices.prices.step_seconds
    for row in compared.baselines().values():
        assert row is None or (fits[row] and seconds[row] >= compared.best * 0.99)
    at = compared.choices.candidates
    alone = data_parallel(at, fits)
    assert alone is None or at.sizes["data"][alone] == 16
    usual, simple = megatron_heuristic(at, fits), simple_rule(at, fits)
    assert usual is not None
    assert at.sizes["fsdp"][usual] == at.sizes["context"][usual] == 1
    assert simple is not None
    assert at.remats[at.remat[simple]] == "none"


def test_no_plan_of_the_front_beats_another_in_both() -> None:
    random = np.random.default_rng(0)
    seconds, memory = random.random(200), random.random(200)
    front = pareto(seconds, memory)
    assert np.all(np.diff(seconds[front]) > 0)
    assert np.all(np.diff(memory[front]) < 0)
    for row in range(200):
        assert np.any((seconds[front] <= seconds[row]) & (memory[front] <= memory[row]))


def test_a_saved_workload_is_planned_without_jax(tmp_path: Path) -> None:
    work, file = workloads.llama_7b(64), tmp_path / "work.json"
    work.save(file)
    assert Workload.load(file) == work
    code = (
        "import sys\n"
        "from jaxlm.cli.planning import MakePlan\n"
        "from pathlib import Path\n"
        f"code = MakePlan(workload=Path({str(file)!r}), cluster='h100x16', explain=True).run()\n"
        "bad = {'jax', 'jaxlib', 'flax', 'optax'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else code)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

"""What compiled steps teach about memory: habits that explain them are found, scatter is not taken for one."""

from pathlib import Path

import pytest
import workloads

from planners.candidates import Candidates
from planners.plan import PlanError, Workload
from planners.prices.footprint import footprint
from planners.prices.memory_calibration import MemoryCalibration, Observation, by_layers, calibrate, observe
from planners.prices.memory_phases import Habits, phases, temporaries

WORK = workloads.llama_7b(batch=64, sequence=2048)


def seen(habits: Habits, remat: int, factor: float = 1.0, work: Workload = WORK, **sizes: int) -> Observation:
    """A step as it would be compiled by an XLA with these habits, if every byte were `factor` bytes."""
    candidate = Candidates.of(sizes, microbatch=64, remat=remat)
    told = dict.fromkeys(candidate.remats, habits)
    bytes_ = temporaries(phases(footprint(work, candidate.sizes), work, candidate, told), 1)[0]
    return observe(work, candidate, factor * float(bytes_))


def test_habits_explain_what_was_compiled_better_than_what_was_believed() -> None:
    """Under full rematerialisation, where a block in flight weighs enough to be told from scatter."""
    habits = Habits(block=1.4)
    compiled = [seen(habits, 1, fsdp=64), seen(habits, 1, fsdp=16), seen(habits, 1, data=8, fsdp=8)]
    made = calibrate(compiled, jaxlib="1")
    assert set(made.habits) == {"full"}
    before, after = (
        sum((each.predicted(h) / each.temporaries - 1) ** 2 for each in compiled)
        for h in (Habits(), made.habits["full"])
    )
    assert after < before
    assert made.error < 0.03


def test_two_steps_of_each_policy_are_enough_to_scale_a_block() -> None:
    habits = Habits(block=0.8)
    compiled = [seen(habits, remat, fsdp=size) for remat in (0, 1) for size in (16, 64)]
    made = calibrate(compiled, jaxlib="1")
    assert made.compiled == 4
    assert made.habits["full"].block == pytest.approx(0.8, abs=0.05)
    assert made.error < 0.01


def test_scatter_of_a_percent_teaches_nothing() -> None:
    noisy = [seen(Habits(), 1, 1.01, fsdp=64), seen(Habits(), 1, 0.99, data=8, fsdp=8)]
    learned = calibrate(noisy, jaxlib="1").habits["full"]
    assert learned.block == pytest.approx(1.0, abs=0.05)


def test_no_compiled_step_leaves_what_is_believed() -> None:
    assert calibrate([], jaxlib="1") == MemoryCalibration(jaxlib="1")


def test_calibration_survives_the_file_and_belongs_to_one_compiler(tmp_path: Path) -> None:
    made = calibrate([seen(Habits(block=0.8), 1, fsdp=64)], jaxlib="0.10.2")
    made.save(tmp_path / "memory.json")
    assert MemoryCalibration.load(tmp_path / "memory.json", "0.10.2") == made
    with pytest.raises(PlanError, match=r"made with jaxlib 0\.10\.2, this is 0\.11\.0"):
        MemoryCalibration.load(tmp_path / "memory.json", "0.11.0")
    with pytest.raises(PlanError, match="does not exist"):
        MemoryCalibration.load(tmp_path / "other.json", "0.10.2")
    (tmp_path / "memory.json").write_text("{")
    with pytest.raises(PlanError, match="is not JSON"):
        MemoryCalibration.load(tmp_path / "memory.json", "0.10.2")


def test_two_compiles_of_few_layers_tell_all_layers() -> None:
    """Habits that no rule knows, shown by two shallow models of one plan, are those of the deep one."""

    def model(layers: int) -> Workload:
        return workloads.llama("m", layers=layers, embed=1024, heads=16, mlp=4096, vocab=8000, batch=64, sequence=2048)

    habits = Habits(block=1.3)
    line = by_layers(*(seen(habits, 1, 1.0, model(layers), fsdp=16) for layers in (4, 8)))
    deep = seen(habits, 1, 1.0, model(48), fsdp=16)
    assert line.predicted(deep.workload, deep.candidate) == pytest.approx(deep.temporaries, rel=1e-3)
    assert deep.predicted(Habits()) != pytest.approx(deep.temporaries, rel=1e-2)
    with pytest.raises(ValueError, match="must differ in depth"):
        by_layers(deep, deep)


def test_an_observation_is_one_plan() -> None:
    with pytest.raises(ValueError, match="one plan and its bytes, not 2 plans"):
        observe(WORK, Candidates.of({"fsdp": [8, 16]}, microbatch=64), 1.0)

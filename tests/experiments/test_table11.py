"""Table 11: each tier off in turn, predicted for the paper's cluster, and trained here."""

import pytest

from experiments import table11_ablation
from experiments.table11_ablation import ALL, EXACT, NO_MESH, NO_REMAT, Config, measure, plans_here, predicted_rows
from planners.programs.compiled import CompileError

RUN = {
    "data": {"path": "stdlib", "limit_bytes": 200000, "sequence": 64, "tokenizer": {"vocab": 420}},
    "model": {"layers": 4, "embed": 32, "heads": 2, "mlp": 64, "dtype": "float32"},
    "optim": {"lr": 1e-3, "warmup": 2},
    "train": {"steps": 8, "batch": 8, "log_every": 2, "tensorboard": False, "compilation_cache": False},
}


@pytest.fixture(scope="module")
def predicted():
    rows, details = predicted_rows(Config(devices=0))
    return {(row.what.partition(", ")[2], row.quantity): row for row in rows}, details


def test_tiers_i_and_iii_bring_what_they_are_for_and_tier_ii_what_the_planner_says(predicted):
    rows, details = predicted
    seconds = {name: rows[name, "seconds per step"].predicted for name in (ALL, NO_MESH, EXACT, NO_REMAT)}
    memory = {name: rows[name, "memory of a step, GB"].predicted for name in (ALL, NO_MESH, EXACT, NO_REMAT)}
    assert memory[ALL] <= 18.3 / 22.5 * memory[NO_REMAT] * 1.001
    assert memory[ALL] == memory[EXACT], "codes need no room that is predicted"
    assert memory[NO_MESH] > memory[ALL]
    alone = {name: seconds[name] - details[name]["gradient_seconds"] for name in (ALL, EXACT)}
    assert alone[ALL] == pytest.approx(alone[EXACT]), "tier II changes how long gradients wait, and nothing else"
    assert details[ALL]["gradient_seconds"] > 0
    assert seconds[ALL] < seconds[NO_MESH]
    assert seconds[NO_REMAT] <= seconds[ALL], "memory is bought with time"
    assert details[NO_REMAT]["remat"] == [{"layers": 16, "save": None, "offload": (), "group": 1}]
    assert details[NO_MESH]["mesh"] == {"data": 512}


def test_the_papers_two_values_stand_beside_their_rows_alone(predicted):
    rows, _ = predicted
    paper = {what: row.paper for (what, _), row in rows.items() if row.paper is not None}
    assert paper == {ALL: 18.3, NO_REMAT: 22.5}
    assert all(row.compiled is None and row.measured is None for row in rows.values())


def test_what_does_not_compile_is_said(monkeypatch):
    class Broken:
        def __init__(self, *given):
            pass

        def __call__(self, plan):
            raise CompileError("XLA gave up\nat length")

    monkeypatch.setattr(table11_ablation, "Compiler", Broken)
    rows, details = predicted_rows(Config(devices=0, compile=True))
    assert all(row.note.endswith("; not compiled: XLA gave up") for row in rows if "memory" in row.quantity)
    assert all(each["compiled_bytes"] is None for each in details.values())


def test_the_plans_of_what_is_trained_here_differ_in_one_tier_each():
    plans = {name: plan for name, (plan, _) in plans_here(Config(run=RUN)).items()}
    sent = {"data": {"scheme": "int8"}}
    assert [name for name, plan in plans.items() if plan.get("communication") != sent] == [EXACT]
    assert [name for name, plan in plans.items() if plan["remat"] == "none"] == [NO_REMAT]
    assert [name for name, plan in plans.items() if plan["mesh"]["data"] == 4] == [NO_MESH]
    assert plans[ALL]["mesh"]["data"] == 2
    assert "memory_budget" not in plans[NO_REMAT]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"scheme": "zip"}, "scheme='zip' must be one of bf16"), ({"share": 1.0}, "share=1.0 must be between"),
     ({"devices": 3}, "devices=3 must be an even number")],
)  # fmt: skip
def test_wrong_settings_are_named(wrong, said):
    with pytest.raises(ValueError, match=said):
        Config(**wrong)


@pytest.mark.slow
def test_it_trains_every_variant(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    report = measure(Config(run=RUN), tmp_path)
    found = report.details["trained"]
    assert set(found) == {ALL, NO_MESH, EXACT, NO_REMAT}
    assert found[ALL]["compiled"] < found[NO_REMAT]["compiled"]
    assert all(each["seconds"] > 0 for each in found.values())
    assert found[ALL]["bits"] == pytest.approx(found[EXACT]["bits"], rel=0.02)
    assert found[ALL]["bits"] == pytest.approx(found[NO_REMAT]["bits"], rel=1e-3)

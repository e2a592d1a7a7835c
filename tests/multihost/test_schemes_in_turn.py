"""One run directory under several schemes in turn: what is refused, what is collected, what is said."""

import json
from typing import Any

import pytest

from tests.cli.programs import finish, start, write_config


@pytest.mark.slow
def test_a_run_changes_its_scheme_and_a_fallback_ends_with_other_bounds(tmp_path):
    config, run = write_config(tmp_path), tmp_path / "run"

    def train(steps: int, kind: str, *more: Any, code: int = 0) -> str:
        keys = ["--plan.mesh.zone", "2", "--optim.schedule", "constant", "--optim.warmup", "2", "--train.steps", steps]
        keys += ["--plan.communication.zone.scheme", kind]
        for name, value in more:
            keys += [f"--plan.communication.zone.parameters.{name}", value]
        return finish(start(["train", config, "--run-dir", run, *map(str, keys)], home=tmp_path, devices=2), code)

    def dense() -> list[float]:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [row["dense"] for row in rows]

    said = train(4, "int4", ("spike", "1e-6"))
    assert said.count("gradients travel dense from here on") == 1
    assert "step 2: what is owed or the loss left its bounds" in said
    assert dense() == [0, 1, 1, 1]
    said = train(6, "int4", ("spike", "1e-6"))
    assert "this run has fallen back to dense gradients, and stays there" in said
    assert "gradients travel dense from here on" not in said
    refused = train(20, "sign", code=2)
    assert "sends the momentum that it collects in a warm-up of 4 steps, and this run has done 6 without it" in refused
    said = train(14, "topk", ("warmup", "10"))
    assert "under another scheme, limit or spike it tries again" in said
    assert dense()[6:] == [1, 1, 1, 1, 0, 0, 0, 0]
    train(16, "sign")
    assert dense()[14:] == [0, 0]

"""Two real processes of two devices each, over gloo: every rung, the same bits on both, and a run that is stopped."""

import json

import numpy as np
import pytest

from experiments.processes import free_port
from tests.cli.programs import finish, losses, start, write_config

ERRORS = {"exact": 1e-6, "bf16": 0.01, "int8": 0.02, "fp8": 0.08, "int8_shared": 0.04, "int4": 0.4,
          "sign": 0.01, "topk": 0.01, "topk8": 0.01, "dgc": 1.0, "powersgd": 1.0}  # fmt: skip
"""Relative error of the first gradient; the first step of `sign` and `topk` is dense. Where nothing is
remembered, that is also all that a step may lose; where it is, hardly anything may be, see `LOST`."""
LOST = 1e-5
FEEDBACK = ("int4", "sign", "topk", "topk8", "dgc", "powersgd")
MOMENTUM = ("sign", "topk", "topk8")


@pytest.mark.slow
def test_every_rung_on_two_processes_is_within_its_error_and_the_same_on_both(tmp_path):
    address = f"localhost:{free_port()}"
    program = ("-m", "tests.multihost.rungs")
    both = [start([address, str(i)], home=tmp_path, devices=2, program=program) for i in range(2)]
    lines = [[json.loads(line) for line in finish(p, seconds=400).splitlines() if line.startswith("{")] for p in both]
    assert lines[0] == lines[1]
    assert [each["kind"] for each in lines[0]] == list(ERRORS)
    for each in lines[0]:
        assert each["error"] <= ERRORS[each["kind"]], each
        assert each["losses"][-1] < each["losses"][0], each
        kind = each["kind"]
        assert each["dense"] == ([1, 1, 0, 0, 0, 0] if kind in MOMENTUM else [0] * 6), each
        assert each["lost"] <= (LOST if kind in FEEDBACK else ERRORS[kind]), each
        assert each["rounded"] <= ERRORS["bf16"], each
        assert (each["owed"] > 1e-2) == (kind in FEEDBACK), each


KEYS = [
    "--model.dropout",
    "0.0",
    "--optim.schedule",
    "constant",
    "--optim.warmup",
    "2",
    "--plan.mesh.zone",
    "2",
    "--plan.mesh.data",
    "2",
    "--plan.communication.zone.scheme",
    "int4",
    "--checkpoint.every_steps",
    "1000",
    "--train.check_replicas",
    "5",
]


def train(config, run, home, steps: int) -> str:
    job = ["--coordinator", f"localhost:{free_port()}", "--processes", "2"]
    command = ["train", config, "--run-dir", run, *KEYS, "--train.steps", str(steps), *job]
    both = [start([*command, "--process", str(i)], home=home, devices=2) for i in range(2)]
    said = [finish(process) for process in both]
    return said[0]


@pytest.mark.slow
def test_a_run_that_goes_on_owes_what_it_owed_bit_for_bit_and_fewer_workers_share_it(tmp_path):
    config = write_config(tmp_path)
    begun = train(config, tmp_path / "whole", tmp_path, 16)
    assert "the exchange of gradients keeps" in begun
    train(config, tmp_path / "parts", tmp_path, 8)
    train(config, tmp_path / "parts", tmp_path, 16)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    more = ["--plan.mesh.zone", "4", "--plan.mesh.data", "1", "--train.steps", "20"]
    said = finish(start(["train", config, "--run-dir", tmp_path / "parts", *KEYS, *more], home=tmp_path, devices=4))
    assert "residuals of 2 workers are shared by 4, their mean as it was" in said
    back = train(config, tmp_path / "parts", tmp_path, 24)
    assert "residuals of 4 workers are shared by 2, their mean as it was" in back
    got = [row[1] for row in losses(tmp_path / "parts")]
    assert len(got) == 24
    assert np.mean(got[20:]) < np.mean(got[:4])

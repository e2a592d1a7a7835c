"""Every configuration that ships can be read, planned for a cluster, and printed."""

import dataclasses
from pathlib import Path

import pytest

from jaxlm.config import Run, build, load
from jaxlm.decode import docs, dump, parse
from jaxlm.inspect import make_plan

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


def test_there_are_configurations():
    assert "quickstart" in [path.stem for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_plans_for_8_h100_and_survives_printing(path):
    run = load(path)
    plan, cluster = make_plan(run, "h100x8")
    assert plan.devices == cluster.count == 8
    assert plan.predicted is not None
    assert plan.predicted.memory_bytes < cluster.device.memory
    assert build(parse(dump(run, comments=True), "printed"), "printed") == run


def unexplained(value: object, path: str = "") -> list[str]:
    """Every key below a configuration object whose docstring does not say what it means."""
    missing = []
    for field in dataclasses.fields(value):  # pyright: ignore[reportArgumentType]
        if field.name not in docs(type(value)):
            missing.append(path + field.name)
        inner = getattr(value, field.name)
        if dataclasses.is_dataclass(inner):
            missing += unexplained(inner, f"{path}{field.name}.")
    return missing


def test_every_key_is_explained():
    assert unexplained(Run()) == []

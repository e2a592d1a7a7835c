"""Every configuration that ships can be read, planned for a cluster, and printed."""

import dataclasses
from pathlib import Path

import pytest

from jaxlm.config import Run, build, load
from jaxlm.decode import ConfigError, docs, dump, parse
from jaxlm.inspect import described
from planners.search import plan as search_plan

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
GIVEN = {
    "novels": ["--data.path", "texts"],
    "wikitext2": ["--data.mixture.novels.path", "texts", "--data.mixture.wikitext.path", "wiki.txt"],
}
"""What a person has to say, because no path would be right for a stranger."""


def test_there_are_configurations():
    assert "quickstart" in [path.stem for path in CONFIGS]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_configuration_plans_for_8_h100_and_survives_printing(path):
    run = load(path, GIVEN.get(path.stem, []))
    workload, cluster = described(run, "h100x8")
    plan = search_plan(workload, cluster, run.plan)
    assert plan.devices == cluster.count == 8
    assert plan.predicted is not None
    assert plan.predicted.memory_bytes < cluster.device.memory
    assert build(parse(dump(run, comments=True), "printed"), "printed") == run


@pytest.mark.parametrize("name", GIVEN)
def test_a_path_that_only_the_user_knows_is_asked_for_by_name(name):
    flags = GIVEN[name][::2]
    with pytest.raises(ConfigError) as refused:
        load(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    assert all(f"give {flag} " in str(refused.value) for flag in flags)


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

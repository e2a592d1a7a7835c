"""When checkpoints are written."""

import pytest
from checkpoint_states import state

from jaxlm.checkpoints.schedule import CheckpointConfig, Schedule
from jaxlm.checkpoints.store import Store


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_steps_are_counted():
    schedule = Schedule(CheckpointConfig(every_steps=3, every_seconds=None), Clock())
    assert [step for step in range(10) if schedule.due(step)] == [3, 6, 9]


def test_seconds_are_counted_from_the_last_save():
    clock = Clock()
    schedule = Schedule(CheckpointConfig(every_steps=None, every_seconds=60.0), clock)
    saved = []
    for step in range(20):
        clock.now += 25
        if schedule.due(step):
            saved.append(step)
    assert saved == [2, 5, 8, 11, 14, 17]


def test_a_save_by_steps_restarts_the_clock():
    clock = Clock()
    schedule = Schedule(CheckpointConfig(every_steps=10, every_seconds=60.0), clock)
    clock.now += 59
    assert schedule.due(10)
    clock.now += 59
    assert not schedule.due(11)
    clock.now += 1
    assert schedule.due(12)


def test_processes_with_different_clocks_agree():
    schedule = Schedule(CheckpointConfig(every_seconds=60.0), Clock(), agree=lambda mine: not mine)
    assert schedule.due(1)


def test_disabled_checkpoints_write_nothing(tmp_path):
    config = CheckpointConfig(enabled=False, every_steps=1)
    schedule = Schedule(config, Clock())
    assert not any(schedule.due(step) for step in range(5))
    with config.build(tmp_path / "checkpoints") as store:
        store.save(1, state(), {})
    assert not list(tmp_path.iterdir())


def test_the_config_builds_the_store_with_its_keep_rules(tmp_path):
    with CheckpointConfig(keep_last=1, keep_every=2).build(tmp_path) as store:
        assert isinstance(store, Store)
        for step in (1, 2, 3):
            store.save(step, state(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "3"]


@pytest.mark.parametrize(
    ("key", "value"), [("every_steps", 0), ("every_seconds", -1.0), ("keep_every", 0), ("keep_last", 0)]
)
def test_a_value_that_makes_no_sense_is_refused_by_name(key, value):
    with pytest.raises(ValueError, match=f"{key}={value} must be"):
        CheckpointConfig(**{key: value})


def test_every_key_is_explained():
    lines = (CheckpointConfig.__doc__ or "").splitlines()
    for key in CheckpointConfig.__dataclass_fields__:
        assert any(line.strip().startswith(f"{key}: ") for line in lines), key

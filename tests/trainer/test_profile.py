"""Which steps a profile records."""

import jax
import pytest

from jaxlm.decode import ConfigError
from jaxlm.trainer.profile import Profiling, Steps


@pytest.mark.parametrize("text", ["5", "a:b", "3:2", "0:2", "2:11", "1:", "-1:3", "1:2:3"])
def test_a_range_that_makes_no_sense_is_refused(text):
    with pytest.raises(ConfigError, match=f"--profile {text}: "):
        Steps.parse(text, 10)


@pytest.fixture
def calls(monkeypatch):
    made = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *a, **k: made.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: made.append("stop"))
    return made


@pytest.mark.parametrize(
    ("text", "done", "want", "said"),
    [
        ("3:4", 0, ["after 2: start", "after 4: stop"], "steps 3 to 4 are recorded"),
        ("1:1", 0, ["after 0: start", "after 1: stop"], "steps 1 to 1 are recorded"),
        ("6:6", 0, ["after 5: start", "after 6: stop"], "steps 6 to 6 are recorded"),
        ("2:4", 1, ["after 1: start", "after 4: stop"], "steps 2 to 4 are recorded"),
        ("2:4", 2, ["after 2: start", "after 4: stop"], "steps up to 2 are done already and not recorded"),
        ("2:4", 4, [], "nothing to record, 4 steps are done already"),
    ],
)
def test_exactly_the_steps_asked_for_are_recorded(tmp_path, calls, text, done, want, said):
    says, seen = [], []
    profiling = Profiling(Steps.parse(text, 6), tmp_path, says.append)
    hooks = profiling.around(())
    profiling.begin(done)
    for step in range(done, 7):
        if step > done:
            for hook in hooks:
                if hook.due(step):
                    hook(step, None)  # pyright: ignore[reportArgumentType]
        seen += [f"after {step}: {call}" for call in calls]
        calls.clear()
    profiling.close()
    assert seen == want
    assert calls == []
    assert said in " ".join(says)


def test_a_recording_under_way_is_ended_with_the_run(tmp_path, calls):
    says = []
    profiling = Profiling(Steps(2, 5), tmp_path, says.append)
    profiling.begin(1)
    profiling.close()
    assert calls == ["start", "stop"]
    assert "the run ended while steps 2 to 5 were recorded" in says[0]

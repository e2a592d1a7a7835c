"""The learning agent: what one measurement teaches about other plans, when it stops, and that it never flaps."""

import json
import math

import numpy as np
import pytest

from planners.learning.agent import Agent, Arm, Habits
from planners.learning.belief import Belief, Evidence
from planners.learning.conductor import Conductor, Pace
from planners.learning.drift import Alertness, Drift, _of_mean
from planners.plan import PlanError

LINKS = ("link",)


def arms(*parts: tuple[float, float], memory: float = 1.0) -> list[Arm]:
    """Plans of (compute, link) seconds, one doubling apart."""
    return [
        Arm(key=str(i), summary=str(i), parts={"compute": c, "link": l}, sizes=(2.0**i,), memory=memory)
        for i, (c, l) in enumerate(parts)
    ]


def test_a_slow_link_seen_in_one_plan_is_expected_in_every_plan_that_uses_it():
    belief = Belief([{"compute": 0.5, "link": 0.5}, {"compute": 0.6, "link": 0.4}, {"compute": 1.0}],
                    [(1,), (4,), (16,)], links=LINKS)  # fmt: skip
    before = belief.log_seconds()[0]
    for _ in range(3):
        belief.update(0, math.log(1.5), 1e-6)
    rise = belief.log_seconds()[0] - before
    assert rise[0] == pytest.approx(math.log(1.5), abs=0.01)
    assert rise[1] > rise[2], "the plan without the link slows down less"
    assert rise[2] > 0.0, "the scale is shared"


def test_what_other_jobs_took_moves_the_prior_of_plans_like_theirs():
    parts = [{"compute": 1.0}, {"compute": 1.0}]
    seen = [Evidence(job=str(job), parts={"compute": 1.0}, sizes=(1.0,), seconds=1.3) for job in range(5)]
    seen += [Evidence(job=str(job), parts={"compute": 1.0}, sizes=(8.0,), seconds=1.0) for job in range(5)]
    mean, spread = Belief(parts, [(1.0,), (8.0,)], evidence=seen).log_seconds()
    assert 0.1 < mean[0] - mean[1] < math.log(1.3)
    assert np.all(spread < Belief(parts, [(1.0,), (8.0,)]).log_seconds()[1])


def test_a_belief_goes_on_with_the_parts_that_its_evidence_had_and_with_no_others():
    parts, sizes = [{"compute": 1.0, "link": 0.0}, {"compute": 2.0}], [(1.0,), (8.0,)]
    seen = [Evidence(job="a", parts={"compute": 1.0, "bubble": 0.5}, sizes=(1.0,), seconds=2.0)]
    learnt, bare = Belief(parts, sizes, evidence=seen), Belief(parts, sizes)
    bare.restore(json.loads(json.dumps(learnt.to_json())))
    np.testing.assert_allclose(bare.log_seconds(), learnt.log_seconds())
    with pytest.raises(ValueError, match="bubble"):
        Belief([{"bubble": 1.0}, {"compute": 2.0}], sizes).restore(Belief(parts, sizes).to_json())


def test_an_arm_that_does_not_fit_is_never_an_action():
    plans = arms((1.0, 0.1), (0.2, 0.0))
    agent = Agent([plans[0], Arm(**{**_fields(plans[1]), "memory": 3.0})], 2.0, links=LINKS)
    assert [arm.key for arm in agent.arms] == ["0"]
    assert agent.decide(0, 1000, [0.0], 0.0, 5).kind == "keep"
    with pytest.raises(PlanError, match="none of 2 plans fits"):
        Agent(plans, 0.5, links=LINKS)


def test_an_arm_that_the_compiler_refuses_is_never_an_action_again():
    agent = Agent(arms((1.0, 0.0), (0.2, 0.0), (1.1, 0.0)), 2.0, links=LINKS)
    agent.observe(0, [1.0] * 5)
    assert agent.decide(0, 1000, [0.0] * 3, 0.0, 5).arm == 1
    agent.refuse(1)
    assert agent.decide(0, 1000, [0.0] * 3, 0.0, 5).arm != 1


def _fields(arm: Arm) -> dict:
    return {name: getattr(arm, name) for name in arm.__slots__}


def test_it_explores_only_while_a_probe_can_win_back_its_price():
    plans = arms((1.0, 0.1), (1.0, 0.12))
    few, many = (Agent(plans, 2.0, links=LINKS) for _ in range(2))
    for agent in (few, many):
        agent.observe(0, [1.1] * 5)
    assert few.decide(0, 30, [0.0, 60.0], 5.0, 7).kind == "keep"
    assert many.decide(0, 100_000, [0.0, 60.0], 5.0, 7).kind == "probe"


def run(agent: Agent, truth: list[float], steps: int, *, noise: float = 0.01, change=None, seed: int = 0) -> Conductor:
    """The first `steps` of 5,000; `change` is a step and what plans take from there."""
    random = np.random.default_rng(seed)
    conductor = Conductor(agent, Pace(compile_seconds=5.0, reshard_seconds=1.0))
    for step in range(steps):
        seconds = (change[1] if change and step >= change[0] else truth)[conductor.current]
        if conductor.finished(seconds * math.exp(noise * random.standard_normal())):
            conductor.decide(5000 - step)
    return conductor


def test_it_finds_a_plan_that_is_faster_than_predicted_and_stays_there():
    conductor = run(Agent(arms((1.0, 0.1), (1.0, 0.15), (1.0, 0.2)), 2.0, links=LINKS), [1.1, 1.15, 0.9], 200)
    assert conductor.current == 2
    assert not conductor.probing


def test_a_link_at_half_its_bandwidth_is_left_within_twenty_steps_of_evidence():
    plans, before, after = arms((0.7, 0.3), (1.04, 0.01)), [1.0, 1.05], [1.3, 1.06]
    assert run(Agent(plans, 2.0, links=LINKS), before, 320).current == 0
    assert run(Agent(plans, 2.0, links=LINKS), before, 320, change=(300, after)).current == 1
    later = run(Agent(plans, 2.0, links=LINKS), before, 600, change=(300, after))
    assert (later.current, later.probing) == (1, False)


def test_single_odd_steps_raise_no_alarm_and_a_lasting_change_does():
    random = np.random.default_rng(0)
    drift = Drift()
    for step in range(2000):
        assert not drift(math.exp(0.01 * random.standard_normal()) * (3.0 if step % 50 == 49 else 1.0)), step
    steps = 0
    while not drift(1.2 * math.exp(0.01 * random.standard_normal())):
        steps += 1
    assert steps < 20
    assert drift.shift() == pytest.approx(math.log(1.2), abs=0.02)


def wandering(random: np.random.Generator, steps: int) -> np.ndarray:
    slow = np.zeros(steps)
    for step in range(1, steps):
        slow[step] = 0.9 * slow[step - 1] + math.sqrt(0.19) * random.standard_normal()
    return 0.02 * slow + 0.02 * random.standard_normal(steps)


def test_a_machine_that_wanders_has_not_changed():
    alarms = 0
    for seed in range(8):
        drift = Drift()
        alarms += any(drift(math.exp(value)) for value in wandering(np.random.default_rng(seed), 400))
    assert alarms <= 1
    # The same steps in another order resemble their neighbours no longer, and so many sway a mean no more.
    steps = wandering(np.random.default_rng(0), 200)
    together, shuffled = Drift(seen=list(steps)), Drift(seen=list(np.random.default_rng(1).permutation(steps)))
    assert together.resemblance() > 0.3 > shuffled.resemblance()


@pytest.mark.parametrize("alike", [0.0, 0.5, 1.0])
def test_the_variance_of_a_mean_of_steps_that_resemble_each_other(alike: float):
    for count in (1, 2, 7, 40):
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        pairs = np.where(apart == 0, 1.0, alike * 0.9**apart)
        assert _of_mean(np.array(count), alike, 0.9) == pytest.approx(pairs.mean())


def test_a_machine_that_wanders_and_then_takes_twice_as_long_has_changed():
    for seed in range(8):
        steps, drift = wandering(np.random.default_rng(seed), 200), Drift()
        for value in steps[:150]:
            if drift(math.exp(value)):
                drift = Drift()
        assert any(drift(2.0 * math.exp(value)) for value in steps[150:]), seed


def test_what_an_earlier_version_had_seen_is_taken_over():
    drift = Drift.restore(Alertness(), {"seen": [0.0] * 40, "up": 3.0, "down": 0.0, "since": [0.2] * 3})
    assert [drift(math.exp(0.2)) for _ in range(2)] == [False, True]
    assert drift.since == pytest.approx([0.2] * 5)
    long = Drift.restore(Alertness(), {"seen": [0.0] * 20, "up": 1.0, "down": 0.0, "since": [0.01] * 60})
    assert (len(long.seen), len(long.newest), long.since) == (60, 20, [])


def test_equal_seeds_decide_alike_and_a_saved_agent_goes_on_where_it_was():
    plans = arms((1.0, 0.1), (1.0, 0.12), (1.0, 0.15))
    first, second = (Conductor(Agent(plans, 2.0, links=LINKS, habits=Habits(seed=3))) for _ in range(2))
    for conductor in (first, second):
        for _ in range(7):
            conductor.finished(1.1)
    restored = Conductor(Agent(plans, 2.0, links=LINKS, habits=Habits(seed=3)))
    restored.restore(json.loads(json.dumps(first.to_json())))
    assert restored.to_json() == first.to_json()
    decisions = [conductor.decide(5000) for conductor in (first, second, restored)]
    assert decisions[0] == decisions[1] == decisions[2]
    with pytest.raises(ValueError, match="other plans"):
        Conductor(Agent(plans[:2], 2.0, links=LINKS)).restore(first.to_json())

"""Static orders, list scheduling against every order there is, and draws that orders share."""

import itertools

import numpy as np
import pytest

from planners.schedules.dag import Graph, NeverEnds, Operation
from planners.schedules.durations import Duration
from planners.schedules.profiling import Profile
from planners.schedules.simulate import list_schedule, run, search_order


def random_graph(seed: int, operations: int = 7, resources: int = 2) -> tuple[Graph, np.ndarray]:
    rng = np.random.default_rng(seed)
    made = []
    for i in range(operations):
        before = tuple(f"o{j}" for j in range(i) if rng.random() < 0.3)
        where = (f"r{rng.integers(resources)}",)
        made.append(Operation(f"o{i}", f"o{i}", where, before))
    return Graph(tuple(made)), rng.integers(1, 10, operations).astype(float)


def makespan(graph: Graph, order, seconds: np.ndarray) -> float:
    return float(run(graph, order, seconds[:, None]).makespan[0])


def exact(graph: Graph, seconds: np.ndarray) -> float:
    """The best of all static orders."""
    best = np.inf
    for orders in itertools.product(*(itertools.permutations(names) for names in graph.resources.values())):
        try:
            best = min(best, makespan(graph, dict(zip(graph.resources, orders, strict=True)), seconds))
        except NeverEnds:
            continue
    return best


def test_list_scheduling_is_never_below_the_exact_optimum_and_a_search_from_it_is_nearly_always_at_it():
    first, best = [], []
    for seed in range(25):
        graph, seconds = random_graph(seed)
        least = exact(graph, seconds)
        first.append(makespan(graph, list_schedule(graph, seconds), seconds) / least)
        best.append(makespan(graph, search_order(graph, seconds), seconds) / least)
    assert min(*first, *best) >= 1 - 1e-9
    assert max(first) <= 2.0  # Graham's bound for two resources
    assert np.mean(np.array(first) < 1 + 1e-9) >= 0.75
    assert np.mean(np.array(best) < 1 + 1e-9) >= 0.95
    assert max(best) <= 1.05


def test_the_exact_optimum_can_be_below_a_bad_order():
    """The comparison above can fail: taking the shortest chain first loses on many graphs."""
    worse = 0
    for seed in range(25):
        graph, seconds = random_graph(seed)
        order = list_schedule(graph, seconds, priority=np.arange(len(seconds)))
        worse += makespan(graph, order, seconds) > 1.02 * exact(graph, seconds)
    assert worse >= 3


def test_an_order_that_never_ends_is_refused_and_names_the_operations():
    graph = Graph((Operation("a", "k", ("x",)), Operation("b", "k", ("x",), ("a",))))
    with pytest.raises(ValueError, match="never ends: a, b wait"):
        run(graph, {"x": ["b", "a"]}, np.ones((2, 1)))


def test_an_order_must_name_every_operation_of_every_resource():
    graph = Graph((Operation("a", "k", ("x",)), Operation("b", "k", ("y",))))
    with pytest.raises(ValueError, match="says nothing of y"):
        run(graph, {"x": ["a"]}, np.ones((2, 1)))
    with pytest.raises(ValueError, match="order of y: b is missing"):
        run(graph, {"x": ["a"], "y": []}, np.ones((2, 1)))


def test_a_graph_refuses_unknown_and_repeated_names():
    with pytest.raises(ValueError, match="waits for z"):
        Graph((Operation("a", "k", ("x",), ("z",)),))
    with pytest.raises(ValueError, match="same name"):
        Graph((Operation("a", "k", ("x",)), Operation("a", "k", ("x",))))


def test_an_operation_that_holds_two_resources_waits_for_both():
    graph = Graph((Operation("a", "k", ("x",)), Operation("b", "l", ("y",)), Operation("c", "k", ("x", "y"))))
    times = run(graph, {"x": ["a", "c"], "y": ["b", "c"]}, np.array([[1.0], [5.0], [1.0]]))
    assert times.start[2, 0] == 5.0


@pytest.mark.parametrize(
    "duration", [Duration(2.0, 0.5), Duration.measured(np.random.default_rng(0).gamma(4, 0.5, 64).tolist())]
)
def test_draws_have_the_mean_and_the_spread_of_their_distribution(duration):
    drawn = duration.draw([f"op{i}" for i in range(400)], 50, seed=1)
    assert drawn.mean() == pytest.approx(duration.mean, rel=0.02)
    assert drawn.std() == pytest.approx(duration.std, rel=0.05)
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.5


def test_an_operation_draws_the_same_luck_whatever_stands_around_it():
    duration = Duration(1.0, 0.4)
    alone, among = duration.draw(["x"], 8, 3)[0], duration.draw(["a", "b", "x"], 8, 3)[2]
    np.testing.assert_array_equal(alone, among)
    assert not np.array_equal(alone, duration.draw(["x"], 8, 4)[0])


def test_an_agents_report_moves_the_durations():
    graph = Graph((Operation("a", "k", ("x",)), Operation("b", "k", ("y",))))
    profile = Profile({"k": Duration(1.0)}).slowed("y", 3.0)
    np.testing.assert_array_equal(profile.expected(graph), [1.0, 3.0])
    seen = profile.measured("k", 2.0).measured("k", 4.0)
    np.testing.assert_allclose(seen.expected(graph), [3.0, 9.0])
    with pytest.raises(ValueError, match="no duration of 'k'"):
        Profile({}).draw(graph, 1, 0)

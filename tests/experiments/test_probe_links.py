"""Three ways to predict a held-out size, on tables whose truth is known."""

import numpy as np

from experiments.probe_links import held_out
from planners.machines.link_table import Timing, moved


def test_one_bandwidth_misses_the_latency_that_table_and_fit_know():
    rows = [
        Timing(ranks=n, bytes=b, seconds=float(1e-4 + moved("all_reduce", n) * b / 1e9))
        for n in (2, 4)
        for b in (10**3, 10**4, 10**5, 10**6, 10**7)
    ]
    errors = held_out("all_reduce", rows)
    assert len(errors["the table"]) == 4
    assert np.max(errors["the table"]) < 1e-9
    assert np.max(errors["latency and bandwidth"]) < 1e-6
    assert np.mean(errors["one bandwidth"]) > 0.3


def test_a_bandwidth_that_changes_with_the_size_is_known_to_the_table_alone():
    rows = [Timing(ranks=4, bytes=b, seconds=1e-6 * b**0.7) for b in (10**3, 4000, 16000, 64000, 256000)]
    errors = {way: np.mean(found) for way, found in held_out("permute", rows).items()}
    assert errors["the table"] < 0.2 < errors["one bandwidth"]
    assert errors["the table"] < errors["latency and bandwidth"]

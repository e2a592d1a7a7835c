"""The eleven-coefficient baseline: its parts are a step, and it finds coefficients again from step times alone."""

import dataclasses
import itertools

import numpy as np

from experiments.benchmarks.published.closed_form import LINKS, PARTS, START, Runs, fit, parts, seconds

NAMES = [item.name for item in dataclasses.fields(Runs)]


def runs(coefficients: np.ndarray = START) -> Runs:
    """Every plan of two models on 8 and 16 devices, timed by the formula itself."""
    rows = [
        (hidden, layers, 16, 1024, t, n // t // p, p, b, 64, n)
        for hidden, layers in ((1024, 24), (2048, 12))
        for n in (8, 16)
        for t, p, b in itertools.product((1, 2, 4, 8, 16), (1, 2, 4), (1, 2, 4))
        if t * p <= n
    ]
    columns = [np.array(column, float) for column in zip(*rows, strict=True)]
    table = Runs(**dict(zip(NAMES, [*columns, np.ones(len(rows))], strict=True)))
    return dataclasses.replace(table, seconds=seconds(coefficients, table))


def test_parts_of_a_plan_without_parallelism_hold_no_communication():
    table = runs()
    alone = table.take(table.tensor * table.data * table.stage == 1)
    links = parts(START, table)[:, [PARTS.index(name) for name in LINKS]]
    assert len(alone) == 0
    assert np.all(links[table.tensor == 1, 0] == 0)
    assert np.all(links[table.stage == 1, 1] == 0)
    assert np.all(links[table.data == 1, 2] == 0)
    assert np.all(links[table.data > 1, 2] > 0)


def test_a_fit_predicts_the_step_times_of_other_coefficients_on_rows_it_has_not_seen():
    truth = START + 0.3 * np.sin(np.arange(len(START)))
    table = runs(truth)
    seen = np.arange(len(table)) % 2 == 0
    found = fit(table.take(seen))
    error = seconds(found, table.take(~seen)) / table.seconds[~seen] - 1.0
    assert np.max(np.abs(error)) < 0.02
    assert np.max(np.abs(seconds(START, table.take(~seen)) / table.seconds[~seen] - 1.0)) > 0.1

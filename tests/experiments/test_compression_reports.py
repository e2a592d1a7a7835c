"""What is said of measured exchanges: met, missed, not distinguishable; by numbers made up here."""

import pytest

from experiments.benchmarks.compression import Config as Exchanges
from experiments.benchmarks.compression import report as exchanges
from experiments.benchmarks.scheduler import judged
from experiments.benchmarks.time_to_loss import BASELINE, seconds_to
from experiments.benchmarks.time_to_loss import Config as Racing
from experiments.benchmarks.time_to_loss import report as race
from experiments.compression_quality import interval, report
from experiments.entry import CONFIGS
from experiments.workers.compression import FLAT
from jaxlm.decode import decode, read


def test_a_target_is_met_by_the_upper_end_of_the_interval_against_exact_and_against_the_control():
    exact = [4.0, 4.1, 4.0, 4.2, 4.0]
    found = {
        "exact": {"losses": exact},
        "int8": {"losses": [x * 1.001 for x in exact]},
        "sign": {"losses": [x * y for x, y in zip(exact, (1.0, 1.02, 0.98, 1.0, 1.01), strict=True)]},
        "frozen": {"losses": [x * 0.99 for x in exact], "fallback": [True] * 5},
    }
    rows = {(row.what, row.quantity): row for row in report(found).rows}
    assert rows["int8", "% above exact"].measured == 0.1
    assert rows["int8", "% above exact"].note.endswith("target < 0.3: met")
    assert rows["sign", "% above exact"].note.endswith("MISSED")
    assert rows["sign", "% above frozen"].note.endswith("MISSED")
    assert rows["frozen", "loss, nats"].note.endswith("5 fell back to dense steps")


def test_the_interval_is_students():
    mean, half = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, half) == (3.0, pytest.approx(2.776 * 1.5811 / 5**0.5, rel=1e-3))
    assert interval([1.0]) == (1.0, float("inf"))


@pytest.mark.parametrize(
    ("slow", "verdict"), [(1.04, "met"), (1.2, "MISSED"), (0.9, "met"), (None, "not distinguishable")]
)
def test_the_scheduler_is_judged_by_fresh_rounds(slow, verdict):
    fast = [1.0, 1.01, 0.99, 1.0, 1.0, 1.01, 1.0, 0.99]
    noisy = [0.5, 1.8, 0.6, 1.7, 0.5, 1.9, 0.7, 1.6]
    cell = {"judging": {"a": noisy if slow is None else [x * slow for x in fast], "b": fast}}
    assert judged(cell, "a", "b")[1] == verdict
    assert judged(cell, "b", "b")[:2] == (0.0, "met")


def test_the_time_to_a_loss_counts_training_alone_and_says_where_it_is_not_reached():
    assert seconds_to({"seconds": [1.0, 2.0, 3.0], "losses": [5.0, 4.0, 3.0]}, 4.0) == 3.0
    assert seconds_to({"seconds": [1.0], "losses": [5.0]}, 4.0) is None
    base = {"seconds": [4.0] * 4, "losses": [5.0, 4.0, 3.0, 2.5], "bytes": [8] * 4}
    quick = {"seconds": [1.0] * 4, "losses": [5.0, 4.5, 3.0, 2.9], "bytes": [1] * 4}
    never = {"seconds": [1.0] * 4, "losses": [5.0, 4.5, 3.5, 3.4], "bytes": [1] * 4}
    said = race(Racing(steps=4), {BASELINE: base, "quick": quick, "never": never})
    rows = {(row.what, row.quantity): row for row in said.rows}
    assert rows["quick", "x the 16-bit baseline"].measured == 4.0
    assert ("never", "x the 16-bit baseline") not in rows
    assert rows["never", "s to the loss"].note.startswith("does not reach 3.0000")
    assert said.remarks[0].endswith("quick is 4.00 times as soon there: met.")


def test_sums_inside_a_host_first_are_held_against_the_count_of_a_ring():
    config = decode(read(CONFIGS / "compression_hosts.yaml"), Exchanges)
    ways = {"fp32 sum": 100, "fp16 sum": 50, FLAT: 150}
    found = {"elements": 5, "seconds": {way: [1.0, 1.0] for way in ways}, "errors": dict.fromkeys(ways, 0.0),
             "bytes": {way: [size] * 2 for way, size in ways.items()}}  # fmt: skip
    (row,) = [row for row in exchanges(config, found).rows if row.quantity == "of the flat ring's bytes"]
    assert row.measured == 0.667
    assert "by count 0.667" in row.note
    assert row.note.endswith("MISSED")

"""Which orders of gradient sums are measured; the measurement itself needs a quiet machine and is no test."""

from experiments.schedule_orders import Config, orders, together
from planners.schedules.reductions import Replicas


def test_every_order_is_measured_once_beside_and_between_the_passes():
    tried = orders(Config())
    keys = {(order.overlap, order.reduce_every, order.buckets) for order in tried}
    assert len(keys) == len(tried)
    assert {order.overlap for order in tried} == {True, False}
    assert {order.reduce_every for order in tried} == {1, 2}
    assert {len(order.buckets) for order in tried} >= {1, 6}
    assert all(isinstance(order, Replicas) and sum(order.sizes()) == sum(Config().layers) for order in tried)


def test_a_wait_for_a_late_process_is_not_timed():
    early, late = [(0.0, 5.0)], [(3.0, 5.5)]
    assert together([early, late]) == [2.5]

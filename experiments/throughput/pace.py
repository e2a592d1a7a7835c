"""How long the steps of a compiled program take, one after the other, as training runs them."""

import time
from collections.abc import Callable
from typing import Any

import jax


def paced(step: Callable[[Any, Any], tuple[Any, Any]], state: Any, batch: Any, count: int) -> tuple[Any, list[float]]:
    """The state after `count` steps on one batch, and the seconds of each: while one runs, the next is under way."""
    seconds, waiting = [], None
    last = time.perf_counter()

    def settle(result: Any) -> None:
        nonlocal last
        jax.block_until_ready(result)
        now = time.perf_counter()
        seconds.append(now - last)
        last = now

    for _ in range(count):
        state, metrics = step(state, batch)
        if waiting is not None:
            settle(waiting)
        waiting = metrics["loss"]
    settle(state)
    return state, seconds

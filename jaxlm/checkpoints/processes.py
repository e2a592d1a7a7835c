"""One answer for all processes of a run; all of them call at the same point, and alone it costs nothing."""

import itertools
import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxlm.checkpoints.errors import CheckpointError

_meetings = itertools.count()


def first_does(work: Callable[[], Any]) -> Any:
    """Runs `work` on process 0 alone and gives its JSON result to all; so does the error it ends in.

    Raises:
        CheckpointError: on every process, with the sentence of the error on process 0.
    """
    if jax.process_count() == 1:
        return work()
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer["value"] = work()
        except Exception as error:
            answer["error"] = str(error)
    answer = json.loads(_first_says(json.dumps(answer)))
    if "error" in answer:
        raise CheckpointError(answer["error"])
    return answer["value"]


def first_decides(yes: bool) -> bool:
    """Process 0's `yes`, on every process: clocks differ, the decision to save must not."""
    return first_does(lambda: yes)


def first_failed(failed: bool) -> int | None:
    """The lowest number of a process that says it failed; None when none does."""
    if jax.process_count() == 1:
        return 0 if failed else None
    from jax.experimental import multihost_utils

    flags = np.asarray(multihost_utils.process_allgather(np.int32(failed))).ravel()
    return int(np.flatnonzero(flags)[0]) if flags.any() else None


def all_say(value: Any) -> list[Any]:
    """The JSON values of all processes, in their order, on every process."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental import multihost_utils

    raw = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(raw.size))).ravel()
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: raw.size] = raw
    rows = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def meet(seconds: float = 1800.0) -> None:
    """Returns when all processes have come here. Gloo gives up a new group of processes where one is 30 seconds late,
    as after a compilation; here they may be later than that."""
    if jax.process_count() > 1:
        coordination().wait_at_barrier(f"jaxlm/meet/{next(_meetings)}", round(1000 * seconds))


def coordination() -> Any:
    """JAX's coordination service as this process sees it: keys and values for all, and barriers that can time out."""
    from jax._src.distributed import global_state  # there is no public name for it; Orbax reaches for it like this too

    if global_state.client is None:
        raise RuntimeError("jax.distributed.initialize() must come first")
    return global_state.client


def _first_says(text: str) -> str:
    from jax.experimental import multihost_utils

    raw = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(raw.size)))
    padded = np.zeros(size, np.uint8)
    padded[: min(size, raw.size)] = raw[:size]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8).tobytes().decode()

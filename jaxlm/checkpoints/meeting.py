"""Where the processes of a run meet while a checkpoint is written: one that failed says why, so nobody waits in vain.

Orbax meets twice in a save, in its own threads: when every process has written its part, and when process 0 has
committed. A process whose write fails never comes to the first, and by itself Orbax would wait twenty minutes for it.
"""

import itertools
import threading
from typing import Any

import jax

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.processes import coordination

PATIENCE = 20 * 60
"""Seconds until a meeting is given up. A process that *dies* ends the run long before, see `jaxlm.runtime.peers`."""


_MEETINGS = 2
_stores = itertools.count()


class Meetings:
    """The meetings of one store, which all processes of a run make and use alike; alone there is nothing to wait for.

    Handed to Orbax as its `barrier_sync_fn`.
    """

    def __init__(self) -> None:
        self._store = next(_stores)
        self._save = 0
        self._number = 0
        self._over = True
        self._lock = threading.Lock()

    def begin(self) -> None:
        """A new save: every process calls this as often as the others."""
        self._save, self._number, self._over = self._save + 1, 0, False

    def __call__(self, *, key: str, timeout_ms: int) -> None:
        """Returns when every process has come here. Raises CheckpointError where one came to say that it failed."""
        del key, timeout_ms  # Orbax names them by folder, which is always `state`; its patience is not ours
        self._meet(None)

    def fail(self, why: str) -> None:
        """Comes to the next meeting of this save to say that it failed, unless that is known or none is left."""
        if jax.process_count() == 1 or self._over or self._number == _MEETINGS:
            return
        try:
            self._meet(why)
        except (CheckpointError, jax.errors.JaxRuntimeError):
            return  # the others have heard it, or are gone; the caller raises what failed here

    def _meet(self, failure: str | None) -> None:
        if jax.process_count() == 1:
            return
        with self._lock:
            self._number += 1
            name = f"jaxlm/checkpoints/{self._store}/{self._save}/{self._number}"
        service: Any = coordination()
        if failure is not None:
            self._over = True
            service.key_value_set(f"{name}/{jax.process_index()}", failure)
        service.wait_at_barrier(name, PATIENCE * 1000)
        for key, why in service.key_value_dir_get(name):
            self._over = True
            raise CheckpointError(f"process {key.rsplit('/', 1)[1]} failed: {why}")

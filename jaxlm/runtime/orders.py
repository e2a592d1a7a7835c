"""Orders of process 0 to all processes of a job, each known to all at the same place, without a collective.

They travel through JAX's coordination service, so nothing waits on a device, and an order may take days to come.
"""

from typing import Any, Protocol

import jax

from jaxlm.checkpoints.processes import coordination

_ORDER, _SIGNAL = "jaxlm/orders", "jaxlm/signals"
_POLL_MS = 2000


class Service(Protocol):
    """What is used of JAX's coordination service."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str: ...

    def key_value_delete(self, key: str) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


class Orders:
    """Numbered orders: every process calls `give` or `take` equally often, in the same order. Alone it costs nothing.

    Args:
        signal: the signal that this process has received, if any; the others are told while they wait.
    """

    def __init__(self, signal: Any = lambda: None):
        self._count = 0
        self._signal = signal
        self._alone = jax.process_count() == 1
        self._me = jax.process_index()

    def give(self, order: str) -> str:
        """On process 0: says what all do."""
        self._count += 1
        if not self._alone:
            service: Service = coordination()
            service.key_value_set(f"{_ORDER}/{self._count}", order)
            if self._count > 3:  # all have taken that one: they took part in a step that came later
                service.key_value_delete(f"{_ORDER}/{self._count - 3}")
        return order

    def take(self) -> str:
        """On all others: waits, as long as it takes, for what process 0 says."""
        self._count += 1
        service: Service = coordination()
        while True:
            if (number := self._signal()) is not None:
                service.key_value_set(f"{_SIGNAL}/{self._me}", str(number), True)
            try:
                return service.blocking_key_value_get(f"{_ORDER}/{self._count}", _POLL_MS)
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise

    def signalled(self) -> int | None:
        """On process 0, while others wait: the signal that any process has received."""
        if (number := self._signal()) is not None or self._alone:
            return number
        told = [int(value) for _, value in coordination().key_value_dir_get(_SIGNAL)]
        return max(told, default=None)

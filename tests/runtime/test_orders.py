"""Orders of process 0, without processes: a dictionary is the service."""

import jax
import pytest

from jaxlm.runtime import orders
from jaxlm.runtime.orders import Orders


class Memory:
    """What is used of the coordination service; `late` is how often an order is not there yet."""

    def __init__(self, late: int = 0):
        self.values: dict[str, str] = {}
        self.late = late

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        assert allow_overwrite or key not in self.values
        self.values[key] = value

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        if self.late:
            self.late -= 1
            raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED: nobody has said it")
        return self.values[key]

    def key_value_delete(self, key: str) -> None:
        del self.values[key]

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.values.items() if name.startswith(key)]


def pair(monkeypatch: pytest.MonkeyPatch, memory: Memory, signal: int | None = None) -> tuple[Orders, Orders]:
    monkeypatch.setattr(orders, "coordination", lambda: memory)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    first = Orders()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    return first, Orders(lambda: signal)


def test_orders_arrive_in_their_order_and_do_not_pile_up(monkeypatch: pytest.MonkeyPatch):
    memory = Memory()
    first, second = pair(monkeypatch, memory)
    for number in range(50):
        assert first.give(f"do {number}") == second.take() == f"do {number}"
    assert len(memory.values) <= 3


def test_who_waits_tells_that_it_was_signalled(monkeypatch: pytest.MonkeyPatch):
    memory = Memory(late=3)
    first, second = pair(monkeypatch, memory, signal=15)
    assert first.signalled() is None
    first.give("go")
    assert second.take() == "go"
    assert first.signalled() == 15


def test_a_service_that_is_gone_is_no_reason_to_go_on(monkeypatch: pytest.MonkeyPatch):
    memory = Memory()
    _, second = pair(monkeypatch, memory)

    def gone(key: str, timeout_in_ms: int) -> str:
        raise jax.errors.JaxRuntimeError("UNAVAILABLE: connection refused")

    monkeypatch.setattr(memory, "blocking_key_value_get", gone)
    with pytest.raises(jax.errors.JaxRuntimeError, match="UNAVAILABLE"):
        second.take()


def test_alone_it_costs_nothing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(orders, "coordination", lambda: pytest.fail("there is nobody to tell"))
    alone = Orders(lambda: 2)
    assert (alone.give("go"), alone.signalled()) == ("go", 2)

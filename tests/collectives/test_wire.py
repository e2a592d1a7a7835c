"""What the metrics say of an exchange: bytes by the kernel's counters, the time of the exchange, its rung."""

import jax
import pytest

from jaxlm.collectives.schemes import scheme
from jaxlm.collectives.sync import Implicit
from jaxlm.collectives.timing import cost
from jaxlm.trainer.loop import Finished
from jaxlm.wire import Wire, sent
from planners.plan import Communication
from tests.collectives.work import Toy


def counters(path, *, out: int) -> None:
    zeros = "0 " * 7
    path.write_text(
        "Inter-|   Receive | Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n"
        f"    lo: 900 {zeros} 900 {zeros}\n  eth0:  70 {zeros} {out} {zeros}\n  e0: 5 {zeros} 7 {zeros}\n"
    )


def finished(**scalars: float) -> Finished:
    return Finished(8, {"loss": 1.0, **scalars}, 0.1)


def toy(kind) -> Toy:
    return Toy(scheme(Communication(axis="zone", scheme=kind), 2), 2)


def test_bytes_are_those_of_all_interfaces_but_the_loopback(tmp_path):
    counters(tmp_path / "dev", out=100)
    assert sent(tmp_path / "dev") == 107
    assert sent(tmp_path / "absent") is None
    assert isinstance(sent(), int | None)


def test_a_record_says_bytes_per_step_seconds_of_the_exchange_and_the_rung(tmp_path):
    counters(tmp_path / "dev", out=100)
    run = toy("int4")
    with jax.set_mesh(run.mesh):
        wire = Wire(run.sync, several=True, counters=tmp_path / "dev")
    counters(tmp_path / "dev", out=500)
    wire.restart()
    counters(tmp_path / "dev", out=900)
    record = wire(finished(), 4)
    assert (record["rung"], record["wire_bytes"]) == ("int4", 100)
    assert record["exchange_seconds"] > 0
    assert record["codec_ms"] > 0
    assert record["exposed_seconds"] == pytest.approx(record["exchange_seconds"] - record["codec_ms"] / 1e3, abs=1e-9)
    assert wire(finished(dense=1.0), 4) | {"rung": "dense", "wire_bytes": 0} == wire(finished(dense=1.0), 4)


def test_one_process_has_no_wire_and_exact_sums_no_codec(tmp_path):
    counters(tmp_path / "dev", out=100)
    assert Wire(Implicit(), several=False)(finished(), 1) == {"rung": "none"}
    assert Wire(Implicit(), several=True, counters=tmp_path / "dev")(finished(), 1) == {"rung": "none", "wire_bytes": 0}


@pytest.mark.parametrize("kind", ["int8_shared", "topk"])
def test_an_exchange_takes_longer_than_its_codec(kind):
    run = toy(kind)
    with jax.set_mesh(run.mesh):
        found = cost(run.sync)
    assert found is not None
    assert 0 < found.codec <= found.exchange
    assert found.exposed == found.exchange - found.codec


def test_factors_and_one_worker_have_no_codes_to_time():
    run = toy("powersgd")
    alone = Toy(scheme(Communication(axis="zone", scheme="int8"), 1), 1)
    with jax.set_mesh(run.mesh):
        assert cost(run.sync) is None
    with jax.set_mesh(alone.mesh):
        assert cost(alone.sync) is None

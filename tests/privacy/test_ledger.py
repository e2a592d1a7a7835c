"""The ledger under many spenders, crashes at any point, and hands that change it."""

import contextlib
import json
import math
import random
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jaxlm.privacy.budget import Budget
from jaxlm.privacy.errors import BudgetSpent, NotPrivate, PrivacyError
from jaxlm.privacy.ledger import RESERVED, SETTLED, Ledger
from jaxlm.privacy.mechanisms import Mechanism

SPENDER = Path(__file__).with_name("spender.py")
PURE = {math.inf: 1.0}


def pure(epsilon: float) -> Budget:
    return Budget(epsilon, 0.0, PURE)


def spenders(count: int, *arguments: object) -> list[subprocess.Popen[str]]:
    command = [sys.executable, str(SPENDER), *map(str, arguments)]
    return [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(count)]


def test_14_64_spenders_on_the_last_units_never_overspend(tmp_path, shared):
    said = json.loads((shared / "vectors" / "dp_epsilon.json").read_text())["concurrency_property"]
    path, ran = tmp_path / "ledger", tmp_path / "ran"
    ledger = Ledger(path, pure(said["budget"]))
    running = spenders(4, path, said["each_request"], 16, 16, ran)
    accepted = sum(int(each.communicate()[0]) for each in running)
    assert accepted == said["accepted_exactly"] == len(ran.read_text().split())
    found = ledger.spending()
    assert found.epsilon == said["final_spent"]
    assert (found.open, found.void) == (0, 0)
    with pytest.raises(BudgetSpent, match=r"epsilon 0\.9 of 1 .* would make it 1\.05"):
        ledger.reserve(Mechanism("pure", said["each_request"]))


def test_14_without_its_lock_the_ledger_would_be_overspent(tmp_path, monkeypatch):
    """Two spenders on the last unit, both past the question whether it fits: only without the transaction."""
    both, fits = threading.Barrier(2), Budget.fits
    connect = sqlite3.connect

    class Careless(sqlite3.Connection):
        def execute(self, sql, *given):
            return super().execute("select 1" if sql in ("begin immediate", "commit", "rollback") else sql, *given)

    def hesitant(budget, spent):
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.3)
        return fits(budget, spent)

    def spent_by_two(path: Path) -> float:
        ledger = Ledger(path, pure(1.0))
        both.reset()
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ledger.reserve, Mechanism("pure", 1.0)) for _ in range(2)]
        done = [each for each in asked if each.exception() is None]
        assert all(each in done or isinstance(each.exception(), BudgetSpent) for each in asked)
        return len(done) * 1.0

    monkeypatch.setattr(Budget, "fits", hesitant)
    assert spent_by_two(tmp_path / "locked") == 1.0
    monkeypatch.setattr(Ledger, "_turn", lambda ledger: contextlib.nullcontext())
    assert spent_by_two(tmp_path / "sqlite") == 1.0  # whoever waits for their turn or not
    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: connect(*given, factory=Careless, **more))
    assert spent_by_two(tmp_path / "careless") == 2.0


def test_16_a_tenth_ten_times_is_one(tmp_path):
    assert sum([0.1] * 10) < 1.0  # floats would leave room for more
    ledger = Ledger(tmp_path / "ledger", pure(1.0))
    for _ in range(10):
        ledger.settle(ledger.reserve(Mechanism("pure", 0.1)))
    assert ledger.spending().epsilon == 1.0
    with pytest.raises(BudgetSpent):
        ledger.reserve(Mechanism("pure", 1e-15))


def test_what_ran_is_charged_wherever_the_process_is_killed(tmp_path):
    """SIGKILL at random moments: every query that ran is in the ledger, and whoever comes next can go on."""
    path, ran, delays = tmp_path / "ledger", tmp_path / "ran", random.Random(0)
    ledger = Ledger(path, pure(1e6))
    ran.touch()
    killed = 0
    for _ in range(6):
        (running,) = spenders(1, path, 0.5, 2, 100_000, ran)
        before, end = ran.stat().st_size, time.monotonic() + 20
        while ran.stat().st_size == before and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 0.15))
        running.kill()
        running.communicate()
        killed += 1
        charged = {charge.id: charge.state for charge in Ledger(path).charges()}
        assert set(ran.read_text().split()) <= charged.keys()
        assert set(charged.values()) <= {RESERVED, SETTLED}
    found = ledger.spending()
    assert killed == 6
    assert found.epsilon == 0.5 * len(ledger.charges()) >= 0.5 * len(ran.read_text().split()) > 0


@pytest.mark.parametrize("at", ["insert into charges", "update about", "commit"])
def test_a_reserve_that_dies_before_its_commit_charges_nothing_and_answers_nothing(tmp_path, monkeypatch, at):
    path = tmp_path / "ledger"
    ledger = Ledger(path, pure(1.0))
    connect = sqlite3.connect

    class Dying(sqlite3.Connection):
        def execute(self, sql, *given):
            if sql.startswith(at):
                raise KeyboardInterrupt
            return super().execute(sql, *given)

    monkeypatch.setattr(sqlite3, "connect", lambda *given, **more: connect(*given, factory=Dying, **more))
    with pytest.raises(KeyboardInterrupt):
        ledger.reserve(Mechanism("pure", 0.5))
    monkeypatch.undo()
    assert ledger.spending().epsilon == 0
    ledger.reserve(Mechanism("pure", 1.0))


def test_a_charge_that_is_never_settled_stays_spent(tmp_path):
    path = tmp_path / "ledger"
    ledger = Ledger(path, pure(1.0))
    kept, given_back = ledger.reserve(Mechanism("pure", 0.5)), ledger.reserve(Mechanism("pure", 0.5))
    ledger.settle(given_back, ran=False)
    found = Ledger(path, pure(1.0)).spending()
    assert (found.epsilon, found.open, found.void) == (0.5, 1, 1)
    with pytest.raises(PrivacyError, match="it is void"):
        ledger.settle(given_back)
    ledger.settle(kept)
    with pytest.raises(PrivacyError, match="it is settled"):
        ledger.settle(kept, ran=False)


def test_a_budget_stays_as_it_was_declared(tmp_path):
    path = tmp_path / "ledger"
    Ledger(path, pure(1.0))
    with pytest.raises(PrivacyError, match=r"epsilon was 1\.0, is 2\.0"):
        Ledger(path, pure(2.0))
    with pytest.raises(PrivacyError, match="no such file"):
        Ledger(tmp_path / "other")


def test_a_ledger_whose_charges_were_taken_out_is_refused(tmp_path):
    path = tmp_path / "ledger"
    Ledger(path, pure(1.0)).reserve(Mechanism("pure", 0.5))
    with sqlite3.connect(path) as db:
        db.execute("delete from charges")
    db.close()
    with pytest.raises(PrivacyError, match="damaged"):
        Ledger(path)
    path.write_bytes(b"not a ledger at all, whatever its name says" * 40)
    with pytest.raises(PrivacyError, match="cannot be used"):
        Ledger(path)


def test_who_only_reads_leaves_no_trace_and_charges_nothing(tmp_path):
    path = tmp_path / "a folder" / "ledger"
    Ledger(path, pure(1.0)).reserve(Mechanism("pure", 0.5))
    copied = tmp_path / "copy"
    copied.write_bytes(path.read_bytes())
    reading = Ledger(copied, read_only=True)
    assert reading.spending().epsilon == 0.5
    with pytest.raises(PrivacyError, match="readonly"):
        reading.reserve(Mechanism("pure", 0.1))
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a folder", "copy"]


def test_what_has_no_cost_at_the_declared_orders_is_refused(tmp_path):
    ledger = Ledger(tmp_path / "ledger", pure(1.0))
    with pytest.raises(NotPrivate, match="no finite cost"):
        ledger.reserve(Mechanism("gaussian", 1.0))
    assert ledger.spending().queries == {}

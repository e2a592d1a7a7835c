"""The audit trail of a process: durable when it says so, in order, chained, and never behind what was seen of it."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from jaxlm.governance import entries, notes
from jaxlm.governance.audit import read_log
from jaxlm.governance.entries import Chain
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import Keys
from jaxlm.governance.log import Log
from jaxlm.governance.trail import Trail


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


def _step(step: int) -> dict[str, Any]:
    return {"step": step, "loss": 1.5 / (step + 1), "batch": "00"}


def test_what_was_committed_is_there_when_it_is_opened_again(tmp_path: Path, keys: Keys):
    with Trail(tmp_path / "audit", keys=keys) as trail:
        run = trail.run
        for step in range(300):
            trail.record("train.step", _step(step))
        assert trail.commit("eval", {"step": 300}) == 300
    with Trail(tmp_path / "audit", keys=keys) as again:
        assert again.run == run
        assert [entry.body["step"] for entry in again.history] == [300]
        whole = read_log(tmp_path / "audit", keys=keys, full=True).entries
        assert [entry.body["step"] for entry in whole] == [entry.seq for entry in whole] == [*range(301)]
        again.record("eval", {"step": 301})
    with Trail(tmp_path / "audit", keys=keys) as third:
        assert (third.history[-1].seq, third.history[-1].prev) == (0, entries.digest(_raw(third, 300)))


def _raw(trail: Trail, index: int) -> bytes:
    return trail._log.tiles().entry(index)


def test_threads_write_together_and_each_learns_its_own_index(tmp_path: Path, keys: Keys):
    found: dict[int, int] = {}
    with Trail(tmp_path / "audit", keys=keys, flush_seconds=0.01) as trail:

        def write(number: int) -> None:
            found[number] = trail.commit("eval", {"step": number})

        threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number, index in found.items():
            assert entries.parse(index, _raw(trail, index)).body["step"] == number


def test_a_disk_that_fails_is_heard_of_by_the_run(tmp_path: Path, keys: Keys):
    trail = Trail(tmp_path / "audit", keys=keys)
    shutil.rmtree(tmp_path / "audit/log")
    for _ in range(2):
        with pytest.raises(GovernanceError, match="cannot be written"):
            trail.commit("eval", {"step": 1})
    with pytest.raises(GovernanceError, match="cannot be written"):
        trail.close()


@pytest.mark.parametrize("body", [{"step": 1}, {"step": 1, "loss": {1: 2}, "batch": ""}])
def test_an_entry_that_cannot_be_written_is_an_error_not_a_gap(body: Any, tmp_path: Path, keys: Keys):
    with pytest.raises(GovernanceError), Trail(tmp_path / "audit", keys=keys) as trail:
        trail.commit("train.step", body)


def test_a_log_that_was_rolled_back_or_rewritten_is_refused(tmp_path: Path, keys: Keys):
    with Trail(tmp_path / "audit", keys=keys) as trail:
        trail.commit("eval", {"step": 1})
        shutil.copytree(tmp_path / "audit", tmp_path / "old")
        trail.commit("eval", {"step": 2})
    shutil.rmtree(tmp_path / "audit")
    shutil.copytree(tmp_path / "old", tmp_path / "audit")
    with pytest.raises(Rejected, match="rolled back"):
        Trail(tmp_path / "audit", keys=keys)
    with Log(tmp_path / "audit/log", _key(tmp_path, keys)) as log:
        log.append([b"other", b"entries"])
    with pytest.raises(Rejected, match="rewritten"):
        Trail(tmp_path / "audit", keys=keys)
    shutil.rmtree(keys.folder / "heads")
    with pytest.raises(Rejected, match="not JSON"):
        Trail(tmp_path / "audit", keys=keys)


def test_a_changed_entry_or_hash_is_found_by_recomputing_every_tile(tmp_path: Path, keys: Keys):
    with Trail(tmp_path / "audit", keys=keys) as trail:
        for step in range(300):
            trail.record("train.step", _step(step))
    for tile in ("tile/entries/000", "tile/0/000", "tile/0/001.p/44", "tile/1/000.p/1", "tile/entries/001.p/44"):
        path = tmp_path / "audit/log" / tile
        whole = path.read_bytes()
        path.write_bytes(whole[:30] + bytes([whole[30] ^ 1]) + whole[31:])
        with pytest.raises(Rejected, match=r"not made of|do not lead"):
            read_log(tmp_path / "audit", keys=keys)
        path.write_bytes(whole)
    read_log(tmp_path / "audit", keys=keys)


def _key(tmp_path: Path, keys: Keys) -> Any:
    name = notes.parse_verifier((tmp_path / "audit/log.vkey").read_text()).name
    return notes.LogKey(name, keys.log())


def test_a_log_of_other_keys_is_refused(tmp_path: Path, keys: Keys):
    Trail(tmp_path / "audit", keys=keys).close()
    with pytest.raises(GovernanceError, match="another key"):
        Trail(tmp_path / "audit", keys=Keys(tmp_path / "others"))


def _chained(count: int) -> list[bytes]:
    chain = Chain("h", "b")
    return [chain.entry("eval", {"step": step}, 1.0, 100.0 + step) for step in range(count)]


@pytest.mark.parametrize(
    "change",
    [
        lambda raws: raws[:2] + raws[3:],
        lambda raws: [*raws[:2], raws[1], *raws[2:]],
        lambda raws: [raws[0], raws[2], raws[1], *raws[3:]],
        lambda raws: raws[1:],
        lambda raws: [raws[0], raws[1].replace(b'"step":1', b'"step":9'), *raws[2:]],
    ],
)
def test_an_entry_dropped_repeated_moved_or_changed_breaks_the_chain(change: Any):
    assert len(entries.walk(_chained(5))[0]) == 5
    with pytest.raises(Rejected, match="chain broken"):
        entries.walk(change(_chained(5)))


def test_a_start_cannot_be_repeated_and_begins_at_zero():
    first = Chain("h", "b")
    raws = [first.entry("eval", {"step": 0}, 1.0, 1.0)]
    second = Chain("h", "c", first.prev)
    raws.append(second.entry("eval", {"step": 1}, 1.0, 1.0))
    entries.walk(raws)
    with pytest.raises(Rejected, match="repeats the start"):
        entries.walk([*raws, Chain("h", "b", second.prev).entry("eval", {"step": 2}, 1.0, 1.0)])
    with pytest.raises(Rejected, match="with number 4"):
        entries.walk([*raws, Chain("h", "d", second.prev, 4).entry("eval", {"step": 2}, 1.0, 1.0)])


def test_a_clock_that_goes_back_is_an_alert_and_changes_no_order():
    chain = Chain("h", "b")
    raws = [chain.entry("eval", {"step": n}, 1.0, wall) for n, wall in enumerate([100.0, 101.0, 40.0])]
    found, walked = entries.walk(raws)
    assert [entry.body["step"] for entry in found] == [0, 1, 2]
    assert walked.alerts == ["the clock of host h went back 61 s at entry 2"]


def test_what_is_not_finite_is_written_as_text():
    raw = Chain("h", "b").entry("train.step", {"step": 1, "loss": float("nan"), "batch": [float("-inf")]}, 1.0, 1.0)
    assert entries.parse(0, raw).body == {"step": 1, "loss": "nan", "batch": ["-inf"]}


@pytest.mark.parametrize("name", ["readers", "log-1"])
def test_a_log_in_the_place_of_another_of_the_same_run_is_refused(name: str, tmp_path: Path, keys: Keys):
    with Trail(tmp_path / "audit", keys=keys) as trail, Trail(tmp_path / "audit", name, keys=keys) as other:
        assert other.origin == f"jaxlm/{trail.run}/{name}"
    shutil.rmtree(tmp_path / "audit/log")
    shutil.copytree(tmp_path / "audit" / name, tmp_path / "audit/log")
    shutil.copy(tmp_path / f"audit/{name}.vkey", tmp_path / "audit/log.vkey")
    with pytest.raises(Rejected, match=rf"log\.vkey is the key of jaxlm/{trail.run}/{name}"):
        Trail(tmp_path / "audit", keys=keys)
    with pytest.raises(Rejected, match="and here belongs that of jaxlm/RUN/log"):
        read_log(tmp_path / "audit", keys=keys)


@pytest.mark.parametrize(
    "origin", ["log", "jaxlm/log", "jaxlm//log", "other/r/log", "jaxlm/r/log/log", "jaxlm/r/s/log"]
)
def test_a_log_whose_name_is_not_that_of_a_run_is_refused(origin: str, tmp_path: Path, keys: Keys):
    (tmp_path / "audit").mkdir()
    key = notes.LogKey(origin, keys.log())
    (tmp_path / "audit/log.vkey").write_text(f"{key.verifier}\n")
    Log(tmp_path / "audit/log", key).close()
    for read in (lambda: read_log(tmp_path / "audit", keys=None), lambda: Trail(tmp_path / "audit", keys=keys)):
        with pytest.raises(Rejected, match="is the key of"):
            read()

"""What was acknowledged survives a kill, a failing disk and a power cut at any operation; what was not is absent or
whole."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.log import Log, reader
from jaxlm.governance.merkle import Tree, leaf_hash
from jaxlm.governance.notes import LogKey
from tests.governance import writer
from tests.governance.simulated_disk import PowerCut, SimulatedDisk

KEY = LogKey("example.com/log", Ed25519PrivateKey.from_private_bytes(bytes(32)))
FOLDER = Path("/run/log")
BATCHES = [[f"entry {batch}.{n}".encode() for n in range(size)] for batch, size in enumerate([1, 3, 250, 5, 300, 2])]


def _begin(disk: SimulatedDisk) -> Log:
    disk.folders.add(FOLDER.parent)
    disk.safe_folders.add(FOLDER.parent)
    return Log(FOLDER, KEY, disk)


def _append_all(disk: SimulatedDisk) -> int:
    """Appends every batch; the number of entries acknowledged before the disk gave up."""
    acknowledged = 0
    try:
        log = _begin(disk)
        for batch in BATCHES:
            log.append(batch)
            acknowledged = log.head.size
    except (PowerCut, OSError):
        pass
    return acknowledged


def _lost(disk: SimulatedDisk, acknowledged: int) -> str | None:
    """What is wrong with the log on this disk, None if nothing is."""
    everything = [entry for batch in BATCHES for entry in batch]
    allowed = [sum(map(len, BATCHES[:n])) for n in range(len(BATCHES) + 1)]
    try:
        log = _begin(disk)
    except (Rejected, OSError) as error:
        return f"cannot be opened: {error}"
    size = log.head.size
    if size < acknowledged:
        return f"{acknowledged} were acknowledged, {size} are there"
    if size not in allowed:
        return f"{size} entries: part of a batch"
    tiles = log.tiles()
    try:
        if [tiles.entry(n) for n in range(size)] != everything[:size]:
            return "other entries"
    except Rejected as error:
        return str(error)
    if log.head.root != Tree(map(leaf_hash, everything[:size])).root() or tiles.root() != log.head.root:
        return "another root"
    log.append([b"goes on"])
    return None


def _operations() -> int:
    disk = SimulatedDisk()
    assert _append_all(disk) == sum(map(len, BATCHES))
    return len(disk.operations)


def _survivals(seeds: int, forgets: tuple[str, ...] = ()) -> list[str]:
    """Every operation cut, each with several outcomes of what was not flushed; what went wrong."""
    wrong = []
    for at in range(_operations()):
        disk = SimulatedDisk(cut_at=at, forgets=forgets)
        acknowledged = _append_all(disk)
        for seed in range(seeds):
            after = disk.after_power_cut(random.Random(f"{at} {seed}"), keep_all=seed == 0)
            if (why := _lost(after, acknowledged)) is not None:
                wrong.append(f"cut at {at} ({disk.operations[at]}): {why}")
    return wrong


def test_a_power_cut_at_every_operation_loses_nothing_acknowledged():
    assert _survivals(seeds=8) == []


@pytest.mark.slow
def test_a_power_cut_at_every_operation_loses_nothing_acknowledged_in_a_thousand_outcomes_each():
    assert _survivals(seeds=1000) == []


@pytest.mark.parametrize("forgets", ["sync", "sync_folder"])
def test_without_either_flush_a_power_cut_does_lose_entries(forgets: str):
    assert _survivals(seeds=4, forgets=(forgets,))


def test_a_failure_at_every_operation_is_an_error_and_loses_nothing():
    for at in range(_operations()):
        disk = SimulatedDisk(fail_at=at)
        acknowledged = _append_all(disk)
        disk.fail_at = None
        assert _lost(disk, acknowledged) is None, (at, disk.operations[at])


def test_after_a_failed_flush_the_log_takes_nothing_until_it_is_opened_again():
    disk = SimulatedDisk()
    log = _begin(disk)
    disk.fail_at = len(disk.operations) + 1
    with pytest.raises(OSError, match="sync fails"):
        log.append([b"a"])
    with pytest.raises(GovernanceError, match="open it again"):
        log.append([b"b"])
    assert _begin(disk).head.size == 0


def test_a_torn_head_at_each_byte_is_refused_and_never_taken_for_an_older_one(tmp_path: Path):
    with Log(tmp_path / "log", KEY) as log:
        log.append([b"one", b"two"])
    head = tmp_path / "log/checkpoint"
    whole = head.read_bytes()
    for length in range(len(whole)):
        head.write_bytes(whole[:length])
        with pytest.raises(Rejected):
            Log(tmp_path / "log", KEY)
    head.write_bytes(whole)
    with Log(tmp_path / "log", KEY) as log:
        assert log.head.size == 2


def test_two_writers_are_refused(tmp_path: Path):
    with Log(tmp_path / "log", KEY), pytest.raises(GovernanceError, match="another process"):
        Log(tmp_path / "log", KEY)
    Log(tmp_path / "log", KEY).close()


def _kill(folder: Path, kills: int, seed: int) -> int:
    """Kills a writing process again and again; how many acknowledged entries are not there afterwards.

    The root after each kill vouches for every entry; read from disk are those that were not there before it, and in the
    end all of them.
    """
    rng, lost, expected = random.Random(seed), 0, Tree()
    with subprocess.Popen(
        [sys.executable, "-m", "tests.governance.writer", str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as forks:
        assert forks.stdin is not None
        assert forks.stdout is not None
        for kill in range(kills):
            print(file=forks.stdin, flush=True)
            process = int(forks.stdout.readline())
            # Every other one once it has appended: a slow disk would have all of them killed while they open the log.
            lines = [forks.stdout.readline()] if kill % 2 else []
            time.sleep(rng.uniform(0, 0.05))
            os.kill(process, signal.SIGKILL)
            while (line := forks.stdout.readline()).strip().isdigit():
                lines.append(line)
            assert line == f"dead {-signal.SIGKILL}\n", "it died before it was killed"
            acknowledged = int(lines[-1]) if lines else 0
            with Log(folder, writer.KEY) as log:
                size, before = log.head.size, expected.size
                found = reader(folder, size)
                lost += max(0, max(acknowledged, before) - size)
                for n in range(before, size):
                    assert found.entry(n) == writer.entry(n)
                    expected.append(leaf_hash(writer.entry(n)))
                assert found.root() == log.head.root == expected.root(size), "another entry is in its place"
        forks.stdin.close()
    found = reader(folder, expected.size)
    assert [found.entry(n) for n in range(expected.size)] == [writer.entry(n) for n in range(expected.size)]
    return lost


def test_killed_thirty_times_a_process_loses_nothing_acknowledged(tmp_path: Path):
    assert _kill(tmp_path / "log", 30, seed=0) == 0


@pytest.mark.slow
def test_killed_five_hundred_times_a_process_loses_nothing_acknowledged(tmp_path: Path):
    assert _kill(tmp_path / "log", 500, seed=1) == 0

"""One writer per run directory."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.runtime.lock import NAME, LockedError, run_lock

HOLD = """
import sys, time
sys.path.insert(0, {root!r})
from jaxlm.runtime.lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""

FORK = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from jaxlm.runtime.lock import run_lock
with run_lock(sys.argv[1]):
    worker = os.fork()
    if worker == 0:
        time.sleep(600)
    print(worker, flush=True)
    time.sleep(0.2)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def holder(directory: Path) -> subprocess.Popen[bytes]:
    """Another process that holds the lock."""
    code = HOLD.format(root=str(Path(__file__).parents[2]))
    child = subprocess.Popen([sys.executable, "-c", code, directory], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"held\n"
    return child


def test_the_owner_is_named_and_a_killed_owner_blocks_nobody(tmp_path):
    with holder(tmp_path) as child:
        try:
            with pytest.raises(LockedError) as error, run_lock(tmp_path):
                pass
            message = str(error.value)
            assert message.startswith(f"{tmp_path} is in use by process {child.pid} on {socket.gethostname()} (user ")
            assert ", since 20" in message
            assert str(tmp_path) in message.split("): ")[1]
        finally:
            child.send_signal(signal.SIGKILL)
    with run_lock(tmp_path) as path:
        assert json.loads(path.read_text())["pid"] == os.getpid()


def test_the_same_process_cannot_take_it_twice(tmp_path):
    with (
        run_lock(tmp_path),
        pytest.raises(LockedError, match=f"process {os.getpid()} on"),
        run_lock(tmp_path),
    ):
        pass


def test_it_ends_with_the_block_even_by_an_error(tmp_path):
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    with run_lock(tmp_path):
        pass


@pytest.mark.parametrize("text", ["", "not json", '{"pid": 1}', '{"pid": 1, "host": "x", "user": "y", "started": "z"}'])
def test_old_text_blocks_nobody(tmp_path, text):
    (tmp_path / NAME).write_text(text)
    with run_lock(tmp_path) as path:
        assert set(json.loads(path.read_text())) == {"pid", "host", "user", "started", "command"}


def test_an_owner_that_has_not_said_its_name_still_blocks(tmp_path):
    with run_lock(tmp_path) as path:
        path.write_text("")
        with (
            pytest.raises(LockedError, match="another process that has not yet said who it is"),
            run_lock(tmp_path),
        ):
            pass


def test_a_forked_worker_does_not_keep_the_lock_of_a_parent_that_died(tmp_path):
    code = FORK.format(root=str(Path(__file__).parents[2]))
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert parent.wait() == -signal.SIGKILL
        try:
            with run_lock(tmp_path):
                os.kill(worker, 0)  # it is still alive
        finally:
            os.kill(worker, signal.SIGKILL)

"""Signals: at once where nothing can be lost, remembered where something can."""

import os
import signal
import subprocess
import sys
import time

import pytest

from jaxlm.trainer.stop import Interrupted, StopSignal, until

PROGRAM = """
import hashlib, os, signal, sys
from jaxlm.trainer.stop import StopSignal
with StopSignal(kept="nothing is lost") as stop:
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 500_000_000)  # minutes in C, without one instruction of Python
"""


def test_a_signal_during_work_outside_of_python_ends_the_process_at_once():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, message = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "stopped by signal 15; nothing is lost" in message


def test_what_ends_a_process_is_given_the_sentence_and_the_code():
    left = []

    def leave(why: str, code: int) -> None:
        left.append((why.strip(), code))

    with StopSignal(leave, "the first words") as stop:
        with stop.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            assert _soon(lambda: stop.received == signal.SIGTERM)
            assert stop.agreed() == signal.SIGTERM
        assert left == [], "a deferred signal ends nothing"
        stop.kept = "other words"
        os.kill(os.getpid(), signal.SIGTERM)
        assert _soon(lambda: bool(left))
    assert left == [("stopped by signal 15; other words", 143)]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.set_wakeup_fd(-1) == -1, "the file descriptor is given back"


def _soon(true) -> bool:
    deadline = time.monotonic() + 10
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


def test_work_in_batches_is_given_up_before_the_next_one():
    answers = iter([None, None, 15])
    items = until(lambda: next(answers), range(10))
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(Interrupted) as given_up:
        next(items)
    assert given_up.value.number == 15

"""What the launcher says of an end: the cause of a failure, also of one that comes after a signal."""

import os
import signal
import sys

from jaxlm.runtime.hosts import HostCommand
from jaxlm.runtime.launch import Launch, Result, launch

HOST = """
import os, signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep({late})
    print({words!r}, flush=True)
    os._exit({code})
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
while not all("\\nready" in Path(log).read_text() for log in {wait_for!r}):
    time.sleep(0.02)
if {tells}:
    os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
"""
"""A host that ends like that at a signal, and may be the one that sends the launcher, its parent, one."""


def launched(tmp_path, monkeypatch, *programs: str, signalled: str = "") -> tuple[Result, list[str]]:
    """How a launch of hosts that run these programs ended, and what was said. `signalled`: where the launcher gets a
    signal, by its own words."""

    def commands(job, hosts, port):
        return [
            HostCommand(host=h, command=(sys.executable, "-c", programs[h]), environment={}, log=tmp_path / f"{h}.log")
            for h in hosts
        ]

    monkeypatch.setattr(Launch, "commands", commands)
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if signalled and signalled in text:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    job = Launch(hosts=len(programs), train=(), run_dir=tmp_path / "run", batch=len(programs))
    result = launch(job, say)
    assert signal.getsignal(signal.SIGTERM) == before
    return result, said


def test_a_job_that_fails_after_a_signal_names_the_cause_and_is_not_retried(tmp_path, monkeypatch):
    saves = HOST.format(late=1, words="saved", code=143, wait_for=[], tells=False)
    words = "jaxlm: error: the checkpoint cannot be written"
    fails = HOST.format(late=0, words=words, code=1, wait_for=[str(tmp_path / "0.log")], tells=True)
    result, said = launched(tmp_path, monkeypatch, saves, fails)
    assert (result.code, result.attempts) == (1, 1)
    assert said == ["jaxlm: error: after SIGTERM host 1 of 2 failed first: the checkpoint cannot be written"]


def test_a_job_that_stops_at_a_signal_is_no_error(tmp_path, monkeypatch):
    saves = HOST.format(late=0, words="saved", code=143, wait_for=[], tells=True)
    result, said = launched(tmp_path, monkeypatch, saves)
    assert (result.code, result.attempts, said) == (143, 1, [])


def test_bad_input_is_named_and_not_retried(tmp_path, monkeypatch):
    result, said = launched(tmp_path, monkeypatch, "print('jaxlm: error: no such key'); raise SystemExit(2)")
    assert (result.code, result.attempts) == (2, 1)
    assert said == ["jaxlm: error: no such key"]


def test_a_signal_between_two_attempts_starts_no_other_one(tmp_path, monkeypatch):
    result, said = launched(tmp_path, monkeypatch, "raise SystemExit(1)", signalled="retry 1 of 3")
    assert (result.code, result.attempts, len(result.failures)) == (143, 1, 1)
    assert said[-1] == "launch: stopped by SIGTERM before the retry"

"""Processes that are started together end together, and the first cause is named whatever the others say."""

import io
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxlm.runtime import hosts as hosts_module
from jaxlm.runtime.hosts import Ended, HostCommand, Hosts, last_words

BLAMED = "jaxlm: error: process 1 of 3 died: it gave no sign of life for 6 s"
WAIT = "import time; time.sleep(60)"


def run(tmp_path: Path, *programs: str, watch=None) -> tuple[Ended, str]:
    """How hosts that run these Python programs ended, and what was shown."""
    commands = [
        HostCommand(host=i, command=(sys.executable, "-c", text), environment={}, log=tmp_path / f"{i}.log")
        for i, text in enumerate(programs)
    ]
    out = io.StringIO()
    with Hosts(commands, out=out) as running:
        ended = running.wait(watch=(lambda: watch(running)) if watch else lambda: None, period=0.02)
        assert not running.running
    return ended, out.getvalue()


def test_all_end_well_and_only_the_first_is_shown(tmp_path):
    ended, shown = run(tmp_path, "print('hello from 0')", "print('hello from 1')")
    assert ended == Ended(code=0)
    assert shown == "hello from 0\n"
    assert (tmp_path / "1.log").read_text().endswith(": host 1\nhello from 1\n")


def test_a_killed_host_ends_all_within_three_seconds_and_is_named(tmp_path):
    ended, _ = run(tmp_path, WAIT, f"import os, signal; os.kill(os.getpid(), {signal.SIGKILL})", WAIT)
    assert (ended.code, ended.host) == (1, 1)
    assert ended.why == "killed by SIGKILL (somebody, or the kernel for want of memory)"
    assert ended.seconds < 3


def test_when_host_0_is_killed_the_abort_of_the_others_is_a_consequence(tmp_path):
    aborts = "import os, sys; print('The leader task was preempted/died', flush=True); os.abort()"
    dies = f"import os, time; time.sleep(0.5); os.kill(os.getpid(), {signal.SIGKILL})"
    ended, _ = run(tmp_path, dies, aborts)
    assert (ended.code, ended.host) == (1, 0)
    assert ended.why.startswith("killed by SIGKILL")


def test_a_host_that_is_blamed_by_the_others_but_never_ended_is_the_cause(tmp_path, monkeypatch):
    monkeypatch.setattr(hosts_module, "PATIENCE", 0.2)
    blames = f"import sys; print({BLAMED!r}); sys.exit(1)"
    ended, _ = run(tmp_path, blames, WAIT, blames)
    assert (ended.code, ended.host, ended.why) == (1, 1, "it gave no sign of life for 6 s")


def test_the_words_of_the_host_that_failed_first_are_the_cause(tmp_path):
    fails = "import sys; print('reading'); print('jaxlm: error: shard 7 cannot be read'); print('x'); sys.exit(1)"
    told = (
        "import sys, time; time.sleep(.4);"
        "print('jaxlm: error: process 1 of 2 stopped first: shard 7 cannot be read'); sys.exit(1)"
    )
    ended, shown = run(tmp_path, told, fails)
    assert (ended.code, ended.host, ended.why) == (1, 1, "shard 7 cannot be read")
    assert "stopped first" not in shown, "the first cause comes on top, what follows from it is in the logs"


@pytest.mark.parametrize("code", [2, 3, 4, 143])
def test_exit_codes_that_mean_something_are_kept(tmp_path, code):
    ended, _ = run(tmp_path, f"import sys; sys.exit({code})", f"import sys; sys.exit({code})")
    assert ended.code == code


def test_a_signal_is_passed_on_to_all(tmp_path):
    started = time.monotonic()
    sent = []

    def watch(running):
        if not sent and time.monotonic() - started > 0.5:
            sent.append(running.send(signal.SIGTERM))

    stops = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); time.sleep(60)"
    ended, _ = run(tmp_path, stops, stops, watch=watch)
    assert ended.code == 143
    assert ended.seconds < 10


def test_a_job_that_hangs_is_killed_though_it_is_stopped(tmp_path):
    stops = f"import os; os.kill(os.getpid(), {signal.SIGSTOP})"
    ended, _ = run(tmp_path, WAIT, stops, watch=lambda running: running.hung(1, "no step in 9 s"))
    assert (ended.code, ended.host, ended.why) == (1, 1, "no step in 9 s")


def test_none_outlives_the_one_who_started_them(tmp_path):
    log = tmp_path / "child.log"
    parent = (
        "import sys; from pathlib import Path; from jaxlm.runtime.hosts import *;"
        f"spec = HostCommand(host=0, command=(sys.executable, '-c', {WAIT!r}), environment={{}}, log=Path('{log}'));"
        "hosts = Hosts([spec]).__enter__(); print(hosts.pids[0], flush=True); import os; os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    child = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and _state(child) != "Z":
        assert time.monotonic() < deadline, "the child outlived its parent"
        time.sleep(0.05)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_last_words():
    assert last_words("a\nstopped: the disk is full\nb\n") == "stopped: the disk is full"
    assert last_words("Traceback ...\nValueError: no\n\n") == "ValueError: no"
    assert last_words("\n") == "it said nothing"

"""When one process of a job fails or dies, the others end soon, and their message names it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from experiments.processes import free_port
from jaxlm.decode import ConfigError
from jaxlm.runtime.distributed import Job
from jaxlm.runtime.peers import Peers, Silence

PROCESS = """
import sys, warnings
sys.path.insert(0, {root!r})
warnings.simplefilter("error")
import os, signal, time
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
from pathlib import Path
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxlm.checkpoints.store import Found, Store
from jaxlm.data.config import DataError
from jaxlm.runtime.distributed import Job, start
from jaxlm.runtime.peers import Peers
import jaxlm.runtime.peers

jaxlm.runtime.peers.GRACE = 2.0
address, process, directory, victim, how = sys.argv[1:]
job = Job(coordinator=address, processes=3, process=int(process), dead_after=6)
start(job, None)
mesh = Mesh(np.array(jax.devices()), ("data",))
values = np.arange(48 * 16, dtype=np.float32).reshape(48, 16)
w = jax.make_array_from_callback(values.shape, NamedSharding(mesh, P("data")), lambda at: values[at])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

with Peers(job), Store(Path(directory)) as store:
    store.save(5, {{"w": w}}, {{}}, blocking=True)
    if process == victim:
        if how == "raises":
            raise DataError("shard 7 cannot be read")
        from orbax.checkpoint._src.futures import future
        future.ChainedFuture.result = lambda *_, **__: die()
    store.save(6, {{"w": w}}, {{}}, blocking=True)
"""


def outcomes(directory: Path, victim: int, how: str) -> list[tuple[int, str, float]]:
    """Exit code, standard error and seconds of three processes of which `victim` comes to grief."""
    address = f"localhost:{free_port()}"
    command = [sys.executable, "-c", PROCESS.format(root=str(Path(__file__).parents[2])), address]
    began = time.monotonic()
    processes = [
        subprocess.Popen([*command, str(i), directory, str(victim), how], stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    ended = []
    for process in processes:
        try:
            error = process.communicate(timeout=90)[1]
        finally:
            process.kill()
        ended.append((process.returncode, error, time.monotonic() - began))
    return ended


def test_a_process_killed_in_a_checkpoint_write_is_named_by_the_others_which_end(tmp_path):
    ended = outcomes(tmp_path / "checkpoints", 1, "killed")
    assert [code for code, _, _ in ended] == [1, -signal.SIGKILL, 1], ended
    for number in (0, 2):
        assert "jaxlm: error: process 1 of 3 died: it gave no sign of life for 6 s" in ended[number][1]
        assert f"process {number} stops with it; checkpoints saved before are intact" in ended[number][1]
        assert "Traceback" not in ended[number][1]
    assert (tmp_path / "checkpoints" / "5" / "manifest.json").is_file()
    assert not (tmp_path / "checkpoints" / "6").exists()


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_a_process_that_fails_tells_the_others_why(tmp_path, victim):
    ended = outcomes(tmp_path / "checkpoints", victim, "raises")
    assert [code for code, _, _ in ended] == [1, 1, 1], ended
    assert "DataError: shard 7 cannot be read" in ended.pop(victim)[1]
    for _, error, _ in ended:
        assert f"jaxlm: error: process {victim} of 3 stopped first: shard 7 cannot be read" in error


def test_when_the_process_that_holds_the_service_is_killed_the_others_end(tmp_path):
    """JAX aborts them, with its own words."""
    ended = outcomes(tmp_path / "checkpoints", 0, "killed")
    assert ended[0][0] == -signal.SIGKILL
    assert all(code not in (0, None) for code, _, _ in ended)
    assert all("leader task was preempted/died" in error for _, error, _ in ended[1:])


def test_alone_there_is_nobody_to_watch():
    with Peers(Job()) as peers:
        assert peers._thread is None


def test_silence_counts_from_the_last_new_sign_and_forgives_those_who_left():
    silence = Silence(3, 10.0)
    assert silence.first({0: "1", 1: "1"}, 0.0) is None
    assert silence.first({0: "2", 1: "2", 2: "1"}, 9.0) is None
    assert silence.first({0: "3", 1: "2", 2: "left"}, 18.0) is None
    assert silence.first({0: "4", 1: "2", 2: "left"}, 19.5) == 1
    assert silence.first({0: "4", 1: "3", 2: "left"}, 29.0) is None
    assert silence.first({0: "4", 1: "3", 2: "left"}, 29.6) == 0


def test_a_process_that_never_gives_a_sign_counts_as_dead_too():
    silence = Silence(2, 10.0)
    assert silence.first({0: "1"}, 0.0) is None
    assert silence.first({0: "2"}, 10.5) == 1


def test_a_time_that_is_no_time_is_refused():
    with pytest.raises(ConfigError, match="--dead-after 0 must be between 1 and 86400 seconds"):
        Job(dead_after=0)

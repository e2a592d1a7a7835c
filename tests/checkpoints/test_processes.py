"""Two real processes share one checkpoint and agree on what is good."""

import subprocess
import sys
from pathlib import Path

from experiments.processes import free_port
from jaxlm.checkpoints.processes import first_decides, first_does, first_failed

PROCESS = """
import resource, sys, time
sys.path.insert(0, {root!r})
import warnings
warnings.simplefilter("error")
import jax
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from pathlib import Path
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxlm.checkpoints import manifest
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.processes import first_decides
from jaxlm.checkpoints.store import Found, Keep, Store

first = jax.process_index() == 0
mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))
values = np.arange(64 * 16, dtype=np.float32).reshape(64, 16)
both = NamedSharding(mesh, P("data", "tensor"))
w = jax.make_array_from_callback(values.shape, both, lambda at: values[at])
like = jax.ShapeDtypeStruct(w.shape, w.dtype, sharding=NamedSharding(mesh, P("tensor", "data")))
with Store(Path(sys.argv[3]), Keep(last=1)) as store:
    assert store.latest() == Found(None, [])
    for step in (5, 6):
        store.save(step, {{"w": w}}, {{"who": jax.process_index()}})
    store.wait()
    assert store.latest() == Found(6, [])
    got, facts = store.restore(6, {{"w": like}})
    assert facts == {{"who": 0}}
    for part in got["w"].addressable_shards:
        assert np.array_equal(np.asarray(part.data), values[part.index])
    assert first_decides(first) and not first_decides(not first)

    # The disk fills up under process 1 in the middle of its part: process 0 hears of it where it waits for that part.
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    if not first:
        resource.setrlimit(resource.RLIMIT_FSIZE, (512, limit[1]))
    began = time.monotonic()
    store.save(7, {{"w": w}}, {{}})
    try:
        store.wait()
        raise SystemExit("a failed save went unnoticed")
    except CheckpointError as error:
        assert str(error).startswith("process 1 failed: checkpoint 7" if first else "checkpoint 7"), error
        assert "the disk is full (the state is 4,096 bytes, " in str(error), error
        assert time.monotonic() - began < 30
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert store.latest() == Found(6, [])

    def full(*_):
        raise OSError(28, "No space left on device")

    if first:
        manifest.write = full
    store.save(8, {{"w": w}}, {{}})
    try:
        store.wait()
        raise SystemExit("a failed save went unnoticed")
    except CheckpointError as error:
        assert ("the disk is full" if first else "process 0 failed") in str(error), error
    assert store.latest() == Found(6, [])
"""


def test_two_processes_save_restore_and_fail_together(tmp_path):
    address = f"localhost:{free_port()}"
    code = PROCESS.format(root=str(Path(__file__).parents[2]))
    command = [sys.executable, "-c", code, address]
    processes = [
        subprocess.Popen(
            [*command, str(index), tmp_path / "checkpoints"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for index in range(2)
    ]
    outputs = [process.communicate(timeout=120)[0].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)


def test_one_process_alone_decides_for_itself():
    assert first_does(lambda: [1]) == [1]
    assert first_decides(True)
    assert not first_decides(False)
    assert first_failed(True) == 0
    assert first_failed(False) is None

"""Arrays to and from disk through Orbax: the only file of the package that knows it."""

import hashlib
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import jax
import numpy as np

from jaxlm.checkpoints.meeting import Meetings

_log = logging.getLogger(__name__)

NEVER = 10**8
"""Seconds, some three years: Orbax measures its patience with the wall clock, which may jump; `meeting` has its own."""


class Writer:
    """Writes one state at a time in the background. All processes of a run call it alike."""

    def __init__(self, meetings: Meetings) -> None:
        ocp = _orbax()
        options = ocp.options.AsyncOptions(
            timeout_secs=NEVER, barrier_sync_fn=meetings, create_directories_asynchronously=False
        )
        self._checkpointer = ocp.AsyncCheckpointer(_handler(ocp), async_options=options)
        self._save_args = ocp.args.PyTreeSave

    def start(self, path: Path, state: Mapping[str, jax.Array]) -> None:
        """Begins to write `state` to `path`. On return the arrays may be donated or dropped."""
        self._checkpointer.save(path, args=self._save_args(dict(state)))

    def wait(self) -> None:
        """Returns when every process has written its part and Orbax has given the folder its final name."""
        self._checkpointer.wait_until_finished()

    def close(self) -> None:
        self._checkpointer.close()


def read(path: Path, like: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The arrays of `path` named in `like`, laid out by the shardings in `like`. Nothing is verified here."""
    ocp = _orbax()
    alone = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    items, arguments = {}, {}
    for name, leaf in like.items():
        sharding = getattr(leaf, "sharding", None) or alone
        items[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
        arguments[name] = ocp.ArrayRestoreArgs(sharding=sharding, global_shape=leaf.shape, dtype=leaf.dtype)
    restore = ocp.args.PyTreeRestore(item=items, restore_args=arguments, partial_restore=True)
    with ocp.Checkpointer(_handler(ocp)) as reader:
        return dict(reader.restore(path, args=restore))


def digests(path: Path, names: Iterable[str]) -> dict[str, str | None]:
    """The SHA-256, hex, of each tensor in `path`: of its little-endian bytes, row by row, whatever mesh wrote it. None
    for one that cannot be read. Needs room for a few tensors at a time."""
    import tensorstore

    def digest(name: str) -> str | None:
        store = {"driver": "ocdbt", "base": f"file://{path}/", "path": f"{name}/"}
        try:
            array = tensorstore.open({"driver": "zarr", "kvstore": store}, open=True, read=True).result()
            value = np.ascontiguousarray(array.read().result())
        except ValueError:  # how tensorstore reports whatever it cannot read
            return None
        return sha256_of(value)

    known = list(names)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "tensor-sha256") as pool:
        return dict(zip(known, pool.map(digest, known), strict=True))


def sha256_of(value: np.ndarray) -> str:
    """The SHA-256, hex, of a contiguous array's little-endian bytes. Releases the GIL."""
    # A little-endian view, which is the value itself on every machine that JAX runs on.
    raw = value.astype(value.dtype.newbyteorder("<"), copy=False) if value.dtype.isbuiltin == 1 else value
    return hashlib.sha256(raw.reshape(-1).view(np.uint8).data).hexdigest()


def _handler(ocp: ModuleType) -> Any:
    """Uncompressed: weights hardly shrink, and zstd doubles the seconds that cores are busy (measured)."""
    return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=False, use_compression=False)


def _orbax() -> ModuleType:
    """Orbax, imported when first needed (0.7 s); what it says goes to our logger at level DEBUG."""
    import orbax.checkpoint as ocp

    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _to_our_log not in logger.filters:
            logger.addFilter(_to_our_log)
    if not isinstance(sys.unraisablehook, _AfterFailure):
        sys.unraisablehook = _AfterFailure(sys.unraisablehook)
    return ocp


def _to_our_log(record: logging.LogRecord) -> bool:
    """Takes Orbax's own records, and no others, out of the logs of absl and asyncio; its failures are raised anyway.

    Of many writes that fail at once Orbax raises one, and asyncio reports each of the others as never retrieved.
    """
    failure, trace = record.exc_info[1:] if record.exc_info and record.name == "asyncio" else (None, None)
    files = [record.pathname, *(frame.f_code.co_filename for frame, _ in walk_tb(trace))]
    # A failure that tensorstore sets on a future from a thread of its own has passed through no Python frame.
    of_tensorstore = isinstance(failure, ValueError) and any(
        sign in str(failure) for sign in (" in OCDBT database at ", "[os_error_code=", "[tensorstore_spec=")
    )
    if not of_tensorstore and not any("/orbax/checkpoint/" in file.replace("\\", "/") for file in files):
        return True
    _log.debug("orbax: %s", record.getMessage(), exc_info=record.exc_info)
    return False


class _AfterFailure:
    """Writes that end after Orbax has closed the event loop of a failed save find it closed, and Python would print a
    traceback for each; everything else goes to the hook before."""

    def __init__(self, before: Callable[[Any], Any]):
        self._before = before

    def __call__(self, unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed":
            _log.debug("a write ended after its save had failed")
            return
        self._before(unraisable)

"""The hash of a batch: exact, the same however the batch is laid out, another for every change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.data.feed import Feed
from jaxlm.data.fingerprint import _mix, as_text, fingerprint
from jaxlm.data.loader import Loader
from jaxlm.data.mixture import Mixture
from jaxlm.data.stream import TokenStream
from jaxlm.sharding import batch_sharding
from planners.plan import MESH_AXES


@pytest.fixture(scope="module")
def loader() -> Loader:
    """A packed mixture of two parts, 8 rows of 16 per batch."""
    random = np.random.default_rng(0)
    streams = {
        name: TokenStream.of([[1, *random.integers(4, 90, size).tolist(), 2] for size in range(3, 30)], pad=3)
        for name in ("novels", "code")
    }
    return Loader(Mixture(streams, {"novels": 0.7, "code": 0.3}), 8, 16, seed=11)


def test_the_mixing_function_is_that_of_murmur3():
    """Values of fmix32 computed with the reference implementation."""
    values = np.array([0, 1, 2, 0xDEADBEEF, 0xFFFFFFFF], np.uint32)
    assert _mix(values).tolist() == [fmix32(int(value)) for value in values]
    assert _mix(values)[:2].tolist() == [0, 0x514E28B7]


def fmix32(h: int) -> int:
    """The reference in whole numbers: https://github.com/aappleby/smhasher/blob/master/src/MurmurHash3.cpp"""
    h ^= h >> 16
    h = h * 0x85EBCA6B % 2**32
    h ^= h >> 13
    h = h * 0xC2B2AE35 % 2**32
    return h ^ h >> 16


def test_a_hash_never_changes(loader: Loader):
    counted = np.arange(12, dtype=np.int32).reshape(3, 4)
    batch = {"tokens": counted, "targets": counted + 1}
    assert as_text(fingerprint(batch)) == "e64efe2d32c54625"
    assert loader.fingerprint(0) == "6aaf03b2e732686b"


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("mesh", [{"data": 4}, {"fsdp": 2}, {}], ids=str)
def test_a_hash_is_the_same_on_any_mesh_and_accumulation(loader: Loader, mesh: dict[str, int], accumulation: int):
    sizes = dict.fromkeys(MESH_AXES, 1) | mesh
    count = int(np.prod(list(sizes.values())))
    devices = np.array(jax.devices()[:count]).reshape(tuple(sizes.values()))
    sharding = batch_sharding(jax.sharding.Mesh(devices, tuple(sizes)))
    feed = Feed(loader, sharding, accumulation, 8 // accumulation, packed=True)
    hashed = jax.jit(lambda batch: fingerprint(batch, jnp))
    assert [as_text(hashed(feed[step])) for step in range(6)] == [loader.fingerprint(step) for step in range(6)]


def test_every_change_of_a_batch_changes_both_lanes(loader: Loader):
    batch = loader.fetch(3)
    before = fingerprint(batch)

    def changed(name: str, value: np.ndarray) -> bool:
        return bool((fingerprint(batch | {name: value}) != before).all())

    for name in ("tokens", "targets", "segments"):
        for at in ((0, 0), (3, 7), (7, 15)):
            other = batch[name].copy()
            other[at] += 1
            assert changed(name, other)
        assert changed(name, np.roll(batch[name], 1, axis=0)), "the order of the rows counts"
        assert changed(name, batch[name].T.reshape(batch[name].shape)), "so does the place in a row"
    assert (fingerprint(batch | {"positions": batch["positions"] + 1}) == before).all(), "follows from the segments"


def test_hashes_of_many_batches_differ(loader: Loader):
    hashes = [loader.fingerprint(step) for step in range(100)]
    assert len(set(hashes)) == 100
    assert len({text[:8] for text in hashes}) == len({text[8:] for text in hashes}) == 100


def test_rows_without_segments_hash_without_them():
    stream = TokenStream.of([[1, 5, 6, 2], [1, 7, 2]], pad=3)
    loader = Loader(stream, 2, 4, "truncate")
    batch = loader.fetch(0)
    without = {name: batch[name] for name in ("tokens", "targets")}
    assert loader.fingerprint(0) == as_text(fingerprint(without)) != as_text(fingerprint(batch))

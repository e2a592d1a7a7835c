"""What is saved comes back bit for bit, onto any mesh, by name; the keep rules hold."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_states import FACTS, assert_same_bits, like, mesh, sharding, state

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Keep, Store


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, jax.Array]]:
    """One checkpoint, of step 7, written by a (2, 4) mesh; for tests that only read."""
    directory, values = tmp_path_factory.mktemp("run") / "checkpoints", state(on=mesh(2, 4))
    with Store(directory) as store:
        store.save(7, values, FACTS)
    return directory, values


@pytest.mark.parametrize("shape", [(8,), (2, 4), (4, 2)])
def test_a_checkpoint_moves_between_meshes_bit_for_bit(saved, shape):
    directory, values = saved
    target = mesh(*shape)
    got, facts = Store(directory).restore(7, like(values, target))
    assert_same_bits(got, values)
    assert facts == FACTS
    assert all(leaf.sharding == sharding(target, leaf.ndim) for leaf in got.values())


def test_a_checkpoint_moves_to_one_device(saved):
    directory, values = saved
    alone = {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for name, leaf in values.items()}
    got, _ = Store(directory).restore(7, alone)
    assert_same_bits(got, values)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in got.values())


def test_names_on_disk_are_ours_whatever_the_mesh(saved, tmp_path):
    directory, values = saved
    with Store(tmp_path / "checkpoints") as store:
        store.save(7, state(), FACTS)
    for place in (directory, store.directory):
        metadata = json.loads((place / "7" / "state" / "_METADATA").read_text())["tree_metadata"]
        keys = [key["key"] for entry in metadata.values() for key in entry["key_metadata"]]
        assert sorted(keys) == sorted(values)


def test_names_and_facts_are_read_without_the_arrays(saved):
    directory, values = saved
    store = Store(directory)
    assert store.names(7) == {name: (leaf.shape, leaf.dtype) for name, leaf in values.items()}
    assert store.facts(7) == FACTS


def test_a_part_can_be_restored(saved):
    directory, values = saved
    model = {name: leaf for name, leaf in values.items() if name.startswith("model/")}
    got, _ = Store(directory).restore(7, like(model), partial=True)
    assert_same_bits(got, model)


def test_a_mismatch_names_the_tensors_and_both_values(saved):
    directory, values = saved
    other = like(values)
    other["model/embed/table"] = jax.ShapeDtypeStruct((128, 16), jnp.float32)
    other["opt/0/mu/blocks/attn/q"] = jax.ShapeDtypeStruct((8, 16, 8), jnp.bfloat16)
    other["model/head"] = jax.ShapeDtypeStruct((3,), jnp.float32)
    del other["rng"]
    with pytest.raises(CheckpointError) as error:
        Store(directory).restore(7, other)
    assert str(error.value) == (
        "checkpoints/7 does not fit this model:\n"
        "  model/embed/table: checkpoint (64, 16), this model (128, 16)\n"
        "  opt/0/mu/blocks/attn/q: checkpoint float32, this model bfloat16\n"
        "  model/head: not in the checkpoint, this model (3,) float32\n"
        "  rng: checkpoint (4,) uint32, not in this model\n"
        "use the configuration that it was trained with: config.yaml of its run"
    )


def test_a_mismatch_of_many_tensors_shows_the_first_few(saved):
    with pytest.raises(CheckpointError, match=r"and 15 more\nuse the configuration"):
        Store(saved[0]).restore(7, {f"x/{i}": jax.ShapeDtypeStruct((), jnp.int32) for i in range(20)}, partial=True)


def test_a_step_that_is_not_there_is_named_with_those_that_are(saved):
    for ask in (Store(saved[0]).names, Store(saved[0]).facts, lambda step: Store(saved[0]).restore(step, {})):
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 8 \(steps there: 7\)"):
            ask(8)


def test_a_save_in_the_background_does_not_see_what_happens_to_the_arrays_later(tmp_path):
    big = {"w": jax.device_put(jnp.arange(2**22, dtype=jnp.float32).reshape(8, -1), sharding(mesh(8), 2))}
    want = {"w": np.array(big["w"])}
    overwrite = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf * 0 - 1, x), donate_argnums=0)
    with Store(tmp_path / "checkpoints") as store:
        store.save(1, big, {})
        for _ in range(3):
            big = overwrite(big)
        jax.block_until_ready(big)
        store.wait()
        got, _ = store.restore(1, like(big))
    assert np.asarray(got["w"]).tobytes() == want["w"].tobytes()


def test_nothing_is_written_before_the_first_save_nor_when_disabled(tmp_path):
    with Store(tmp_path / "checkpoints") as store:
        assert store.latest().step is None
    with Store(tmp_path / "checkpoints", enabled=False) as store:
        store.save(1, state(), FACTS, blocking=True)
        assert store.saved is None
    assert not list(tmp_path.iterdir())


def test_the_newest_and_every_so_many_stay(tmp_path):
    with Store(tmp_path / "checkpoints", Keep(last=2, every=3)) as store:
        for step in range(1, 9):
            store.save(step, {"step": jnp.int32(step)}, {})
    assert sorted(path.name for path in store.directory.iterdir()) == ["3", "6", "7", "8"]
    assert store.latest().step == 8


def test_a_step_saved_again_is_replaced(tmp_path):
    with Store(tmp_path / "checkpoints") as store:
        store.save(5, state(0), {"try": 1})
        store.save(5, state(1), {"try": 2})
    got, facts = store.restore(5, like(state(1)))
    assert_same_bits(got, state(1))
    assert facts == {"try": 2}
    assert [path.name for path in store.directory.iterdir()] == ["5"]


def test_a_run_that_went_back_keeps_what_it_has_just_saved(tmp_path):
    with Store(tmp_path / "checkpoints", Keep(last=1)) as store:
        store.save(9, {"x": jnp.int32(9)}, {})
        store.save(4, {"x": jnp.int32(4)}, {})
    assert sorted(path.name for path in store.directory.iterdir()) == ["4", "9"]


@pytest.mark.parametrize(
    ("values", "facts", "message"),
    [
        ({}, {}, "the state is empty"),
        ({"a//b": jnp.int32(1)}, {}, "tensor name 'a//b' must be words"),
        ({"a": 1}, {}, "a: is a int, must be a jax.Array"),
        ({"key": jax.ShapeDtypeStruct((), jnp.int32)}, {}, "key: is a ShapeDtypeStruct"),
        ({"a": jnp.int32(1)}, {"x": {1: 2}}, "facts must survive JSON: x="),
        ({"a": jnp.int32(1)}, {"x": object()}, "facts must be JSON values"),
        ({"a": jnp.int32(1)}, {"x": float("nan")}, "facts must be JSON values"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(tmp_path, values, facts, message):
    with Store(tmp_path / "checkpoints") as store, pytest.raises(CheckpointError, match=message):
        store.save(1, values, facts)
    assert not store.directory.exists()


def test_a_random_key_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(CheckpointError, match=r"rng: is a typed random key; save jax.random.key_data"):
        Store(tmp_path).save(1, {"rng": jax.random.key(0)}, {})


def test_orbax_keeps_quiet_and_others_do_not(saved, capfd, caplog, tmp_path):
    directory, values = saved
    Store(directory).restore(7, like(values))
    with Store(tmp_path / "checkpoints") as store:
        store.save(1, values, {})
    from absl import logging as absl_logging

    assert capfd.readouterr() == ("", "")
    absl_logging.warning("heard")
    assert "heard" in caplog.text
    assert not [record for record in caplog.records if record.levelno > logging.INFO and record.msg != "heard"]


def test_the_store_imports_without_orbax():
    code = "import sys, jaxlm.checkpoints.store; print('orbax.checkpoint' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

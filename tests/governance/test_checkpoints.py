"""Signed checkpoints in a real store: what was changed, swapped, removed or rolled back is refused by name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Store
from jaxlm.governance import keys as public_keys
from jaxlm.governance.keys import Keys
from jaxlm.governance.notary import Notary
from jaxlm.governance.trail import Trail

STATE = {
    "model/embed": np.arange(2048, dtype=np.float32).reshape(64, 32),
    "model/blocks/q": np.arange(512, dtype=np.float16).reshape(16, 32),
    "step": np.int32(7),
}


def _state(seed: int = 0) -> dict[str, jax.Array]:
    return {name: jnp.asarray(value + np.asarray(seed, value.dtype)) for name, value in STATE.items()}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def run(tmp_path: Path, keys: Keys) -> Path:
    """A run directory with checkpoints of steps 10 and 20, signed and logged."""
    (tmp_path / "run").mkdir()
    with Trail(tmp_path / "run/audit", keys=keys) as trail, _store(tmp_path / "run", trail) as store:
        store.save(10, _state(1), {}, blocking=True)
        store.save(20, _state(2), {}, blocking=True)
    return tmp_path / "run"


def _store(run: Path, trail: Trail | None) -> Store:
    return Store(run / "checkpoints", notary=None if trail is None else Notary(trail, {"config": "c"}))


def _restore(run: Path, keys: Keys, step: int = 20, *, governed: bool = True) -> dict[str, Any]:
    """The tensors of a step by a process that starts anew; `governed=False` is the defence switched off."""
    if not governed:
        with _store(run, None) as store:
            return store.restore(step, _state())[0]
    with Trail(run / "audit", keys=keys) as trail, _store(run, trail) as store:
        return store.restore(step, _state())[0]


def test_a_signed_checkpoint_comes_back_and_the_log_knows_it(run: Path, keys: Keys):
    restored = _restore(run, keys)
    assert all((restored[name] == value).all() for name, value in _state(2).items())
    with Trail(run / "audit", keys=keys) as trail:
        commits = trail.find("ckpt.commit")
        assert [entry.body["step"] for entry in commits] == [10, 20]
    manifest = json.loads((run / "checkpoints/20/manifest.json").read_text())
    assert commits[-1].body["manifest"] == manifest["digest"]


def test_the_stock_verifier_accepts_a_real_checkpoint(run: Path, keys: Keys, tmp_path: Path):
    (tmp_path / "key.pem").write_bytes(public_keys.public_pem(keys.checkpoint().public_key()))
    folder = run / "checkpoints/20"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "model_signing", "verify", "key", str(folder)),
            *("--signature", str(folder / "model.sig"), "--public_key", str(tmp_path / "key.pem")),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tensor_root_is_the_same_on_another_mesh_and_changes_with_one_value(tmp_path: Path, keys: Keys):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spread = {
        name: jax.device_put(value, NamedSharding(mesh, PartitionSpec(*("a", "b")[: value.ndim])))
        for name, value in _state().items()
    }
    other = _state()
    other["model/embed"] = other["model/embed"].at[3, 4].add(1)
    roots = []
    for number, state in enumerate([_state(), spread, other]):
        (tmp_path / str(number)).mkdir()
        with (
            Trail(tmp_path / str(number) / "audit", keys=keys) as trail,
            _store(tmp_path / str(number), trail) as store,
        ):
            store.save(1, state, {}, blocking=True)
        with Trail(tmp_path / str(number) / "audit", keys=keys) as trail:
            roots.append(trail.find("ckpt.commit")[0].body["tensor_root"])
    assert roots[0] == roots[1] != roots[2]


def _largest(run: Path) -> Path:
    return max((p for p in (run / "checkpoints/20/state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_one_flipped_bit_anywhere_names_file_and_tensor(run: Path, keys: Keys):
    files = [p for p in (run / "checkpoints/20").rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) > 8
    named = set()
    for path in files:
        whole = path.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(CheckpointError) as refused:
                _restore(run, keys)
            if path.parent.name == "d":
                assert path.name in str(refused.value)
                named |= {name for name in STATE if name in str(refused.value).split("tensors: ")[-1]}
        path.write_bytes(whole)
    assert named == STATE.keys()
    _restore(run, keys)


def test_without_verification_a_flipped_bit_is_restored_as_wrong_weights(run: Path):
    from jaxlm.checkpoints import arrays

    path = _largest(run)
    whole = bytearray(path.read_bytes())
    place = whole.find(np.float32(42 + 2).tobytes())
    whole[place] ^= 1
    path.write_bytes(whole)
    restored = arrays.read(run / "checkpoints/20/state", _state())
    assert any((restored[name] != value).any() for name, value in _state(2).items())


def _forge(folder: Path) -> None:
    """An attacker who can write everything but has no key: the manifest agrees with what it covers."""
    from jaxlm.checkpoints import manifest

    body = json.loads((folder / "manifest.json").read_text())
    manifest.write(folder, body["step"], body["tensors"], body["facts"])


def _replace_weights(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/20/state")
    shutil.copytree(run / "checkpoints/10/state", run / "checkpoints/20/state")
    _forge(run / "checkpoints/20")


def _add_file(run: Path) -> None:
    (run / "checkpoints/20/state/evil.pkl").write_bytes(b"cos\nsystem\n")
    _forge(run / "checkpoints/20")


def _step_renamed(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/20")
    shutil.copytree(run / "checkpoints/10", run / "checkpoints/20")
    body = json.loads((run / "checkpoints/20/manifest.json").read_text())
    (run / "checkpoints/20/manifest.json").write_text(json.dumps({**body, "step": 20}))
    _forge(run / "checkpoints/20")


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (_replace_weights, "is not what was signed"),
        (_add_file, "is not what was signed"),
        (_step_renamed, "signed as step 10"),
        (lambda run: (run / "checkpoints/20/model.sig").unlink(), "not signed"),
    ],
)
def test_an_attacker_who_forges_the_manifest_is_refused_only_because_of_the_signature(
    attack: Any, why: str, run: Path, keys: Keys
):
    attack(run)
    with pytest.raises(CheckpointError, match=why):
        _restore(run, keys)
    _restore(run, keys, governed=False)


def test_an_earlier_checkpoint_of_the_same_step_is_refused(run: Path, keys: Keys, tmp_path: Path):
    shutil.copytree(run / "checkpoints/20", tmp_path / "old")
    with Trail(run / "audit", keys=keys) as trail, _store(run, trail) as store:
        store.save(20, _state(3), {}, blocking=True)
    shutil.rmtree(run / "checkpoints/20")
    shutil.copytree(tmp_path / "old", run / "checkpoints/20")
    with pytest.raises(CheckpointError, match="an older one came back"):
        _restore(run, keys)
    _restore(run, keys, governed=False)


def test_a_checkpoint_that_the_run_went_back_from_does_not_come_back(run: Path, keys: Keys, tmp_path: Path):
    shutil.copytree(run / "checkpoints/20", tmp_path / "old")
    with Trail(run / "audit", keys=keys) as trail, _store(run, trail) as store:
        notary = Notary(trail, {})
        notary.restored({"step": 10, "manifest": "m", "tensor_root": "t", "rollback_from": 20})
        assert "went back from step 20" in str(notary.fault(run / "checkpoints/20", store.manifest(20)))
    with pytest.raises(CheckpointError, match="went back from step 20 and has not saved it again"):
        _restore(run, keys)
    _restore(run, keys, 10)
    with Trail(run / "audit", keys=keys) as trail, _store(run, trail) as store:
        assert store.latest().step == 10
        store.save(30, _state(3), {}, blocking=True)
    with pytest.raises(CheckpointError, match="went back from step 20"):
        _restore(run, keys)
    with Trail(run / "audit", keys=keys) as trail, _store(run, trail) as store:
        store.save(20, _state(4), {}, blocking=True)
    _restore(run, keys)
    shutil.rmtree(run / "checkpoints/20")
    shutil.copytree(tmp_path / "old", run / "checkpoints/20")
    with pytest.raises(CheckpointError, match="an older one came back"):
        _restore(run, keys)
    _restore(run, keys, governed=False)


def test_a_checkpoint_of_another_run_is_refused(run: Path, keys: Keys, tmp_path: Path):
    (tmp_path / "other").mkdir()
    with Trail(tmp_path / "other/audit", keys=keys) as trail, _store(tmp_path / "other", trail) as store:
        store.save(20, _state(5), {}, blocking=True)
    shutil.rmtree(run / "checkpoints/20")
    shutil.copytree(tmp_path / "other/checkpoints/20", run / "checkpoints/20")
    with pytest.raises(CheckpointError, match="signed for another run"):
        _restore(run, keys)
    _restore(run, keys, governed=False)


def test_a_removed_file_is_named(run: Path, keys: Keys):
    empty = next(p for p in (run / "checkpoints/20/state").rglob("*") if p.is_file() and p.name == "commit_success.txt")
    empty.unlink()
    with pytest.raises(CheckpointError, match=r"commit_success\.txt is missing; no tensor is harmed"):
        _restore(run, keys)


def test_a_save_that_cannot_be_signed_fails_and_costs_no_older_one(run: Path, keys: Keys):
    class Refuses(Notary):
        def sign(self, folder: Path, body: dict[str, Any], content: bytes) -> None:
            raise OSError("the key is gone")

    with Trail(run / "audit", keys=keys) as trail:
        store = Store(run / "checkpoints", notary=Refuses(trail, {}))
        with pytest.raises(CheckpointError, match="the key is gone; untouched: 20, 10"):
            store.save(30, _state(), {}, blocking=True)
    _restore(run, keys)

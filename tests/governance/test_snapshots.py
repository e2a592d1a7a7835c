"""Encrypted snapshots: `age` opens them, they come back bit for bit, and they fit no other place."""

import dataclasses
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest

from jaxlm import copies
from jaxlm.config import Run
from jaxlm.copies import bring_back, take
from jaxlm.folder import Folder
from jaxlm.governance import snapshot
from jaxlm.governance.audit import read_log
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import Keys
from jaxlm.governance.snapshot import Binding
from tests.governance.test_checkpoints import _restore
from tests.governance.test_going_back import keys, run  # noqa: F401  (fixtures)
from tests.governance.test_run import jaxlm


@pytest.fixture
def identity(tmp_path: Path) -> Path:
    (tmp_path / "key.txt").write_text(f"# public key: ...\n{pyrage.x25519.Identity.generate()}\n")
    return tmp_path / "key.txt"


def _recipient(identity: Path) -> str:
    return str(snapshot.identities(identity)[0].to_public())


@pytest.fixture
def taken(run: Path, identity: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A snapshot of step 20."""
    Folder(run).write_config(Run())
    take(run, 20, [_recipient(identity)], tmp_path / "run-20.age")
    return tmp_path / "run-20.age"


def _files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_checkpoint_comes_back_bit_for_bit_to_its_place(
    run: Path,  # noqa: F811
    identity: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: Keys,  # noqa: F811
):
    Folder(run).write_config(Run())
    out, before = tmp_path / "run-20.age", _files(run / "checkpoints/20")
    jaxlm("audit", "snapshot", run, "--step", 20, "--recipient", _recipient(identity), "--out", out)
    assert f"SHA-256 {hashlib.sha256(out.read_bytes()).hexdigest()}" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"age-encryption.org/v1\n")
    assert not any(content[:64] in out.read_bytes() for content in before.values() if len(content) >= 64)
    shutil.rmtree(run / "checkpoints/20")
    jaxlm("audit", "restore", out, "--identity", identity, "--of", run)
    assert _files(run / "checkpoints/20") == before
    assert "known to its log" in capsys.readouterr().out
    _restore(run, keys, 20)
    kinds = [entry.kind for entry in read_log(run / "audit", "readers", keys=keys).entries]
    assert kinds == ["access", "ckpt.snapshot", "access", "ckpt.restore"]
    assert not list((run / "checkpoints").glob(".restoring*"))
    jaxlm("audit", "restore", out, "--identity", identity, "--of", run, code=2)  # it is there already
    assert "exists already" in capsys.readouterr().err


def test_age_and_tar_open_it(taken: Path, identity: Path, run: Path, tmp_path: Path):  # noqa: F811
    if (age := shutil.which("age")) is None:
        pytest.skip("age is not installed (apt install age); pyrage reads it in the other tests")
    plain = subprocess.run([age, "-d", "-i", identity, taken], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        archive.extractall(tmp_path / "there", filter="data")
    assert _files(tmp_path / "there/checkpoints/20") == _files(run / "checkpoints/20")


def test_without_the_run_the_key_of_its_checkpoints_is_enough(
    taken: Path,
    run: Path,  # noqa: F811
    identity: Path,
    tmp_path: Path,
):
    found = bring_back(taken, identity, signer=run / "audit/signer.pem", out=tmp_path / "there")
    assert (found.logged, _files(tmp_path / "there")) == (False, _files(run / "checkpoints/20"))
    with pytest.raises(GovernanceError, match="either --of RUN or --signer"):
        bring_back(taken, identity)
    with pytest.raises(GovernanceError, match="--out"):
        bring_back(taken, identity, signer=run / "audit/signer.pem")


def test_in_the_place_of_another_it_is_refused(
    taken: Path,
    run: Path,  # noqa: F811
    identity: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    other = tmp_path / "run-10.age"
    take(run, 10, [_recipient(identity)], other)
    shutil.rmtree(run / "checkpoints/20")
    shutil.copy(other, taken)  # the older one under the name of the newer
    there = tmp_path / "there"
    with pytest.raises(Rejected, match=r"was made as run-10\.age"):
        bring_back(taken, identity, run=run, out=there)
    with pytest.raises(Rejected, match="is of step 10, not 20"):
        bring_back(taken, identity, run=run, step=20, out=there, renamed=True)
    assert not there.exists()
    monkeypatch.setattr(copies, "_belongs", lambda *_: None)
    bring_back(taken, identity, run=run, step=20, out=there)
    assert json.loads((there / "manifest.json").read_text())["step"] == 10, "with the defence off it is taken for 20"


def _swap(members: dict[str, bytes]) -> None:
    first, second = sorted((name for name in members if "/d/" in name), key=lambda name: len(members[name]))[-2:]
    members[first], members[second] = members[second], members[first]


def _drop(members: dict[str, bytes]) -> None:
    del members[next(name for name in members if "/d/" in name)]


def _add(members: dict[str, bytes]) -> None:
    members["checkpoints/20/state/evil.py"] = b"import os"


def _climb(members: dict[str, bytes]) -> None:
    name = next(name for name in members if "/d/" in name)
    members["../../outside"] = members.pop(name)


def _resealed(taken: Path, identity: Path, change: Callable[[dict[str, bytes]], None]) -> None:
    """The same recipients can be encrypted to by anybody who knows them."""
    plain = pyrage.decrypt(taken.read_bytes(), snapshot.identities(identity))
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        members = {m.name: archive.extractfile(m).read() for m in archive}  # pyright: ignore[reportOptionalMemberAccess]
    change(members)
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    taken.write_bytes(pyrage.encrypt(made.getvalue(), [snapshot.identities(identity)[0].to_public()]))


@pytest.mark.parametrize("change", [_swap, _drop, _add, _climb])
def test_02_another_content_for_the_same_recipient(
    change: Callable[[dict[str, bytes]], None],
    taken: Path,
    run: Path,  # noqa: F811
    identity: Path,
    tmp_path: Path,
):
    """Encryption alone hinders nobody here: it opens, and what is inside is another model."""
    _resealed(taken, identity, change)
    assert pyrage.decrypt(taken.read_bytes(), snapshot.identities(identity)), "age itself is content"
    with pytest.raises(Rejected, match=r"is not a snapshot that the log of .* knows"):
        bring_back(taken, identity, run=run, out=tmp_path / "there")
    with pytest.raises(
        Rejected, match=r"something else lies in its place|bytes, bound|more than what is bound|bound was"
    ):
        bring_back(taken, identity, signer=run / "audit/signer.pem", out=tmp_path / "there")
    assert not (tmp_path / "there").exists()
    assert not (tmp_path.parent / "outside").exists()


def test_the_same_content_encrypted_again_is_not_what_the_log_knows(
    taken: Path,
    run: Path,  # noqa: F811
    identity: Path,
    tmp_path: Path,
):
    _resealed(taken, identity, lambda _: None)
    with pytest.raises(Rejected, match="knows, or it was changed"):
        bring_back(taken, identity, run=run, out=tmp_path / "there")
    bring_back(taken, identity, signer=run / "audit/signer.pem", out=tmp_path / "there")


@pytest.mark.parametrize("at", [0, 40, 250, 0.5, -1])
def test_a_changed_byte_and_a_cut_are_found_and_leave_nothing(
    at: float,
    taken: Path,
    run: Path,  # noqa: F811
    identity: Path,
    tmp_path: Path,
):
    whole = taken.read_bytes()
    place = int(at * len(whole)) if isinstance(at, float) else at
    changed = bytearray(whole)
    changed[place] ^= 1
    for content in (bytes(changed), whole[:place] if place else b""):
        taken.write_bytes(content)
        with pytest.raises(Rejected, match="cannot be decrypted"):
            bring_back(taken, identity, signer=run / "audit/signer.pem", out=tmp_path / "there")
        assert not (tmp_path / "there").exists()
    assert not list(tmp_path.glob(".restoring*"))


def test_a_damaged_checkpoint_is_not_copied(run: Path, identity: Path, tmp_path: Path):  # noqa: F811
    Folder(run).write_config(Run())
    path = max((run / "checkpoints/20").rglob("d/*"), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    with pytest.raises(Rejected, match="is not what was signed: damaged"):
        take(run, 20, [_recipient(identity)], tmp_path / "out.age")
    assert not list(tmp_path.glob("out.age*"))


def test_what_is_wrong_with_the_arguments_is_said(taken: Path, run: Path, identity: Path, tmp_path: Path):  # noqa: F811
    with pytest.raises(GovernanceError, match=r"--recipient age1x: .*age-keygen"):
        take(run, 20, ["age1x"], tmp_path / "a")
    with pytest.raises(GovernanceError, match="exists already"):
        take(run, 20, [_recipient(identity)], taken)
    with pytest.raises(GovernanceError, match=r"--identity .*age-keygen"):
        bring_back(taken, taken, run=run)
    (tmp_path / "other.txt").write_text(str(pyrage.x25519.Identity.generate()))
    with pytest.raises(Rejected, match="cannot be decrypted"):
        bring_back(taken, tmp_path / "other.txt", run=run, out=tmp_path / "there")


def test_a_large_file_is_never_held_in_memory(tmp_path: Path, keys: Keys, identity: Path):  # noqa: F811
    size = 1 << 26
    (tmp_path / "20").mkdir()
    with (tmp_path / "20/large").open("wb") as file:
        file.truncate(size)
    files = {"large": (size, hashlib.sha256(bytes(size)).hexdigest())}
    binding = Binding("r", 20, "checkpoints/20", "x.age", "00", files)
    tracemalloc.start()
    try:
        snapshot.seal(
            tmp_path / "20", binding, keys.checkpoint(), snapshot.recipients([_recipient(identity)]), tmp_path / "x.age"
        )
        with snapshot.unseal(
            tmp_path / "x.age", snapshot.identities(identity), [keys.checkpoint().public_key()]
        ) as opened:
            assert opened.binding == binding
            opened.extract(tmp_path / "there")
        assert tracemalloc.get_traced_memory()[1] < size / 8
    finally:
        tracemalloc.stop()
    assert (tmp_path / "there/large").stat().st_size == size
    assert dataclasses.replace(binding, step=21).statement() != binding.statement()

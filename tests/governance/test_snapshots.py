"""Encrypted snapshots: `age` opens them, they come back bit for bit, and they fit no other place."""

import dataclasses
import hashlib
import io
import itertools
import json
import random
import shutil
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyrage
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from jaxlm import copies
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Keep, Store
from jaxlm.config import Run
from jaxlm.copies import bring_back, take
from jaxlm.folder import Folder
from jaxlm.governance import age, model_signature, snapshot
from jaxlm.governance.audit import read_log
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import Keys, public_pem, write_public
from jaxlm.governance.notary import Notary
from jaxlm.governance.snapshot import Binding
from jaxlm.governance.trail import Trail
from tests.governance.test_checkpoints import _restore, _state
from tests.governance.test_going_back import START, keys, run  # noqa: F401  (fixtures)
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


def test_a_run_copies_each_checkpoint_while_it_trains(tmp_path: Path, keys: Keys, identity: Path):  # noqa: F811
    home, to = tmp_path / "run", [f" {_recipient(identity)}\n"]
    home.mkdir()
    with Trail(home / "audit", keys=keys) as trail:
        copying = copies.Copying(trail, home / "checkpoints", to, tmp_path / "elsewhere", "run")
        pem = public_pem(keys.checkpoint().public_key())
        write_public(home / "audit/signer.pem", pem)
        trail.commit("run.start", {**START, "signer": hashlib.sha256(pem).hexdigest()})
        with Store(home / "checkpoints", Keep(), notary=Notary(trail, {}, copy=copying)) as store:
            store.save(10, _state(1), {}, blocking=True)
            store.save(20, _state(2), {}, blocking=True)
            before = _files(home / "checkpoints/20")
        copying(model_signature.read(home / "checkpoints/20", keys.checkpoint().public_key()))
    Folder(home).write_config(Run())
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["run-10.age", "run-20.2.age", "run-20.age"]
    made = [e.body for e in read_log(home / "audit", keys=keys).entries if e.kind == "ckpt.snapshot"]
    assert [(body["step"], body["name"]) for body in made] == [
        (10, "run-10.age"),
        (20, "run-20.age"),
        (20, "run-20.2.age"),
    ]
    shutil.rmtree(home / "checkpoints/20")
    found = bring_back(tmp_path / "elsewhere/run-20.age", identity, run=home, step=20)
    assert found.logged
    assert _files(home / "checkpoints/20") == before
    with pytest.raises(GovernanceError, match="recipient age1nobody"):
        copies.Copying(trail, home / "checkpoints", ["age1nobody"], tmp_path, "run")


def test_a_run_that_cannot_write_its_copy_does_not_count_the_save_as_done(
    tmp_path: Path,
    keys: Keys,  # noqa: F811
    identity: Path,
):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").write_text("a file, where a folder should be")
    with Trail(tmp_path / "run/audit", keys=keys) as trail:
        copying = copies.Copying(
            trail, tmp_path / "run/checkpoints", [_recipient(identity)], tmp_path / "elsewhere", "x"
        )
        store = Store(tmp_path / "run/checkpoints", Keep(), notary=Notary(trail, {}, copy=copying))
        with pytest.raises(CheckpointError, match="elsewhere"):
            store.save(10, _state(1), {}, blocking=True)


@pytest.mark.parametrize("size", [0, 1, age.CHUNK - 1, age.CHUNK, age.CHUNK + 1, 3 * age.CHUNK])
def test_another_implementation_of_age_reads_what_ours_wrote(size: int):
    """pyrage is Rust's `age`, which has no line in common with our writer."""
    owner, other = pyrage.x25519.Identity.generate(), pyrage.x25519.Identity.generate()
    content = random.Random(size).randbytes(size)
    cuts = sorted(random.Random(size).choices(range(size + 1), k=5))
    pieces = [content[a:b] for a, b in itertools.pairwise([0, *cuts, size])]
    to = snapshot.recipients([str(owner.to_public()), str(other.to_public())])
    sealed = b"".join(age.encrypt(pieces, to))
    for identity in (owner, other):
        assert pyrage.decrypt(sealed, [identity]) == content
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt(sealed, [pyrage.x25519.Identity.generate()])
    for changed in (sealed[:-1], sealed[:-1] + bytes([sealed[-1] ^ 1]), sealed.replace(b"X25519", b"X25518", 1)):
        with pytest.raises(pyrage.DecryptError):
            pyrage.decrypt(changed, [owner])


def test_who_cannot_be_written_to_is_refused():
    with pytest.raises(ValueError, match="32 bytes"):
        age.public_key("age1qqqqqqqqqq")
    with pytest.raises(ValueError, match="nobody"):
        next(age.encrypt([b"x"], []))
    with pytest.raises(ValueError, match="shared key"):
        next(age.encrypt([b"x"], [X25519PublicKey.from_public_bytes(bytes(32))]))  # every secret with it is zero


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

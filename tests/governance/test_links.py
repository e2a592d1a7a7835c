"""A symbolic link in the audit trail is refused, never followed: nothing outside is written, emptied or deleted."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jaxlm.files import write_whole
from jaxlm.governance.audit import read_log
from jaxlm.governance.disk import Disk
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.inference import Records
from jaxlm.governance.keys import Keys
from jaxlm.governance.trail import Trail


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def run(tmp_path: Path, keys: Keys) -> Path:
    """A run directory whose log has an entry and one record."""
    (tmp_path / "run").mkdir()
    with Trail(tmp_path / "run/audit", keys=keys) as trail:
        Records(trail).add({"prompt": "p"})
    return tmp_path / "run"


def _outside(tmp_path: Path, path: Path) -> Path:
    """`path` moved out of the run and a link to it in its place."""
    shutil.move(path, tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    return tmp_path / "outside"


def _all(folder: Path) -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in sorted([folder, *folder.rglob("*")])}


@pytest.mark.parametrize("name", ["", "log", "log/.unfinished", "log/.lock", "log/checkpoint", "log/tile", "log.vkey"])
def test_a_link_in_place_of_a_part_of_the_trail_is_refused(name: str, run: Path, tmp_path: Path, keys: Keys):
    outside = _outside(tmp_path, run / "audit" / name)
    if outside.is_dir():
        (outside / "precious").write_text("mine")
    before = _all(outside)
    with pytest.raises(GovernanceError, match="is a link"), Trail(run / "audit", keys=keys) as trail:
        trail.commit("eval", {"step": 1})
    assert _all(outside) == before


def test_a_link_in_place_of_a_lock_does_not_empty_what_it_leads_to(run: Path, tmp_path: Path, keys: Keys):
    (tmp_path / "outside").write_text("mine")
    (run / "audit/log/.lock").unlink()
    (run / "audit/log/.lock").symlink_to(tmp_path / "outside")
    with pytest.raises(Rejected, match=r"\.lock is a link"):
        Trail(run / "audit", keys=keys)
    assert (tmp_path / "outside").read_text() == "mine"


@pytest.mark.parametrize("name", ["", "log", "log/checkpoint", "log.vkey", "log/tile/entries/000.p/1"])
def test_who_reads_follows_none_either(name: str, run: Path, tmp_path: Path):
    _outside(tmp_path, run / "audit" / name)
    with pytest.raises(Rejected, match="is a link"):
        read_log(run / "audit", keys=None)


@pytest.mark.parametrize("whole", [True, False])
def test_erasing_a_record_that_is_a_link_destroys_nothing_outside(whole: bool, run: Path, tmp_path: Path, keys: Keys):
    (request,) = (run / "audit/inference").iterdir()
    outside = _outside(tmp_path, run / "audit/inference" if whole else request)
    before = _all(outside)
    known = read_log(run / "audit", keys=keys).entries
    with Trail(run / "audit", keys=keys) as trail, pytest.raises(Rejected, match="is a link"):
        Records(trail).erase([request.name], "asked for", known)
    assert _all(outside) == before
    assert (keys.folder / "records" / request.name).exists()


def test_a_file_is_not_written_through_a_link_that_waits_for_it(tmp_path: Path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "signer.pem.unfinished").symlink_to(tmp_path / "outside")
    with pytest.raises(OSError, match="symbolic link"):
        write_whole(tmp_path / "signer.pem", b"key")
    assert (tmp_path / "outside").read_text() == "mine"


def _older(run: Path, keys: Keys) -> None:
    shutil.copytree(run / "audit", run / "older")
    with Trail(run / "audit", keys=keys) as trail:
        trail.commit("eval", {"step": 1})
    shutil.rmtree(run / "audit")
    shutil.move(run / "older", run / "audit")


def _without_a_log(run: Path, keys: Keys) -> None:
    for path in (run / "audit/log").iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / "audit/log/.unfinished").mkdir()


@pytest.mark.parametrize("attack", [_older, _without_a_log])
def test_a_log_that_was_rolled_back_is_refused_before_anything_in_it_is_touched(
    attack: Callable[[Path, Keys], None], run: Path, keys: Keys
):
    attack(run, keys)
    (run / "audit/log/.unfinished/0").write_bytes(b"what a crash left")
    (run / "audit/log/.lock").touch()
    before = {p: os.stat(p).st_mtime_ns for p in (run / "audit").rglob("*") if p.is_file()}
    with pytest.raises(Rejected, match="rolled back"):
        Trail(run / "audit", keys=keys)
    assert {p: os.stat(p).st_mtime_ns for p in (run / "audit").rglob("*") if p.is_file()} == before


def test_the_name_of_a_new_trail_is_flushed(tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch):
    flushed: list[Path] = []
    whole = Disk.sync_folder
    monkeypatch.setattr(Disk, "sync_folder", lambda self, path: (flushed.append(path), whole(self, path)))
    Trail(tmp_path / "audit", keys=keys).close()
    assert tmp_path in flushed


def test_a_run_that_goes_on_while_it_is_read_was_not_rolled_back(
    run: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
):
    with Trail(run / "audit", keys=keys) as trail:
        read = Disk.read

        def slowly(self: Disk, path: Path) -> bytes:
            content = read(self, path)
            if path.name == "checkpoint" and path.parent.parent == run / "audit":
                monkeypatch.setattr(Disk, "read", read)
                trail.commit("eval", {"step": 1})  # between the reading of the head and everything after it
            return content

        monkeypatch.setattr(Disk, "read", slowly)
        assert read_log(run / "audit", keys=keys).head.size == 1
        assert read_log(run / "audit", keys=keys).head.size == 2

"""Which checkpoint a run goes on from, and which one a command reads, when the newest one is not good."""

import hashlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxlm import reading
from jaxlm.checkpoints import manifest
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Store
from jaxlm.config import Run
from jaxlm.finetune import _manifest
from jaxlm.folder import Folder
from jaxlm.governance.keys import Keys, public_pem, write_public
from jaxlm.governance.notary import Commits, Notary
from jaxlm.governance.trail import Trail
from jaxlm.reading import accessed, going_back, newest_to_read, reader
from tests.governance.test_checkpoints import _largest, _state, _store

START = {"run": "", "stage": "pretrain", "config": "", "plan": "", "data": "", "node": {}}


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Keys:
    monkeypatch.setenv("JAXLM_KEYS", str(tmp_path / "keys"))
    return Keys()


@pytest.fixture
def run(tmp_path: Path, keys: Keys) -> Path:
    """A run directory with checkpoints of steps 10 and 20, and a log that names their signer."""
    (tmp_path / "run").mkdir()
    with Trail(tmp_path / "run/audit", keys=keys) as trail, _store(tmp_path / "run", trail) as store:
        pem = public_pem(keys.checkpoint().public_key())
        write_public(tmp_path / "run/audit/signer.pem", pem)
        trail.commit("run.start", {**START, "signer": hashlib.sha256(pem).hexdigest()})
        store.save(10, _state(1), {}, blocking=True)
        store.save(20, _state(2), {}, blocking=True)
    return tmp_path / "run"


def _flip(run: Path) -> None:
    content = bytearray(_largest(run).read_bytes())
    content[7] ^= 1
    _largest(run).write_bytes(content)


def _remove(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/20")


def _remove_a_file(run: Path) -> None:
    _largest(run).unlink()


def _replace(run: Path) -> None:
    _flip(run)
    body = manifest.read(run / "checkpoints/20")
    manifest.write(run / "checkpoints/20", 20, body["tensors"], body["facts"])


def _unreadable(run: Path) -> None:
    path = _largest(run)
    path.unlink()
    path.symlink_to(path.name)  # leads to itself for ever


def _chosen_by_run(run: Path) -> int | None:
    with Trail(run / "audit") as trail:
        notary = Notary(trail, {})
        with Store(run / "checkpoints", notary=notary) as store:
            found = store.latest()
            back = going_back(notary.judge, found, store.damaged, False, "pray")
            assert back is None or back.automatic
            return found.step


def _chosen_to_read(run: Path) -> int | None:
    judge = reader(Folder(run), Run())
    store = Store(run / "checkpoints", notary=judge)
    return newest_to_read(judge, store.latest(), store.damaged, remedy="pray")


def _chosen_to_start_from(run: Path) -> int | None:
    return _manifest(Folder(run), Run(), None)["step"]


CHOICES = [_chosen_by_run, _chosen_to_read, _chosen_to_start_from]


@pytest.mark.parametrize("choose", CHOICES)
def test_from_a_damaged_one_everybody_goes_back_and_says_so(
    choose: Callable[[Path], int | None], run: Path, capsys: pytest.CaptureFixture[str]
):
    assert choose(run) == 20
    _flip(run)
    assert choose(run) == 10
    if choose is not _chosen_by_run:
        said = capsys.readouterr().err
        assert "skipped: checkpoints/20: " in said
        assert "WARNING: going back from step 20, which the log knows: the newest good one is 10" in said


@pytest.mark.parametrize("choose", CHOICES)
@pytest.mark.parametrize("attack", [_remove, _remove_a_file, _replace, _unreadable])
def test_what_is_gone_replaced_or_cannot_be_read_is_not_gone_back_from(
    choose: Callable[[Path], int | None], attack: Callable[[Path], None], run: Path
):
    attack(run)
    with pytest.raises(
        CheckpointError,
        match=r"knows a checkpoint of step 20, and the newest good one is 10(.|\n)*or (pray|say --from)",
    ):
        choose(run)


def test_a_disk_that_cannot_read_is_no_damage(run: Path, monkeypatch: pytest.MonkeyPatch):
    assert Store(run / "checkpoints").damaged(20) is None

    def fails(*_: Any) -> list[str]:
        raise OSError(5, "Input/output error", "state/d/0")

    monkeypatch.setattr(manifest, "_digests", fails)
    with pytest.raises(CheckpointError, match="knows a checkpoint of step 20"):
        _chosen_by_run(run)


def _unlogged(run: Path, keys: Keys) -> None:
    """A checkpoint of step 30, signed, with its name; the power went before the log heard of it."""

    class Dies(Notary):
        def saved(self, body: dict[str, Any]) -> None:
            raise OSError("the power is gone")

    with Trail(run / "audit", keys=keys) as trail, pytest.raises(CheckpointError, match="the power is gone"):
        Store(run / "checkpoints", notary=Dies(trail, {})).save(30, _state(3), {}, blocking=True)


def test_a_checkpoint_that_the_log_does_not_know_yet_is_gone_on_from_and_logged_but_not_read(run: Path, keys: Keys):
    _unlogged(run, keys)
    assert _chosen_to_read(run) == _chosen_to_start_from(run) == 20
    assert _chosen_by_run(run) == 30
    with Trail(run / "audit", keys=keys) as trail, Store(run / "checkpoints", notary=Notary(trail, {})) as store:
        notary = store._notary
        assert isinstance(notary, Notary)
        for _ in range(2):
            notary.catch_up(*store.good(30))
    with Trail(run / "audit", keys=keys) as trail:
        assert [(e.body["step"], e.body.get("late")) for e in trail.find("ckpt.commit")] == [
            (10, None),
            (20, None),
            (30, True),
        ]
        assert trail.find("ckpt.commit")[-1].body["bytes"] > 1000
        with Store(run / "checkpoints", notary=Notary(trail, {})) as store:
            store.save(40, _state(4), {}, blocking=True)
            assert store.good(30)[1]["step"] == 30
    assert _chosen_to_read(run) == 40


def test_what_is_restored_without_a_signature_is_not_logged_as_saved(run: Path, keys: Keys):
    _unlogged(run, keys)
    (run / "checkpoints/30/model.sig").unlink()
    with Trail(run / "audit", keys=keys) as trail:
        Notary(trail, {}).catch_up(run / "checkpoints/30", manifest.read(run / "checkpoints/30"))
        assert trail._taken == 0


@pytest.mark.parametrize("step", [0, 10])
def test_going_back_is_in_the_log_with_why_and_whether_somebody_asked(step: int, run: Path, keys: Keys):
    from jaxlm.auditing import Auditing

    if step == 0:
        shutil.rmtree(run / "checkpoints")
    else:
        _flip(run)
    with Trail(run / "audit", keys=keys) as trail:
        audit = object.__new__(Auditing)
        audit.leader, audit.forgiven, audit.trail, audit.notary = True, [], trail, Notary(trail, {})
        with Store(run / "checkpoints", notary=audit.notary) as store:
            found = store.latest()
            audit._back = going_back(audit.notary.judge, found, store.damaged, step == 0, "pray")
            audit.restored(store, step)
    with Trail(run / "audit", keys=keys) as trail:
        (entry,) = trail.find("ckpt.restore")
        assert (entry.body["step"], entry.body["rollback_from"]) == (step, 20)
        assert (entry.body["automatic"], entry.body["why"]) == (step == 10, found.skipped)
        assert (entry.body["manifest"] is None) == (step == 0)
        commits = Commits.of(trail.history)
        assert (commits.newest, commits.abandoned) == ((None, {10, 20}) if step == 0 else (10, {20}))


def test_a_run_that_begins_restores_nothing(run: Path, keys: Keys):
    from jaxlm.auditing import Auditing

    audit = object.__new__(Auditing)
    audit.leader, audit._back = True, None
    audit.restored(Store(run / "checkpoints"), 0)


def test_readers_take_the_signer_from_the_log(run: Path, tmp_path: Path):
    key = Keys(tmp_path / "others").checkpoint().public_key()
    (run / "audit/signer.pem").write_bytes(public_pem(key))
    with pytest.raises(CheckpointError, match=r"signer\.pem is not the key that the log names"):
        reader(Folder(run), Run())


def test_two_commands_that_read_at_once_are_both_logged(
    run: Path, keys: Keys, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    first = Trail(run / "audit", "readers", keys=keys)
    threading.Timer(0.3, first.close).start()
    accessed(Folder(run), "generate", step=20)
    assert capsys.readouterr().err == ""
    with Trail(run / "audit", "readers", keys=keys) as trail:
        assert [entry.body["command"] for entry in trail.find("access")] == ["generate"]
        monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.1)
        accessed(Folder(run), "eval", step=20)
    assert "this access is not logged: another process is writing the log" in capsys.readouterr().err

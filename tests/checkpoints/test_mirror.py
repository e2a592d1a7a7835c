"""A copy at a URL is complete or it is none, and a run that lost its disk goes on from it."""

import shutil
import signal
from pathlib import Path

import fsspec
import pytest
from checkpoint_states import FACTS, assert_same_bits, like, state

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.mirror import Mirror
from jaxlm.checkpoints.schedule import CheckpointConfig
from jaxlm.checkpoints.store import Found, Keep, Store
from tests.cli.programs import finish, losses, signal_at, start, write_config


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    """A store in memory, which like an object store has no folders, and a folder behind a file:// URL."""
    if request.param == "file":
        return f"file://{tmp_path}/bucket/run"
    files = fsspec.filesystem("memory")
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)
    return "memory://bucket/run"


def there(url: str) -> dict[str, list[str]]:
    """Step -> files at the URL."""
    files, root = fsspec.core.url_to_fs(url)
    found: dict[str, list[str]] = {}
    for place in files.find(root):
        step, _, name = place.removeprefix(root).strip("/").partition("/")
        found.setdefault(step, []).append(name)
    return found


def test_each_checkpoint_is_copied_and_the_keep_rules_hold_there_too(tmp_path, url):
    with Store(tmp_path / "checkpoints", Keep(last=1, every=4), mirror=Mirror(url)) as store:
        for step in (4, 5, 6):
            store.save(step, state(step), FACTS)
    assert sorted(there(url)) == ["4", "6"]
    here = {
        p.relative_to(tmp_path / "checkpoints" / "6").as_posix() for p in store.directory.rglob("6/**/*") if p.is_file()
    }
    assert set(there(url)["6"]) == here
    assert Mirror(url).steps() == [6, 4]


def test_a_run_that_lost_its_disk_brings_the_newest_back_bit_for_bit_and_keeps_what_is_kept_for_ever(tmp_path, url):
    keep = Keep(last=1, every=4)
    with Store(tmp_path / "checkpoints", keep, mirror=Mirror(url)) as store:
        for step in (4, 6):
            store.save(step, state(step), FACTS)
    shutil.rmtree(store.directory)
    with Store(tmp_path / "checkpoints", keep, mirror=Mirror(url)) as store:
        assert store.latest() == Found(6, [])
        got, facts = store.restore(6, like(state(6)))
        assert_same_bits(got, state(6))
        assert facts == FACTS
        store.save(7, state(7), FACTS, blocking=True)
        assert sorted(there(url)) == ["4", "7"]
        store.fetch(4)
        assert_same_bits(store.restore(4, like(state(4)))[0], state(4))
        with pytest.raises(CheckpointError, match=rf"no checkpoint of step 5 .*nor has {url} \(there: \[7, 4\]\)"):
            store.fetch(5)


def test_a_copy_that_is_damaged_or_was_cut_off_is_skipped_and_named(tmp_path, url):
    with Store(tmp_path / "checkpoints", Keep(last=3), mirror=Mirror(url)) as store:
        for step in (1, 2, 3):
            store.save(step, state(step), FACTS)
    shutil.rmtree(store.directory)
    files, root = fsspec.core.url_to_fs(url)
    files.rm_file(f"{root}/3/manifest.json")  # as when the upload was cut off
    flipped = bytearray(files.cat_file(f"{root}/2/state/_METADATA"))
    flipped[0] ^= 1
    files.pipe_file(f"{root}/2/state/_METADATA", bytes(flipped))
    found = store.latest()
    assert found.step == 1
    assert len(found.skipped) == 1
    assert found.skipped[0].startswith(f"{url}/2: checkpoints/2.writing: state/_METADATA has SHA-256")
    assert [p.name for p in store.directory.iterdir()] == ["1"]
    store.save(3, state(3), FACTS, blocking=True)
    assert Mirror(url).steps() == [3, 2, 1]
    assert not [name for name in there(url)["3"] if "writing" in name]


def test_what_was_saved_while_the_store_was_away_is_copied_later_and_a_step_saved_again_is_replaced(tmp_path, url):
    with Store(tmp_path / "checkpoints") as store:
        store.save(1, state(1), FACTS)
    with Store(tmp_path / "checkpoints", mirror=Mirror(url)) as store:
        store.save(2, state(2), {"try": 1}, blocking=True)
        assert Mirror(url).steps() == [2, 1]
        store.save(2, state(3), {"try": 2})
    shutil.rmtree(store.directory)
    assert store.latest() == Found(2, [])
    assert store.facts(2) == {"try": 2}


def test_a_store_that_refuses_is_one_message_and_costs_no_checkpoint_here(tmp_path, url, monkeypatch):
    mirror = Mirror(url)

    def refuse(*_, **__):
        raise PermissionError("403: no storage.objects.create access")

    with Store(tmp_path / "checkpoints", mirror=mirror) as store:
        monkeypatch.setattr(mirror._files, "put", refuse)
        store.save(1, state(1), FACTS)
        with pytest.raises(CheckpointError) as error:
            store.wait()
        monkeypatch.undo()
        assert str(error.value) == (
            f"checkpoint 1 is safe in {store.directory}, but {url} cannot be written: "
            "403: no storage.objects.create access"
        )
        assert store.latest() == Found(1, [])
        store.save(2, state(2), FACTS)
    assert mirror.steps() == [2, 1]


def test_a_manifest_from_elsewhere_cannot_write_beside_the_checkpoint(tmp_path):
    folder = tmp_path / "evil" / "5"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text('{"files": {"state/../../../x": {"size": 1}}}')
    (tmp_path / "into").mkdir()
    with pytest.raises(CheckpointError, match="lies outside of the checkpoint: damaged"):
        Mirror(f"file://{tmp_path}/evil").pull(5, tmp_path / "into")


def test_a_path_is_null_absolute_or_a_url_that_something_can_read(tmp_path):
    with pytest.raises(ValueError, match=r"path='ckpt' must be absolute, as /other/disk/run, or a URL"):
        CheckpointConfig(path="ckpt")
    with pytest.raises(CheckpointError, match="Protocol not known: nfs"):
        CheckpointConfig(path="nfs://x/y").require()
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"file/x cannot be made: Not a directory"):
        CheckpointConfig(path=str(tmp_path / "file" / "x")).require()
    elsewhere = CheckpointConfig(path=str(tmp_path / "other")).build(tmp_path / "run")
    assert elsewhere.directory == tmp_path / "other"


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_missing_package_is_named_with_the_command_that_brings_it(scheme, monkeypatch):
    def missing(*_, **__):
        raise ImportError(f"Please install the package for {scheme}")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(CheckpointError, match="run `uv sync --extra cloud`"):
        CheckpointConfig(path=f"{scheme}://bucket/run").require()


@pytest.mark.slow
def test_a_machine_that_dies_with_its_disk_is_replaced_by_one_that_goes_on_bit_identically(tmp_path: Path):
    config = write_config(tmp_path)
    finish(start(["train", config, "--run-dir", tmp_path / "undisturbed"], home=tmp_path))
    run = tmp_path / "run"
    command = ["train", config, "--run-dir", run, "--checkpoint.path", f"file://{tmp_path}/bucket/run"]
    process = start(command, home=tmp_path)
    signal_at(process, run / "metrics.jsonl", 75, signal.SIGKILL)
    finish(process, -signal.SIGKILL)
    shutil.rmtree(run)
    assert "resuming" in finish(start(command, home=tmp_path))
    resumed = losses(run)
    assert resumed == losses(tmp_path / "undisturbed")[-len(resumed) :]
    assert 60 <= len(resumed) + 20 < 120
    other = start([*command[:3], tmp_path / "other", *command[4:], "--optim.lr", "1e-4"], home=tmp_path)
    assert "of a run with another configuration" in finish(other, 2)

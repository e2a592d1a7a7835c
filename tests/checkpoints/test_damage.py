"""A checkpoint that is half-written or damaged is never chosen, and the message says why."""

import errno
import gc
import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest
from checkpoint_states import FACTS, assert_same_bits, like, state

from jaxlm.checkpoints import manifest
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Found, Keep, Store


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of the steps 20 and 40."""
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with Store(directory) as store:
        store.save(20, state(20), FACTS)
        store.save(40, state(40), FACTS)
    return directory


@pytest.fixture
def checkpoints(two: Path, tmp_path: Path) -> Path:
    """A copy of `two` to damage."""
    return Path(shutil.copytree(two, tmp_path / "checkpoints"))


def biggest(folder: Path) -> Path:
    return max((path for path in (folder / "state").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)


def relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def assert_skipped(directory: Path, sentence: str) -> None:
    """Step 40 is skipped with `sentence`, step 20 is chosen and whole, and 40 is never restored."""
    store = Store(directory)
    assert store.latest() == Found(20, [sentence])
    got, _ = store.restore(20, like(state(20)))
    assert_same_bits(got, state(20))
    with pytest.raises(CheckpointError, match="checkpoints/40"):
        store.restore(40, like(state(40)))


def test_the_newest_good_one_is_chosen(checkpoints):
    assert Store(checkpoints).latest() == Found(40, [])


def test_a_truncated_file_is_seen(checkpoints):
    file = biggest(checkpoints / "40")
    size = file.stat().st_size
    with file.open("r+b") as handle:
        handle.truncate(10)
    name = relative(file, checkpoints / "40")
    assert_skipped(checkpoints, f"checkpoints/40: {name} is 10 bytes, manifest says {size}: truncated; skipped")


@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_one_flipped_bit_is_seen(checkpoints, where):
    file = biggest(checkpoints / "40")
    data = bytearray(file.read_bytes())
    data[int(len(data) * where)] ^= 1
    file.write_bytes(data)
    found = Store(checkpoints).latest()
    assert found.step == 20
    assert relative(file, checkpoints / "40") in found.skipped[0]
    assert found.skipped[0].endswith("damaged; skipped")


def test_a_flipped_bit_in_any_file_is_seen(checkpoints):
    folder = checkpoints / "40"
    for file in [path for path in folder.rglob("*") if path.is_file()]:
        data = file.read_bytes()
        file.write_bytes(bytes([data[0] ^ 1]) + data[1:])
        assert Store(checkpoints).latest().step == 20, file
        file.write_bytes(data)
    assert Store(checkpoints).latest().step == 40


def test_damage_after_the_look_is_seen_by_the_restore(checkpoints):
    store = Store(checkpoints)
    assert store.latest().step == 40
    file = biggest(checkpoints / "40")
    data = bytearray(file.read_bytes())
    data[-100] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged\nchoose another step \(there: 20\) or restore its files"):
        store.restore(40, like(state(40)))


def test_a_missing_file_is_seen(checkpoints):
    file = checkpoints / "40" / "state" / "_METADATA"
    file.unlink()
    assert_skipped(checkpoints, "checkpoints/40: state/_METADATA is missing; skipped")


def test_an_added_file_is_seen(checkpoints):
    (checkpoints / "40" / "state" / "d" / "extra").write_text("")
    assert_skipped(
        checkpoints,
        "checkpoints/40: state/d/extra is not in the manifest: it was added after the save; skipped",
    )


def test_a_file_of_the_file_system_is_no_damage(checkpoints):
    (checkpoints / "40" / "state" / ".nfs0001").write_text("")
    assert Store(checkpoints).latest() == Found(40, [])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "manifest.json is not JSON: damaged"),
        ('{"format": 1, "fi', "manifest.json is not JSON: damaged"),
        ("[1, 2]", "manifest.json has no digest: damaged"),
        ('{"format": 1, "digest": "0"}', "manifest.json does not match its own digest: damaged"),
        (None, "no manifest.json: the save was cut off before it was complete"),
    ],
)
def test_a_manifest_that_is_damaged_or_missing_is_seen(checkpoints, text, why):
    file = checkpoints / "40" / "manifest.json"
    file.unlink() if text is None else file.write_text(text)
    assert_skipped(checkpoints, f"checkpoints/40: {why}; skipped")


def test_a_changed_manifest_is_seen(checkpoints):
    file = checkpoints / "40" / "manifest.json"
    body = json.loads(file.read_text())
    body["facts"]["data"]["step"] += 1
    file.write_text(json.dumps(body))
    assert_skipped(checkpoints, "checkpoints/40: manifest.json does not match its own digest: damaged; skipped")


def test_a_checkpoint_under_another_step_is_seen(checkpoints):
    (checkpoints / "40").rename(checkpoints / "60")
    assert Store(checkpoints).latest() == Found(20, ["checkpoints/60: manifest.json is of step 40; skipped"])


def test_a_damaged_checkpoint_never_pushes_a_good_one_out_and_is_replaced_when_saved_again(checkpoints):
    biggest(checkpoints / "40").write_bytes(b"")
    with Store(checkpoints, Keep(last=1)) as store:
        assert store.latest().step == 20
        store.save(30, state(30), FACTS, blocking=True)
        assert sorted(path.name for path in checkpoints.iterdir()) == ["30", "40"]
        assert store.latest().step == 30
        store.save(40, state(41), FACTS)
    assert [path.name for path in checkpoints.iterdir()] == ["40"]
    assert store.latest() == Found(40, [])


CHILD = """
import sys, time
sys.path[:0] = {path!r}
import jax
jax.config.update("jax_num_cpu_devices", 8)
from pathlib import Path
from jaxlm.checkpoints import manifest
from jaxlm.checkpoints.store import Store
from checkpoint_states import state
store = Store(Path(sys.argv[1]))
store.save(20, state(20), {{}}, blocking=True)

def stop(*_, **__):
    print("here", flush=True)
    time.sleep(600)

if sys.argv[2] == "commit":
    manifest.write = stop
elif sys.argv[2] == "rename":
    from jaxlm.checkpoints import folders
    folders.Folders.finish = stop
else:
    import orbax.checkpoint as ocp
    async def hang(*_, **__):
        stop()
    ocp.path.atomicity.AtomicRenameTemporaryPath.finalize = hang
store.save(40, state(40), {{}})
store.wait()
"""


def killed(tmp_path: Path, where: str) -> Path:
    """The checkpoints of a run that saved step 20 and was SIGKILLed in the save of step 40."""
    directory = tmp_path / "checkpoints"
    code = CHILD.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[2])])
    with subprocess.Popen([sys.executable, "-c", code, directory, where], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"here\n"
        child.send_signal(signal.SIGKILL)
    return directory


def test_a_run_killed_while_orbax_writes_goes_on_from_the_one_before_and_saves_the_step_again(tmp_path):
    directory = killed(tmp_path, "write")
    assert (directory / "40.writing" / "state.orbax-checkpoint-tmp").is_dir()
    sentence = (
        "checkpoints/40.writing: no manifest.json (state.orbax-checkpoint-tmp is there): "
        "the save was cut off before it was complete; skipped"
    )
    with Store(directory) as store:
        assert store.latest() == Found(20, [sentence])
        assert (directory / "40.writing").exists()
        store.save(40, state(40), FACTS)
    assert sorted(path.name for path in directory.iterdir()) == ["20", "40"]
    assert store.latest() == Found(40, [])


def test_a_run_killed_between_commit_and_manifest_goes_on_from_the_one_before(tmp_path):
    directory = killed(tmp_path, "commit")
    assert (directory / "40.writing" / "state" / "_METADATA").is_file()
    sentence = "checkpoints/40.writing: no manifest.json: the save was cut off before it was complete; skipped"
    with Store(directory, Keep(last=1)) as store:
        assert store.latest() == Found(20, [sentence])
        store.save(60, state(60), FACTS)  # 40 is never reached again: the leftover goes with the older ones
    assert [path.name for path in directory.iterdir()] == ["60"]


def test_a_run_killed_between_manifest_and_final_name_has_its_checkpoint(tmp_path):
    directory = killed(tmp_path, "rename")
    assert (directory / "40.writing" / "manifest.json").is_file()
    with Store(directory, Keep(last=1)) as store:
        assert store.latest() == Found(40, [])
        got, _ = store.restore(40, like(state(40)))
        assert_same_bits(got, state(40))
        store.save(40, state(41), FACTS)
    assert [path.name for path in directory.iterdir()] == ["40"]


# Orbax drops the writes that wait behind the one that failed.
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
def test_a_disk_that_fills_up_is_one_message_and_costs_no_older_checkpoint(checkpoints, capfd, caplog):
    """RLIMIT_FSIZE makes real writes of tensorstore fail in the middle, many at once."""
    many = {f"w/{i}": jnp.arange(2.0**16) + i for i in range(60)}
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    old_signal = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with Store(checkpoints) as store:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**13, old_limit[1]))
        try:
            with pytest.raises(CheckpointError, match=r"checkpoint 60 was not written to .*untouched: 40, 20"):
                store.save(60, many, {}, blocking=True)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
            signal.signal(signal.SIGXFSZ, old_signal)
        gc.collect()  # asyncio complains of a failure that nobody asked for when it is collected
        assert capfd.readouterr() == ("", "")
        assert not [record for record in caplog.records if record.levelname != "DEBUG"]
        assert store.saved is None
        assert store.latest() == Found(40, [])  # nor does it keep the space
        store.save(60, many, {})
    assert store.latest() == Found(60, [])


def test_a_failure_in_the_background_is_raised_once_by_the_next_call(checkpoints, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write", full)
    store = Store(checkpoints)
    store.save(60, state(60), {})
    with pytest.raises(CheckpointError, match=r"checkpoint 60 was not written .*the disk is full"):
        store.save(80, state(80), {})
    store.close()
    assert store.latest().step == 40


def test_a_failing_save_does_not_hide_what_stopped_the_run(checkpoints, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(manifest, "write", refused)

    def run() -> None:
        with Store(checkpoints) as store:
            store.save(60, state(60), {})
            raise KeyError("the loop")

    with pytest.raises(KeyError) as error:
        run()
    assert "Permission denied" in error.value.__notes__[0]


def test_a_folder_that_cannot_be_made_is_one_message(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(CheckpointError, match="checkpoint 1 was not written"):
        Store(tmp_path / "checkpoints").save(1, state(), {})
    assert Store(tmp_path / "checkpoints").latest() == Found(None, [])


def _rewritten(folder: Path, **changed: object) -> None:
    """The manifest with other fields, None without them, and a digest of its own that fits."""
    body = json.loads((folder / "manifest.json").read_text()) | changed
    body = {key: value for key, value in body.items() if value is not None}
    body["digest"] = manifest._own_digest(body)
    (folder / "manifest.json").write_text(json.dumps(body))


@pytest.mark.parametrize(
    "changed",
    [
        {"step": None},
        {"files": None},
        {"tensors": None},
        {"facts": None},
        {"files": {"state/x": {"size": 1}}},
        {"files": {"state/x": 3}},
        {"tensors": {"w": {}}},
        {"format": None},
    ],
)
def test_a_manifest_that_lacks_something_is_seen(checkpoints, changed):
    _rewritten(checkpoints / "40", **changed)
    store = Store(checkpoints)
    assert store.latest().step == 20
    with pytest.raises(CheckpointError, match=r"manifest\.json (lacks|has format)"):
        store.restore(40, like(state(40)))


@pytest.mark.parametrize("name", ["{outside}", "../../outside", "state/../../../outside", "state//x", "./x", "a\0b"])
def test_a_file_outside_the_checkpoint_is_never_opened(checkpoints, tmp_path, name, monkeypatch):
    (tmp_path / "outside").write_bytes(b"private")
    _rewritten(checkpoints / "40", files={name.format(outside=tmp_path / "outside"): {"size": 7, "sha256": "0" * 64}})
    monkeypatch.setattr(manifest, "_digests", lambda *_: pytest.fail("a file was opened"))
    with pytest.raises(CheckpointError, match="no path inside a checkpoint"):
        manifest.verify(checkpoints / "40", manifest.read(checkpoints / "40"))


def test_a_link_that_leaves_the_checkpoint_is_never_opened(checkpoints, tmp_path, monkeypatch):
    path = biggest(checkpoints / "40")
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    monkeypatch.setattr(manifest, "_digests", lambda *_: pytest.fail("a file was opened"))
    with pytest.raises(CheckpointError, match="leads out of the checkpoint"):
        manifest.verify(checkpoints / "40", manifest.read(checkpoints / "40"))

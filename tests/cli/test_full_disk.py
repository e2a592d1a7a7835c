"""A disk without room, whatever is being written: one message that names the file, exit code 3, nothing lost."""

import contextlib
import json
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jaxlm import files
from jaxlm.cli import main
from jaxlm.data.config import DataConfig, DataError, TokenizerConfig
from jaxlm.data.prepare import prepare
from jaxlm.files import DiskFull, write_whole
from jaxlm.trainer.metrics import JsonLines, TensorBoard, read_jsonl
from tests.cli.programs import finish, losses, records, start, write_config, write_texts
from tests.cli.small_disk import small_disk

FULL = Path("/dev/full")  # every write to it fails as on a full disk


@contextlib.contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """No file of this process may grow beyond `size` bytes while the block runs."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


@contextlib.contextmanager
def no_room_for(path: Path) -> Iterator[None]:
    """Whoever writes `path` whole finds that the kernel takes no byte of it while the block runs."""
    aside = str(path.with_name(f"{path.name}.unfinished"))
    really = files._itself

    def opener(name: str, flags: int) -> int:
        descriptor = really(name, flags)
        if str(name) != aside:
            return descriptor
        os.close(descriptor)
        return os.open(FULL, os.O_WRONLY)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_itself", opener)
        yield


def test_a_file_written_whole_is_named_and_leaves_nothing_behind(tmp_path):
    sentence = rf"^{tmp_path}/plan\.json: the disk is full \(7 bytes were to be written, [\d,]+ are free in "
    with no_room_for(tmp_path / "plan.json"), pytest.raises(DiskFull, match=sentence):
        write_whole(tmp_path / "plan.json", b"content")
    assert list(tmp_path.iterdir()) == []


def test_a_file_written_whole_keeps_its_old_content(tmp_path):
    path = tmp_path / "summary.json"
    write_whole(path, b"old")
    with files_end_at(10), pytest.raises(DiskFull, match="files may not grow larger here"):
        write_whole(path, b"new" * 10)
    assert path.read_bytes() == b"old"


def test_metrics_that_do_not_fit_stop_the_run_and_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLines(path, 0)
    writer({"step": 1, "loss": 2.5})
    with files_end_at(40), pytest.raises(DiskFull, match=r"metrics\.jsonl: files may not grow"):
        writer({"step": 2, "loss": 2.25})
    writer.close()
    assert path.stat().st_size == 40  # the kernel took what fitted
    assert read_jsonl(path) == [{"step": 1, "loss": 2.5}]
    writer = JsonLines(path, 1)
    writer({"step": 2, "loss": 2.25})
    writer.close()
    assert [record["step"] for record in read_jsonl(path)] == [1, 2]


def test_tensorboard_events_that_do_not_fit_stop_the_run(tmp_path):
    """In the thread of tensorboardX's own writer the error would be lost and the run would wait for ever."""
    writer = TensorBoard(tmp_path, 0)
    record = {"step": 1} | {f"number {i}": 0.5 for i in range(10_000)}  # more than its buffer holds
    with files_end_at(100), pytest.raises(DiskFull, match=rf"^{tmp_path}: files may not grow"):
        writer(record)
    writer.close()


def test_data_that_do_not_fit_are_one_error_that_names_the_folder_and_preparation_goes_on_later(tmp_path):
    texts = write_texts(tmp_path / "texts", files=4)
    tokenizer = TokenizerConfig(vocab=320)
    config = DataConfig(path=str(texts), cache=str(tmp_path / "cache"), validation_fraction=0.25, tokenizer=tokenizer)
    with files_end_at(5000), pytest.raises(DataError) as error:
        prepare(config)
    said = str(error.value)
    assert said.startswith(f"data.cache: {tmp_path}/cache/"), said
    assert "bytes were to be written" in said
    assert "Make room there and start again" in said
    assert prepare(config).split("train").documents == 3


def train(home: Path, code: int) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", str(home / "tiny.yaml"), "--run-dir", str(home / "run"), "--train.steps", "3"])
    assert ended.value.code == code


def test_final_results_that_do_not_fit_stop_with_exit_3_and_with_room_they_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("UV", raising=False)  # else commands are printed as `uv run jaxlm`
    write_config(tmp_path)
    run = tmp_path / "run"
    with no_room_for(run / "summary.json"):
        train(tmp_path, 3)
    said = capsys.readouterr().err
    assert f"stopped: {run}/summary.json: the disk is full (" in said
    assert f"Checkpoints saved before are intact. Make room, then resume: jaxlm train {run}/config.yaml" in said
    assert "Traceback" not in said
    train(tmp_path, 0)
    assert json.loads((run / "summary.json").read_text())["step"] == 3
    assert [step for step, *_ in losses(run)] == [1, 2, 3]


@pytest.mark.slow
def test_a_disk_that_somebody_else_fills_at_any_moment_costs_nothing_but_the_steps_since_the_last_checkpoint(
    tmp_path,
):
    config = write_config(tmp_path)
    finish(start(["train", config, "--run-dir", tmp_path / "undisturbed"], home=tmp_path))
    with small_disk(tmp_path / "disk", "32m") as disk:
        run = disk.path / "run"
        process = start(["train", config, "--run-dir", run], home=tmp_path)
        while not (run / "metrics.jsonl").exists() or len(records(run / "metrics.jsonl")) < 45:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        filler = disk.path / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        output = finish(process, 3)
        assert output.count("stopped: ") == 1, output
        assert "the disk is full" in output
        assert "Traceback" not in output
        os.remove(filler)
        assert "resuming" in finish(start(["train", config, "--run-dir", run], home=tmp_path))
        assert losses(run) == losses(tmp_path / "undisturbed")

"""How experiments start and what their reports hold."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import entry
from experiments.report import ORIGINS, Report, Row


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """An experiment.

    Attributes:
        size: how large.
    """

    size: int = 1


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    row = lambda size: Row(what="thing", quantity="GB", paper=31.6, measured=float(size), predicted="2 to 3")
    run = lambda config, out: Report(title="Things", rows=[row(config.size)], remarks=["So it is."])
    with pytest.raises(SystemExit) as stopped:
        entry.main("things", "Question: how many?", Config, run)
    return int(stopped.value.code or 0)


def test_every_origin_has_its_own_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    file = tmp_path / "things.yaml"
    file.write_text("size: 2")
    assert start(monkeypatch, str(file), "--size", "3", "--out", str(tmp_path / "out"), "--json") == 0
    printed = capsys.readouterr().out
    header, _, row = [line for line in printed.splitlines() if line.startswith("|")]
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    cells = dict(zip(columns, [cell.strip() for cell in row.strip("|").split("|")], strict=True))
    assert columns[2:] == list(ORIGINS)
    assert cells == {"": "thing", "quantity": "GB", "paper": "31.6", "published": "-", "measured": "3",
                     "compiled": "-", "predicted": "2 to 3"}  # fmt: skip
    saved = json.loads((tmp_path / "out" / "things.json").read_text())
    assert json.loads(printed.splitlines()[-1]) == saved
    assert saved["environment"]["versions"]["jax"]
    assert "experiments.things" in saved["environment"]["command"]
    assert "So it is." in (tmp_path / "out" / "things.md").read_text()


def test_a_wrong_key_is_named_with_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    file = tmp_path / "things.yaml"
    file.write_text("sise: 2")
    assert start(monkeypatch, str(file)) == 2
    assert "'sise', did you mean 'size'?" in capsys.readouterr().err


def test_help_says_what_is_asked(monkeypatch: pytest.MonkeyPatch, capsys):
    assert start(monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert "how many?" in printed
    assert "configs/experiments/things.yaml" in printed


EXPERIMENTS = [path for path in Path("experiments").glob("*.py") if "__main__" in path.read_text()]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_every_experiment_has_a_configuration_it_can_read(path: Path):
    command = [sys.executable, "-m", f"experiments.{path.stem}", "--print-config"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout

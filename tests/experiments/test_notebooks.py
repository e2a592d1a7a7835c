"""The notebooks of the research, cell by cell, on a report that is there already: nothing is trained."""

import json
from pathlib import Path

import matplotlib
import pytest

from experiments.report import Report, Row

FOLDER = Path(__file__).parents[2] / "experiments" / "notebooks"
METHOD = {"method": "ours", "rows": 594, "auprc": 0.8, "iou_k5": 0.3, "aopc": {"mask": [0.2, 0.1]}}
DETAILS = {
    "table6_explainability": {"methods": [METHOD, METHOD | {"method": "LIME", "rows": 40}]},
    "table7_fidelity": {"CoS-E": [METHOD, METHOD | {"method": "select all", "iou_k5": 0.475}]},
}


def test_every_notebook_is_known():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(DETAILS)


@pytest.mark.parametrize("name", DETAILS)
def test_notebooks_read_the_report_that_is_there(name: str, tmp_path: Path, monkeypatch, capsys):
    cells = [c for c in json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells), "outputs of notebooks are not kept in the repository"
    (tmp_path / "pyproject.toml").touch()
    (below := tmp_path / "experiments" / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(below)
    matplotlib.use("agg")
    report = Report(title="t", rows=[Row(what="ours", quantity="AUPRC", measured=0.8)], remarks=["Said."],
                    details=DETAILS[name])  # fmt: skip
    report.save(tmp_path / "runs" / "experiments" / name, name)
    seen: dict = {}
    for cell in cells:
        # What starts with an exclamation mark runs the experiment where there is no report yet.
        code = "".join(f"{line.split('!')[0]}raise AssertionError\n" if line.lstrip().startswith("!") else line
                       for line in cell["source"])  # fmt: skip
        exec(code, seen)
    said = capsys.readouterr().out
    assert "ours | AUPRC | paper None | measured 0.8" in said
    assert "Said." in said

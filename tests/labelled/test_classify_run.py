"""`jaxlm train` of a classifier on eight devices: it learns, goes on where it left off, is judged, and predicts."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxlm.classification import Judged, auc
from jaxlm.cli import main
from jaxlm.config import Run
from jaxlm.data.feed import Feed
from jaxlm.data.labelled.loader import LabelledLoader
from jaxlm.decode import ConfigError, decode
from jaxlm.inspect import labelled_corpus, load_classifier, open_trained
from jaxlm.sharding import batch_sharding
from jaxlm.tree import named_leaves
from tests.labelled import tiny


def call(*arguments: str, code: int = 0) -> None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    assert ended.value.code == code


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("classify")


@pytest.fixture(scope="module")
def trained(home: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home))
        call("train", str(tiny.config(tiny.hatexplain(home / "data"))), "--run-dir", str(home / "run"))
    return home / "run"


def test_it_learns_and_is_judged(trained: Path, capsys: pytest.CaptureFixture[str]):
    call("eval", str(trained), "--json")
    out = capsys.readouterr().out
    facts = json.loads(out.splitlines()[-1])
    assert facts["split"] == "test"
    assert facts["macro_f1"] > 0.8, "two words tell each class"
    assert facts["auc"] > 0.9
    assert "macro F1" in out
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert "correct" in records[-1]
    assert "bits_per_byte" not in records[-1], "labels have no bytes"


def test_a_python_function_predicts(trained: Path):
    predictor = load_classifier(trained)
    found = predictor.predict_proba([["the", "kind", "cat"], ["the", "nasty", "cat"], "The nasty cat"])
    assert found.shape == (3, 3)
    assert np.allclose(found.sum(1), 1)
    assert found.argmax(1).tolist() == [0, 2, 2]
    assert np.array_equal(found[1], found[2]), "a string is cut into the same words"


def test_feeds_lay_labels_out_like_rows(trained: Path):
    opened = open_trained(trained, None)
    loader = LabelledLoader(labelled_corpus(opened).split("train"), 16, 12)
    batch = Feed(loader, batch_sharding(opened.session.mesh), 2, 8, packed=True)[3]
    assert batch["labels"].shape == (2, 8)
    assert batch["labels"].sharding.num_devices == 8
    assert np.array_equal(np.asarray(batch["labels"]).reshape(-1), loader.fetch(3)["labels"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": {"mode": "pack"}}, "data.mode=pack would put several texts"),
        ({"classify": {"pooling": "mean", "rationales": 1.0}}, "needs classify.pooling=attention"),
        ({"classify": {"pooling": "first"}, "model": {"causal": True}}, "needs model.causal=false"),
        ({"classify": {"dropout": 1.5}}, "classify.dropout=1.5"),
    ],
)
def test_bad_configurations_are_named(change: dict, said: str):
    base = {"data": {"mode": "truncate"}, "classify": {}, "model": {"causal": False}}
    with pytest.raises(ConfigError, match=said):
        decode(base | change, Run)


def test_the_area_under_the_curve_counts_ties_half():
    assert auc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, False, True, True])) == pytest.approx(0.875)
    assert np.isnan(auc(np.array([0.1, 0.2]), np.array([True, True])))
    facts = Judged(np.array([[0.8, 0.2], [0.3, 0.7]]), np.array([0, 1])).facts()
    assert facts["macro_f1"] == facts["auc"] == 1.0


def test_it_goes_on_as_if_it_had_not_stopped(trained: Path, home: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    whole = weights(trained)
    shutil.rmtree(trained / "checkpoints" / "40")
    (trained / "summary.json").unlink()
    call("train", str(trained / "config.yaml"), "--run-dir", str(trained), "--allow-rollback")
    resumed = weights(trained)
    assert all(np.array_equal(whole[name], resumed[name]) for name in whole)


def weights(run: Path) -> dict[str, np.ndarray]:
    opened = open_trained(run, 40)
    with jax.set_mesh(opened.session.mesh):
        return {name: np.asarray(leaf) for name, leaf in named_leaves(opened.model()).items()}

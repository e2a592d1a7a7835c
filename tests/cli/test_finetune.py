"""A run that starts from the weights of another: what it takes from there, what it records, what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.config import build
from jaxlm.decode import read
from jaxlm.inspect import open_trained
from jaxlm.tree import named_leaves
from tests.cli.programs import losses, write_config, write_texts

TUNED = """\
name: tuned
data: {{path: {texts}, cache: {cache}, sequence: 32, validation_fraction: 0.2}}
model: {{dropout: 0.0}}
optim: {{kind: lion, lr: 1e-9, warmup: 1}}
train: {{steps: 3, batch: 8, log_every: 1}}
sample: {{prompt: null}}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a trained run `base` and the configuration of a run to start from it."""
    folder = tmp_path_factory.mktemp("finetune")
    write_config(folder)
    texts = write_texts(folder / "others", files=6, words=500)
    (folder / "tuned.yaml").write_text(TUNED.format(texts=texts, cache=folder / "cache"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        run(folder / "tiny.yaml", folder / "base", "--train.steps", "4", "--checkpoint.every_steps", "2")
    return folder


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))


def run(config: Path, directory: Path, *arguments: object, code: int = 0) -> Path:
    with pytest.raises(SystemExit) as ended:
        main(["train", str(config), "--run-dir", str(directory), *map(str, arguments)])
    assert ended.value.code == code
    return directory


def weights(directory: Path, step: int) -> dict[str, np.ndarray]:
    trained = open_trained(directory, step)
    return {name: np.asarray(leaf) for name, leaf in named_leaves(trained.model()).items()}


def facts(directory: Path, step: int) -> dict:
    return json.loads((directory / "checkpoints" / str(step) / "manifest.json").read_text())["facts"]


def test_it_begins_with_the_weights_and_tokenizer_of_its_parent_and_goes_on_by_itself(home, capsys):
    base = home / "base"
    tuned = run(home / "tuned.yaml", home / "tuned", "--from", f"{base}@2", "--profile", "2:2")
    printed = capsys.readouterr().out
    assert f"starting from the weights of {base} after step 2, with model.dropout 0.1 -> 0.0" in printed
    assert [step for step, *_ in losses(tuned)] == [1, 2, 3]
    assert "steps 2 to 2 are recorded" in printed
    suffixes = {"".join(path.suffixes[-2:]) for path in (tuned / "profile").rglob("*") if path.is_file()}
    assert {".xplane.pb", ".json.gz"} <= suffixes, "a form for xprof, and one for Perfetto"
    before, after, later = weights(base, 2), weights(tuned, 3), weights(base, 4)
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, atol=1e-7, err_msg=f"{name} at a rate of 1e-9")
        assert not np.allclose(later[name], value, atol=1e-7)
    assert (tuned / "tokenizer.model").read_bytes() == (base / "tokenizer.model").read_bytes()
    manifest = json.loads((base / "checkpoints" / "2" / "manifest.json").read_text())
    parent = {"run": str(base), "step": 2, "manifest": manifest["digest"]}
    assert facts(tuned, 3)["parent"] == parent
    assert read(tuned / "config.yaml")["parent"] == parent

    run(home / "tuned.yaml", home / "tuned", "--train.steps", "5")
    printed = capsys.readouterr().out
    assert "resuming" in printed
    assert "after step 3" in printed
    assert "the learning-rate schedule (cosine) now ends at step 5, not 3" in printed
    assert facts(tuned, 5)["parent"] == parent, "the parent is recorded in every checkpoint"


def test_a_run_goes_on_when_its_parent_is_gone_and_cannot_change_it(home, capsys):
    lost = home / "lost"
    shutil.copytree(home / "base", lost)
    tuned = run(home / "tuned.yaml", home / "orphan", "--from", lost)
    shutil.rmtree(lost)
    run(tuned / "config.yaml", tuned)
    assert "is complete: 3 steps are done" in capsys.readouterr().out
    run(home / "tuned.yaml", tuned, "--from", lost, "--train.steps", "5")
    assert "after step 3" in capsys.readouterr().out
    run(home / "tuned.yaml", tuned, "--from", home / "base", code=2)
    assert f"holds a run that started from {lost}@4, not from {home}/base" in capsys.readouterr().err
    run(home / "tiny.yaml", home / "base", "--from", lost, "--train.steps", "4", code=2)
    assert f"{lost} is no run directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "{home}/base@7"], "has no checkpoint of step 7 (steps there: 4, 2)"),
        (["--from", "{home}/bse"], "did you mean {home}/base?"),
        (["--model.layers", "3"], "model/blocks/attn/k: checkpoint (2, 32, 4, 8), this model (3, 32, 4, 8)"),
        (["--model.tied", "false"], "model/head: not in the checkpoint, this model (32, 384)"),
        (["--model.layers", "3"], "Leave the model section out to take that of {home}/base"),
        (["--data.tokenizer.vocab", "380"], "data.tokenizer.vocab=380 is not that of the tokenizer of {home}/base"),
        (["--data.tokenizer.path", "{home}/other.model"], "other.model is not the tokenizer of {home}/base"),
        (["--profile", "3:9"], "--profile 3:9: the steps must be in order and within 1:3"),
        (["--train.wandb", "papers"], "train.wandb=papers needs the package wandb, which is not installed"),
        (
            ["--optim.kind", "lionn"],
            "optim.kind: 'lionn' is not one of adamw, lion, adafactor, muon, sgd; did you mean",
        ),
        (["--optim.eps", "1e-8"], "optim: unknown key 'eps' of kind lion"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_named_before_any_work(home, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if not (home / "other.model").exists():
        from jaxlm.data.config import TokenizerConfig
        from jaxlm.data.tokenizer import Tokenizer

        texts = [path.read_text() for path in (home / "others").iterdir()]
        Tokenizer.train(texts, TokenizerConfig(vocab=340), home / "other.model")
    given = [part.format(home=home) for part in arguments]
    start = [] if "--from" in given else ["--from", str(home / "base")]
    run(home / "tuned.yaml", tmp_path / "run", *start, *given, code=2)
    assert message.format(home=home) in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_key_parent_says_the_same_as_from(home, capsys):
    raw = read(home / "tuned.yaml") | {"parent": {"run": str(home / "base")}}
    assert build(raw, "a file").parent is not None
    (home / "keyed.yaml").write_text(json.dumps(raw))
    with pytest.raises(SystemExit):
        main(["plan", str(home / "keyed.yaml"), "--json"])
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    with pytest.raises(SystemExit):
        main(["train", str(home / "keyed.yaml"), "--print-config"])
    printed = capsys.readouterr().out
    assert "  step: 4 " in printed
    assert "layers: 2" in printed

"""Scores from sums and counts, and pictures of runs."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from jaxlm.cli import main
from jaxlm.decode import ConfigError
from jaxlm.trainer.evaluate import evaluate, macro_f1
from jaxlm.trainer.plot import draw, plot_runs, read_curve, smoothed


def one_hot_logits(guesses: list[int], classes: int) -> np.ndarray:
    return np.eye(classes)[guesses]


def counts_of(logits: np.ndarray, targets: list[int]) -> dict[str, np.ndarray]:
    guesses, classes = logits.argmax(-1), logits.shape[-1]
    count = lambda ids: np.bincount(np.asarray(ids, int), minlength=classes)
    return {"hits": count([t for g, t in zip(guesses, targets, strict=True) if g == t]),
            "guesses": count(guesses), "targets": count(targets)}  # fmt: skip


def test_scores_of_a_case_to_check_by_eye():
    """Targets 0 0 1 2, predictions 0 1 1 3, of six classes.

    F1 of class 0: 1 hit, 1 guess, 2 targets: 2/3. Class 1: 1 hit, 2 guesses, 1 target: 2/3. Classes 2 and 3: 0.
    Classes 4 and 5 do not occur.
    """
    logits = one_hot_logits([0, 1, 1, 3], 6)
    logits[0, 4] = logits[0, 0]  # of equals the first counts
    batches = [(logits[:1], [0]), (logits[1:], [0, 1, 2])]
    sums = lambda model, batch: counts_of(*batch) | {"nll": 2.0 * len(batch[1]), "weight": float(len(batch[1]))}
    found = evaluate(sums, None, batches, bytes_per_token=4.0)
    assert found.top1 == 2 / 4
    assert found.macro_f1 == pytest.approx((2 / 3 + 2 / 3) / 4)
    assert found.macro_f1_classes == 4
    assert (found.loss, found.tokens, found.bytes) == (2.0, 4, 16)
    assert found.bits_per_byte == pytest.approx(2 / math.log(2) / 4)
    assert found.perplexity == pytest.approx(math.exp(2))


def f1_by_sets(guesses: np.ndarray, targets: np.ndarray) -> float:
    """Precision and recall from the definition, class by class."""
    scores = []
    for c in sorted({*guesses.tolist(), *targets.tolist()}):
        said, true = set(np.flatnonzero(guesses == c)), set(np.flatnonzero(targets == c))
        both = len(said & true)
        precision, recall = both / len(said) if said else 0.0, both / len(true) if true else 0.0
        scores.append(2 * precision * recall / (precision + recall) if both else 0.0)
    return sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(20))
def test_macro_f1_is_the_mean_over_classes_of_the_harmonic_mean_of_precision_and_recall(seed):
    random = np.random.default_rng(seed)
    classes, size = int(random.integers(1, 40)), int(random.integers(1, 200))
    targets = random.zipf(1.5, size) % classes
    guesses = np.where(random.random(size) < 0.4, targets, random.integers(0, classes, size))
    counts = counts_of(one_hot_logits(guesses.tolist(), classes), targets.tolist())
    assert macro_f1(**counts) == pytest.approx(f1_by_sets(guesses, targets), abs=1e-12)


def test_counts_beyond_32_bits_add_up_exactly():
    large = 2**31 - 1
    counts = {name: np.array([large], np.int32) for name in ("hits", "guesses", "targets")}
    found = evaluate(lambda *_: counts | {"nll": 1.0, "weight": 1.0}, None, range(3), 1.0)
    assert (found.top1, found.macro_f1) == (1.0, 1.0)


def test_what_was_not_counted_is_left_out():
    found = evaluate(lambda *_: {"nll": 1.0, "weight": 1.0}, None, [None], 1.0)
    assert set(found.facts()) == {"loss", "bits_per_byte", "perplexity", "tokens", "bytes"}


def write_run(path: Path, steps: list[int], **changes: object) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    record = {"tokens_per_second": 500.0, "step_seconds": 2.0, "memory_bytes": 2**30}
    lines = [json.dumps({"step": s, "loss": 10.0 / s, "bits_per_byte": 5.0 / s} | record | changes) for s in steps]
    (path / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 99, "lo']))  # being written at this moment
    return path


def test_a_picture_of_runs_by_tokens_and_seconds(tmp_path):
    """Records at steps 1, 5, 10 of 1000 tokens and 2 seconds each, the last line cut off in the middle."""
    run = write_run(tmp_path / "a" / "run", [1, 5, 10])
    other = write_run(tmp_path / "b" / "run", [1])
    evaluation = {"step": 5, "loss": 3.0, "bits_per_byte": 1.5}
    (run / "evaluations.jsonl").write_text(json.dumps(evaluation) + "\n")
    curve = read_curve(run)
    assert curve.tokens.tolist() == [1000, 5000, 10_000]
    assert curve.seconds.tolist() == [2, 10, 20]
    figure = draw([run, other], by="seconds", unit="loss", smooth=0.5)
    lines = figure.axes[0].get_lines()
    labels = [str(line.get_label()) for line in lines]
    assert [label for label in labels if not label.startswith("_")] == ["a/run", "b/run", "held-out text"]
    points = [(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist()) for line in lines]
    assert ([10.0], [3.0]) in points, "held-out loss at its seconds"
    for ending in ("png", "pdf"):
        plot_runs([run, other], tmp_path / "new" / f"all.{ending}", by="tokens")
    assert (tmp_path / "new" / "all.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "new" / "all.pdf").read_bytes().startswith(b"%PDF")


def test_a_moving_average_begins_at_the_first_value_and_forgets():
    assert smoothed(np.array([3.0, 3.0, 3.0]), 0.9).tolist() == pytest.approx([3, 3, 3])
    assert smoothed(np.array([4.0, 1.0]), 0.5).tolist() == pytest.approx([4, (0.5 * 4 + 1) / 1.5])
    assert smoothed(np.array([4.0, 1.0]), 0.0).tolist() == [4, 1]


def test_a_run_that_cannot_be_drawn_is_named(tmp_path):
    good = write_run(tmp_path / "good", [1])
    old = write_run(tmp_path / "old", [1, 2], bits_per_byte=None)
    new, empty = tmp_path / "new", tmp_path / "empty"
    new.mkdir()
    write_run(empty, [])
    out = tmp_path / "x.png"
    for runs, message in (
        ([good, tmp_path / "none"], f"{tmp_path}/none is absent"),
        ([good, new], f"{new} has no metrics.jsonl"),
        ([good, empty], f"{empty}/metrics.jsonl holds no record yet"),
        ([good, old], f"{old}/metrics.jsonl: bits_per_byte is missing in the record of step 1 \\(it has step, loss"),
        ([], "give at least one run directory"),
    ):
        with pytest.raises(ConfigError, match=message):
            plot_runs(runs, out)
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        plot_runs([good], tmp_path / "x.jpg")
    with pytest.raises(ConfigError, match=r"smooth=1\.0 must be"):
        plot_runs([good], out, smooth=1.0)
    assert not out.exists()


def test_the_command_draws_runs_and_refuses_what_is_none(tmp_path, capsys):
    runs = [str(write_run(tmp_path / name, [1, 2])) for name in ("a", "b")]
    picture = tmp_path / "both.svg"
    for arguments, code in ((runs, 0), ([*runs, str(tmp_path / "c")], 2), ([], 2)):
        with pytest.raises(SystemExit) as ended:
            main(["plot", *arguments, "--out", str(picture), "--by", "tokens"])
        assert ended.value.code == code
        if code == 0:
            assert picture.read_text().lstrip().startswith("<?xml")
            picture.unlink()
        assert not picture.exists()
    said = capsys.readouterr()
    assert f"saved {picture}" in said.out
    assert f"{tmp_path}/c is absent" in said.err
    assert "give at least one run directory" in said.err

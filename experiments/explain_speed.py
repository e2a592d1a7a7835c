"""What does explaining a text cost beside asking the classifier about it?

Question: seconds of one text of 128 tokens, words in and scores out, of ours, ours from the last layer and integrated
          gradients, as multiples of a forward pass; and of LIME as a multiple of ours. The same for a deeper classifier
          with random weights, on which nothing but time can be measured.
Cost:     a minute on a quiet machine, most of it compiling and LIME.
Run:      python -m experiments.explain_speed --run RUN [--samples 1000] [--rounds 41] [--json]
Needs:    a classifier trained by `jaxlm train`; the extra `explain` for LIME: `--samples 0` does without.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.decode import ConfigError
from jaxlm.explain.libraries import lime
from jaxlm.explain.methods import METHODS
from jaxlm.explain.subject import HARMFUL, Subject, Words
from jaxlm.explain.texts import WordEncoder
from jaxlm.explaining import open_subject
from jaxlm.model.classifier import Classifier
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Execution

TOKENS = 128
BOUNDS = {"ours, last layer": 2.0, "ours, not smoothed": 4.0, "ours": 4.0}
"""Times a forward pass, at most."""
LIME = 50.0
"""Times the seconds of ours, at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Time of explanations.

    Attributes:
        run: directory of a trained classifier.
        samples: LIME asks the model this often; 0 leaves it out.
        rounds: each is one call of every method in turn, so that what disturbs the machine disturbs all of them.
        layers: of the deeper classifier with random weights; 0 leaves it out.
        embed: its width.
    """

    run: str | None = None
    samples: int = 1000
    rounds: int = 41
    layers: int = 12
    embed: int = 256


def measure(config: Config, out: Path) -> Report:
    if config.run is None:
        raise ConfigError("no classifier is given: --run RUN names the directory of a trained one")
    opened = open_subject(Path(config.run))
    with opened.mesh():
        rows = speed_rows(opened.subject, samples=config.samples, rounds=config.rounds)
        if config.layers:
            deep = deeper(opened.subject, config.layers, config.embed)
            name = f"{config.layers} layers of width {config.embed}, random weights"
            rows += speed_rows(deep, samples=0, rounds=config.rounds, name=name)
    return Report(title="Seconds of an explanation", rows=rows)


def deeper(subject: Subject, layers: int, embed: int) -> Subject:
    shape = ModelConfig(layers=layers, embed=embed, heads=4, mlp=3 * embed, vocab=1024, causal=False)
    build = lambda key: Classifier(shape, Execution(), classes=len(subject.classes), key=key)
    return dataclasses.replace(subject, model=jax.jit(build)(jax.random.key(0)))


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int, *, warm: int = 3) -> dict[str, np.ndarray]:
    """Seconds of each call, round by round, float64 [rounds]."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for at in range(rounds + warm):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if at >= warm:
                taken[name].append(time.perf_counter() - began)
    return {name: np.array(seconds) for name, seconds in taken.items()}


def speed_rows(subject: Subject, *, samples: int, rounds: int = 41, name: str = "") -> list[Row]:
    """Ratios are medians over rounds, each within its round. The text is longer than the rows that the run was trained
    on may be: positions are rotary, and time does not ask what the scores are worth."""
    assert isinstance(subject.encoder, WordEncoder)
    encoder = dataclasses.replace(subject.encoder, longest=TOKENS)
    # One row per device, so that a batch can be split over them.
    single = dataclasses.replace(subject, encoder=encoder, rows=jax.device_count())
    words: Words = tuple(f"w{i}" for i in range(TOKENS))
    classes = np.array([HARMFUL])
    asked = [*BOUNDS, "integrated gradients"]
    calls: dict[str, Callable[[], Any]] = {"forward": lambda: single.probabilities([words])}
    calls |= {method: lambda method=method: METHODS[method](single, [words], classes) for method in asked}
    taken = interleaved(calls, rounds)
    about = f"{name}; " if name else ""
    note = f"{about}{TOKENS} tokens, words in and probabilities out; median of {rounds}"
    rows = [Row(what="forward pass", quantity="seconds", measured=float(np.median(taken["forward"])), note=note)]
    for method in asked:
        ratio = float(np.median(taken[method] / taken["forward"]))
        most = BOUNDS.get(method)
        said = "" if most is None else f"{'met' if ratio < most else 'MISSED'}: target below {most:.0f}"
        note = f"{about}{said}".removesuffix("; ")
        rows.append(Row(what=method, quantity="times a forward pass", measured=ratio, note=note))
    if samples:
        wide = dataclasses.replace(single, rows=subject.rows)
        slow = interleaved({"LIME": lambda: lime(wide, words, HARMFUL, samples=samples)}, 3, warm=1)["LIME"]
        ratio = float(np.median(slow) / np.median(taken["ours"]))
        note = f"{'met' if ratio >= LIME else 'MISSED'}: target at least {LIME:.0f}; {samples} samples"
        rows.append(Row(what="LIME", quantity="times the seconds of ours", measured=ratio, note=note))
    return rows


if __name__ == "__main__":
    main("explain_speed", __doc__, Config, measure)

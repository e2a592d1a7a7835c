"""Which form should our relevance have? The search by which it was chosen, on validation posts alone.

Question: AUPRC against people's marks and AOPC comprehensiveness of attention where its gradient speaks for the class,
          of the gradient along the embeddings, each at several places between nothing and the text, of what words say
          alone, of sums of two, and of the best under several smoothings; beside integrated gradients and attention x
          gradient rolled out, the strongest baselines. No test post is read.
Cost:     five minutes on one core.
Run:      python -m experiments.relevance_forms --data HATEXPLAIN --run RUN [--rows 320] [--json]
Found:    experiments/LOG.md, "explanations of a HateXplain classifier".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import explained
from experiments.entry import main
from experiments.explained import gold_of, marked
from experiments.report import Report, Row
from jaxlm.decode import ConfigError
from jaxlm.explain.fidelity import agreement, paired_interval
from jaxlm.explain.methods import METHODS, NEIGHBOURS, Scores, smoothed
from jaxlm.explain.relevance import Batch, every_layer, from_nothing
from jaxlm.explain.removal import faithfulness
from jaxlm.explain.subject import HARMFUL, Subject
from jaxlm.explaining import open_subject
from jaxlm.model.classifier import Classifier

PLACES = (1.0, 0.5, 0.25, 0.1)
"""On the way from nothing (0) to the text (1)."""
ALONE = "alone"
SUMS = (
    ("attention@1", ALONE), ("attention@1", "along@0.1"), ("attention@1", "along@0.25"), ("attention@1", "along@1"),
    ("attention@0.5", "along@0.5"), ("attention@0.25", "along@0.25"), ("attention@1", "attention@0.25"),
)  # fmt: skip
KERNELS = ((0.05, 0.1, 1.0, 0.1, 0.05), (0.1, 0.2, 1.0, 0.2, 0.1), NEIGHBOURS)
RIVALS = ("integrated gradients", "attention x gradient, rolled out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A search on validation posts.

    Attributes:
        data: folder or file of HateXplain.
        run: directory of a trained classifier.
        rows: at most this many validation posts in which people marked something.
    """

    data: str | None = None
    run: str | None = None
    rows: int = 320


def attention(model: Classifier, batch: Batch, classes_B: jax.Array, *, mask: int = -1, at: float = 1.0) -> jax.Array:
    found = every_layer(model, batch, classes_B, mask=mask, at=at)
    return jnp.sum(found.maps * jax.nn.relu(found.dmaps), axis=(0, 2, 3)) * (batch["segments"] > 0)


def along(model: Classifier, batch: Batch, classes_B: jax.Array, *, mask: int = -1, at: float = 1.0) -> jax.Array:
    found = every_layer(model, batch, classes_B, mask=mask, at=at)
    return (jnp.sum((found.x * found.dx).astype(jnp.float32), axis=-1) + found.dheard) * (batch["segments"] > 0)


def alone(model: Classifier, batch: Batch, classes_B: jax.Array, *, mask: int = -1) -> jax.Array:
    found = every_layer(model, batch, classes_B)
    return (from_nothing(model, batch, found.members, mask=mask) + found.dheard) * (batch["segments"] > 0)


def forms(subject: Subject, texts: Sequence[Sequence[str]]) -> dict[str, Scores]:
    """Single terms, and sums of two."""
    classes = np.full(len(texts), HARMFUL)
    mask = -1 if subject.encoder.mask is None else subject.encoder.mask
    call = lambda score, **how: subject.explain(score, texts, classes, mask=mask, **how)
    found = {ALONE: call(alone)}
    for at in PLACES:
        found[f"attention@{at:g}"] = call(attention, at=at)
        found[f"along@{at:g}"] = call(along, at=at)
    return found | {f"{a} + {b}": _sum(found, a, b) for a, b in SUMS}


def _sum(found: Mapping[str, Scores], one: str, other: str) -> Scores:
    return [a + b for a, b in zip(found[one], found[other], strict=True)]


def measure(config: Config, out: Path) -> Report:
    if config.run is None:
        raise ConfigError("no classifier is given: --run RUN names the directory of a trained one")
    valid = marked(explained.hatexplain(config.data).valid)[: config.rows]
    texts, gold, classes = [e.words for e in valid], gold_of(valid), np.full(len(valid), HARMFUL)
    opened = open_subject(Path(config.run))
    with opened.mesh():
        subject = opened.subject
        found = {name: METHODS[name](subject, texts, classes) for name in RIVALS} | forms(subject, texts)
        lost = {name: faithfulness(subject, texts, scores, classes) for name, scores in found.items()}
        best = max((n for n in found if n not in RIVALS), key=lambda n: lost[n].comprehensiveness)
        for kernel in KERNELS:
            name = f"{best}, smoothed by {kernel}"
            found[name] = [smoothed(s, kernel) for s in found[best]]
            lost[name] = faithfulness(subject, texts, found[name], classes)
    rival = max(RIVALS, key=lambda n: lost[n].comprehensiveness)
    rows = []
    for name, scores in found.items():
        each = [lost[n].each_comprehensiveness for n in (name, rival)]
        mean, low, high = paired_interval(*each)
        note = "" if name == rival else f"{mean:+.4f} [{low:+.4f}, {high:+.4f}] against {rival}"
        value = lost[name].comprehensiveness
        rows.append(Row(what=name, quantity="AUPRC, validation", measured=agreement(scores, gold).auprc))
        rows.append(Row(what=name, quantity="AOPC comprehensiveness (mask), validation", measured=value, note=note))
    remark = f"{len(valid)} validation posts. Highest comprehensiveness of the forms tried: {best}."
    return Report(title="Forms of relevance, on validation posts", rows=rows, remarks=[remark])


if __name__ == "__main__":
    main("relevance_forms", __doc__, Config, measure)

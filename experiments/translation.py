"""Translates a test set with a trained run, and scores it: BLEU and chrF by sacrebleu."""

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm.data.config import DataConfig, DataError
from jaxlm.data.sources import BY_DOCUMENT, TEST, TRAIN, VALID, Corrupt, Source, find_sources, read
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decode import ConfigError
from jaxlm.files import write_whole


@dataclass(frozen=True, slots=True)
class Sentences:
    """A test set with one reference translation each; `unusable` pairs, a side of which is empty or broken, are left
    out."""

    name: str
    sources: tuple[str, ...]
    references: tuple[str, ...]
    unusable: int = 0

    def first(self, count: int) -> "Sentences":
        """The first `count` sentences; all of them for 0."""
        return Sentences(self.name, self.sources[: count or None], self.references[: count or None], self.unusable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Corpus scores from 0 to 100, and how sacrebleu computed them."""

    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Translated:
    """What a run makes of a test set.

    Attributes:
        translations: of each source, in order.
        scores: of the translations.
        weights: SHA-256 over the names and bytes of all weights of the checkpoint.
    """

    translations: tuple[str, ...]
    scores: Scores
    weights: str


def require_scores() -> None:
    """Raises ConfigError where sacrebleu is not installed."""
    if importlib.util.find_spec("sacrebleu") is None:
        raise ConfigError(
            "BLEU needs the package sacrebleu, which is not installed: run `uv sync --extra translate` "
            "(or pip install 'jaxlm[translate]')"
        )


def to_translate(data: DataConfig, name: str | None = None) -> Sentences:
    """What to translate: the test set `name`, such as test_2016_flickr, else the first by name; without any test set,
    the first validation set, and without that the held-out part of the text. Raises DataError."""
    sources, _ = find_sources(data)
    splits = (TEST, VALID, BY_DOCUMENT)
    held_out = next((found for split in splits if (found := [s for s in sources if s.split == split])), [])
    if not held_out:
        raise DataError(f"data.path={data.path} holds nothing to test translations on, such as test.en and test.de")
    named = {_stem(source): source for source in sorted(held_out, key=lambda source: source.name)}
    if name is not None and name not in named:
        raise DataError(f"test={name}: data.path={data.path} has no such test set; it has {', '.join(named)}")
    name = name or next(iter(named))
    items = list(read(named[name], data.validation_fraction))
    pairs = [item for item in items if not isinstance(item, Corrupt) and item.split != TRAIN]
    if not pairs:
        raise DataError(f"test={name}: it holds no pair")
    references = tuple(pair.text for pair in pairs)
    unusable = sum(isinstance(item, Corrupt) for item in items)
    return Sentences(name, tuple(pair.prompt or "" for pair in pairs), references, unusable)


def _stem(source: Source) -> str:
    """`test_2016_flickr` of test_2016_flickr.en.gz."""
    path = Path(source.name)
    return (path.with_suffix("") if source.compression else path).stem


def translate(run: Path, test: Sentences, folder: Path) -> Translated:
    """Greedy translations by the newest checkpoint of a run, written to `folder`/RUN.txt, and their scores.

    Raises DataError for a source that leaves no room in a row of `data.sequence` tokens.
    """
    import jax

    from jaxlm.inspect import open_trained
    from jaxlm.model.complete import complete

    trained = open_trained(run, None)
    tokenizer, length = trained.tokenizer, trained.run.data.sequence
    if not isinstance(tokenizer, Tokenizer):
        raise DataError(f"{run} is a run of a classifier, which translates nothing")
    encoded = tokenizer.encode_many(test.sources)
    prompts = [[tokenizer.bos, *ids.tolist(), tokenizer.bos] for ids in encoded]
    longest = max(range(len(prompts)), key=lambda number: len(prompts[number]))
    if len(prompts[longest]) >= length:
        raise DataError(
            f"sentence {longest + 1} of {test.name} has {len(prompts[longest]) - 2} tokens, which leaves no room for "
            f"its translation in data.sequence={length}; raise that"
        )
    with jax.set_mesh(trained.session.mesh):
        model = trained.model()
    model = jax.device_put(model, jax.local_devices()[0])  # it is small: devices would wait for each other
    made = complete(model, prompts, end=tokenizer.eos, length=length, vocab=tokenizer.vocab)
    # A newline inside a translation would shift all lines after it.
    translations = tuple(" ".join(tokenizer.decode(ids).split("\n")) for ids in made)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"{run.name}.txt", "".join(f"{line}\n" for line in translations).encode())
    return Translated(
        translations=translations, scores=score(translations, test.references), weights=weights_digest(model)
    )


def score(translations: Sequence[str], references: Sequence[str]) -> Scores:
    """BLEU and chrF of whole lists against one reference each (https://aclanthology.org/W18-6319)."""
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    bleu, chrf = BLEU(), CHRF()
    found = bleu.corpus_score(translations, [references]), chrf.corpus_score(translations, [references])
    return Scores(
        bleu=found[0].score,
        chrf=found[1].score,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
    )


def weights_digest(model: Any) -> str:
    """SHA-256 (hex) over all weights in the order of their names: equal digests mean equal bits."""
    from jaxlm.tree import named_leaves

    digest = hashlib.sha256()
    for name, leaf in sorted(named_leaves(model).items()):
        digest.update(name.encode() + np.asarray(leaf).tobytes())
    return digest.hexdigest()

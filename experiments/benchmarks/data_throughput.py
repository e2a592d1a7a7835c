"""How many tokens a second can one core read for training, and how fast are tokenizers learned and text encoded?

Question: tokens per second of the loader on one core (what a training process does for each batch, rows built and
          nothing else), the seconds until batch 1,000,000 of a run is in hand; seconds to learn a tokenizer and bytes
          per second of encoding, beside the plain call of SentencePiece on the same texts.
Aim:      4 million tokens a second from 16 cores, which 8 H200 at GPT-2 124M would eat; so 250,000 from one core.
Cost:     about two minutes. The text is the standard library of this Python unless `data.path` names another.
Run:      python -m experiments.benchmarks.data_throughput [--data.path FOLDER] [--json]
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from experiments.entry import main
from experiments.report import Report, Row
from jaxlm.data.config import DataConfig
from jaxlm.data.loader import Loader
from jaxlm.data.prepare import prepare
from jaxlm.data.stream import TokenStream
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.data.tokenizer_sentencepiece import learn

CORES, NEEDED = 16, 4e6
"""Cores that feed the GPUs, and the tokens per second that these eat."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is read.

    Attributes:
        data: the text and its tokenizer; its cache and its mode are chosen here.
        batch: rows of a step.
        steps: batches read for each figure.
        rounds: of which the median counts.
        text_bytes: of text that is encoded and that tokenizers are learned from.
    """

    data: DataConfig = dataclasses.field(default_factory=lambda: DataConfig(path="stdlib"))
    batch: int = 64
    steps: int = 20
    rounds: int = 5
    text_bytes: int = 4_000_000


def execute(config: Config, out: Path) -> Report:
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="jaxlm-data-") as folder:
        data = dataclasses.replace(config.data, cache=folder)
        corpus = prepare(data)
        stream = corpus.split("train")
        for mode in ("pack", "truncate"):
            loader = Loader(stream, config.batch, data.sequence, mode)
            rate = config.batch * data.sequence * config.steps / _cpu(config, partial(_read, loader, config.steps))
            what = f"loader, {mode}, rows of {data.sequence:,}"
            verdict = "met" if rate * CORES >= NEEDED else "missed"
            rows.append(Row(what=what, quantity="tokens/s of one core", measured=rate))
            note = f"{CORES} times the core's figure, not run on {CORES} cores; aim {NEEDED:,.0f}: {verdict}"
            rows.append(Row(what=what, quantity=f"tokens/s of {CORES} cores", predicted=rate * CORES, note=note))
            began = time.perf_counter()
            Loader(stream, config.batch, data.sequence, mode).fetch(1_000_000)
            rows.append(Row(what=what, quantity="ms to batch 1,000,000", measured=1e3 * (time.perf_counter() - began)))
        texts = _texts(stream, corpus.tokenizer, config.text_bytes)
    rows += _tokenizers(config, texts, corpus.tokenizer)
    return Report(title="Data for training, by one core", rows=rows)


def _read(loader: Loader, steps: int) -> None:
    for step in range(steps):
        loader.fetch(step)


def _cpu(config: Config, call: Callable[[], object]) -> float:
    """Median of the seconds of this process's CPU time; the machine may be shared."""
    call()
    times = []
    for _ in range(config.rounds):
        began = time.process_time()
        call()
        times.append(time.process_time() - began)
    return float(np.median(times))


def _texts(stream: TokenStream, tokenizer: Tokenizer, size: int) -> list[str]:
    """Documents of the corpus, about `size` bytes together."""
    found, total = [], 0
    for number in range(stream.documents):
        text = tokenizer.decode(stream.document(number))
        found.append(text)
        total += len(text.encode())
        if total >= size:
            break
    return found


def _tokenizers(config: Config, texts: list[str], tokenizer: Tokenizer) -> list[Row]:
    import sentencepiece

    size = sum(len(text.encode()) for text in texts)
    plain = sentencepiece.SentencePieceProcessor()
    plain.LoadFromSerializedProto(tokenizer.model)
    ours = size / _cpu(config, lambda: tokenizer.encode_many(texts, threads=1))
    theirs = size / _cpu(config, lambda: plain.encode(texts, out_type=int, num_threads=1))
    what = f"encoding {size / 1e6:.1f} MB, {tokenizer.vocab:,} tokens"
    began = time.process_time()
    learn(texts, config.data.tokenizer)
    learned = time.process_time() - began
    again = time.process_time()
    _plain_learn(texts, config.data.tokenizer.vocab)
    bare = time.process_time() - again
    lesson = f"learning {config.data.tokenizer.vocab:,} tokens from {size / 1e6:.1f} MB"
    note = "its own defaults for white space and normalisation, which lose some texts"
    return [
        Row(what=what, quantity="MB/s of one core, ours", measured=ours / 1e6),
        Row(what=what, quantity="MB/s of one core, plain SentencePiece", measured=theirs / 1e6),
        Row(what=what, quantity="ours over plain", measured=ours / theirs),
        Row(what=lesson, quantity="CPU seconds, ours", measured=learned),
        Row(what=lesson, quantity="CPU seconds, plain SentencePiece", measured=bare, note=note),
    ]


def _plain_learn(texts: list[str], vocab: int) -> None:
    import io

    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines()),
        model_writer=io.BytesIO(),
        vocab_size=vocab,
        model_type="bpe",
        byte_fallback=True,
        minloglevel=2,
    )


if __name__ == "__main__":
    main("data_throughput", __doc__, Config, execute)

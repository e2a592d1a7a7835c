"""Held-out evaluation and samples of a model in a session."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxlm.config import Sample
from jaxlm.data.corpus import Corpus
from jaxlm.data.loader import Evaluation as HeldOut
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.model.generate import generate
from jaxlm.model.predictions import judged
from jaxlm.model.transformer import Transformer
from jaxlm.session import Session
from jaxlm.sharding import replicated
from jaxlm.trainer.evaluate import Evaluation, evaluate
from jaxlm.trainer.stop import Asked, never, until


class Judge:
    """Evaluates a model on the held-out split of a corpus; the same compiled programs each time."""

    def __init__(self, session: Session, corpus: Corpus, split: str | None = None):
        self.session = session
        replicas = session.plan.replicas
        wanted = session.run.train.eval_batch or session.plan.batch.microbatch
        self.batch = -(-wanted // replicas) * replicas
        self.sums = session.sums()
        self.predictions = jax.jit(
            lambda model, batch: judged(model, jax.tree.map(lambda leaf: leaf[0], batch)),
            out_shardings=replicated(session.mesh),
        )
        self._read(corpus, split)

    def _read(self, corpus: Corpus, split: str | None) -> None:
        self.split = split or corpus.held_out.name
        self.source = HeldOut(corpus.split(self.split), self.batch, self.session.run.data.sequence)

    def on(self, corpus: Corpus, split: str | None = None) -> "Judge":
        """The same programs for another corpus of the same tokenizer."""
        other = copy.copy(self)
        other._read(corpus, split)
        return other

    def __call__(
        self, model: Transformer, batches: int = 0, *, predictions: bool = False, asked: Asked = never
    ) -> Evaluation:
        """`batches` 0 means the whole split, every token of it. `predictions` counts them too, for accuracy and F1:
        another compiled program, and a pass over the logits more. Raises Interrupted between two batches when `asked`
        returns a signal."""
        count = min(batches or self.source.batches, self.source.batches)
        feed = self.session.feed(self.source, 1, self.batch, packed=True)
        sums = self.predictions if predictions else self.sums
        batches_of_text = until(asked, feed.iterate(0, count))
        result = evaluate(sums, model, batches_of_text, self.source.bytes / self.source.targets)
        if count == self.source.batches and result.tokens != self.source.targets:
            raise RuntimeError(f"evaluated {result.tokens} tokens of {self.source.targets}: the split was not covered")
        return result

    def sentence(self, result: Mapping[str, Any]) -> str:
        """A result in a line."""
        return f"{result['bits_per_byte']:.4f} bits per byte, loss {result['loss']:.4f}"


def evaluation_table(title: str, facts: Mapping[str, Any]) -> str:
    """What an evaluation found, one quantity per line; `facts` as in the JSON of `jaxlm eval`."""
    rows = [
        ("text", f"{facts['bytes']:,} bytes", f"{facts['tokens']:,} predicted tokens"),
        (
            "bits per byte",
            f"{facts['bits_per_byte']:.4f}",
            f"gzip -9 of the same text: {facts['gzip_bits_per_byte']:.4f}",
        ),
        ("loss", f"{facts['loss']:.4f}", "nats per token"),
        ("perplexity", f"{facts['perplexity']:.2f}", ""),
        ("next token, top 1", f"{facts['top1']:.2%}", "share of tokens predicted rightly"),
        ("macro F1", f"{facts['macro_f1']:.4f}", f"over {facts['macro_f1_classes']:,} token ids that occur"),
    ]
    if "latency_p50_ms" in facts:
        how = f"1 x {facts['latency_tokens']} tokens to logits, median of {facts['latency_calls']}"
        rows.append(
            ("latency", f"{facts['latency_p50_ms']:.1f} ms", f"{how}; 95th percentile {facts['latency_p95_ms']:.1f} ms")
        )
    widths = [max(len(row[i]) for row in rows) for i in (0, 1)]
    lines = [f"  {name:<{widths[0]}}  {value:>{widths[1]}}  {note}".rstrip() for name, value, note in rows]
    return "\n".join([title, *lines])


def continuation(
    model: Transformer,
    tokenizer: Tokenizer,
    how: Sample,
    *,
    seed: int = 0,
    stop: tuple[str, ...] = (),
    pairs: bool = False,
) -> Iterator[bytes]:
    """The bytes of a sample, piece by piece, ending before the first `stop` text.

    Where the model was trained on `pairs` the prompt is a source, and the sample its target.
    """
    prompt = [tokenizer.bos, *(int(i) for i in tokenizer.encode(how.prompt or "")), *([tokenizer.bos] * pairs)]
    made, sent = b"", 0
    longest = max((len(s.encode()) for s in stop), default=0)
    for token in generate(
        model, prompt, tokens=how.tokens, sampling=how.sampling(), seed=seed, end=tokenizer.eos, vocab=tokenizer.vocab
    ):
        made += tokenizer.bytes([token])
        ends = [at for s in stop if (at := made.find(s.encode())) >= 0]
        # What could still turn out to be the beginning of a stop text waits.
        safe = min(ends) if ends else max(len(made) - longest + 1, sent) if longest else len(made)
        yield made[sent:safe]
        sent = max(sent, safe)
        if ends:
            return
    yield made[sent:]


def sample(model: Transformer, tokenizer: Tokenizer, how: Sample, seed: int = 0, *, pairs: bool = False) -> str:
    """The prompt and what the model makes of it; of a source, its target on a line of its own (see `continuation`)."""
    # Every process holds part of the weights; the sample needs them whole, on each.
    whole: Any = jax.jit(lambda m: m, out_shardings=jax.sharding.NamedSharding(_mesh(model), jax.P()))(model)
    made = b"".join(continuation(whole, tokenizer, how, seed=seed, pairs=pairs))
    return (how.prompt or "") + "\n" * pairs + made.decode("utf-8", errors="replace")


def _mesh(model: Transformer) -> jax.sharding.Mesh:
    return jax.tree.leaves(model)[0].sharding.mesh

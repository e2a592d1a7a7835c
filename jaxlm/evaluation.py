"""Held-out evaluation and samples of a model in a session."""

from collections.abc import Iterator
from typing import Any

import jax

from jaxlm.config import Sample
from jaxlm.data.corpus import Corpus
from jaxlm.data.loader import Evaluation as HeldOut
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.model.generate import generate
from jaxlm.model.transformer import Transformer
from jaxlm.session import Session
from jaxlm.trainer.evaluate import Evaluation, evaluate


class Judge:
    """Evaluates a model on the held-out split of a corpus; the same compiled program each time."""

    def __init__(self, session: Session, corpus: Corpus, split: str | None = None):
        self.session, self.split = session, split or corpus.held_out.name
        replicas = session.plan.replicas
        wanted = session.run.train.eval_batch or session.plan.batch.microbatch
        self.batch = -(-wanted // replicas) * replicas
        self.source = HeldOut(corpus.split(self.split), self.batch, session.run.data.sequence)
        self.sums = session.sums()

    def __call__(self, model: Transformer, batches: int = 0) -> Evaluation:
        """`batches` 0 means the whole split, every token of it."""
        count = min(batches or self.source.batches, self.source.batches)
        feed = self.session.feed(self.source, 1, self.batch, packed=True)
        result = evaluate(self.sums, model, feed.iterate(0, count), self.source.bytes / self.source.targets)
        if count == self.source.batches and result.tokens != self.source.targets:
            raise RuntimeError(f"evaluated {result.tokens} tokens of {self.source.targets}: the split was not covered")
        return result


def continuation(
    model: Transformer, tokenizer: Tokenizer, how: Sample, *, seed: int = 0, stop: tuple[str, ...] = ()
) -> Iterator[bytes]:
    """The bytes of a sample, piece by piece, ending before the first `stop` text."""
    prompt = [tokenizer.bos, *(int(i) for i in tokenizer.encode(how.prompt or ""))]
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


def sample(model: Transformer, tokenizer: Tokenizer, how: Sample, seed: int = 0) -> str:
    """The prompt and what the model makes of it."""
    # Every process holds part of the weights; the sample needs them whole, on each.
    whole: Any = jax.jit(lambda m: m, out_shardings=jax.sharding.NamedSharding(_mesh(model), jax.P()))(model)
    made = b"".join(continuation(whole, tokenizer, how, seed=seed))
    return (how.prompt or "") + made.decode("utf-8", errors="replace")


def _mesh(model: Transformer) -> jax.sharding.Mesh:
    return jax.tree.leaves(model)[0].sharding.mesh

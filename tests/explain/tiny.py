"""A classifier small enough to train in a test: three words mean trouble, and nothing else does."""

import dataclasses
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.config import TokenizerConfig
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.explain.subject import Subject
from jaxlm.explain.texts import Example, PieceEncoder
from jaxlm.model.classifier import Classifier
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Execution

TROUBLE = ("smoke", "leak", "alarm")
QUIET = ("garden", "river", "lunch", "paper", "window", "music", "bread", "letter")
ENCODER = ModelConfig(layers=2, embed=16, heads=2, mlp=24, vocab_multiple=16, causal=False)


def examples(count: int, seed: int) -> list[Example]:
    """Half of them hold one or two words of trouble, which are their rationale."""
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        words = list(random.choice(QUIET, random.integers(4, 9)))
        marks = np.zeros(len(words), bool)
        if number % 2:
            for place in random.choice(len(words), random.integers(1, 3), replace=False):
                words[place], marks[place] = str(random.choice(TROUBLE)), True
        found.append(Example(tuple(map(str, words)), number % 2, marks if number % 2 else None, f"row{number}"))
    return found


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train([e.text for e in examples(200, 0)], TokenizerConfig(vocab=400))


def encoder() -> PieceEncoder:
    return PieceEncoder(tokenizer(), begin=tokenizer().bos, longest=32, mask=0)


@cache
def fresh(config: ModelConfig = ENCODER, seed: int = 1, execution: Execution = Execution(), **how: Any) -> Classifier:
    sized = dataclasses.replace(config, vocab=tokenizer().vocab)
    return jax.jit(lambda key: Classifier(sized, execution, classes=2, key=key, **how))(jax.random.key(seed))


@cache
def subject() -> Subject:
    """Trained until it knows the three words."""
    model, tx = fresh(), optax.adam(1e-2)
    texts = examples(128, 0)
    places, rows = next(iter(encoder().batches([e.words for e in texts], len(texts))))
    rows["labels"] = np.array([texts[i].label for i in places], np.int32)
    batch = {name: jnp.asarray(value) for name, value in rows.items() if name != "owners"}

    # In a quarter of the rows some words are hidden, so that the model knows its mask.
    hidden = jax.random.bernoulli(jax.random.key(3), 0.3, batch["tokens"].shape) & (batch["segments"] > 0)

    def cross_entropy(model: Classifier) -> jax.Array:
        tokens_BT = jnp.where(hidden & (jnp.arange(len(texts)) % 4 == 0)[:, None], 0, batch["tokens"])
        logits_BC = model.classify(model.represent(tokens_BT, batch["positions"], batch["segments"]))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits_BC, batch["labels"]))

    def train(model: Any) -> tuple[Any, jax.Array]:
        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            model, state = carry
            loss, gradient = jax.value_and_grad(cross_entropy)(model)
            updates, state = tx.update(gradient, state, model)
            return (optax.apply_updates(model, updates), state), loss

        (model, _), losses = jax.lax.scan(step, (model, tx.init(model)), None, length=60)
        return model, losses

    model, losses = jax.jit(train)(model)
    assert losses[-1] < 0.2, f"the tiny classifier did not learn: {losses[-1]}"
    return Subject(model, encoder(), ("quiet", "trouble"), rows=16)


def one_batch(count: int = 8) -> dict[str, jax.Array]:
    _, batch = next(iter(encoder().batches([e.words for e in examples(count, 5)], count)))
    return {name: jnp.asarray(value) for name, value in batch.items()}

"""A small classifier of words trained in a minute, for texts that no run of `jaxlm train` is made for.

Axes: B rows, T words, C classes.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data.labelled.vocabulary import MASK, Vocabulary
from jaxlm.explain.subject import Subject
from jaxlm.explain.texts import Example, WordEncoder
from jaxlm.model.classifier import Classifier
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Execution

ROWS = 64
HIDDEN = 0.15
"""Share of words hidden in training, so that taking words out is nothing new to the model."""


def small_classifier(
    train: Sequence[Example], classes: tuple[str, ...], *, vocab: int = 8192, longest: int = 64, epochs: int = 3,
    rate: float = 2e-3, seed: int = 0, say: Any = print,
) -> Subject:  # fmt: skip
    """Two bidirectional layers of width 96, mean pooling, AdamW with a cosine; labels are those of the examples."""
    words = Vocabulary.learn([e.words for e in train], vocab)
    encoder = WordEncoder(words, longest=longest, mask=MASK)
    config = ModelConfig(layers=2, embed=96, heads=4, mlp=192, vocab=words.vocab, causal=False, dropout=0.2)
    build = lambda key: Classifier(config, Execution(), classes=len(classes), rate=0.3, key=key)
    model: Any = jax.jit(build)(jax.random.key(seed))
    batches = list(encoder.batches([e.words for e in train], ROWS))
    tx = optax.adamw(optax.warmup_cosine_decay_schedule(0.0, rate, 50, epochs * len(batches)), weight_decay=0.1)
    state = tx.init(model)

    def loss(model: Classifier, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        kh, kt, kc = jax.random.split(key, 3)
        hidden_BT = jax.random.bernoulli(kh, HIDDEN, batch["tokens"].shape) & (batch["segments"] > 0)
        tokens_BT = jnp.where(hidden_BT, MASK, batch["tokens"])
        pooled_BD = model.represent(tokens_BT, batch["positions"], batch["segments"], kt)
        each_B = optax.softmax_cross_entropy_with_integer_labels(model.classify(pooled_BD, kc), batch["labels"])
        return jnp.sum(each_B * batch["weights"]) / jnp.maximum(jnp.sum(batch["weights"]), 1.0)

    @jax.jit
    def step(model: Any, state: Any, batch: dict[str, jax.Array], key: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(model, batch, key)
        updates, state = tx.update(gradient, state, model)
        return optax.apply_updates(model, updates), state, value

    random, number, labels = np.random.default_rng(seed), 0, [e.label or 0 for e in train]
    for epoch in range(epochs):
        seen = []
        for at in random.permutation(len(batches)):
            places, batch = batches[at]
            given = {name: jnp.asarray(batch[name]) for name in ("tokens", "positions", "segments")}
            given["labels"] = jnp.zeros(ROWS, jnp.int32).at[: len(places)].set(jnp.asarray([labels[i] for i in places]))
            given["weights"] = (jnp.arange(ROWS) < len(places)).astype(jnp.float32)
            key = jax.random.fold_in(jax.random.key(seed), number)
            model, state, value = step(model, state, given, key)
            seen.append(value)
            number += 1
        say(f"small classifier, epoch {epoch + 1} of {epochs}: loss {float(np.mean(jax.device_get(seen))):.4f}")
    return Subject(model, encoder, classes, ROWS)

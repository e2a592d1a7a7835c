"""Prompts that are completed together give what each of them gives alone."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxlm.decode import ConfigError
from jaxlm.model.complete import complete
from jaxlm.model.generate import Sampling, generate
from tests.model.test_transformer import OLD, SMALL, make

PROMPTS = [np.random.default_rng(n).integers(0, 50, size).tolist() for n, size in enumerate([4, 17, 3, 4, 18, 4])]
GREEDY = Sampling(temperature=0.0)


@pytest.mark.parametrize("config", [SMALL, OLD], ids=["llama", "gpt2"])
def test_rows_of_any_length_equal_those_that_are_generated_alone(config):
    model, length = jax.jit(lambda: make(config))(), 24  # as one program: several times faster than one by one
    alone = [list(generate(model, each, tokens=length - len(each), sampling=GREEDY, vocab=40)) for each in PROMPTS]
    # A token that some rows hold and others do not: both ways to end a row are met.
    end = next(token for row in alone for token in row[1:] if not all(token in each for each in alone))
    want = [row[: row.index(end)] if end in row else row for row in alone]
    assert complete(model, PROMPTS, end=end, length=length, vocab=40, rows=4) == want


def test_what_cannot_be_completed_is_named():
    model = jax.eval_shape(lambda: make(SMALL))
    with pytest.raises(ValueError, match="prompt 1 has 8 tokens; rows of 8 need 1 to 7"):
        complete(model, [[1], [1] * 8], end=2, length=8)
    with pytest.raises(ConfigError, match="rows of 25 tokens exceed the model's 24 positions"):
        complete(jax.eval_shape(lambda: make(OLD)), [[1]], end=2, length=25)
    encoder = jax.eval_shape(lambda: make(dataclasses.replace(SMALL, causal=False)))
    with pytest.raises(ConfigError, match="cannot generate"):
        complete(encoder, [[1]], end=2, length=8)

"""What the ways of debiasing a text classifier share."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments.text_methods import Learner, Method
from jaxlm.config import Run
from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.data.labelled.corpus import prepare_labelled
from jaxlm.model.classify import ClassifyConfig
from jaxlm.model.transformer import Execution
from jaxlm.task import model_of, with_bag
from tests.labelled import tiny
from tests.labelled.test_bag import CONFIG


@pytest.mark.slow
def test_a_bag_is_fitted_once_for_the_same_rows_and_weights(tmp_path: Path):
    data = DataConfig(
        path=str(tiny.hatexplain(tmp_path)), sequence=12, mode="truncate", tokenizer=TokenizerConfig(vocab=320)
    )
    how = ClassifyConfig(wide=512, strength=1.0, vectors=False, balanced=1.0)
    corpus, run = prepare_labelled("hatexplain", data), Run(data=data, model=CONFIG, classify=how)
    split, words = corpus.split("train"), corpus.tokenizer.words
    new: Any = lambda: model_of(run, CONFIG, Execution(), jax.random.key(0))
    want, learner = with_bag(new(), split, how, words), Learner(run, Method(), 1.0, {})
    for _ in range(2):
        got = learner.bagged(new(), split, how, words)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    assert len(learner.programs) == 1
    other = dataclasses.replace(split, weights=np.linspace(0.5, 1.5, len(split)).astype(np.float32))
    learner.bagged(new(), other, how, words)
    assert len(learner.programs) == 2

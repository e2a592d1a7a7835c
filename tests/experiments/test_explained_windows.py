"""The regression over words and their neighbours reads both, and nothing else."""

import numpy as np

from experiments.explained_windows import window_regression, windows
from jaxlm.explain.texts import Example


def test_a_window_holds_the_word_and_two_neighbours_on_each_side():
    assert list(windows(["A", "b"])) == [["0:", "1:", "2:a", "3:b", "4:"], ["0:", "1:a", "2:b", "3:", "4:"]]
    assert list(windows([])) == []


def test_it_learns_which_words_people_mark_and_beside_what():
    random = np.random.default_rng(0)
    train = []
    for _ in range(300):
        words = tuple(random.choice(["red", "dull", "not", "fox"], 6))
        marks = [w == "red" and (i == 0 or words[i - 1] != "not") for i, w in enumerate(words)]
        train.append(Example(words, 1, np.array(marks)))
    plain, negated, empty = window_regression(train, [("dull", "red"), ("not", "red"), ()])
    assert plain[1] > 0.5 > plain[0]
    assert negated[1] < 0.5
    assert empty.shape == (0,)

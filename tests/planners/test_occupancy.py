"""Memory of pipeline stages from a model's dimensions, against the formulas of the papers and by hand."""

import numpy as np
import pytest

from planners.candidates import Candidates
from planners.prices.occupancy import GIB, Habits, Shape, chance, occupancy, spread_of, stage_layers

SHAPE = Shape(layers=48, width=6144, heads=64, feedforward=4 * 6144, vocabulary=51200, sequence=2048, gated=False)
"""The 22B model of arXiv:2205.05198, table 3."""

MEGATRON = Habits(
    residual_width=4.0,
    normed_width=4.0,
    attention_width=11.0,
    feedforward=15.0 / 4.0,
    scores=5.0,
    logits=0.0,
    logits_held=0.0,
    working_width=0.0,
    working_feedforward=0.0,
    bucket=0.0,
    update=0.0,
    runtime=0.0,
    group=0.0,
)
"""What arXiv:2205.05198 counts: 34 s b h, of which 8 are not split by the tensor axis (dropout masks left out)."""


def candidates(**sizes: int) -> Candidates:
    microbatch = sizes.pop("microbatch", 4)
    return Candidates.of(sizes, microbatch=microbatch)


def test_activations_of_tensor_parallelism_follow_the_papers_formula():
    found = occupancy(SHAPE, 4, candidates(tensor=8), MEGATRON)
    tokens, width = 4 * 2048, 6144
    expected = 48 * tokens * width * (8 + 26 / 8 + 5 * 64 * 2048 / (width * 8))
    assert found.parts["activations"][0, 0] == pytest.approx(expected)


def test_sequence_parallelism_splits_what_tensor_parallelism_leaves_whole():
    both = Candidates.of({"tensor": 8}, microbatch=4, sequence=np.array([False, True]))
    whole, split = occupancy(SHAPE, 4, both, MEGATRON).parts["activations"][0]
    assert whole - split == pytest.approx(48 * 4 * 2048 * 6144 * 8 * 7 / 8)


def test_a_stage_keeps_the_microbatches_that_wait_behind_it():
    found = occupancy(SHAPE, 64, candidates(stage=4), MEGATRON).parts["activations"][:, 0]
    assert found / found[-1] == pytest.approx([4, 3, 2, 1])
    few = occupancy(SHAPE, 8, candidates(stage=4), MEGATRON).parts["activations"][:, 0]
    assert few / few[-1] == pytest.approx([2, 2, 2, 1])


def test_interleaving_multiplies_the_first_stages_activations_as_the_paper_says():
    plain = occupancy(SHAPE, 64, candidates(stage=4), MEGATRON).parts["activations"][0, 0]
    pieces = Candidates.of({"stage": 4}, microbatch=4, virtual=3)
    assert occupancy(SHAPE, 64, pieces, MEGATRON).parts["activations"][0, 0] == pytest.approx(plain * (1 + 3 / 12))


def test_embedding_and_head_lie_on_the_first_and_the_last_stage():
    weights = occupancy(SHAPE, 64, candidates(stage=4), MEGATRON).parts["weights"][:, 0]
    ends = 2.0 * 51200 * 6144
    assert weights[0] - weights[1] == pytest.approx(ends)
    assert weights[3] - weights[2] == pytest.approx(ends)
    alone = occupancy(SHAPE, 64, candidates(), MEGATRON).parts["weights"][0, 0]
    assert alone == pytest.approx(weights.sum())


def test_zero_splits_the_optimizer_and_in_later_stages_gradients_and_weights():
    split = Candidates.of({"data": 8}, microbatch=8, zero=True)
    sizes = {}
    for stage in (1, 2, 3):
        parts = occupancy(SHAPE, 8, split, Habits(zero=stage)).parts
        sizes[stage] = [parts[name][0, 0] for name in ("weights", "gradients", "optimizer")]
    parameters = sizes[1][0] / 2
    assert sizes[1] == pytest.approx([2 * parameters, 2 * parameters, 12 * parameters / 8])
    assert sizes[2] == pytest.approx([2 * parameters, 2 * parameters / 8, 12 * parameters / 8])
    assert sizes[3] == pytest.approx([2 * parameters / 8, 2 * parameters / 8, 12 * parameters / 8])


def test_logits_count_on_the_last_stage_only_and_whole_where_they_are_gathered():
    habits = Habits(logits=20.0, logits_held=0.0, working_width=0.0, working_feedforward=0.0, bucket=0.0)
    split = occupancy(SHAPE, 64, candidates(stage=2, tensor=4), habits).parts["logits"][:, 0]
    assert split[0] == 0
    assert split[1] == pytest.approx(4 * 2048 * 51200 * 20 / 4)
    gathered = Habits(
        logits=20.0, logits_held=0.0, logits_whole=True, working_width=0.0, working_feedforward=0.0, bucket=0.0
    )
    assert occupancy(SHAPE, 64, candidates(stage=2, tensor=4), gathered).parts["logits"][1, 0] == pytest.approx(
        4 * split[1]
    )


def test_recomputation_keeps_inputs_and_one_block():
    full = Candidates.of({"stage": 2}, microbatch=4, remat=1)
    found = occupancy(SHAPE, 64, full, MEGATRON).parts["activations"][0, 0]
    tokens, width = 4 * 2048, 6144
    assert found == pytest.approx(tokens * width * (2 * 24 * 2 + 34 + 5 * 64 * 2048 / width))


def test_stages_split_the_ends_like_layers_where_the_trainer_does():
    rows = [stage_layers(SHAPE, np.array([4]), i, ends_are_layers=True)[0] for i in range(4)]
    assert rows == [12, 13, 13, 10]
    assert [stage_layers(SHAPE, np.array([5]), i, ends_are_layers=False)[0] for i in range(5)] == [10, 10, 10, 9, 9]


def test_the_chance_of_running_out_is_even_at_the_limit_and_follows_the_spread():
    peaks = np.array([0.9, 1.0, 1.1]) * GIB
    low, even, high = chance(peaks, GIB, spread_of(0.05))
    assert even == pytest.approx(0.5)
    assert low == pytest.approx(1 - high)
    assert 0.02 < low < 0.05

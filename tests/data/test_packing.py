"""Rows, batches and epochs: no token is lost, none is seen twice, and nobody's place in the batch matters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.data.config import DataError
from jaxlm.data.loader import Evaluation, Loader
from jaxlm.data.packing import Packed, Truncated, empty_batch
from jaxlm.data.stream import Shard, TokenStream

BOS, EOS, PAD = 1, 2, 3
documents = st.lists(
    st.lists(st.integers(4, 99), max_size=30).map(lambda body: [BOS, *body, EOS]), min_size=1, max_size=12
)
lengths = st.integers(2, 40)


def rows_of(rows, stream: TokenStream) -> dict[str, np.ndarray]:
    batch = empty_batch(len(rows), rows.sequence, stream.pad)
    for row in range(len(rows)):
        rows.fill(batch, row, row)
    return batch


def in_shards(docs: list[list[int]], cuts: int) -> TokenStream:
    parts = [docs[at : at + cuts] for at in range(0, len(docs), cuts)]
    return TokenStream([TokenStream.of(part).shards[0] for part in parts], pad=PAD)


@given(docs=documents, sequence=lengths, cuts=st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_packing_neither_loses_nor_repeats_a_token(docs: list[list[int]], sequence: int, cuts: int):
    stream = in_shards(docs, cuts)
    batch = rows_of(Packed(stream, sequence), stream)
    flat = [token for doc in docs for token in doc]
    seen = batch["segments"].reshape(-1) > 0
    assert batch["tokens"].reshape(-1)[seen].tolist() == flat[:-1]
    predicted = batch["targets"][batch["weights"] > 0].tolist()
    assert predicted == [token for doc in docs for token in doc[1:]]
    assert (batch["weights"][batch["segments"] == 0] == 0).all()
    assert (batch["tokens"][batch["segments"] == 0] == PAD).all()


@given(docs=documents, sequence=lengths, cuts=st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_a_segment_is_one_document_and_positions_count_from_its_start(docs: list[list[int]], sequence: int, cuts: int):
    stream = in_shards(docs, cuts)
    batch = rows_of(Packed(stream, sequence), stream)
    owner = [number for number, doc in enumerate(docs) for _ in doc]
    for row in range(len(batch["tokens"])):
        begin, size = row * sequence, int((batch["segments"][row] > 0).sum())
        owners = owner[begin : begin + size]
        assert batch["segments"][row, :size].tolist() == [each - owners[0] + 1 for each in owners]
        expected = [at - owners.index(each) for at, each in enumerate(owners)]
        assert batch["positions"][row, :size].tolist() == expected


def test_a_packed_row_by_eye():
    stream = TokenStream.of([[1, 7, 2], [1, 8, 9, 2], [1, 2]], pad=PAD)
    batch = rows_of(Packed(stream, 5), stream)
    assert batch["tokens"].tolist() == [[1, 7, 2, 1, 8], [9, 2, 1, 3, 3]]
    assert batch["targets"].tolist() == [[7, 2, 1, 8, 9], [2, 1, 2, 3, 3]]
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2], [1, 1, 2, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1], [0, 1, 0, 0, 0]]
    assert batch["weights"].tolist() == [[1, 1, 0, 1, 1], [1, 0, 1, 0, 0]]
    assert {name: array.dtype.name for name, array in batch.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "segments": "int32",
        "positions": "int32",
        "weights": "float32",
    }


@given(docs=documents, sequence=lengths, cuts=st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_truncation_keeps_the_beginning_of_each_document(docs: list[list[int]], sequence: int, cuts: int):
    stream = in_shards(docs, cuts)
    batch = rows_of(Truncated(stream, sequence), stream)
    for row, doc in enumerate(docs):
        size = min(len(doc) - 1, sequence)
        assert batch["tokens"][row, :size].tolist() == doc[:-1][:sequence]
        assert batch["targets"][row, :size].tolist() == doc[1:][:sequence]
        assert batch["weights"][row].sum() == size
        assert (batch["segments"][row, size:] == 0).all()


@given(docs=documents, sequence=lengths, batch=st.integers(1, 5))
@settings(max_examples=100, deadline=None)
def test_evaluation_predicts_every_token_once_in_order(docs: list[list[int]], sequence: int, batch: int):
    evaluation = Evaluation(TokenStream.of(docs, pad=PAD, bytes=[len(doc) for doc in docs]), batch, sequence)
    predicted = []
    for index in range(evaluation.batches):
        got = evaluation.fetch(index)
        assert got["tokens"].shape == (batch, sequence)
        predicted += got["targets"][got["weights"] > 0].tolist()
    assert predicted == [token for doc in docs for token in doc[1:]]
    assert len(predicted) == evaluation.targets
    assert evaluation.bytes == sum(len(doc) for doc in docs)


@pytest.mark.parametrize("mode", ["pack", "truncate"])
@given(docs=documents, batch=st.integers(1, 7), seed=st.integers(0, 2**40))
@settings(max_examples=15, deadline=None)
def test_each_epoch_visits_every_row_once(mode, docs: list[list[int]], batch: int, seed: int):
    loader = Loader(TokenStream.of(docs, pad=PAD), batch, 4, mode, seed)
    size = loader.rows_per_epoch
    order = np.concatenate([loader.rows(step) for step in range(-(-3 * size // batch))])
    for epoch in range(3):
        assert sorted(order[epoch * size : epoch * size + size].tolist()) == list(range(size))


def test_epochs_and_seeds_have_orders_of_their_own():
    stream = TokenStream.of([[1, *[7] * 500, 2]])
    first, second = Loader(stream, 100, 5, "pack", 0), Loader(stream, 100, 5, "pack", 1)
    orders = [tuple(loader.rows(step).tolist()) for loader in (first, second) for step in range(4)]
    assert len(set(orders)) == len(orders)
    assert orders[0] != tuple(range(100))


@pytest.mark.parametrize("mode", ["pack", "truncate"])
def test_a_step_holds_the_same_rows_however_it_is_divided(mode):
    stream = TokenStream.of([[1, *range(4, 4 + size), 2] for size in range(40)], pad=PAD)
    loader, another = (Loader(stream, 12, 8, mode, seed=5) for _ in range(2))
    for step in (0, 3, 1000):
        whole = loader.fetch(step)
        for parts in (1, 2, 3, 4, 12):
            size = 12 // parts
            pieces = [another.fetch(step, at * size, at * size + size) for at in reversed(range(parts))][::-1]
            for name, array in whole.items():
                np.testing.assert_array_equal(np.concatenate([piece[name] for piece in pieces]), array)


def test_shards_do_not_show():
    docs = [[1, *range(4, 4 + size), 2] for size in range(20)]
    one, many = in_shards(docs, 20), in_shards(docs, 3)
    assert (len(one), one.documents) == (len(many), many.documents)
    for start in range(0, len(one), 7):
        for stop in (start + 1, start + 9, start + 90, len(one)):
            np.testing.assert_array_equal(one.read(start, stop), many.read(start, stop))
            np.testing.assert_array_equal(one.starts(start, stop), many.starts(start, stop))
    for index in range(one.documents):
        assert one.document(index).tolist() == many.document(index).tolist() == docs[index]


def test_a_loader_of_nothing_is_refused():
    nothing = TokenStream([Shard(np.empty(0), np.zeros(1, int), np.empty(0, int))], pad=0, name="train")
    with pytest.raises(DataError, match="the train split is empty"):
        Loader(nothing, 4, 8)
    with pytest.raises(DataError, match="the train split is empty"):
        Evaluation(nothing, 4, 8)
    with pytest.raises(DataError, match="batch=0 must be at least 1"):
        Loader(TokenStream.of([[1, 2]]), 0, 8)

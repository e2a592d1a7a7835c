"""Mixtures: every place of the stream is known alone, no row is lost or seen twice, and shares are kept."""

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.config import build, differences
from jaxlm.data.config import DataConfig, DataError, Part, TokenizerConfig
from jaxlm.data.loader import Evaluation, Loader
from jaxlm.data.mixture import Interleave, Mixture
from jaxlm.data.parts import find_parts
from jaxlm.data.prepare import corpus_folder, prepare, prepare_text
from jaxlm.data.sample import sample
from jaxlm.data.show import show
from jaxlm.data.stream import TokenStream
from jaxlm.decode import ConfigError, dotted, dump, override

BOS, EOS, PAD = 1, 2, 3
weights = st.lists(st.decimals("0.001", "1000", places=3).map(float), min_size=1, max_size=9)


def stream_of(first: int, sizes: list[int]) -> TokenStream:
    """Documents whose tokens are all different: first, first + 1, ..."""
    numbers = iter(range(first, first + sum(sizes)))
    return TokenStream.of([[BOS, *(next(numbers) for _ in range(size)), EOS] for size in sizes], pad=PAD)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    given_weights = draw(st.lists(st.sampled_from([0.3, 0.7, 1.0, 1.5]), min_size=1, max_size=4))
    sizes = st.lists(st.integers(0, 20), max_size=3)
    streams = {  # grain's shuffle walks through 2^16 numbers for very few rows, which takes it milliseconds for each
        f"part{number}": stream_of(1000 * (number + 1), [*draw(sizes), draw(st.integers(40, 90))])
        for number in range(len(given_weights))
    }
    return Mixture(streams, dict(zip(streams, given_weights, strict=True)))


# The interleave


@given(weights=weights, start=st.integers(0, 10**12))
@settings(max_examples=60, deadline=None)
def test_every_prefix_keeps_the_shares_and_each_part_counts_without_a_gap(weights: list[float], start: int):
    interleave = Interleave(weights)
    due = [Fraction(str(weight)) / sum(Fraction(str(each)) for each in weights) for weight in weights]
    bound = Fraction(math.ceil(math.log2(len(weights))), 2)
    counts = interleave.counts(start)
    assert sum(counts) == start
    for place in range(start, start + 40):
        part, number = interleave(place)
        assert number == counts[part]
        counts[part] += 1
        assert counts == interleave.counts(place + 1)
        assert all(abs(c - (place + 1) * share) <= bound for c, share in zip(counts, due, strict=True))


def test_an_interleave_by_eye():
    assert [Interleave([2, 1])(place) for place in range(6)] == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]
    places = [Interleave([0.7, 0.2, 0.1])(place)[0] for place in range(1000)]
    assert Counter(places) == {0: 700, 1: 200, 2: 100}
    assert [Interleave([5.0])(place) for place in range(3)] == [(0, 0), (0, 1), (0, 2)]


# The loader


@given(mixture=mixtures(), batch=st.integers(1, 7), sequence=st.integers(2, 6), seed=st.integers(0, 2**40))
@settings(max_examples=12, deadline=None)
def test_each_part_visits_its_rows_once_per_epoch(mixture: Mixture, batch: int, sequence: int, seed: int):
    loader = Loader(mixture, batch, sequence, seed=seed)
    steps = -(-2 * sum(len(part.rows) for part in loader.parts) // batch)
    places = [loader.place(step, at) for step in range(steps) for at in range(batch)]
    for part in loader.parts:
        rows = [place.row for place in places if place.part == part.name]
        epochs = [place.epoch for place in places if place.part == part.name]
        size = len(part.rows)
        assert epochs == [index // size for index in range(len(rows))]
        for start in range(0, len(rows), size):
            epoch = rows[start : start + size]
            assert len(set(epoch)) == len(epoch)
            assert len(epoch) < size or set(epoch) == set(range(size))
        assert loader.epochs(steps)[part.name] == len(rows) / size


@given(mixture=mixtures(), batch=st.integers(1, 5), sequence=st.integers(2, 6))
@settings(max_examples=6, deadline=None)
def test_every_token_but_bos_is_a_target_once_per_epoch_of_its_part(mixture: Mixture, batch: int, sequence: int):
    """From the fetched batches themselves: each part is cut where it begins its second epoch."""
    loader = Loader(mixture, batch, sequence, seed=1)
    seen = {part.name: Counter[int]() for part in loader.parts}
    step = 0
    while min(loader.epochs(step).values()) < 1:
        fetched = loader.fetch(step)
        for at in range(batch):
            place = loader.place(step, at)
            if place.epoch == 0:
                seen[place.part].update(fetched["targets"][at][fetched["weights"][at] > 0].tolist())
        step += 1
    for part in loader.parts:
        documents = [document.tolist() for document in part.stream.each_document()]
        assert seen[part.name] == Counter(token for document in documents for token in document[1:])


@pytest.mark.parametrize("mode", ["pack", "truncate"])
@given(mixture=mixtures(), step=st.integers(0, 10**6), cut=st.integers(0, 6))
@settings(max_examples=10, deadline=None)
def test_a_step_fetched_alone_in_parts_equals_the_streamed_one(mode, mixture: Mixture, step: int, cut: int):
    streamed, alone = (Loader(mixture, 6, 8, mode, seed=5) for _ in range(2))
    for number in range(max(step - 3, 0), step):
        streamed.fetch(number)
    whole = streamed.fetch(step)
    pieces = (alone.fetch(step, cut, 6), alone.fetch(step, 0, cut))
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([pieces[1][name], pieces[0][name]]), array)


def test_parts_of_equal_length_have_orders_of_their_own():
    mixture = Mixture({"a": stream_of(100, [500]), "b": stream_of(1000, [500])}, {"a": 1.0, "b": 1.0})
    places = [Loader(mixture, 200, 5).place(0, at) for at in range(200)]
    orders = {name: [place.row for place in places if place.part == name] for name in "ab"}
    assert len(orders["a"]) == len(orders["b"]) == 100
    assert orders["a"] != orders["b"]


def test_the_order_of_a_single_source_is_what_it_always_was():
    loader = Loader(TokenStream.of([[1, *[7] * 500, 2]]), 7, 5, "pack", 3)
    assert {step: loader.rows(step).tolist() for step in (0, 1, 20, 10**6)} == {
        0: [41, 33, 81, 50, 84, 70, 22],
        1: [21, 31, 53, 40, 92, 24, 49],
        20: [65, 90, 28, 37, 11, 8, 69],
        10**6: [43, 58, 4, 92, 25, 41, 91],
    }


def test_epochs_and_bytes_per_token_follow_the_weights():
    long = TokenStream.of([[BOS, *[7] * 79, EOS]], bytes=[400])  # 8 rows of 10, 80 targets, 5 bytes each
    short = TokenStream.of([[BOS, *[7] * 19, EOS]], bytes=[20])  # 2 rows of 10, 20 targets, 1 byte each
    loader = Loader(Mixture({"long": long, "short": short}, {"long": 3, "short": 1}), 4, 10)
    assert loader.bytes_per_token == pytest.approx(0.75 * 5 + 0.25 * 1)
    assert loader.rows_per_epoch == 8, "`short` holds 2 rows and gets every fourth: it begins again after 8"
    assert loader.epochs(4) == {"long": 12 / 8, "short": 4 / 2}
    assert Loader(long, 4, 10).bytes_per_token == 5


# The configuration


def part_config(config: DataConfig, **parts: Part) -> DataConfig:
    return replace(config, path="stdlib", mixture=parts)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "x", "mixture": {"a": Part(path="y")}}, r"data\.path=x and data\.mixture \(a\) are both given"),
        ({"mixture": {"a": Part(path="y", weight=0.0)}}, r"data\.mixture\.a\.weight=0\.0 must be above 0"),
        ({"mixture": {"a": Part(path="")}}, r"data\.mixture\.a\.path is empty"),
        ({"mixture": {"a b": Part(path="x")}}, r"'a b' is no name for a part"),
        (
            {"mixture": {"a": Part(path="y", validation="v")}, "validation": "w"},
            r"data\.mixture\.a\.validation=v and data\.validation=w are both given",
        ),
    ],
)
def test_a_mixture_that_cannot_be_is_refused(values: dict, message: str):
    with pytest.raises(DataError, match=message):
        DataConfig(**values)


def test_a_part_is_given_on_the_command_line_and_a_missing_path_is_asked_for():
    arguments = ["--data.mixture.novels.path", "DIR", "--data.mixture.novels.weight", "0.7"]
    run = build(override({}, dotted(arguments)), "x.yaml")
    assert run.data.mixture == {"novels": Part(path="DIR", weight=0.7)}
    assert "# Share of the training rows" in dump(run, comments=True)
    raw = {"data": {"mixture": {"novels": {"path": None}, "code": {"wieght": 2, "path": "x"}}}}
    with pytest.raises(ConfigError) as refused:
        build(raw, "x.yaml")
    assert "data.mixture.novels.path: null is not allowed here, expected text; " in str(refused.value)
    assert "write a value in the file or give --data.mixture.novels.path VALUE" in str(refused.value)
    assert "data.mixture.code: unknown key 'wieght', did you mean 'weight'?" in str(refused.value)
    with pytest.raises(ConfigError, match=r"data\.path: null is not allowed here.* or give --data\.path VALUE"):
        build({"data": {"path": None}}, "x.yaml")


def test_a_resumed_run_may_not_change_a_weight():
    before, after = ({"data": {"mixture": {"a": {"path": "x", "weight": weight}}}} for weight in (1.0, 2.0))
    changed = differences(build(before, ""), build(after, ""))
    assert changed == ["data.mixture.a.weight was 1.0, is 2.0"]


# The corpus


@pytest.fixture
def two(config: DataConfig, folder: Path, tmp_path: Path) -> DataConfig:
    """The twelve files of `folder` and four more, as two parts."""
    other = tmp_path / "other"
    other.mkdir()
    for number in range(4):
        (other / f"{number}.txt").write_text(f"other text {number} " * 40)
    return part_config(config, many=Part(path=str(folder), weight=1.0), few=Part(path=str(other), weight=3.0))


def texts(stream: TokenStream, tokenizer) -> list[str]:
    return sorted(tokenizer.decode(document) for document in stream.each_document())


def test_a_mixture_is_one_corpus_with_a_stream_per_part(two: DataConfig, config: DataConfig):
    corpus = prepare(two)
    assert list(corpus.splits) == ["train/few", "train/many", "valid/few", "valid/many"]
    assert corpus.parts == ["few", "many"]
    alone = {name: prepare(replace(config, path=part.path)) for name, part in two.mixture.items()}
    for name, each in alone.items():
        assert texts(corpus.split(f"train/{name}"), corpus.tokenizer) == texts(each.split("train"), each.tokenizer)
    held_out = sorted(text for each in alone.values() for text in texts(each.held_out, each.tokenizer))
    assert corpus.held_out.name == "held-out"
    assert texts(corpus.split("held-out"), corpus.tokenizer) == held_out
    assert corpus.held_out.bytes == Evaluation(corpus.held_out, 2, 16).bytes == sum(len(t.encode()) for t in held_out)
    together = corpus.split("train")
    assert together.documents == sum(each.split("train").documents for each in alone.values())
    loader = Loader(corpus.training(two), 8, 16)
    assert Counter(loader.place(0, at).part for at in range(8)) == {"few": 6, "many": 2}


def test_reports_name_each_part_with_its_size_weight_and_epochs(two: DataConfig):
    corpus = prepare(two)
    lines = corpus.report.lines()
    few = corpus.split("train/few")
    assert any(line.startswith(f"train/few: {few.documents} documents, ") for line in lines)
    loader = Loader(corpus.training(two), 8, 16)
    text = loader.describe(100)
    rows = loader.facts(100)["few"]["rows"]
    assert "  few: weight 3 (75.0% of the rows), " in text
    assert f"{rows:,} rows; 100 steps see it {600 / rows:.2f} times" in text
    page = show(corpus, loader, 1)
    assert f"hash {loader.fingerprint(1)}" in page
    for at in range(4):
        place = loader.place(1, at)
        assert f"place {at}: {place.part}, row {place.row} of " in page
    assert {loader.place(1, at).part for at in range(4)} == {"few", "many"}


def test_one_held_out_text_leaves_the_parts_whole(two: DataConfig, tmp_path: Path):
    (tmp_path / "held.txt").write_text("held out of both parts " * 20)
    corpus = prepare(replace(two, validation=str(tmp_path / "held.txt")))
    assert list(corpus.splits) == ["train/few", "train/many", "valid"]
    assert corpus.held_out.name == "valid"
    assert texts(corpus.held_out, corpus.tokenizer) == ["held out of both parts " * 20]
    assert (corpus.split("train/few").documents, corpus.split("train/many").documents) == (4, 12)


def test_a_part_may_hold_out_a_text_of_its_own(two: DataConfig, tmp_path: Path):
    (tmp_path / "held.txt").write_text("held out of one part " * 20)
    few = replace(two.mixture["few"], validation=str(tmp_path / "held.txt"))
    corpus = prepare(replace(two, validation_fraction=0.0, mixture=dict(two.mixture) | {"few": few}))
    assert texts(corpus.held_out, corpus.tokenizer) == ["held out of one part " * 20]
    assert corpus.split("train/few").documents == 4
    assert "nothing is held out from many" in corpus.report.lines()


def test_weights_and_the_order_of_the_parts_change_no_prepared_token(two: DataConfig):
    first, stages = prepare(two), []
    heavier = replace(two.mixture["few"], weight=5.0)
    turned = replace(two, mixture={"few": heavier, "many": two.mixture["many"]})
    second = prepare(turned, lambda stage, done, total: stages.append(stage))
    assert (second.folder, second.digest, stages) == (first.folder, first.digest, [])
    loaders = [Loader(second.training(each), 8, 16) for each in (two, turned)]
    assert loaders[0].fingerprint(0) != loaders[1].fingerprint(0)
    sorted_parts = replace(two, mixture=dict(sorted(two.mixture.items())))
    assert Loader(first.training(sorted_parts), 8, 16).fingerprint(0) == loaders[0].fingerprint(0)


def test_the_tokenizer_learns_in_proportion_to_the_weights(two: DataConfig, tmp_path: Path):
    for name in ("few", "many"):
        (tmp_path / "big" / name).mkdir(parents=True)
        (tmp_path / "big" / name / "text.txt").write_text(f"{name} words in lines\n" * 40_000)
    parts = {name: Part(path=str(tmp_path / "big" / name), weight=w) for name, w in (("few", 0.8), ("many", 0.2))}
    learn = replace(two, mixture=parts, tokenizer=TokenizerConfig(vocab=330, sample_bytes=400_000))
    sizes = {name: sum(map(len, each)) for name, each in sample(learn, find_parts(learn)[0]).items()}
    assert sizes == {"few": pytest.approx(320_000, rel=0.1), "many": pytest.approx(80_000, rel=0.1)}
    other = replace(learn, mixture=parts | {"few": replace(parts["few"], weight=0.5)})
    assert corpus_folder(learn, find_parts(learn)[0]) != corpus_folder(other, find_parts(other)[0])


def test_a_limit_holds_for_each_part(two: DataConfig):
    corpus, whole = prepare(replace(two, limit_bytes=1000)), prepare(two)
    assert (corpus.split("train/few").bytes, corpus.split("train/many").bytes) == (1000, 1000)
    assert texts(corpus.held_out, corpus.tokenizer) == texts(whole.held_out, whole.tokenizer)


def test_an_interrupted_mixture_goes_on_where_it_was(two: DataConfig, tmp_path: Path):
    class Killed(Exception):
        pass

    limited = replace(two, limit_bytes=1500)
    whole, calls = prepare(replace(limited, cache=str(tmp_path / "whole")), shard_bytes=400), []

    def kill(stage: str, done: int, total: int) -> None:
        calls.append(stage)
        if len(calls) == 9:
            raise Killed

    with pytest.raises(Killed):
        prepare(limited, kill, shard_bytes=400)
    assert list((tmp_path / "cache").glob("*/00000.json"))
    resumed = prepare(limited, shard_bytes=400)
    assert (resumed.digest, resumed.report) == (whole.digest, whole.report)


def test_what_is_wrong_with_a_part_is_said_with_its_key(two: DataConfig, tmp_path: Path):
    def refused(**parts: Part) -> str:
        with pytest.raises(DataError) as error:
            prepare(replace(two, mixture=dict(two.mixture) | parts))
        return str(error.value)

    assert refused(few=Part(path="/no/such")).startswith("data.mixture.few.path=/no/such does not exist")
    given = replace(two.mixture["few"], validation="/no/such")
    assert refused(few=given).startswith("data.mixture.few.validation=/no/such does not exist")
    (tmp_path / "short.txt").write_text("short")
    assert "data.mixture.few.path=" in (message := refused(few=Part(path=str(tmp_path / "short.txt"))))
    assert "holds nothing to train on: 1 documents, all shorter than data.minimum_characters=128" in message
    twice = refused(few=Part(path=str(Path(two.mixture["many"].path, "01.txt"))))
    assert "01.txt is in both data.mixture.few and data.mixture.many: its text would count twice" in twice


def test_other_text_is_prepared_for_a_run_with_a_mixture(two: DataConfig, tokenizer_file: str, tmp_path: Path):
    (tmp_path / "other.txt").write_text("any text")
    corpus = prepare_text(str(tmp_path / "other.txt"), tokenizer_file, two)
    assert texts(corpus.split("text"), corpus.tokenizer) == ["any text"]

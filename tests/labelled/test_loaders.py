"""Loaders of labelled text: what they read, and what they say of files that do not fit."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from jaxlm.data.config import DataConfig, DataError, TokenizerConfig
from jaxlm.data.labelled.bbq import read_bbq
from jaxlm.data.labelled.civil_comments import read_civil_comments
from jaxlm.data.labelled.corpus import NOBODY_ASKED, LabelledCorpus, prepare_labelled
from jaxlm.data.labelled.hatecheck import read_hatecheck
from jaxlm.data.labelled.hatexplain import read_hatexplain
from jaxlm.data.labelled.lists import LISTS, groups_of, membership
from jaxlm.data.labelled.loader import LabelledEvaluation, LabelledLoader
from jaxlm.data.labelled.vocabulary import MASK, PAD, UNKNOWN, Vocabulary
from tests.labelled import tiny


def corpus(folder: Path, *attributes: str) -> LabelledCorpus:
    config = DataConfig(path=str(folder), sequence=6, mode="truncate", tokenizer=TokenizerConfig(vocab=320))
    return prepare_labelled("hatexplain", config, attributes)


def test_hatexplain_gives_words_labels_and_marks(tmp_path: Path):
    rows = [
        {"id": "a", "split": "train", "label": "offensive", "tokens": ["You", "are", "rude"],
         "rationale_spans": [[1, 3]]},
        {"id": "b", "split": "val", "label": "normal", "tokens": ["hello"], "rationale_spans": []},
        {"id": "c", "split": "test", "label": "hatespeech", "tokens": ["x", "y"]},
    ]  # fmt: skip
    path = tmp_path / "hatexplain.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = read_hatexplain(tmp_path)
    assert [(p.split, p.label, p.rationale) for p in data.posts] == [
        ("train", 1, (False, True, True)),
        ("valid", 0, (False,)),
        ("test", 2, None),
    ]
    assert data.posts[0].words == ("you", "are", "rude")
    assert "MIT" in data.licence


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"label": "fine"}, "label 'fine'"),
        ({"split": "dev2"}, "split 'dev2'"),
        ({"rationale_spans": [[0, 9]]}, r"span \[0, 9\) in a post of 1"),
        ({"tokens": None}, "no column tokens"),
    ],
)
def test_hatexplain_names_what_does_not_fit(tmp_path: Path, change: dict, said: str):
    row = {"id": "a", "split": "train", "label": "normal", "tokens": ["x"]} | change
    (tmp_path / "f.jsonl").write_text(json.dumps({k: v for k, v in row.items() if v is not None}))
    with pytest.raises(DataError, match=said):
        read_hatexplain(tmp_path / "f.jsonl")


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(DataError, match=r"hatexplain\.jsonl, plain or \.gz"):
        read_hatexplain(tmp_path)


def test_hatecheck_names_the_group_aimed_at(tmp_path: Path):
    with gzip.open(tmp_path / "test_suite_cases.csv.gz", "wt") as file:
        file.write(
            'case_id,test_case,label_gold,target_ident\n1,"I like women, all",non-hateful,women\n2,Hm,hateful,\n'
        )
    data = read_hatecheck(tmp_path)
    assert [(p.label, p.groups, p.split) for p in data.posts] == [(0, ("women",), "test"), (1, (), "test")]
    assert data.posts[0].words == ("i", "like", "women", ",", "all")
    (tmp_path / "bad.csv").write_text("case_id,test_case\n1,x\n")
    with pytest.raises(DataError, match="no column label_gold, target_ident"):
        read_hatecheck(tmp_path / "bad.csv")


def test_civil_comments_of_kaggle(tmp_path: Path):
    rows = ["id,target,comment_text,male,female", "1,0.7,Bad thing,0.8,0.1", "2,0.1,Nice thing,,", "3,,Nothing,0,0"]
    rows += [f"{n},0.0,Text {n},," for n in range(10, 200)]
    (tmp_path / "train.csv").write_text("\n".join(rows) + "\n")
    data = read_civil_comments(tmp_path)
    by_id = {post.id: post for post in data.posts}
    assert by_id["1"].label == 1
    assert by_id["1"].groups == ("male",)
    assert by_id["2"].groups is None, "nobody was asked"
    assert data.left_out == {"without text or toxicity": 1}
    assert {post.split for post in data.posts} == {"train", "valid", "test"}
    assert [p.split for p in data.posts] == [p.split for p in read_civil_comments(tmp_path).posts]
    (tmp_path / "train.csv").write_text("id,comment_text\n1,x\n")
    with pytest.raises(DataError, match="no column target"):
        read_civil_comments(tmp_path)


def test_bbq_questions(tmp_path: Path):
    row = {
        "example_id": 4, "category": "Age", "context": "Two people met.", "question": "Who forgot?",
        "ans0": "the first", "ans1": "the second", "ans2": "Unknown",
        "answer_info": {"ans0": ["a", "old"], "ans1": ["b", "nonOld"], "ans2": ["u", "unknown"]},
        "label": 2, "question_polarity": "neg", "context_condition": "ambig",
        "additional_metadata": {"stereotyped_groups": ["old"]},
    }  # fmt: skip
    (tmp_path / "Age.jsonl").write_text(json.dumps(row))
    (question,) = read_bbq(tmp_path)
    assert question.groups == ("old", "nonOld", "unknown")
    assert question.negative
    assert question.ambiguous
    (tmp_path / "Age.jsonl").write_text(json.dumps(row | {"label": 3}))
    with pytest.raises(DataError, match="label 3"):
        read_bbq(tmp_path)


def test_lists_know_their_groups():
    found = membership([("a", "woman"), ("the", "men", "and", "women"), ("cat",)], LISTS["gender"])
    names = list(LISTS["gender"])
    assert [[names[i] for i in np.flatnonzero(row)] for row in found] == [["women"], ["women", "men"], []]
    assert ("religion", "jewish") in groups_of(["gender", "religion"])
    with pytest.raises(ValueError, match="no word list; there are gender"):
        groups_of(["colour"])
    assert all(word == word.lower() for groups in LISTS.values() for listed in groups.values() for word in listed)


def test_a_word_is_a_token(tmp_path: Path):
    vocabulary = Vocabulary.learn([["b", "a", "b"], ["a", "c"]], 5)
    assert vocabulary.words[3:] == ("a", "b")
    assert vocabulary.encode(["b", "c", "<mask>", "a"]).tolist() == [4, UNKNOWN, MASK, 3]
    (tmp_path / "v").write_bytes(vocabulary.model)
    assert Vocabulary.load(tmp_path / "v").digest == vocabulary.digest
    (tmp_path / "v").write_text("{}")
    with pytest.raises(DataError, match="no vocabulary"):
        Vocabulary.load(tmp_path / "v")


def test_batches_carry_labels_groups_weights_and_marks(tmp_path: Path):
    found = corpus(tiny.hatexplain(tmp_path), "gender", "religion")
    split = found.split("train")
    loader = LabelledLoader(split, 8, 6, seed=3)
    rows, batch = loader.rows(2), loader.fetch(2)
    for at, row in enumerate(rows):
        post = split.posts[row]
        assert batch["labels"][at] == post.label
        assert batch["segments"][at].sum() == min(len(post.words), 6)
        assert batch["groups"][at, found.groups.index("gender/women")] == float("women" in post.words)
        marked = batch["rationales"][at][: len(post.words)]
        assert (marked == NOBODY_ASKED).all() if post.rationale is None else marked.tolist() == list(post.rationale[:6])
    halves = [loader.fetch(2, 0, 3), loader.fetch(2, 3, 8)]
    assert all(np.array_equal(np.concatenate([h[name] for h in halves]), batch[name]) for name in batch)
    seen = np.concatenate([loader.rows(step) for step in range(len(split) // 8)])
    assert len(set(seen.tolist())) == len(seen), "an epoch visits no row twice"


def test_evaluation_holds_every_row_once(tmp_path: Path):
    split = corpus(tiny.hatexplain(tmp_path)).split("valid")
    source = LabelledEvaluation(split, 7, 6)
    weights = np.concatenate([source.fetch(k)["weights"] for k in range(source.batches)])
    assert weights.sum() == len(split)
    assert (source.fetch(source.batches - 1)["tokens"][-1] == PAD).all()


def test_real_hatexplain_is_read_whole(shared: Path):
    data = read_hatexplain(shared / "data" / "hatexplain")
    assert [len(data.split(name)) for name in ("train", "valid", "test")] == [15_383, 1_922, 998]
    assert sum(post.rationale is None for post in data.posts) == 9_869
    assert len(read_hatecheck(shared / "data" / "hatecheck").posts) == 3_728
    assert len(read_bbq(shared / "data" / "bbq")) == 11_956

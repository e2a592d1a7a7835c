"""The Merkle tree: published vectors, a second implementation, and every change to a proof."""

import base64
import json
from pathlib import Path
from typing import Any

import pymerkle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.governance import merkle
from jaxlm.governance.errors import Rejected
from jaxlm.governance.merkle import Tree, leaf_hash


def _load(shared: Path, name: str) -> Any:
    return json.loads((shared / "vectors" / name).read_text())


def _hash(text: str | None) -> bytes:
    return base64.b64decode(text or "")


def _accepts(check: Any, *arguments: Any, **more: Any) -> bool:
    try:
        check(*arguments, **more)
    except Rejected:
        return False
    return True


def test_every_published_inclusion_probe_is_judged_as_recorded(shared: Path):
    cases = _load(shared, "merkle_inclusion.json")["cases"]
    for case in cases:
        proof = [_hash(text) for text in case["proof"] or []]
        arguments = (_hash(case["leafHash"]), case["leafIdx"], case["treeSize"], proof, _hash(case["root"]))
        assert _accepts(merkle.verify_inclusion, *arguments) != case["wantErr"], case["case"]
    assert len(cases) == 98


def test_every_published_consistency_probe_is_judged_as_recorded(shared: Path):
    cases = _load(shared, "merkle_consistency.json")["cases"]
    for case in cases:
        proof = [_hash(text) for text in case["proof"] or []]
        arguments = (case["size1"], case["size2"], proof, _hash(case["root1"]), _hash(case["root2"]))
        assert _accepts(merkle.verify_consistency, *arguments) != case["wantErr"], case["case"]
    assert len(cases) == 98


def test_every_published_subtree_probe_is_judged_as_recorded(shared: Path):
    cases = _load(shared, "merkle_subtreeinclusion.json")["cases"]
    for case in cases:
        proof = [_hash(text) for text in case["proof"] or []]
        arguments = (_hash(case["leafHash"]), case["leafIdx"], case["end"], proof, _hash(case["root"]))
        accepted = _accepts(merkle.verify_inclusion, *arguments, start=case["start"])
        assert accepted != case["wantErr"], case["case"]
    assert len(cases) == 204
    cases = _load(shared, "merkle_subtreeconsistency.json")["cases"]
    for case in cases:
        proof = [_hash(text) for text in case["proof"] or []]
        arguments = (case["start"], case["end"], case["size"], proof, _hash(case["root1"]), _hash(case["root2"]))
        assert _accepts(merkle.verify_subtree, *arguments) != case["wantErr"], case["case"]
    assert len(cases) == 118


def test_hashes_roots_and_proofs_of_the_rfc_tree(shared: Path):
    vectors = _load(shared, "rfc6962_merkle_tree.json")
    leaves = [bytes.fromhex(text) for text in vectors["leaf_inputs"]]
    tree = Tree(map(leaf_hash, leaves))
    assert [leaf_hash(leaf).hex() for leaf in leaves] == vectors["leaf_hashes"]
    for level, hashes in enumerate(vectors["node_hashes_by_level"]):
        assert [tree.node(level, index).hex() for index in range(len(hashes))] == hashes
    for size, root in vectors["roots_by_size"].items():
        assert tree.root(int(size)).hex() == root
    for kind in ("published_inclusion_proofs", "derived_all_inclusion_proofs"):
        rows = vectors[kind]["rows"] if isinstance(vectors[kind], dict) else vectors[kind]
        for row in rows:
            proof = tree.inclusion(row["leaf_index"], row["tree_size"])
            assert [value.hex() for value in proof] == row["proof"]
    for kind in ("published_consistency_proofs", "derived_all_consistency_proofs"):
        rows = vectors[kind]["rows"] if isinstance(vectors[kind], dict) else vectors[kind]
        for row in rows:
            proof = tree.consistency(row["size1"], row["size2"])
            assert [value.hex() for value in proof] == row["proof"]


def _naive(leaves: list[bytes]) -> bytes:
    """MTH as RFC 6962 writes it."""
    if len(leaves) < 2:
        return leaves[0] if leaves else merkle.EMPTY
    middle = 1 << ((len(leaves) - 1).bit_length() - 1)
    return merkle.node_hash(_naive(leaves[:middle]), _naive(leaves[middle:]))


def _naive_path(index: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    middle = 1 << ((len(leaves) - 1).bit_length() - 1)
    if index < middle:
        return [*_naive_path(index, leaves[:middle]), _naive(leaves[middle:])]
    return [*_naive_path(index - middle, leaves[middle:]), _naive(leaves[:middle])]


def _naive_proof(size: int, leaves: list[bytes], whole: bool = True) -> list[bytes]:
    if size == len(leaves):
        return [] if whole else [_naive(leaves)]
    middle = 1 << ((len(leaves) - 1).bit_length() - 1)
    if size <= middle:
        return [*_naive_proof(size, leaves[:middle], whole), _naive(leaves[middle:])]
    return [*_naive_proof(size - middle, leaves[middle:], False), _naive(leaves[:middle])]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 2000), st.data())
def test_proofs_equal_the_definition_and_verify(size: int, data: st.DataObject):
    leaves = [leaf_hash(str(number).encode()) for number in range(size)]
    tree = Tree(leaves)
    index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    root, path, proof = tree.root(), tree.inclusion(index, size), tree.consistency(old, size)
    assert root == _naive(leaves)
    assert path == _naive_path(index, leaves)
    assert proof == _naive_proof(old, leaves)
    merkle.verify_inclusion(leaves[index], index, size, path, root)
    merkle.verify_consistency(old, size, proof, tree.root(old), root)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 300), st.data())
def test_any_subtree_proof_verifies_and_no_changed_byte_does(size: int, data: st.DataObject):
    tree = Tree(leaf_hash(bytes([number % 256])) for number in range(size))
    level = data.draw(st.integers(0, size.bit_length() - 1))
    start = data.draw(st.integers(0, (size - 1) >> level)) << level
    end = data.draw(st.integers(start + 1, min(size, start + (1 << level))))
    if not merkle.is_subtree(start, end):
        return
    proof = merkle.consistency_proof(tree.node, start, end, size)
    part = merkle.root(tree.node, start, end)
    merkle.verify_subtree(start, end, size, proof, part, tree.root())
    place, flip = data.draw(st.integers(0, 32 * (len(proof) + 2) - 1)), data.draw(st.integers(1, 255))
    values = [bytearray(value) for value in (part, tree.root(), *proof)]
    values[place // 32][place % 32] ^= flip
    part, whole, *changed = map(bytes, values)
    with pytest.raises(Rejected):
        merkle.verify_subtree(start, end, size, changed, part, whole)


@settings(max_examples=1000, deadline=None)
@given(st.integers(1, 300), st.data())
def test_any_changed_byte_of_an_inclusion_proof_is_rejected(size: int, data: st.DataObject):
    tree = Tree(leaf_hash(bytes([number % 256])) for number in range(size))
    index = data.draw(st.integers(0, size - 1))
    values = [bytearray(v) for v in (tree.node(0, index), tree.root(), *tree.inclusion(index, size))]
    place, flip = data.draw(st.integers(0, 32 * len(values) - 1)), data.draw(st.integers(1, 255))
    values[place // 32][place % 32] ^= flip
    leaf, root, *proof = map(bytes, values)
    with pytest.raises(Rejected):
        merkle.verify_inclusion(leaf, index, size, proof, root)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 255, 256, 257, 1000])
def test_an_independent_implementation_agrees(size: int):
    other, tree = pymerkle.InmemoryTree(algorithm="sha256"), Tree()
    for number in range(size):
        other.append_entry(str(number).encode())
        tree.append(leaf_hash(str(number).encode()))
    assert other.get_root() == tree.root()
    for index in {0, size // 2, size - 1}:
        theirs = other.prove_inclusion(index + 1)
        assert {*theirs.path[1:]} == {*tree.inclusion(index, size)}
        pymerkle.verify_inclusion(tree.node(0, index), tree.root(), theirs)
    for old in {1, size // 2 + 1, size}:
        assert other.get_root(old) == tree.root(old)
        pymerkle.verify_consistency(tree.root(old), tree.root(), other.prove_consistency(old, size))

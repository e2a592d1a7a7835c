"""Notes, heads, tiles, proofs and policies against published vectors, and against every changed byte."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxlm.governance import canonical, evidence, heads, merkle, notes, quorum, tiles
from jaxlm.governance.errors import Rejected
from jaxlm.governance.evidence import Proof
from jaxlm.governance.heads import Head
from jaxlm.governance.log import Log
from jaxlm.governance.merkle import Tree, leaf_hash
from jaxlm.governance.notes import LogKey, Note, WitnessKey

LOG = LogKey("example.com/log", Ed25519PrivateKey.from_private_bytes(bytes(32)))
WITNESSES = [WitnessKey(f"w{n}.example", Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n in (1, 2, 3)]


def _vectors(shared: Path) -> Any:
    return json.loads((shared / "vectors/signed_note_cosignature.json").read_text())


def test_published_notes_verify_and_are_made_again_byte_for_byte(shared: Path):
    for case in _vectors(shared)["signed_notes"]:
        note = notes.parse(case["note"].encode())
        note.require(notes.parse_verifier(case["vkey"]))
        assert bytes(note) == case["note"].encode()
        if "private_key_TEST" in case:
            key = LogKey.parse(case["private_key_TEST"])
            assert str(key.verifier) == case["vkey"]
            assert bytes(Note(note.text, (key.sign(note.text),))) == case["note"].encode()


def test_published_verifier_keys_are_taken_and_refused_as_recorded(shared: Path):
    cases = _vectors(shared)["negative_vkeys"]
    for text in cases["must_reject"]:
        with pytest.raises(Rejected):
            notes.parse_verifier(text)
    for text in cases["must_accept_as_cosigner"]:
        key = notes.parse_verifier(text)
        assert str(key) == text


def test_a_cosignature_says_when_and_signs_what_the_specification_shows(shared: Path):
    vectors = _vectors(shared)
    example = vectors["checkpoint_examples"]
    note = notes.parse(example["checkpoint"].encode())
    assert note.signatures[1].time == example["witness_cosignature_time"]
    assert notes.cosigned(note.text, note.signatures[1].time).decode() == example["ed25519_cosigned_message"]
    assert heads.parse(note.text).size == 20852163
    raw = base64.b64decode(vectors["cosignature_timestamp"]["signature_base64"])
    assert notes.Signature("w", raw[:4], raw[4:]).time == vectors["cosignature_timestamp"]["timestamp"]


def test_a_subtree_cosignature_of_a_second_implementation_verifies(shared: Path):
    case = _vectors(shared)["mldsa44_subtree_cosignature"]
    key = notes.parse_verifier(case["vkey"])
    raw = base64.b64decode(case["signature_base64"])
    root = base64.b64decode(case["root_base64"])
    message = notes.subtree_message(key.name, 0, case["log_origin"], case["start"], case["end"], root)
    assert raw[:4] == key.id
    assert raw[4:12] == bytes(8)
    notes.MLDSA44PublicKey.from_public_bytes(key.key).verify(raw[12:], message)


def test_tile_paths_and_counts_of_the_specification(shared: Path):
    vectors = _vectors(shared)
    assert tiles.path(0, vectors["tile_path"]["index"]) == "tile/0/" + vectors["tile_path"]["path"]
    for row in vectors["tile_counts"]["rows"]:
        counts = dict(tiles.levels(row["tree_size"]))
        assert counts[0] // 256 == row["level0_full"]
        assert counts[0] % 256 == row.get("level0_partial_width", 0)
        assert counts[1] % 256 == row["level1_partial_width"]


def test_the_published_log_is_built_again_byte_for_byte(shared: Path, tmp_path: Path):
    golden = json.loads((shared / "vectors/tessera_tlog_tiles_golden_log.json").read_text())
    files = {name: base64.b64decode(text) for name, text in golden["files_base64"].items()}
    key = LogKey.parse(golden["test_private_key_signed_note"])
    assert str(key.verifier) == golden["vkey"]
    with Log(tmp_path / "log", key) as log:
        assert (tmp_path / "log/checkpoint").read_bytes() == files.pop("checkpoint.0")
        for number, entry in enumerate(golden["entries_utf8"]):
            assert log.append([entry.encode()]) == number
            assert (tmp_path / "log/checkpoint").read_bytes() == files.pop(f"checkpoint.{number + 1}")
    for name, content in files.items():
        assert (tmp_path / "log" / name).read_bytes() == content, name
    assert len(files) == 31


@pytest.mark.parametrize("size", [1, 255, 256, 257, 700, 65_536, 70_000])
def test_a_log_of_any_size_has_the_tiles_and_the_root_of_its_tree(size: int, tmp_path: Path):
    entries = [str(number).encode() for number in range(size)]
    with Log(tmp_path / "log", LOG) as log:
        log.append(entries[: size // 3])
        log.append(entries[size // 3 :])
        found = log.tiles()
        assert log.head.root == found.root() == Tree(map(leaf_hash, entries)).root()
        assert found.entry(size - 1) == entries[-1]
        wanted = {
            tiles.path(level, index, tiles.width(count, index))
            for level, count in [(None, size), *tiles.levels(size)]
            for index in range(-(-count // 256))
        }
        here = {p.relative_to(log.folder).as_posix() for p in (log.folder / "tile").rglob("*") if p.is_file()}
        assert wanted <= here
    with Log(tmp_path / "log", LOG) as again:
        assert again.head == log.head


def _bundle(size: int, index: int) -> tuple[bytes, bytes]:
    """A proof with three witnesses, and its entry."""
    entries = [canonical.dump({"number": number}) for number in range(size)]
    tree = Tree(map(leaf_hash, entries))
    note = Head(LOG.name, size, tree.root()).sign(LOG)
    note = note.add([witness.cosign(note.text, 1_700_000_000) for witness in WITNESSES])
    return bytes(Proof(index, tuple(tree.inclusion(index, size)), note)), entries[index]


POLICY = "\n".join(
    [
        f"log {LOG.verifier}",
        *(f"witness w{n} {witness.verifier}" for n, witness in enumerate(WITNESSES)),
        "group all3 all w0 w1 w2",
        "quorum all3",
        "",
    ]
).encode()


def _verify(bundle: bytes, entry: bytes) -> None:
    proof = evidence.parse(bundle)
    proof.check(entry)
    quorum.parse(POLICY).check(proof.note)


@settings(max_examples=1500, deadline=None)
@given(st.integers(1, 40), st.data())
def test_any_changed_byte_of_a_proof_bundle_is_rejected(size: int, data: st.DataObject):
    index = data.draw(st.integers(0, size - 1))
    bundle, entry = _bundle(size, index)
    _verify(bundle, entry)
    assert bytes(evidence.parse(bundle)) == bundle
    place, flip = data.draw(st.integers(0, len(bundle) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(bundle)
    changed[place] ^= flip
    with pytest.raises(Rejected):
        _verify(bytes(changed), entry)


def test_every_byte_of_one_bundle_changed_in_every_bit_is_rejected():
    bundle, entry = _bundle(11, 6)
    for place in range(len(bundle)):
        for bit in range(8):
            changed = bytearray(bundle)
            changed[place] ^= 1 << bit
            with pytest.raises(Rejected):
                _verify(bytes(changed), entry)


@pytest.mark.parametrize("what", [b"", b"\n\n", b"c2sp.org/tlog-proof@v1\n\n", b"c2sp.org/tlog-proof@v1\nindex 00\n\n"])
def test_what_is_no_proof_is_rejected(what: bytes):
    with pytest.raises(Rejected):
        evidence.parse(what)


def test_a_note_is_split_at_its_last_empty_line_and_unknown_signatures_are_ignored():
    text = "one\n\ntwo\n"
    other = LogKey("other", Ed25519PrivateKey.from_private_bytes(bytes([9] * 32)))
    forged = notes.Signature("stranger", b"1234", b"x" * 64)
    note = notes.parse(bytes(Note(text, (LOG.sign(text), forged, other.sign(text)))))
    assert note.text == text
    assert set(note.signed_by([LOG.verifier])) == {LOG.verifier}
    with pytest.raises(Rejected, match="no signature of stranger"):
        note.require(notes.Verifier("stranger", notes.ED25519, bytes(32)))


def test_a_known_key_whose_signature_fails_rejects_the_whole_note():
    text = "one\n"
    bad = notes.Signature(WITNESSES[0].name, WITNESSES[0].verifier.id, bytes(72))
    note = Note(text, (LOG.sign(text), bad))
    note.require(LOG.verifier)
    with pytest.raises(Rejected, match=r"w1\.example does not hold"):
        note.signed_by([LOG.verifier, WITNESSES[0].verifier])


def test_sixteen_signatures_are_read_and_a_million_are_not():
    text = "one\n"
    lines = "".join(notes.Signature(f"n{n}", b"1234", b"x" * 64).line() for n in range(15))
    notes.parse(bytes(Note(text, (LOG.sign(text),))) + lines.encode()).require(LOG.verifier)
    with pytest.raises(Rejected, match="too long"):
        notes.parse(f"{text}\n".encode() + notes.Signature("n", b"1234", b"x").line().encode() * 10**6)
    with pytest.raises(Rejected, match="101 signatures"):
        notes.parse(f"{text}\n".encode() + notes.Signature("n", b"1234", b"x").line().encode() * 101)


@pytest.mark.parametrize("text", ["a\n01\n", "a\n-1\n", "a\n9999999999999999999999\n", "a\n1\nx\n", "a\n1\nAA==\n"])
def test_a_head_in_any_other_form_is_rejected(text: str):
    with pytest.raises(Rejected):
        heads.parse(text)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("witness w0 {w} https://x\nquorum none", "taken"),
        ("witness again {w}\nquorum none", "twice"),
        ("log {w}\nquorum none", "cannot do this"),
        ("group g 5 w0 w1\nquorum g", "no threshold"),
        ("group g 0 w0 w1\nquorum g", "no threshold"),
        ("group g any w0\ngroup h any w0\nquorum h", "member twice"),
        ("group g any later\nquorum g", "not defined"),
        ("quorum none\nquorum none", "one quorum line"),
        ("", "one quorum line"),
        ("quorum w9", "not defined"),
        ("nonsense", "not a line"),
        ("quorum none\r", "control"),
    ],
)
def test_a_policy_that_says_something_else_names_its_line(line: str, why: str):
    begin = f"log {LOG.verifier}\nwitness w0 {WITNESSES[0].verifier}\nwitness w1 {WITNESSES[1].verifier}\n"
    with pytest.raises(Rejected, match=why):
        quorum.parse((begin + line.format(w=WITNESSES[0].verifier)).encode())


def test_two_of_three_witnesses_are_enough_and_one_is_not():
    policy = quorum.parse(POLICY.replace(b"all3 all", b"all3 2"))
    note = Head(LOG.name, 0, merkle.EMPTY).sign(LOG)
    with pytest.raises(Rejected, match="no quorum: 1 of 3"):
        policy.check(note.add([WITNESSES[0].cosign(note.text, 1)]))
    head, names = policy.check(note.add([w.cosign(note.text, 1) for w in WITNESSES[:2]]))
    assert (head.size, names) == (0, ["w0", "w1"])


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":1}', '{"a": 1}', "1.0", "NaN", "[" * 40 + "]" * 40, '{"b":1,"a":1}', "01", "1e2", "\xff"]
)
def test_json_that_is_not_canonical_is_rejected(text: str):
    with pytest.raises(Rejected):
        canonical.load(text.encode("latin-1"))


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**53) + 1, 2**53 - 1)
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=8,
    )
)
def test_canonical_json_comes_back(value: Any):
    assert canonical.dump(canonical.load(canonical.dump(value))) == canonical.dump(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, {1: 2}, "\ud800"])
def test_what_json_cannot_hold_is_rejected(value: Any):
    with pytest.raises(Rejected):
        canonical.dump(value)

"""Inference records: committed to, readable with their key alone, and gone after erasure while every proof holds."""

import hashlib
import itertools
from pathlib import Path

import pytest

from jaxlm.governance import canonical, evidence, inference, merkle
from jaxlm.governance.audit import read_log
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.evidence import Proof
from jaxlm.governance.inference import Records
from jaxlm.governance.keys import Keys
from jaxlm.governance.log import reader
from jaxlm.governance.trail import Trail

BODY = {"prompt": "the patient Mary Shelley asks", "text": "a very private answer"}


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


def _record(tmp_path: Path, keys: Keys, count: int = 2) -> list[str]:
    with Trail(tmp_path / "audit", keys=keys) as trail:
        return [Records(trail).add({**BODY, "number": n}, step=7) for n in range(count)]


def _proof(tmp_path: Path, index: int) -> Proof:
    log = read_log(tmp_path / "audit", keys=None)
    found = reader(tmp_path / "audit/log", log.head.size)
    path = merkle.inclusion_proof(found.node, index, 0, log.head.size)
    return Proof(index, tuple(path), log.note, found.entry(index))


def _everywhere(folder: Path) -> bytes:
    return b"\n".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_record_comes_back_with_its_key_and_lies_nowhere_in_the_clear(tmp_path: Path, keys: Keys):
    _record(tmp_path, keys)
    log = read_log(tmp_path / "audit", keys=None)
    assert inference.reveal(tmp_path / "audit", keys, log.run, log.entries[1]) == {**BODY, "number": 1}
    assert log.entries[1].body["step"] == 7
    for words in (b"Shelley", b"private answer"):
        assert words not in _everywhere(tmp_path)
    with pytest.raises(Rejected, match="its key is not here"):
        inference.reveal(tmp_path / "audit", Keys(tmp_path / "others"), log.run, log.entries[1])


def test_25_after_erasure_nothing_brings_it_back_and_every_proof_holds(tmp_path: Path, keys: Keys):
    first, _ = _record(tmp_path, keys)
    proofs = [bytes(_proof(tmp_path, index)) for index in range(2)]
    key = (keys.folder / "records" / first).read_bytes()
    sealed = (tmp_path / "audit/inference" / first).read_bytes()
    known = read_log(tmp_path / "audit", keys=None).entries
    with Trail(tmp_path / "audit", keys=keys) as trail:
        Records(trail).erase([first], "request of the person, article 17", known)
        with pytest.raises(GovernanceError, match="erased already"):
            Records(trail).erase([first], "again", known)
        with pytest.raises(GovernanceError, match="knows no record"):
            Records(trail).erase(["0" * 32], "unknown", known)
    log = read_log(tmp_path / "audit", keys=keys, full=True)
    assert (log.entries[-1].kind, log.entries[-1].body["indices"]) == ("erasure", [0])
    with pytest.raises(Rejected, match="erased"):
        inference.reveal(tmp_path / "audit", keys, log.run, log.entries[0])
    assert inference.reveal(tmp_path / "audit", keys, log.run, log.entries[1]) == {**BODY, "number": 1}
    left = _everywhere(tmp_path)
    assert key not in left
    assert sealed[12:] not in left
    for index, content in enumerate(proofs):
        proof = evidence.parse(content)
        assert proof.extra is not None
        proof.check(proof.extra)
        assert proof.extra == reader(tmp_path / "audit/log", 2).entry(index)


def test_a_plain_hash_is_guessed_from_a_list_and_the_commitment_is_not(tmp_path: Path, keys: Keys):
    _record(tmp_path, keys, 1)
    committed = read_log(tmp_path / "audit", keys=None).entries[0].body["commitment"]
    names = ["Mary Shelley", "Ada Lovelace", "Jane Austen"]
    guesses = [
        {**BODY, "prompt": f"the patient {name} asks", "number": n} for name, n in itertools.product(names, [0, 1])
    ]
    plain = hashlib.sha256(canonical.dump({**BODY, "number": 0})).hexdigest()
    assert plain in {hashlib.sha256(canonical.dump(guess)).hexdigest() for guess in guesses}
    assert committed not in {inference.commitment(bytes(32), guess) for guess in guesses}
    assert committed not in {hashlib.sha256(canonical.dump(guess)).hexdigest() for guess in guesses}


def test_a_record_under_another_request_or_changed_is_refused(tmp_path: Path, keys: Keys):
    first, second = _record(tmp_path, keys)
    log = read_log(tmp_path / "audit", keys=None)
    folder = tmp_path / "audit/inference"
    whole = (folder / first).read_bytes()
    (folder / first).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(Rejected, match="was changed"):
        inference.reveal(tmp_path / "audit", keys, log.run, log.entries[0])
    (folder / first).write_bytes((folder / second).read_bytes())
    (keys.folder / "records" / first).write_bytes((keys.folder / "records" / second).read_bytes())
    with pytest.raises(Rejected, match="belongs to another request"):
        inference.reveal(tmp_path / "audit", keys, log.run, log.entries[0])

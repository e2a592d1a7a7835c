"""Witnesses of a log whose key was replaced: they follow its own entries, and nobody else's."""

import dataclasses
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jaxlm.governance import cosigning, notes, quorum, rotation, succession
from jaxlm.governance.entries import Chain
from jaxlm.governance.errors import Rejected
from jaxlm.governance.log import Log
from jaxlm.governance.notes import LogKey
from jaxlm.governance.succession import Request
from jaxlm.governance.witness import Refused, Witness, request, serve
from tests.governance.test_witness import WITNESSES

NAME = "jaxlm/run/log"


def _key(number: int) -> LogKey:
    return LogKey(NAME, Ed25519PrivateKey.from_private_bytes(bytes([number] * 32)))


OLD, NEW, NEWEST, STRANGER = map(_key, (11, 12, 13, 14))


def _witness(folder: Path, *, node: bool = False) -> Witness:
    logs, nodes = ([], [OLD.verifier.key]) if node else ([OLD.verifier], [])
    return Witness(WITNESSES[0], logs, folder / "witness", clock=lambda: 1e9, nodes=nodes)


def _log(folder: Path, keys: Sequence[LogKey], signers: Sequence[LogKey] | None = None) -> Log:
    """A log in which each key hands over to the next one, with two entries under each. `signers` sign in place of the
    old keys."""
    chain, log = Chain("host", "boot"), Log(folder, keys[0])
    for number, key in enumerate(keys):
        if number:
            before = keys[number - 1]
            body = rotation.of_log(log.head, before, key)
            if signers is not None:
                said = rotation.Statement(rotation.LOG, log.head, str(before.verifier), str(key.verifier))
                body = said.body(signers[number - 1].sign(said.text).value, key.sign(said.text).value)
            log.append([chain.entry("key.rotate", body, 1.0, 1.0)])
            log.hand_over(key)
        log.append([chain.entry("eval", {"step": step}, 1.0, 1.0) for step in range(2)])
    return log


def _asked(log: Log, old: int = 0) -> Request:
    return succession.of_log(old, log.note, log.tiles())


def _refused(ask: Callable[[], object], status: int, why: str = ".") -> None:
    with pytest.raises(Refused, match=why) as refused:
        ask()
    assert refused.value.status == status


@pytest.mark.parametrize("node", [False, True])
def test_it_follows_what_the_old_key_signed_and_remembers_it(tmp_path: Path, node: bool):
    witness = _witness(tmp_path, node=node)
    with _log(tmp_path / "log", [OLD]) as log:
        witness.add(request(0, [], log.note))
    shutil.rmtree(tmp_path / "log")
    with _log(tmp_path / "log", [OLD, NEW]) as log:
        proof = log.tiles()
        _refused(lambda: witness.add(request(2, list(_asked(log, 2).proof), log.note)), 403)
        line = witness.rotate(bytes(_asked(log, 2)))
        WITNESSES[0].verifier.check(log.note.text, notes.parse_signature(line[:-1]).value)
        assert witness.rotate(bytes(_asked(log, 5))), "said again"
        assert proof.size == 5
    again = _witness(tmp_path, node=node)
    with Log(tmp_path / "log", NEW) as log:
        log.append([b"more"])
        assert again.add(request(5, list(_asked(log, 5).proof), log.note))
        by_old = dataclasses.replace(log.note, signatures=(OLD.sign(log.note.text),))
        _refused(lambda: again.add(request(6, [], by_old)), 403)


def test_it_follows_several_at_once_also_from_one_in_between(tmp_path: Path):
    with _log(tmp_path / "log", [STRANGER, OLD, NEW, NEWEST]) as log:
        assert _witness(tmp_path).rotate(bytes(_asked(log)))
    assert _witness(tmp_path).newest(NAME) is not None


def _by_a_stranger(folder: Path) -> Log:
    """Signs in place of the old key, which it does not have."""
    return _log(folder, [OLD, NEW], [STRANGER])


def _from_a_stranger(folder: Path) -> Log:
    """Hands over from its own key to another one of its own."""
    return _log(folder, [STRANGER, NEW])


def _by_a_key_before(folder: Path) -> Log:
    """A stolen key that was replaced hands over once more."""
    return _log(folder, [OLD, NEW, NEWEST], [OLD, OLD])


@pytest.mark.parametrize(
    ("attack", "why"),
    [
        (_by_a_stranger, "the old key has not signed it"),
        (_from_a_stranger, "no handover is signed by a key that is known"),
        (_by_a_key_before, "the old key has not signed it"),
    ],
)
def test_10_a_stranger_who_replaces_the_key_of_a_log_at_its_witness(
    attack: Callable[[Path], Log], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    witness = _witness(tmp_path)
    with attack(tmp_path / "log") as log:
        _refused(lambda: witness.rotate(bytes(_asked(log))), 403, why)
        _refused(lambda: witness.add(request(0, [], log.note)), 403)
        monkeypatch.setattr(rotation, "_verify", lambda *_: None)
        monkeypatch.setattr(
            Request, "follow", lambda self, head, _: [(at.index, *at.check(head)) for at in self.handovers]
        )
        assert witness.rotate(bytes(_asked(log))), "with the defence off the stranger has the log"
        assert _witness(tmp_path).newest(NAME) is not None


def test_10_a_stolen_old_key_that_hands_over_to_the_thief(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    witness = _witness(tmp_path)
    with _log(tmp_path / "log", [OLD, NEW]) as log:
        witness.rotate(bytes(_asked(log)))
    with _log(tmp_path / "stolen", [OLD, STRANGER]) as log:
        _refused(lambda: witness.rotate(bytes(_asked(log, 5))), 403, "handed over to another key before")
    # Where it signed on after it said that it would not, and only then shows that.
    with _log(tmp_path / "on", [OLD]) as log:
        late = Witness(WITNESSES[0], [OLD.verifier], tmp_path / "late")
        log.append([b"more", b"and more"])
        late.add(request(0, [], log.note))
    with _log(tmp_path / "back", [OLD, NEW]) as log:
        log.append([b"more"])
        _refused(lambda: late.rotate(bytes(_asked(log, 4))), 403, "more entries than it says")
        monkeypatch.setattr(Witness, "_check", lambda *_: None)
        empty = Witness(WITNESSES[0], [OLD.verifier], tmp_path / "empty")
        assert empty.rotate(bytes(_asked(log))), "whoever saw nothing before cannot tell"


def _moved(asked: Request) -> Request:
    return dataclasses.replace(
        asked, handovers=tuple(dataclasses.replace(h, index=h.index + 1) for h in asked.handovers)
    )


def _not_logged(asked: Request) -> Request:
    (only,) = asked.handovers
    return dataclasses.replace(asked, handovers=(dataclasses.replace(only, path=only.path[::-1]),))


def _of_another_log(asked: Request) -> Request:
    (only,) = asked.handovers
    return dataclasses.replace(asked, handovers=(dataclasses.replace(only, before=only.before[:-1]),))


def _another_entry(asked: Request) -> Request:
    (only,) = asked.handovers
    return dataclasses.replace(asked, handovers=(dataclasses.replace(only, entry=only.entry.replace(b"2", b"3", 1)),))


def _under_the_old_key(asked: Request) -> Request:
    return dataclasses.replace(asked, note=dataclasses.replace(asked.note, signatures=(OLD.sign(asked.note.text),)))


@pytest.mark.parametrize("change", [_moved, _not_logged, _of_another_log, _another_entry, _under_the_old_key])
def test_what_is_not_in_the_log_where_it_says_is_refused(change: Callable[[Request], Request], tmp_path: Path):
    witness = _witness(tmp_path)
    with _log(tmp_path / "log", [OLD, NEW]) as log:
        _refused(lambda: witness.rotate(bytes(change(_asked(log)))), 403)
        assert witness.newest(NAME) is None
        assert not list((tmp_path / "witness").iterdir())
        assert witness.rotate(bytes(_asked(log)))


def test_a_fork_is_refused_as_ever_and_changes_no_key(tmp_path: Path):
    witness = _witness(tmp_path)
    with Log(tmp_path / "other", OLD) as log:
        log.append([b"another history"])
        witness.add(request(0, [], log.note))
    with _log(tmp_path / "log", [OLD, NEW]) as log:
        _refused(lambda: witness.rotate(bytes(_asked(log, 1))), 422)
        _refused(lambda: witness.rotate(bytes(_asked(log, 2))), 409)
        _refused(lambda: witness.add(request(1, list(_asked(log, 1).proof), log.note)), 403)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"head":1,"old":0,"proof":[],"rotations":[]}'])
def test_what_is_no_request_is_answered(body: bytes, tmp_path: Path):
    _refused(lambda: _witness(tmp_path).rotate(body), 400)


def test_any_changed_byte_of_a_request_is_refused(tmp_path: Path):
    witness = _witness(tmp_path)
    with _log(tmp_path / "log", [OLD, NEW]) as log:
        good = bytes(_asked(log))
        for at in range(0, len(good), 3):
            bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
            with pytest.raises(Refused):
                witness.rotate(bad)
        assert witness.rotate(good)


def test_a_log_is_cosigned_over_http_before_and_after(tmp_path: Path):
    server = serve(_witness(tmp_path, node=True), "127.0.0.1", 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    me = WITNESSES[0]
    policy = quorum.parse(f"log {NEW.verifier}\nwitness me {me.verifier} {url}\nquorum me\n".encode())
    try:
        with _log(tmp_path / "before", [OLD]) as log:
            assert cosigning.cosign(policy, log.note, log.tiles())[1] == {}
        with _log(tmp_path / "log", [OLD, NEW]) as log:
            note, failed = cosigning.cosign(policy, log.note, log.tiles())
            assert failed == {}
            assert policy.check(note)[1] == ["me"]
        with _log(tmp_path / "stranger", [STRANGER]) as log, pytest.raises(Rejected, match="403"):
            cosigning.ask(url, me.verifier, log.note, log.tiles())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_witness_that_would_become_its_own_log_is_refused(tmp_path: Path):
    key = LogKey(NAME, WITNESSES[0].private)
    with _log(tmp_path / "log", [OLD, key]) as log:
        _refused(lambda: _witness(tmp_path).rotate(bytes(_asked(log))), 403, "a log is no witness")

"""A witness over HTTP: what it cosigns, what it refuses and with which status, and that it never goes back."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jaxlm.governance import cosigning, heads, merkle, notes, quorum
from jaxlm.governance.errors import Rejected
from jaxlm.governance.heads import Head
from jaxlm.governance.log import Log
from jaxlm.governance.merkle import Tree, leaf_hash
from jaxlm.governance.notes import LogKey, Note, WitnessKey
from jaxlm.governance.quorum import NoQuorum
from jaxlm.governance.trust import Trust
from jaxlm.governance.witness import Refused, Witness, request, serve
from jaxlm.governance.witnessing import Witnessing

KEY = LogKey("example.com/log", Ed25519PrivateKey.from_private_bytes(bytes(32)))
NAMES = ["w1.example", "w2.example", "w3.example"]
WITNESSES = [WitnessKey(name, Ed25519PrivateKey.from_private_bytes(bytes([n] * 32))) for n, name in enumerate(NAMES, 1)]


def _tree(size: int, other: str = "") -> Tree:
    return Tree(leaf_hash(f"{other}{n}".encode()) for n in range(size))


def _note(tree: Tree, size: int | None = None) -> Note:
    size = tree.size if size is None else size
    return Head(KEY.name, size, tree.root(size)).sign(KEY)


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    return Witness(WITNESSES[0], [KEY.verifier], tmp_path / "witness", clock=lambda: 1_700_000_000.5)


def test_it_cosigns_what_follows_from_what_it_saw(witness: Witness, tmp_path: Path):
    tree = _tree(20)
    for old, new in [(0, 7), (7, 7), (7, 20)]:
        proof = [] if old in (0, new) else tree.consistency(old, new)
        line = witness.add(request(old, proof, _note(tree, new)))
        signature = notes.parse_signature(line[:-1])
        WITNESSES[0].verifier.check(_note(tree, new).text, signature.value)
        assert signature.time == 1_700_000_000
    again = Witness(WITNESSES[0], [KEY.verifier], tmp_path / "witness")
    newest = again.newest(KEY.name)
    assert newest is not None
    assert newest.size == 20


def _unsigned(tree: Tree) -> Note:
    return Note(_note(tree).text, (LogKey(KEY.name, Ed25519PrivateKey.generate()).sign(_note(tree).text),))


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (lambda: b"", 400),
        (lambda: b"old 01\n\n" + bytes(_note(_tree(9))), 400),
        (lambda: request(12, [], _note(_tree(9))), 400),
        (lambda: request(5, [bytes(32)] * 64, _note(_tree(9))), 400),
        (lambda: request(0, [], Head("example.com/other", 1, bytes(32)).sign(KEY)), 404),
        (lambda: request(5, _tree(9).consistency(5, 9), _unsigned(_tree(9))), 403),
        (lambda: request(0, [], _note(_tree(9))), 409),
        (lambda: request(4, _tree(9).consistency(4, 9), _note(_tree(9))), 409),
        (lambda: request(5, [], _note(_tree(9))), 422),
        (lambda: request(5, _tree(9, "x").consistency(5, 9), _note(_tree(9, "x"))), 422),
        (lambda: request(5, [], _note(_tree(5, "x"))), 409),
    ],
)
def test_it_refuses_with_the_status_of_the_protocol(witness: Witness, body: Any, status: int):
    witness.add(request(0, [], _note(_tree(5))))
    with pytest.raises(Refused) as refused:
        witness.add(body())
    assert refused.value.status == status
    if status == 409:
        assert (refused.value.body, refused.value.kind) == ("5\n", "text/x.tlog.size")
    newest = witness.newest(KEY.name)
    assert newest is not None
    assert newest.size == 5


def test_two_heads_of_one_size_are_kept_as_evidence(witness: Witness, tmp_path: Path):
    witness.add(request(0, [], _note(_tree(5))))
    with pytest.raises(Refused):
        witness.add(request(5, [], _note(_tree(5, "x"))))
    (kept,) = (tmp_path / "witness").glob("*.evidence-*")
    first, second = kept.read_bytes().split(b"\n\n" + KEY.name.encode())[0], kept.read_bytes()
    assert _note(_tree(5)).text.encode() in first + b"\n"
    assert _note(_tree(5, "x")).text.encode() in second


def test_a_hundred_heads_at_once_never_take_it_back(witness: Witness):
    tree, sizes, errors = _tree(101), [], []

    def submit(size: int) -> None:
        for _ in range(400):
            newest = witness.newest(KEY.name)
            old = 0 if newest is None else newest.size
            sizes.append(old)
            if old >= size:
                return
            try:
                witness.add(request(old, tree.consistency(old, size) if old else [], _note(tree, size)))
            except Refused as refused:
                if refused.status != 409:
                    errors.append(refused)

    threads = [threading.Thread(target=submit, args=(size,)) for size in range(1, 101)]
    watched: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            newest = witness.newest(KEY.name)
            watched.append(0 if newest is None else newest.size)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    newest = witness.newest(KEY.name)
    assert newest is not None
    assert (newest.size, errors) == (100, [])
    assert watched == sorted(watched)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Three witnesses that listen: URL by name."""
    running, urls = [], {}
    for key in WITNESSES:
        server = serve(Witness(key, [KEY.verifier], tmp_path / key.name), "127.0.0.1", 0)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((server, thread))
        urls[key.name] = f"http://127.0.0.1:{server.server_address[1]}"
    yield urls
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def policy(urls: dict[str, str], least: int = 2) -> quorum.Policy:
    lines = [f"log {KEY.verifier}"]
    lines += [f"witness {w.name} {w.verifier} {urls.get(w.name, '')}" for w in WITNESSES]
    lines += [f"group all {least} {' '.join(NAMES)}", "quorum all", ""]
    return quorum.parse("\n".join(lines).encode())


def test_a_log_collects_a_quorum_over_http(servers: dict[str, str], tmp_path: Path):
    with Log(tmp_path / "log", KEY) as log:
        for count in (3, 300):
            log.append([b"entry"] * count)
            note, failed = cosigning.cosign(policy(servers, 3), log.note, log.tiles())
            assert failed == {}
            log.publish(note)
            head, names = policy(servers, 3).check(notes.parse((tmp_path / "log/checkpoint").read_bytes()))
            assert (head, names) == (log.head, NAMES)
    import hashlib
    import urllib.request

    name = hashlib.sha256(KEY.name.encode()).hexdigest()
    with urllib.request.urlopen(f"{servers[NAMES[0]]}/{name}/checkpoint") as answer:
        assert heads.read(answer.read(), KEY.verifier)[0] == log.head


def test_a_rolled_back_or_rewritten_log_gets_no_quorum(servers: dict[str, str], tmp_path: Path):
    honest = policy(servers)
    with Log(tmp_path / "log", KEY) as log:
        log.append([b"a", b"b", b"c"])
        note, _ = cosigning.cosign(honest, log.note, log.tiles())
        honest.check(note)
    with Log(tmp_path / "shorter", KEY) as log:
        log.append([b"a", b"b"])
        note, failed = cosigning.cosign(honest, log.note, log.tiles())
        assert all("rolled back" in why for why in failed.values())
        assert len(failed) == 3
        with pytest.raises(Rejected, match="no quorum: 0 of 3"):
            honest.check(note)
    with Log(tmp_path / "other", KEY) as log:
        log.append([b"a", b"x", b"c"])
        _, failed = cosigning.cosign(honest, log.note, log.tiles())
        assert all("two histories" in why for why in failed.values())
        log.append([b"d"])
        note, failed = cosigning.cosign(honest, log.note, log.tiles())
        assert all("422" in why for why in failed.values())
        with pytest.raises(Rejected, match="no quorum"):
            honest.check(note)


def test_a_witness_that_is_down_is_named_and_two_of_three_suffice(servers: dict[str, str], tmp_path: Path):
    urls = servers | {NAMES[2]: "http://127.0.0.1:9"}
    with Log(tmp_path / "log", KEY) as log:
        log.append([b"a"])
        note, failed = cosigning.cosign(policy(urls), log.note, log.tiles())
        assert list(failed) == [NAMES[2]]
        policy(urls).check(note)


def test_the_first_head_may_be_of_an_empty_log_and_only_of_that(witness: Witness):
    with pytest.raises(Refused, match="422"):
        witness.add(request(0, [], Head(KEY.name, 0, bytes(32)).sign(KEY)))
    witness.add(request(0, [], Head(KEY.name, 0, merkle.EMPTY).sign(KEY)))
    witness.add(request(0, [], _note(_tree(4))))


def test_a_log_cannot_be_its_own_witness(tmp_path: Path):
    with pytest.raises(Rejected, match="no witness"):
        Witness(WitnessKey("w", KEY.private), [KEY.verifier], tmp_path)
    text = f"log {KEY.verifier}\nwitness w {WitnessKey('w', KEY.private).verifier}\nquorum w\n"
    with pytest.raises(Rejected, match="no witness of itself"):
        quorum.parse(text.encode())


def test_a_witness_that_the_logs_own_operator_runs_counts_for_nothing():
    mine = WITNESSES[0]
    note = _note(_tree(5)).add([mine.cosign(_note(_tree(5)).text, 1)])
    trust = Trust(policy=policy({}, least=1))
    said, head = trust.judge(KEY.verifier, [note])
    assert (head, mine.name in said) == (heads.parse(note.text), True), "with the defence off it is a quorum"
    with pytest.raises(NoQuorum, match="no quorum"):
        trust.judge(KEY.verifier, [note], own=[mine.verifier.key])


def test_witnesses_are_asked_at_once_so_that_one_that_is_down_is_said_while_a_short_run_lasts(tmp_path: Path):
    said: list[str] = []
    heard = threading.Event()

    def alert(why: str) -> None:
        said.append(why)
        if why.startswith("quorum"):
            heard.set()

    nobody = policy(dict.fromkeys(NAMES, "http://127.0.0.1:9"))
    with Log(tmp_path / "log", KEY) as log:
        log.append([b"a"])
        asking = Witnessing(tmp_path / "log", nobody, alert, 3600.0)
        assert heard.wait(20)
        asking.close()
    assert [why.split(":")[0] for why in said] == [*NAMES, "quorum"], "each once, and the last try says nothing new"

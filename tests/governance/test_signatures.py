"""Signed checkpoints: the published DSSE vector, the stock verifier, and every change to what is signed."""

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxlm.governance import dsse, keys, model_signature, tensors
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.keys import Keys

KEY = ec.derive_private_key(7, ec.SECP256R1())
FILES = {"manifest.json": b"{}", "state/d/one": b"weights", "state/d/two": b"more", "state/commit_success.txt": b""}
GOVERNANCE = {"run": "r", "step": 40, "tensor_root": "00"}


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    folder = tmp_path / "40"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    model_signature.sign(folder, "40", {n: _digest(c) for n, c in FILES.items()}, GOVERNANCE, KEY)
    return folder


def _verify(folder: Path) -> model_signature.Statement:
    statement = model_signature.read(folder, KEY.public_key())
    model_signature.check_listing(folder, statement.files)
    model_signature.check_files(folder, statement.files)
    return statement


def test_the_published_envelope_verifies_and_its_encoding_is_the_same(shared: Path):
    case = json.loads((shared / "vectors/dsse_model_signing.json").read_text())
    payload = case["body_utf8"].encode()
    message = dsse.encoding(case["payload_type"], payload)
    assert message.decode() == case["pae_utf8"]
    raw = base64.b64decode(case["signature_base64"])
    signature = encode_dss_signature(int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big"))
    numbers = ec.EllipticCurvePublicNumbers(int(case["public_key_x"]), int(case["public_key_y"]), ec.SECP256R1())
    numbers.public_key().verify(signature, message, ec.ECDSA(SHA256()))
    constants = case["model_signing"]
    statement = model_signature._statement("m", {"a": "00"}, {})
    assert (statement["_type"], statement["predicateType"]) == (
        constants["statement_type"],
        constants["predicate_type"],
    )
    assert (constants["payload_type"], constants["bundle_media_type"]) == (dsse.PAYLOAD_TYPE, dsse._MEDIA_TYPE)


def test_the_stock_verifier_accepts_what_we_sign_and_refuses_a_changed_file(signed: Path, tmp_path: Path):
    (tmp_path / "key.pem").write_bytes(keys.public_pem(KEY.public_key()))

    def stock() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "model_signing", "verify", "key", str(signed)),
                *("--signature", str(signed / "model.sig"), "--public_key", str(tmp_path / "key.pem")),
            ],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )

    done = stock()
    assert (done.returncode, "succeeded" in done.stdout) == (0, True), done.stdout + done.stderr
    (signed / "state/d/one").write_bytes(b"Weights")
    assert stock().returncode != 0


def test_our_fields_are_under_the_signature(signed: Path):
    assert _verify(signed).governance == GOVERNANCE


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_of_a_signature_is_rejected(signed: Path, data: st.DataObject):
    path = signed / "model.sig"
    whole = path.read_bytes()
    place, flip = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    changed = bytearray(whole)
    changed[place] ^= flip
    try:
        path.write_bytes(changed)
        with pytest.raises(Rejected):
            model_signature.read(signed, KEY.public_key())
    finally:
        path.write_bytes(whole)


def test_the_mirrored_signature_is_rejected_though_it_is_valid(signed: Path):
    whole: Any = json.loads((signed / "model.sig").read_bytes())
    line = whole["dsseEnvelope"]["signatures"][0]
    r, s = decode_dss_signature(base64.b64decode(line["sig"]))
    mirrored = encode_dss_signature(r, dsse._ORDER - s)
    message = dsse.encoding(dsse.PAYLOAD_TYPE, base64.b64decode(whole["dsseEnvelope"]["payload"]))
    KEY.public_key().verify(mirrored, message, ec.ECDSA(SHA256()))
    line["sig"] = base64.b64encode(mirrored).decode()
    (signed / "model.sig").write_text(json.dumps(whole))
    with pytest.raises(Rejected, match="mirrored"):
        _verify(signed)


def test_the_encoding_of_old_model_signing_is_rejected(signed: Path):
    payload = b"{}"
    old = f"DSSEV1 {len(dsse.PAYLOAD_TYPE)} {dsse.PAYLOAD_TYPE} {len(payload)} {payload}".encode()
    r, s = decode_dss_signature(KEY.sign(old, ec.ECDSA(SHA256())))
    low = encode_dss_signature(r, min(s, dsse._ORDER - s))
    (signed / "model.sig").write_bytes(dsse._bundle(payload, low, dsse.hint(KEY.public_key())))
    with pytest.raises(Rejected, match="does not hold"):
        _verify(signed)


def _swap(folder: Path) -> None:
    (folder / "state/d/one").rename(folder / "x")
    (folder / "state/d/two").rename(folder / "state/d/one")
    (folder / "x").rename(folder / "state/d/two")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda f: (f / "state/d/one").write_bytes(b"weightz"), "state/d/one has"),
        (_swap, "state/d/one has"),
        (lambda f: (f / "state/d/one").unlink(), "state/d/one is missing"),
        (lambda f: (f / "state/commit_success.txt").unlink(), r"commit_success\.txt is missing"),
        (lambda f: (f / "state/d/two").write_bytes(b""), "state/d/two has"),
        (lambda f: (f / "state/new").write_bytes(b""), "state/new was not signed"),
        (lambda f: (f / ".hidden").write_bytes(b""), r"\.hidden was not signed"),
        (lambda f: (f / "state/empty").mkdir(), "state/empty/ is a folder"),
        (lambda f: ((f / ".git").mkdir(), (f / ".git/evil.pkl").write_bytes(b"")), r"\.git/ is a folder"),
        (lambda f: (f / "state/d/three").symlink_to(f / "state/d/one"), "three is a link"),
        (lambda f: (f / "state/d/two").rename(f / "state/d/zwo"), "state/d/zwo was not signed"),
        (lambda f: (f / "model.sig").unlink(), "not signed"),
    ],
)
def test_a_changed_folder_is_refused_and_the_file_named(signed: Path, change: Any, named: str):
    _verify(signed)
    change(signed)
    with pytest.raises(Rejected, match=named):
        _verify(signed)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../b", "a//b", "a\0b", "a\\b", "C:/x", "cafe\u0301", "."])
def test_a_name_that_leads_elsewhere_is_refused_before_any_file_is_opened(name: str, tmp_path: Path):
    with pytest.raises(Rejected):
        model_signature.sign(tmp_path, "1", {name: "00" * 32}, {}, KEY)


@pytest.mark.parametrize("pair", [("a/B", "a/b"), ("\u00e9", "\u00c9"), ("ﬁ", "fi")])
def test_names_that_are_one_to_some_file_systems_are_refused(pair: tuple[str, str], tmp_path: Path):
    with pytest.raises(Rejected, match="one name"):
        model_signature.sign(tmp_path, "1", dict.fromkeys(pair, "00" * 32), {}, KEY)


def test_a_rename_that_keeps_the_subject_changes_what_the_log_holds(signed: Path):
    before = _verify(signed)
    files = {name.replace("two", "twp"): digest for name, digest in before.files.items()}
    (signed / "state/d/two").rename(signed / "state/d/twp")
    after = model_signature.sign(signed, "40", files, GOVERNANCE, KEY)
    subject = [model_signature._statement("40", f, {})["subject"] for f in (before.files, files)]
    assert subject[0] == subject[1]
    assert before.payload != after.payload


def test_keys_are_made_once_for_their_owner_alone_and_never_in_a_run(tmp_path: Path):
    made = Keys(tmp_path / "keys")
    assert made.log().private_bytes_raw() == Keys(tmp_path / "keys").log().private_bytes_raw()
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "keys").glob("*.pem")} == {0o600}
    with pytest.raises(GovernanceError, match="inside the run directory"):
        Keys(tmp_path / "run/keys", outside=tmp_path / "run")
    (tmp_path / "keys/log.pem").chmod(0o644)
    with pytest.raises(GovernanceError, match="others may read"):
        made.log()
    shutil.copy(tmp_path / "keys/log.pem", tmp_path / "keys/checkpoint.pem")
    (tmp_path / "keys/checkpoint.pem").chmod(0o600)
    with pytest.raises(GovernanceError, match="another type"):
        made.checkpoint()


def test_one_tensor_is_proven_without_the_others():
    state = {f"layer{n}/w": {"dtype": "float32", "shape": [n], "sha256": f"{n:064x}"} for n in range(7)}
    root = tensors.root(state)
    proof = json.loads(json.dumps(tensors.prove(state, "layer3/w")))
    tensors.verify(proof, root)
    assert root == tensors.root(dict(reversed(state.items())))
    for key, value in [("sha256", f"{9:064x}"), ("dtype", "int32"), ("shape", [4]), ("path", "layer4/w")]:
        with pytest.raises(Rejected):
            tensors.verify({**proof, "entry": {**proof["entry"], key: value}}, root)
    with pytest.raises(Rejected, match="no tensor"):
        tensors.prove(state, "layer9/w")

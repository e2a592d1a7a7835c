"""`model.sig`: an in-toto statement about every file of a checkpoint, signed; `model_signing verify key` accepts it.

The statement is that of model-signing 1.1 (predicate https://model_signing/signature/v1.0, files, SHA-256) with one
more field in the signed predicate, `governance`, which says which step of which run it is, under which log, and what
its tensors are. Ours is stricter when it reads: no file, folder or link beside those that are signed, no names that
could lead elsewhere or be confused, and one form of the signature.
"""

import hashlib
import re
import stat
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

from jaxlm.files import write_whole
from jaxlm.governance import canonical, dsse
from jaxlm.governance.errors import Rejected

NAME = "model.sig"
_STATE = r"state/(?:ocdbt\.process_\d+/)?"
_KINDS = re.compile(
    rf"manifest\.json|state/(?:_METADATA|_CHECKPOINT_METADATA|_sharding|commit_success\.txt|array_metadatas/process_\d+)"
    rf"|{_STATE}(?:manifest\.ocdbt|d/[0-9a-f]{{32}})"
)
_METADATA = re.compile(r"state/(?:_METADATA|_CHECKPOINT_METADATA|_sharding|array_metadatas/process_\d+)")
_ELSEWHERE = re.compile(rb'[a-z0-9+]+://|"(?:kvstore|driver|base)"\s*:|\\u00(?:2[ef]|3a)|\.\./', re.IGNORECASE)
_LONGEST_METADATA = 1 << 26
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_SERIALIZATION = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [NAME]}


@dataclass(frozen=True, slots=True)
class Statement:
    """What a signature says.

    Attributes:
        name: of the checkpoint, its step.
        files: SHA-256 of each file, hex, by its path with slashes.
        governance: run, step, log and tensors; see Notary.
        payload: SHA-256 of the signed bytes, hex: what the log holds, because the subject's digest covers no names.
    """

    name: str
    files: dict[str, str]
    governance: dict[str, Any]
    payload: str


def sign(
    folder: Path, name: str, files: Mapping[str, str], governance: Mapping[str, Any], key: EllipticCurvePrivateKey
) -> Statement:
    """Writes `model.sig` into `folder`, whose files have these digests already. Raises Rejected for a bad name."""
    check_names(files)
    payload = canonical.dump(_statement(name, files, governance))
    write_whole(folder / NAME, dsse.seal(payload, key))
    return Statement(name, dict(files), dict(governance), hashlib.sha256(payload).hexdigest())


def read(folder: Path, key: EllipticCurvePublicKey) -> Statement:
    """What the `model.sig` of `folder` says, signed by `key`; the files are not looked at.

    Raises:
        Rejected: it is missing, signed by another key, or says something else than a model's files.
    """
    try:
        bundle = (folder / NAME).read_bytes()
    except OSError:
        raise Rejected(f"{NAME} is missing: not signed") from None
    payload = dsse.unseal(bundle, key)
    body = canonical.load(payload)
    try:
        predicate = body["predicate"]
        files = {item["name"]: item["digest"] for item in predicate["resources"]}
        name, governance = body["subject"][0]["name"], predicate["governance"]
        same = body == _statement(name, files, governance)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise Rejected(f"{NAME} says something else than the files of a checkpoint: {error}") from None
    if not same or not isinstance(governance, dict):
        raise Rejected(f"{NAME} says something else than the files of a checkpoint")
    check_names(files)
    return Statement(name, files, governance, hashlib.sha256(payload).hexdigest())


def check_listing(folder: Path, files: Iterable[str]) -> None:
    """Raises Rejected unless `folder` holds exactly these files, `model.sig` and the folders they need: nothing more,
    nothing less, no links. Reads no file."""
    wanted = {*files, NAME}
    folders = {parent.as_posix() for name in wanted for parent in Path(name).parents}
    for path in sorted(folder.rglob("*")):
        name, kind = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISLNK(kind):
            raise Rejected(f"{name} is a link, and checkpoints hold none")
        if stat.S_ISDIR(kind):
            if name not in folders:
                raise Rejected(f"{name}/ is a folder that was not signed: it was added after the save")
        elif not stat.S_ISREG(kind):
            raise Rejected(f"{name} is no regular file")
        elif name not in wanted:
            raise Rejected(f"{name} was not signed: it was added after the save")
        wanted.discard(name)
    if wanted:
        raise Rejected(f"{min(wanted)} is missing, and was signed")


def check_files(folder: Path, files: Mapping[str, str]) -> None:
    """Reads every file. Raises Rejected naming the first whose SHA-256 is another."""
    for name, expected in files.items():
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise Rejected(f"{name} has SHA-256 {found[:12]}.., signed was {expected[:12]}..: damaged")


def check_kinds(folder: Path, files: Iterable[str]) -> None:
    """Raises Rejected for a file of a kind that no checkpoint has, and for metadata that names another place: a signed
    checkpoint may still come from somebody who wants code run or other data read. Reads the metadata."""
    for name in files:
        if not _KINDS.fullmatch(name):
            raise Rejected(f"{name} is of a kind that checkpoints do not hold")
        if _METADATA.fullmatch(name):
            content = (folder / name).read_bytes()
            if len(content) > _LONGEST_METADATA:
                raise Rejected(f"{name} is {len(content):,} bytes of metadata, which is too much")
            if found := _ELSEWHERE.search(content):
                raise Rejected(f"{name} names another place: {found.group().decode(errors='replace')}")


def check_names(names: Iterable[str]) -> None:
    """Raises Rejected for names that lead out of the folder or that some file system takes for one another."""
    seen: dict[str, str] = {}
    for name in names:
        parts = name.split("/")
        if (
            any(part in ("", ".", "..") for part in parts)
            or "\\" in name
            or ":" in parts[0]
            or any(ord(letter) < 0x20 for letter in name)
        ):
            raise Rejected(f"{name!r} is no path inside a checkpoint")
        if unicodedata.normalize("NFC", name) != name:
            raise Rejected(f"{name!r} is not in the one form of its letters (NFC)")
        twin = seen.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if twin != name:
            raise Rejected(f"{twin!r} and {name!r} are one name to some file systems")


def _statement(name: str, files: Mapping[str, str], governance: Mapping[str, Any]) -> dict[str, Any]:
    resources = [{"name": path, "algorithm": "sha256", "digest": files[path]} for path in sorted(files)]
    subject = hashlib.sha256(b"".join(bytes.fromhex(item["digest"]) for item in resources)).hexdigest()
    return {
        "_type": _STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": subject}}],
        "predicateType": _PREDICATE,
        "predicate": {"serialization": _SERIALIZATION, "resources": resources, "governance": dict(governance)},
    }

"""A checkpoint as one encrypted file that `age -d FILE | tar x` opens, and that fits no other place.

age v1 (https://c2sp.org/age: X25519, ChaCha20-Poly1305 in chunks of 64 KiB) around a tar:

    snapshot.sig          a DSSE envelope, signed with the key of the run's checkpoints: run, step, path, the name of
                          the file, and size and SHA-256 of everything below
    checkpoints/300/...   the checkpoint, with its own signature

age says who can read a file and not who wrote it, so whoever knows a recipient can make one: the envelope is what
binds, and it must agree with the signature of the checkpoint inside, with the name under which the file lies, and, for
whoever has the log of the run, with the digest of the whole file in it. Both ways stream: no file is held in memory.
"""

import hashlib
import os
import tarfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyrage
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from jaxlm.files import room
from jaxlm.governance import age, canonical, dsse, model_signature
from jaxlm.governance.disk import Disk, opened
from jaxlm.governance.errors import GovernanceError, Rejected

SIGNATURE = "snapshot.sig"
_BLOCK = 1 << 20
_STATEMENT, _PREDICATE = "https://in-toto.io/Statement/v1", "urn:jaxlm:snapshot:v1"


@dataclass(frozen=True, slots=True)
class Binding:
    """Where a snapshot belongs.

    Attributes:
        run, step: of the checkpoint.
        path: of the checkpoint in its run directory, such as checkpoints/300.
        name: of the encrypted file.
        payload: SHA-256, hex, of what the checkpoint's signature signs, which is what the log knows it by.
        files: size in bytes and SHA-256, hex, of each file, by its path with slashes; the signature is one of them.
    """

    run: str
    step: int
    path: str
    name: str
    payload: str
    files: Mapping[str, tuple[int, str]]

    def statement(self) -> dict[str, Any]:
        files = {name: {"size": size, "sha256": digest} for name, (size, digest) in self.files.items()}
        about = {key: getattr(self, key) for key in ("run", "step", "path", "name", "payload")}
        return {
            "_type": _STATEMENT,
            "subject": [{"name": self.path, "digest": {"sha256": self.payload}}],
            "predicateType": _PREDICATE,
            "predicate": {**about, "files": files},
        }


@dataclass(frozen=True, slots=True)
class Written:
    """An encrypted file: its size in bytes, and its SHA-256, hex."""

    size: int
    digest: str


def recipients(texts: Sequence[str]) -> list[X25519PublicKey]:
    """Public keys such as age1... Raises GovernanceError naming the one that is none."""
    found = []
    for text in texts:
        try:
            found.append(age.public_key(str(pyrage.x25519.Recipient.from_str(text.strip()))))
        except (pyrage.RecipientError, ValueError) as error:
            raise GovernanceError(f"--recipient {text[:80]}: {error}; `age-keygen` prints one, age1...") from None
    return found


def identities(path: Path) -> list[pyrage.x25519.Identity]:
    """The private keys in a file as `age-keygen` writes it. Raises GovernanceError where there is none."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
        found = [pyrage.x25519.Identity.from_str(line) for line in lines if line and not line.startswith("#")]
    except (OSError, UnicodeDecodeError, pyrage.IdentityError) as error:
        why = getattr(error, "strerror", None) or error
        raise GovernanceError(f"--identity {path}: {why}; `age-keygen -o FILE` makes one") from None
    if not found:
        raise GovernanceError(f"--identity {path} holds no key; `age-keygen -o FILE` makes one")
    return found


def seal(
    folder: Path,
    binding: Binding,
    key: EllipticCurvePrivateKey,
    to: Sequence[X25519PublicKey],
    out: Path,
) -> Written:
    """Encrypts the checkpoint in `folder` into the new file `out`, whole or not at all.

    Raises:
        Rejected: a file is not the one that the binding names.
        GovernanceError: `out` exists.
        OSError: the disk refuses.
    """
    if os.path.lexists(out):
        raise GovernanceError(f"{out} exists already")
    aside = out.with_name(f"{out.name}.unfinished")
    found, size = hashlib.sha256(), 0
    try:
        with room(out), os.fdopen(os.open(aside, _NEW, 0o600), "wb") as file:
            for piece in age.encrypt(_tar(folder, binding, dsse.seal(canonical.dump(binding.statement()), key)), to):
                found.update(piece)
                size += file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, out)
        Disk().sync_folder(out.absolute().parent)
    finally:
        aside.unlink(missing_ok=True)
    return Written(size, found.hexdigest())


def digest(path: Path) -> str:
    """The SHA-256 of a file, hex. Raises OSError."""
    with os.fdopen(opened(path, os.O_RDONLY), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Snapshot:
    """An encrypted file that is being read; see `unseal`.

    Attributes:
        binding: where it says it belongs, signed by one of the keys given.
    """

    def __init__(self, archive: tarfile.TarFile, keys: Sequence[EllipticCurvePublicKey]):
        self._archive = archive
        member = archive.next()
        if member is None or member.name != SIGNATURE or not member.isreg() or member.size > dsse.LONGEST:
            raise Rejected(f"it does not begin with {SIGNATURE}, and so it is no snapshot")
        content = archive.extractfile(member)
        assert content is not None
        self.binding = _binding(content.read(), keys)

    def extract(self, folder: Path) -> None:
        """Writes the checkpoint into `folder`, which must be new. Raises Rejected where it is not what is bound."""
        folder.mkdir()
        for name, (size, expected) in sorted(self.binding.files.items()):
            member = self._archive.next()
            if member is None or member.name != f"{self.binding.path}/{name}" or not member.isreg():
                raise Rejected(f"{name} is missing, or something else lies in its place")
            if member.size != size:
                raise Rejected(f"{name} has {member.size:,} bytes, bound were {size:,}")
            content = self._archive.extractfile(member)
            assert content is not None
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            found = hashlib.sha256()
            with room(path, size), os.fdopen(os.open(path, _NEW, 0o666), "wb") as file:
                while block := content.read(_BLOCK):
                    found.update(block)
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            if found.hexdigest() != expected:
                raise Rejected(f"{name} has SHA-256 {found.hexdigest()[:12]}.., bound was {expected[:12]}..")
        if (more := self._archive.next()) is not None:
            raise Rejected(f"{more.name} is more than what is bound")


@contextmanager
def unseal(
    path: Path, with_keys: Sequence[pyrage.x25519.Identity], keys: Sequence[EllipticCurvePublicKey]
) -> Iterator[Snapshot]:
    """Opens an encrypted file; what was extracted inside the block is good only when the block has ended without an
    error, since the end of the file is authenticated last.

    Args:
        path: the encrypted file.
        with_keys: identities, one of which is a recipient.
        keys: one of which has signed where it belongs.

    Raises:
        Rejected: it cannot be decrypted, was cut off or changed, or is signed by none of the keys.
    """
    ends = os.pipe()
    failures: list[Exception] = []

    def decrypt() -> None:
        try:
            with path.open("rb") as source, os.fdopen(ends[1], "wb") as sink:
                pyrage.decrypt_io(source, sink, list(with_keys))  # pyright: ignore[reportArgumentType]
        except Exception as error:  # told to whoever reads, below
            failures.append(error)

    thread = threading.Thread(target=decrypt, name="age", daemon=True)
    thread.start()
    failure: BaseException | None = None
    with os.fdopen(ends[0], "rb") as plain:
        try:
            with tarfile.open(fileobj=plain, mode="r|") as archive:
                yield Snapshot(archive, keys)
            while rest := plain.read(_BLOCK):
                if rest.strip(b"\0"):
                    raise Rejected("something follows after its end")
        except (tarfile.TarError, EOFError, Rejected) as error:
            failure = error
    thread.join()
    if failures and not (isinstance(failure, Rejected) and _torn(failures[0])):
        raise Rejected(f"{path}: cannot be decrypted: {failures[0]}") from None
    if failure is not None:
        raise Rejected(f"{path}: {failure}") from None


def _torn(error: Exception) -> bool:
    """Whether decryption failed only because nobody read on."""
    return isinstance(error, BrokenPipeError) or "roken pipe" in str(error)


def _binding(envelope: bytes, keys: Sequence[EllipticCurvePublicKey]) -> Binding:
    fault = Rejected("there is no key to verify it with")
    for key in keys:
        try:
            payload = dsse.unseal(envelope, key)
            break
        except Rejected as error:
            fault = error
    else:
        raise Rejected(f"{SIGNATURE}: {fault}")
    body = canonical.load(payload)
    try:
        about = dict(body["predicate"])
        files = {name: (facts["size"], facts["sha256"]) for name, facts in about.pop("files").items()}
        found = Binding(**about, files=files)
        same = found.statement() == body
    except (KeyError, TypeError, ValueError) as error:
        raise Rejected(f"{SIGNATURE} says something else than where a snapshot belongs: {error}") from None
    if not same:
        raise Rejected(f"{SIGNATURE} says something else than where a snapshot belongs")
    model_signature.check_names([*found.files, found.path])
    return found


_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


def _tar(folder: Path, binding: Binding, envelope: bytes) -> Iterator[bytes]:
    """The archive, piece by piece; every file is checked on its way."""
    yield _header(SIGNATURE, len(envelope))
    yield _padded(envelope)
    for name, (size, expected) in sorted(binding.files.items()):
        yield _header(f"{binding.path}/{name}", size)
        found, count = hashlib.sha256(), 0
        with os.fdopen(opened(folder / name, os.O_RDONLY), "rb") as file:
            while block := file.read(_BLOCK):
                found.update(block)
                count += len(block)
                yield block
        if (count, found.hexdigest()) != (size, expected):
            raise Rejected(f"{name} is not what was signed: damaged")
        yield bytes(-count % tarfile.BLOCKSIZE)
    yield bytes(2 * tarfile.BLOCKSIZE)


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)

"""Private keys, which never lie in a run directory, and the heads of logs that this account has seen.

They lie in $JAXLM_KEYS, else $XDG_CONFIG_HOME/jaxlm/keys, else ~/.config/jaxlm/keys, made when they are first needed
and readable by their owner alone:

    log.pem         Ed25519, signs the heads of logs
    checkpoint.pem  ECDSA P-256, signs checkpoints (model.sig)
    witness.pem     Ed25519, of `jaxlm audit witness`
    heads/          the newest head seen of each log: a log that falls behind it was rolled back
    retired/        keys that were replaced, so that each run that they signed can be handed over to the new ones
"""

import contextlib
import hashlib
import os
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from jaxlm.files import write_whole
from jaxlm.governance import canonical, merkle, tiles
from jaxlm.governance.disk import destroy, sync_folder
from jaxlm.governance.errors import GovernanceError, Rejected
from jaxlm.governance.heads import Head

K = TypeVar("K", Ed25519PrivateKey, EllipticCurvePrivateKey)


def place() -> Path:
    """The folder of keys of this account."""
    if given := os.environ.get("JAXLM_KEYS"):
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config").absolute() / "jaxlm" / "keys"


class Keys:
    """The keys in a folder.

    Args:
        folder: where they lie, by default `place()`.
        outside: a run directory that must not hold them.

    Raises:
        GovernanceError: the folder lies in the run directory, or others may read it.
    """

    def __init__(self, folder: Path | None = None, *, outside: Path | None = None):
        self.folder = (folder or place()).absolute()
        if outside is not None and self.folder.resolve().is_relative_to(outside.resolve()):
            raise GovernanceError(
                f"the keys in {self.folder} lie inside the run directory, where whoever copies the run copies them: "
                "set JAXLM_KEYS to a folder elsewhere"
            )

    def log(self) -> Ed25519PrivateKey:
        return self._get("log.pem", Ed25519PrivateKey)

    def witness(self) -> Ed25519PrivateKey:
        return self._get("witness.pem", Ed25519PrivateKey)

    def checkpoint(self) -> EllipticCurvePrivateKey:
        return self._get("checkpoint.pem", EllipticCurvePrivateKey)

    def has_log(self, public: bytes) -> bool:
        """True when the log key here is the one with this public key; makes none."""
        return (self.folder / "log.pem").is_file() and self.log().public_key().public_bytes_raw() == public

    def rotate(self) -> None:
        """Makes new keys for logs and checkpoints, and keeps those that they replace in `retired`. A kill leaves the
        old ones or the new ones in place, of each kind."""
        self._replace("log.pem", Ed25519PrivateKey)
        self._replace("checkpoint.pem", EllipticCurvePrivateKey)

    def retired_log(self, public: bytes) -> Ed25519PrivateKey | None:
        """The private key of this raw public key, if it is one that was replaced here."""
        return self._retired("log", hashlib.sha256(public).hexdigest(), Ed25519PrivateKey)

    def retired_checkpoint(self, digest: str) -> EllipticCurvePrivateKey | None:
        """The private key whose public key has this SHA-256 as PEM, if it is one that was replaced here."""
        return self._retired("checkpoint", digest, EllipticCurvePrivateKey)

    def destroy_retired(self) -> int:
        """Overwrites and removes all keys that were replaced; returns how many."""
        found = sorted((self.folder / "retired").glob("*.pem"))
        for path in found:
            destroy(path)
        return len(found)

    def _replace(self, name: str, kind: type[K]) -> None:
        retired = self.folder / "retired"
        old = self._get(name, kind)
        retired.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(self.folder / name, retired / f"{name.removesuffix('.pem')}-{_fingerprint(old)}.pem")
        sync_folder(retired)
        aside = self.folder / f"next-{name}"
        aside.unlink(missing_ok=True)
        self._make(aside, kind)
        os.replace(aside, self.folder / name)
        sync_folder(self.folder)

    def _retired(self, name: str, digest: str, kind: type[K]) -> K | None:
        path = f"retired/{name}-{digest}.pem"
        return self._get(path, kind) if (self.folder / path).is_file() else None

    def own_witness(self) -> bytes | None:
        """The raw public key of the witness of this account; None where there is none. It vouches for no log here."""
        return self.witness().public_key().public_bytes_raw() if (self.folder / "witness.pem").is_file() else None

    def pin(self, head: Head) -> None:
        """Remembers the newest head of a log. A power cut may take the last ones back, never forward."""
        path = self._pin(head.origin)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        aside.write_bytes(canonical.dump({"origin": head.origin, "size": head.size, "root": head.root.hex()}))
        aside.replace(path)

    def pinned(self, origin: str) -> Head | None:
        """The newest head seen of this log. Raises GovernanceError when the file is damaged."""
        try:
            return _head(self._pin(origin))
        except FileNotFoundError:
            return None

    def seen_of(self, run: str) -> list[str]:
        """The names of the logs of a run of which a head was seen. Raises GovernanceError when a file is damaged."""
        paths = sorted(self._pin("").parent.glob("*"))
        origins = [_head(path).origin for path in paths if "." not in path.name]  # not one that is being written
        return sorted(name.rsplit("/", 1)[1] for name in origins if name.startswith(f"jaxlm/{run}/"))

    def _pin(self, origin: str) -> Path:
        return self.folder / "heads" / hashlib.sha256(origin.encode()).hexdigest()

    def _get(self, name: str, kind: type[K]) -> K:
        path = self.folder / name
        try:
            if path.stat().st_mode & 0o077:
                raise GovernanceError(f"others may read the private key {path}: chmod 600 it, or make a new one")
            key = serialization.load_pem_private_key(path.read_bytes(), None)
        except FileNotFoundError:
            return self._make(path, kind)
        except ValueError as error:
            raise GovernanceError(f"{path} holds no private key: {error}") from None
        if not isinstance(key, kind):
            raise GovernanceError(f"{path} holds a key of another type than {kind.__name__}")
        return key

    def _make(self, path: Path, kind: type[K]) -> K:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = Ed25519PrivateKey.generate() if kind is Ed25519PrivateKey else generate_private_key(SECP256R1())
        raw = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(aside, path)  # the first of several processes wins
        except FileExistsError:
            pass
        finally:
            aside.unlink()
        return self._get(path.name, kind)


def _fingerprint(key: Ed25519PrivateKey | EllipticCurvePrivateKey) -> str:
    public = key.public_key()
    raw = public_pem(public) if isinstance(public, EllipticCurvePublicKey) else public.public_bytes_raw()
    return hashlib.sha256(raw).hexdigest()


def private_key(path: Path, *, make: bool = False) -> Ed25519PrivateKey:
    """The Ed25519 key in a PEM file, such as an approver's; with `make`, a new one where there is none.

    Raises:
        GovernanceError: the file is missing, others may read it, or it holds something else.
    """
    if not make and not path.is_file():
        raise GovernanceError(f"{path} is no file; `jaxlm audit key --file {path} --name NAME` makes a key")
    return Keys(path.parent)._get(path.name, Ed25519PrivateKey)


def check_pin(seen: Head, head: Head, found: tiles.Tiles) -> None:
    """Raises Rejected when the log with this head is not what was `seen` of it, and more."""
    if head.size < seen.size:
        raise Rejected(
            f"the log {head.origin} was rolled back: {head.size} entries, and {seen.size} were seen here before"
        )
    if merkle.root(found.node, 0, seen.size) != seen.root:
        raise Rejected(f"the log {head.origin} was rewritten: its first {seen.size} entries are not those seen here")


def _head(path: Path) -> Head:
    try:
        seen = canonical.load(path.read_bytes())
        return Head(str(seen["origin"]), seen["size"], bytes.fromhex(seen["root"]))
    except (Rejected, KeyError, TypeError, ValueError) as error:
        raise GovernanceError(f"{path} is damaged ({error}); delete it to trust the log anew") from None


def public_pem(key: EllipticCurvePublicKey) -> bytes:
    """SubjectPublicKeyInfo as PEM, the form that `model_signing verify key` takes."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def load_public(pem: bytes) -> EllipticCurvePublicKey:
    """Raises Rejected unless it is a public key on P-256."""
    try:
        key = serialization.load_pem_public_key(pem)
    except ValueError as error:
        raise Rejected(f"no public key: {error}") from None
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise Rejected("checkpoints are signed with ECDSA on P-256, and this is another key")
    return key


def write_public(path: Path, content: bytes) -> None:
    """A public key beside what it verifies; whole or not at all."""
    if not path.exists() or path.read_bytes() != content:
        write_whole(path, content)

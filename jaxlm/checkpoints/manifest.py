"""The manifest of a checkpoint: every file with its size and SHA-256; written last, read first.

Orbax alone restores silently wrong weights from a flipped bit. So a checkpoint counts only when its manifest
is there, is undamaged (it carries its own digest) and agrees with every byte on disk.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jaxlm.checkpoints.errors import CheckpointError, Damaged

FORMAT = 1
NAME = "manifest.json"
STATE = "state"
SIGNATURE = "model.sig"
"""The signature over the other files, where the run has somebody who signs."""
Seal = Callable[[dict[str, Any], bytes], None]
"""Signs a manifest, given as it is and as the bytes of its file, before it gets its name."""
_HASHERS = min(8, os.cpu_count() or 1)


def write(
    folder: Path, step: int, tensors: dict[str, Any], facts: dict[str, Any], seal: Seal = lambda body, content: None
) -> dict[str, Any]:
    """Hashes every file of the state in `folder` and puts the manifest beside it, atomically.

    Args:
        folder: the checkpoint, all of whose state files are complete.
        step: the training step it belongs to.
        tensors: name -> `{"shape": [...], "dtype": "..."}`.
        facts: what else the run must know to go on; JSON.
        seal: signs it; a checkpoint that has a manifest is signed.

    Returns:
        The manifest as written.

    Raises:
        OSError: the disk is full or refuses.
    """
    paths = sorted(_state_files(folder))
    body = {
        "format": FORMAT,
        "step": step,
        "facts": facts,
        "tensors": tensors,
        "files": {
            path: {"size": (folder / path).stat().st_size, "sha256": digest}
            for path, digest in zip(paths, _digests(folder, paths), strict=True)
        },
    }
    body["digest"] = _own_digest(body)
    temporary, content = folder / f"{NAME}.tmp", json.dumps(body, indent=1).encode()
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    seal(body, content)
    temporary.rename(folder / NAME)
    sync_folder(folder)
    return body


def read(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`; its own digest is checked, the files it names are not.

    Raises:
        CheckpointError: it is missing, damaged, of a newer format, or names files outside `folder`; the message says
            which.
    """
    try:
        body = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        left = "".join(f" ({path.name} is there)" for path in folder.glob("*.orbax-checkpoint-tmp"))
        raise CheckpointError(f"no {NAME}{left}: the save was cut off before it was complete") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{NAME} is not JSON: damaged") from None
    except OSError as error:
        raise CheckpointError(f"{NAME} cannot be read: {error.strerror}") from error
    if not isinstance(body, dict) or "digest" not in body:
        raise CheckpointError(f"{NAME} has no digest: damaged")
    if body["digest"] != _own_digest(body):
        raise CheckpointError(f"{NAME} does not match its own digest: damaged")
    if body.get("format") != FORMAT:
        raise CheckpointError(f"{NAME} has format {body.get('format')}, this jaxlm reads {FORMAT}: update jaxlm")
    _check_form(body)
    return body


def verify(folder: Path, body: dict[str, Any]) -> None:
    """Reads every byte of the checkpoint in `folder` and compares it with its manifest.

    Sizes come first because they are free; then the SHA-256 of the files, several at a time.

    Raises:
        Damaged: the first file of another size or content, with both values.
        CheckpointError: a file is missing, was added, cannot be read, or is a link to somewhere else.
    """
    files: dict[str, dict[str, Any]] = body["files"]
    here = Path(os.path.realpath(folder))
    for path, expected in files.items():
        try:
            if not Path(os.path.realpath(folder / path)).is_relative_to(here):
                raise CheckpointError(f"{path} leads out of the checkpoint")
            size = (folder / path).stat().st_size
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing") from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if size != expected["size"]:
            what = "truncated" if size < expected["size"] else "longer than it was"
            raise Damaged(f"{path} is {size} bytes, manifest says {expected['size']}: {what}")
    for path in _state_files(folder):
        if path not in files:
            raise CheckpointError(f"{path} is not in the manifest: it was added after the save")
    try:
        for (path, expected), digest in zip(files.items(), _digests(folder, files), strict=True):
            if digest != expected["sha256"]:
                says = expected["sha256"]
                raise Damaged(f"{path} has SHA-256 {digest[:12]}.., manifest says {says[:12]}..: damaged")
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error


def stamp(folder: Path, body: dict[str, Any]) -> tuple[Any, ...]:
    """What changes when somebody writes to a file of this checkpoint: digest, sizes, times. Reads no file."""
    stats = [(folder / path).stat() for path in body["files"]]
    return (body["digest"], *((s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats))


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_form(body: dict[str, Any]) -> None:
    """Raises CheckpointError unless everything that is read from a manifest is in it, and no file of it lies elsewhere.
    Whoever can write a manifest can give it a digest, so the digest says nothing of that."""
    forms: dict[str, type] = {"step": int, "facts": dict, "tensors": dict, "files": dict}
    for key, form in forms.items():
        if not isinstance(body.get(key), form):
            raise CheckpointError(f"{NAME} lacks {key}: damaged")
    for path, facts in body["files"].items():
        if not isinstance(facts, dict) or not isinstance(facts.get("size"), int):
            raise CheckpointError(f"{NAME} lacks the size of {path}: damaged")
        if not isinstance(facts.get("sha256"), str):
            raise CheckpointError(f"{NAME} lacks the SHA-256 of {path}: damaged")
        if any(part in ("", ".", "..") for part in path.split("/")) or "\0" in path:
            raise CheckpointError(f"{NAME} names {path!r}, which is no path inside a checkpoint")
    for name, facts in body["tensors"].items():
        if not isinstance(facts, dict) or not {"shape", "dtype"} <= facts.keys():
            raise CheckpointError(f"{NAME} lacks shape or dtype of {name}: damaged")


def _state_files(folder: Path) -> Iterator[str]:
    """Files of the state, relative to `folder`; hidden ones (.nfs*, .DS_Store) belong to the file system."""
    for root, _, names in os.walk(folder / STATE):
        for name in names:
            if not name.startswith("."):
                yield (Path(root) / name).relative_to(folder).as_posix()


def _digests(folder: Path, paths: Iterable[str]) -> list[str]:
    def digest(path: str) -> str:
        with (folder / path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()  # releases the GIL

    with ThreadPoolExecutor(_HASHERS, "checkpoint-sha256") as pool:
        return list(pool.map(digest, paths))


def _own_digest(body: dict[str, Any]) -> str:
    rest = {key: value for key, value in body.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

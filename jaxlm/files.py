"""Files that are there whole or not at all, full disks that say so, and the folder where things are kept."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What an operating system says when a file may not grow: the disk, the user's share of it, or the file is full."""


class DiskFull(OSError):
    """A file could not be written because there is no room for it; the message names it and what is left."""


@contextlib.contextmanager
def room(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turns "no space left on device" inside the block into a DiskFull that names `path` and the bytes needed."""
    try:
        yield
    except DiskFull:
        raise
    except OSError as error:
        if error.errno not in FULL:
            raise
        why = {errno.EDQUOT: "the disk quota is used up", errno.EFBIG: "files may not grow larger here"}
        wanted = "" if needed is None else f"{needed:,} bytes were to be written, "
        message = f"{path}: {why.get(error.errno, 'the disk is full')} ({wanted}{free(path)})"
        raise DiskFull(message) from error


def user_cache(name: str) -> Path:
    """Where things are kept between runs: $XDG_CACHE_HOME/jaxlm/NAME or ~/.cache/jaxlm/NAME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm" / name


def write_whole(path: Path, content: bytes) -> None:
    """The whole content under this name, or nothing: written aside, flushed to disk, then renamed.

    A link that lies where it is written aside is not followed; one under the name itself is replaced.

    Raises:
        DiskFull: there is no room; what was written aside is gone again.
        OSError: the disk refuses for another reason.
    """
    aside = path.with_name(f"{path.name}.unfinished")
    try:
        with room(path, len(content)), open(aside, "wb", opener=_itself) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    os.replace(aside, path)


def _itself(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def free(path: Path) -> str:
    """How many bytes the disk of `path`, which need not exist, still has."""
    folder = next((parent for parent in path.absolute().parents if parent.is_dir()), Path("/"))
    return f"{shutil.disk_usage(folder).free:,} are free in {folder}"

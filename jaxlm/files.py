"""Files that are there whole or not at all, and the folder where things are kept between runs."""

import os
from pathlib import Path


def user_cache(name: str) -> Path:
    """Where things are kept between runs: $XDG_CACHE_HOME/jaxlm/NAME or ~/.cache/jaxlm/NAME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxlm" / name


def write_whole(path: Path, content: bytes) -> None:
    """The whole content under this name, or nothing: written aside, flushed to disk, then renamed."""
    aside = path.with_name(f"{path.name}.unfinished")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)

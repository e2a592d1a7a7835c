"""A copy of a run's checkpoints at a URL: gs://, s3:// or any other that fsspec knows.

Object stores cannot rename, so the order of writing is what makes a copy complete: its files, then its manifest.
A step without a manifest there is none, and one that goes loses its manifest first.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxlm.checkpoints import manifest
from jaxlm.checkpoints.errors import CheckpointError


class Mirror:
    """The checkpoints at `url`. Only process 0 of a run uses it.

    Raises:
        CheckpointError: the scheme is unknown or its package is not installed; every method raises it where the
            store refuses, naming the URL.
    """

    def __init__(self, url: str):
        import fsspec.core

        self.url = url.rstrip("/")
        scheme = url.partition("://")[0]
        try:
            folders: dict[str, Any] = {"auto_mkdir": True} if scheme == "file" else {}  # others need none
            self._files, root = fsspec.core.url_to_fs(self.url, **folders)
        except ImportError as error:
            raise CheckpointError(
                f"checkpoint.path={url}: {scheme}:// needs a package that is not installed ({error}); "
                "for gs:// and s3:// run `uv sync --extra cloud`"
            ) from error
        except ValueError as error:
            raise CheckpointError(f"checkpoint.path={url}: {error}; gs:// and s3:// are known") from error
        self._root = str(root).rstrip("/")

    def steps(self) -> list[int]:
        """Steps with a complete copy, newest first; their files are not looked at."""
        with self._talking("read"):
            places = (place.removeprefix(f"{self._root}/").split("/") for place in self._sizes(""))
        return sorted((int(p[0]) for p in places if p[1:] == [manifest.NAME] and p[0].isdigit()), reverse=True)

    def push(self, folder: Path, step: int) -> None:
        """Copies the checkpoint of `step` in `folder` there, unless the same one is there already."""
        content = (folder / manifest.NAME).read_bytes()
        if step in self.steps() and self._manifest(step) == content:
            return
        self.drop(step)
        files: dict[str, dict[str, Any]] = json.loads(content)["files"]
        signature = [manifest.SIGNATURE] if (folder / manifest.SIGNATURE).is_file() else []
        with self._talking("written"):
            paths = [*files, *signature]
            self._files.put([str(folder / path) for path in paths], [self._place(step, path) for path in paths])
            sizes = self._sizes(f"/{step}")
            for path, expected in files.items():
                if (size := sizes.get(self._place(step, path))) != expected["size"]:
                    raise CheckpointError(f"{self.url}/{step}/{path} is {size} bytes there, {expected['size']} here")
            self._files.pipe_file(self._place(step, manifest.NAME), content)

    def pull(self, step: int, folder: Path) -> None:
        """Copies the checkpoint of `step` from there into the empty `folder`; nothing is verified here."""
        content = self._manifest(step)
        with self._talking("read"):
            files = [path for path in json.loads(content)["files"] if _is_inside(path)]
            for path in files:
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
            if self._place(step, manifest.SIGNATURE) in self._sizes(f"/{step}"):
                files.append(manifest.SIGNATURE)
            self._files.get([self._place(step, path) for path in files], [str(folder / path) for path in files])
        (folder / manifest.NAME).write_bytes(content)

    def drop(self, step: int) -> None:
        """Removes what is there of `step`, its manifest first."""
        with self._talking("removed"):
            places = list(self._sizes(f"/{step}"))
            for place in (p for p in places if p == self._place(step, manifest.NAME)):
                self._files.rm_file(place)
            if rest := [p for p in places if p != self._place(step, manifest.NAME)]:
                self._files.rm(rest)

    def _manifest(self, step: int) -> bytes:
        with self._talking("read"):
            return self._files.cat_file(self._place(step, manifest.NAME))

    def _sizes(self, below: str) -> dict[str, int]:
        """Bytes of every file below `below`, as the store lists them now."""
        self._files.invalidate_cache()
        found: Any = self._files.find(f"{self._root}{below}", detail=True)
        return {place: facts["size"] for place, facts in found.items()}

    def _place(self, step: int, path: str) -> str:
        return f"{self._root}/{step}/{path}"

    @contextlib.contextmanager
    def _talking(self, done: str) -> Iterator[None]:
        """Each store has errors of its own; here they all become one kind."""
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise CheckpointError(f"{self.url} cannot be {done}: {reason[:300]}") from error


def _is_inside(path: str) -> bool:
    """A manifest from elsewhere must not write beside the checkpoint."""
    parts = Path(path).parts
    if parts[:1] != (manifest.STATE,) or ".." in parts:
        raise CheckpointError(f"{manifest.NAME} names {path!r}, which lies outside of the checkpoint: damaged")
    return True

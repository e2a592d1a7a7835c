"""The folders of a run's checkpoints: which are complete, which are good, which may go.

Where `40` is the step:

    checkpoints/40/             a checkpoint: `state/` and, written last, `manifest.json`
    checkpoints/40.writing/     a save under way, or one that was cut off
    checkpoints/40.deleting/    on its way out

A folder with a manifest is a checkpoint and one without is none, whatever it is called. It gets its final
name after its manifest, so a step saved again keeps its old checkpoint until the new one is complete. Only
process 0 changes anything here.
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.checkpoints import arrays, manifest
from jaxlm.checkpoints.errors import CheckpointError, Damaged
from jaxlm.checkpoints.notary import Notary

_log = logging.getLogger(__name__)
_WRITING, _DELETING = ".writing", ".deleting"
_NAME = re.compile(rf"(\d+)({re.escape(_WRITING)})?")


@dataclass(frozen=True, slots=True)
class Keep:
    """Which checkpoints stay: the newest `last`, and each whose step is a multiple of `every`."""

    last: int = 2
    every: int | None = None

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last={self.last} must be at least 1: a run resumes from one")
        if self.every is not None and self.every < 1:
            raise ValueError(f"every={self.every} must be at least 1, or None to keep none for ever")

    def stay(self, complete: list[int]) -> set[int]:
        """Which of the complete checkpoints, newest first, stay."""
        for_ever = (step for step in complete if self.every is not None and step % self.every == 0)
        return {*complete[: self.last], *for_ever}


class Folders:
    """What lies in `directory`; remembers which checkpoints it found damaged and which it has verified.

    With a `notary`, only what it has no fault to find with is good.
    """

    def __init__(self, directory: Path, keep: Keep, notary: Notary | None = None):
        self._notary = notary
        self.directory = directory
        self._keep = keep
        self._damaged: set[Path] = set()
        self._verified: dict[Path, tuple[Any, ...]] = {}

    def steps(self) -> list[int]:
        """Steps with a folder of any kind, newest first."""
        return sorted({step for step, _ in self._entries()}, reverse=True)

    def finished(self, *, undamaged: bool = False) -> list[int]:
        """Steps with a folder under its final name, so complete when they got it, newest first; on request without
        those that `good` found damaged."""
        final = {step for step, path in self._entries() if path.name == str(step)}
        if undamaged:
            final = {step for step in final if self._counts(self.directory / str(step))}
        return sorted(final, reverse=True)

    def of(self, step: int) -> list[Path]:
        """The folders of `step` that are there, the newest attempt first."""
        return sorted((path for number, path in self._entries() if number == step), reverse=True)

    def writing(self, step: int) -> Path:
        """Where a save of `step` is put together."""
        return self.directory / f"{step}{_WRITING}"

    def make_room(self, step: int) -> None:
        """An empty folder for a save of `step`; what a save that was cut off left there goes.

        Raises:
            OSError: the disk refuses.
        """
        writing = self.writing(step)
        if (writing / manifest.NAME).is_file():
            self.finish(step)  # complete: only its last rename was missing
        elif writing.exists():
            _log.info("%s was cut off: deleted to save this step again", writing)
            _drop(writing)
        writing.mkdir(parents=True)

    def finish(self, step: int) -> None:
        """Gives a complete save its final name; only then does an older checkpoint of the same step go."""
        writing, final = self.writing(step), self.directory / str(step)
        _drop(final)
        writing.rename(final)
        manifest.sync_folder(self.directory)
        self._damaged -= {writing, final}

    def discard(self, step: int) -> None:
        """Deletes what was being put together for `step`, complete or not."""
        shutil.rmtree(self.writing(step), ignore_errors=True)

    def give_up(self, step: int) -> None:
        """Deletes what a save that failed has written; a full disk needs the space. A complete one stays."""
        writing = self.writing(step)
        if not (writing / manifest.NAME).is_file():
            shutil.rmtree(writing, ignore_errors=True)

    def good(self, step: int, faults: list[str]) -> tuple[Path, dict[str, Any]] | None:
        """The folder and manifest of `step` if every byte is as saved; if not, `faults` says why."""
        for folder in self.of(step):
            try:
                body = manifest.read(folder)
                if body["step"] != step:
                    raise CheckpointError(f"{manifest.NAME} is of step {body['step']}")
                if folder not in self._verified or self._verified[folder] != manifest.stamp(folder, body):
                    try:
                        manifest.verify(folder, body)
                    except CheckpointError as error:
                        raise type(error)(f"{error}{_harmed(folder, body)}") from None
                    self._verified[folder] = manifest.stamp(folder, body)
                if self._notary is not None and (fault := self._notary.fault(folder, body)) is not None:
                    raise CheckpointError(fault)
                return folder, body
            except (CheckpointError, OSError) as error:
                self._damaged.add(folder)
                faults.append(f"{self.directory.name}/{folder.name}: {error}")
        return None

    def damaged(self, step: int) -> tuple[Path, dict[str, Any]] | None:
        """The folder and manifest of the finished checkpoint of `step` if a file of it was read and is not as saved;
        None where it is good, gone, or the disk would not let it be read, which says nothing of its content."""
        folder = self.directory / str(step)
        try:
            body = manifest.read(folder)
        except CheckpointError:
            return None
        try:
            manifest.verify(folder, body)
        except Damaged:
            return folder, body
        except CheckpointError:
            pass
        return None

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of `step`; its files are not looked at.

        Raises:
            CheckpointError: there is no checkpoint of this step, or its manifest is damaged.
        """
        for folder in self.of(step):
            if (folder / manifest.NAME).is_file():
                try:
                    return manifest.read(folder)
                except CheckpointError as error:
                    raise CheckpointError(f"{self.directory.name}/{folder.name}: {error}") from None
        raise CheckpointError(self.absent(step))

    def prune(self, newest: int) -> None:
        """Deletes what the keep rules let go and older saves that were cut off; never `newest`, just made.

        What `good` found damaged does not count as a checkpoint, so it never pushes a good one out.
        """
        complete = [step for step in self.steps() if any(self._counts(folder) for folder in self.of(step))]
        stay = {newest} | self._keep.stay(complete)
        for step in self.steps():
            for folder in self.of(step):
                if step in complete and step not in stay:
                    _drop(folder)
                elif step < newest and folder == self.writing(step) and not (folder / manifest.NAME).is_file():
                    _log.info("%s was cut off and is older than checkpoint %d: deleted", folder, newest)
                    _drop(folder)
        for going in self.directory.glob(f"*{_DELETING}"):
            shutil.rmtree(going, ignore_errors=True)  # an earlier deletion was cut off

    def absent(self, step: int) -> str:
        """The sentence for a step that has no folder."""
        steps = ", ".join(map(str, self.steps())) or "none"
        return f"{self.directory} has no checkpoint of step {step} (steps there: {steps})"

    def _counts(self, folder: Path) -> bool:
        return (folder / manifest.NAME).is_file() and folder not in self._damaged

    def _entries(self) -> list[tuple[int, Path]]:
        if not self.directory.is_dir():
            return []
        names = ((_NAME.fullmatch(path.name), path) for path in self.directory.iterdir() if path.is_dir())
        return [(int(name.group(1)), path) for name, path in names if name]


def _harmed(folder: Path, body: dict[str, Any]) -> str:
    """Which tensors are not as saved, where the manifest knows their digests: `; tensors: model/embed`."""
    expected = {name: facts["sha256"] for name, facts in body["tensors"].items() if "sha256" in facts}
    if not expected:
        return ""
    found = arrays.digests(folder / manifest.STATE, expected)
    harmed = [name for name, digest in expected.items() if found[name] != digest]
    if not harmed:
        return "; no tensor is harmed"
    more = f" and {len(harmed) - 5} more" if len(harmed) > 5 else ""
    return f"; tensors: {', '.join(harmed[:5])}{more}"


def _drop(folder: Path) -> None:
    """Deletes a checkpoint so that a cut in the middle leaves nothing that looks like one."""
    if folder.exists():
        going = folder.with_name(f"{folder.name}{_DELETING}")
        shutil.rmtree(going, ignore_errors=True)
        folder.rename(going)
        shutil.rmtree(going)

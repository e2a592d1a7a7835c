"""The checkpoints of one run: saved in the background by tensor name, verified, restored onto any mesh.

One layout whatever trained it: `checkpoints/40/state` holds the arrays of step 40 by name
(`model/blocks/attn/q`, `opt/0/mu/blocks/attn/q`, `step`), `checkpoints/40/manifest.json` the facts, what the
tensors are, and a digest of each file.
"""

import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.checkpoints import arrays, layout, manifest
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.folders import Folders, Keep
from jaxlm.checkpoints.meeting import Meetings
from jaxlm.checkpoints.mirror import Mirror
from jaxlm.checkpoints.notary import Notary
from jaxlm.checkpoints.processes import first_does, first_failed
from jaxlm.files import DiskFull, free

_KEEP = Keep()
_FULL = ("No space left", "quota exceeded", "File too large")


@dataclass(frozen=True, slots=True)
class Found:
    """The newest good checkpoint, or None, and one sentence for each newer one that is not good."""

    step: int | None
    skipped: list[str]


class Store:
    """Writes and reads the checkpoints of one run.

    Every process of a run holds one and calls its methods alike; the folder must be visible to all of them.
    Only process 0 writes manifests, deletes, and decides what is good. Nothing is written before a save.

    Args:
        directory: where the checkpoints lie; made by the first save.
        keep: which of them stay.
        enabled: with False `save` does nothing at all.
        mirror: where each checkpoint is copied once it is complete, and brought back from where it is missing.
        notary: signs what is saved and judges what is read; needed on process 0 only.

    Attributes:
        saved: the step last given to `save` and not known to have failed, None before.
    """

    def __init__(
        self,
        directory: Path,
        keep: Keep = _KEEP,
        *,
        enabled: bool = True,
        mirror: Mirror | None = None,
        notary: Notary | None = None,
    ):
        self.directory = Path(directory).absolute()
        self.saved: int | None = None
        self._enabled = enabled
        self._writer: arrays.Writer | None = None
        self._thread: threading.Thread | None = None
        self._failure: CheckpointError | None = None
        self._meetings = Meetings()
        self._mirror = mirror
        self._keep = keep
        self._notary = notary
        self._folders = Folders(self.directory, keep, notary)

    def save(
        self, step: int, state: Mapping[str, jax.Array], facts: Mapping[str, Any], *, blocking: bool = False
    ) -> None:
        """Saves `state` as the checkpoint of `step`, in the background; waits first for the save before it.

        On return the arrays may be donated or dropped. The checkpoint exists when its manifest does; a
        failure on the way is raised by the next `save`, `wait` or `close`, and costs no older checkpoint.

        Args:
            step: the training step, >= 0. A checkpoint of this step that is there already is replaced, once
                the new one is complete.
            state: every tensor by its slash name.
            facts: what must be known to go on, as JSON: digests of config and plan, the data cursor.
            blocking: return only when the checkpoint is complete.

        Raises:
            CheckpointError: a name, a leaf or a fact cannot be stored, the disk is full or refuses, or the
                save before this one failed.
        """
        if not self._enabled:
            return
        if step < 0:
            raise CheckpointError(f"step={step} must not be negative")
        tensors, facts = layout.describe(state), _as_json(facts)
        self.wait()
        try:
            first_does(lambda: self._folders.make_room(step))
            self._writer = self._writer or arrays.Writer(self._meetings)
            self._meetings.begin()
            self._writer.start(self._folders.writing(step) / manifest.STATE, state)
        except Exception as error:
            self._writer = None
            failure = self._sentence(step, error, tensors)
            # In a thread: the others may not have come far enough in Orbax to be told.
            threading.Thread(target=self._meetings.fail, args=(str(failure),), daemon=True).start()
            if jax.process_count() == 1:
                self._folders.give_up(step)
            raise failure from error
        self.saved = step
        self._thread = threading.Thread(
            target=self._finish, args=(self._writer, step, tensors, facts), name="checkpoint"
        )
        self._thread.start()
        if blocking:
            self.wait()

    def wait(self) -> None:
        """Returns when the save under way is complete everywhere. Raises the CheckpointError it ended in."""
        if self._thread is None:
            return
        self._join()
        failure, self._failure = self._failure, None
        process = first_failed(failure is not None)
        if process is not None:
            step, self.saved, self._writer = self.saved, None, None
            raise failure or CheckpointError(f"checkpoint {step} was not written: process {process} failed")

    def close(self) -> None:
        """Waits for the save under way and lets go of threads. Raises as `wait` does."""
        try:
            self.wait()
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        if error is None:
            return self.close()
        self._join()  # the other processes may be elsewhere, so nothing is agreed with them
        if self._failure is not None:
            error.add_note(str(self._failure))  # what stopped the run matters more

    def latest(self) -> Found:
        """The newest checkpoint that passes verification; the same answer on every process."""

        def search() -> list[Any]:
            faults: list[str] = []
            steps = (step for step in self._folders.steps() if self._folders.good(step, faults) is not None)
            newest = next(steps, None)
            for step in self._mirror.steps() if self._mirror else []:
                if newest is not None and step <= newest:
                    break
                if self._bring(step, faults) is not None:
                    newest = step
                    break
            return [newest, [f"{fault}; skipped" for fault in faults]]

        step, skipped = first_does(search)
        return Found(step, skipped)

    def folder(self, step: int) -> Path:
        """Where the finished checkpoint of `step` lies, if it is there."""
        return self.directory / str(step)

    def good(self, step: int) -> tuple[Path, dict[str, Any]]:
        """Where the checkpoint of `step` lies and its manifest. On process 0; what was verified before is not read
        again. Raises CheckpointError where it is not good."""
        faults: list[str] = []
        if (found := self._folders.good(step, faults)) is None:
            raise CheckpointError("\n".join(faults) or self._folders.absent(step))
        return found

    def damaged(self, step: int) -> tuple[Path, dict[str, Any]] | None:
        """Where the checkpoint of `step` lies and its manifest if its files could be read and are not as saved; None
        for any other fault. On process 0; reads every byte."""
        return self._folders.damaged(step)

    def manifest(self, step: int) -> dict[str, Any]:
        """The manifest of `step`, whose files are not looked at. Raises as `names` does."""
        return self._folders.manifest(step)

    def begun(self) -> list[int]:
        """Steps that were saved completely once, whatever has become of them, newest first."""
        return self._folders.finished()

    def fetch(self, step: int) -> None:
        """Brings the checkpoint of `step` here if it is only in the mirror.

        Raises:
            CheckpointError: it is neither here nor there, or it is damaged there.
        """

        def bring() -> None:
            faults: list[str] = []
            if step in self._folders.steps() or self._mirror is None:
                return
            if step not in (there := self._mirror.steps()):
                raise CheckpointError(f"{self._folders.absent(step)}, nor has {self._mirror.url} (there: {there})")
            if self._bring(step, faults) is None:
                raise CheckpointError("\n".join(faults))

        first_does(bring)

    def names(self, step: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
        """Shape and dtype of every tensor in the checkpoint of `step`, from its manifest alone.

        Raises:
            CheckpointError: there is no such checkpoint, or its manifest is damaged.
        """
        return layout.shapes(self._folders.manifest(step)["tensors"])

    def facts(self, step: int) -> dict[str, Any]:
        """The facts saved with the checkpoint of `step`, from its manifest alone. Raises as `names` does."""
        return self._folders.manifest(step)["facts"]

    def restore(
        self, step: int, like: Mapping[str, Any], *, partial: bool = False
    ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        """The tensors of `step`, bit for bit, laid out as `like` says, whatever mesh wrote them.

        Every byte is verified before anything is restored.

        Args:
            step: a step with a checkpoint, such as `latest().step`.
            like: name -> array or `jax.ShapeDtypeStruct` with its sharding (none: the first local device).
            partial: `like` may leave out tensors of the checkpoint, to read for example only `model/...`.

        Returns:
            The tensors by name in the order of `like`, and the facts.

        Raises:
            CheckpointError: there is no such checkpoint, it is damaged, or it does not match `like`; a
                mismatch lists the first differences with both values.
        """

        def verified() -> list[Any]:
            faults: list[str] = []
            good = self._folders.good(step, faults)
            if good is None:
                others = ", ".join(str(other) for other in self._folders.finished() if other != step) or "none"
                raise CheckpointError(
                    "\n".join([*faults, f"choose another step (there: {others}) or restore its files from a backup"])
                    if faults
                    else self._folders.absent(step)
                )
            return [good[0].name, good[1]]

        name, body = first_does(verified)
        where = f"{self.directory.name}/{name}"
        layout.match(where, body["tensors"], like, partial=partial)
        try:
            values = arrays.read(self.directory / name / manifest.STATE, like)
        except Exception as error:
            raise CheckpointError(f"{where} is undamaged but could not be restored: {error}") from error
        return {key: values[key] for key in like}, body["facts"]

    def _bring(self, step: int, faults: list[str]) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint of `step` copied here from the mirror if it is good there; if not, `faults` says why."""
        assert self._mirror is not None
        try:
            self._folders.make_room(step)
            self._mirror.pull(step, self._folders.writing(step))
            found: list[str] = []
            if self._folders.good(step, found) is not None:
                self._folders.finish(step)
                return self._folders.good(step, faults)
            raise CheckpointError("; ".join(found))
        except (CheckpointError, OSError) as error:
            self._folders.discard(step)
            faults.append(f"{self._mirror.url}/{step}: {error}")
            return None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _finish(self, writer: arrays.Writer, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """In the background: Orbax's commit on all processes, the manifest, the final name, keep rules."""
        try:
            writer.wait()
            if jax.process_index() == 0:
                body = self._write_manifest(step, tensors, facts)
                self._folders.finish(step)
                if self._notary is not None:
                    self._notary.saved(body)
                self._folders.prune(step)
                self._copy(step)
        except Exception as error:
            self._failure = self._sentence(step, error, tensors)
            self._failure.__cause__ = error
            self._meetings.fail(str(self._failure))  # returns when no other process writes any more
            if jax.process_index() == 0:
                self._folders.give_up(step)

    def _write_manifest(self, step: int, tensors: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """With a notary, each tensor's digest is in the manifest and the manifest is signed before it counts."""
        folder, notary = self._folders.writing(step), self._notary
        if notary is None:
            return manifest.write(folder, step, tensors, facts)
        found = arrays.digests(folder / manifest.STATE, tensors)
        if unread := [name for name, digest in found.items() if digest is None]:
            raise CheckpointError(f"{unread[0]} cannot be read back")
        tensors = {name: {**facts_of, "sha256": found[name]} for name, facts_of in tensors.items()}
        return manifest.write(folder, step, tensors, facts, lambda body, content: notary.sign(folder, body, content))

    def _copy(self, step: int) -> None:
        """Copies to the mirror what is good here and missing there; the same keep rules hold for both."""
        if self._mirror is None:
            return
        try:
            for other in reversed(self._folders.finished(undamaged=True)):
                self._mirror.push(self.directory / str(other), other)
            there = self._mirror.steps()
            for other in set(there) - self._keep.stay(there) - {step}:
                self._mirror.drop(other)
        except CheckpointError as error:
            raise CheckpointError(f"checkpoint {step} is safe in {self.directory}, but {error}") from error

    def _sentence(self, step: int, error: Exception, tensors: dict[str, Any]) -> CheckpointError:
        """What failed in one sentence; tensorstore's reports are long."""
        if isinstance(error, CheckpointError):
            return error
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, DiskFull) or any(words in reason for words in _FULL):
            size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in layout.shapes(tensors).values())
            reason = f"the disk is full (the state is {size:,} bytes, {free(self.directory)})"
        elif len(reason) > 300:
            reason = f"{reason[:100]} ... {reason[-200:]}"
        older = [other for other in self._folders.steps() if other != step]
        rest = f"untouched: {', '.join(map(str, older))}" if older else "there is no older one"
        return CheckpointError(f"checkpoint {step} was not written to {self.directory}: {reason}; {rest}")


def _as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `facts` that is what a later run will read."""
    try:
        copy = json.loads(json.dumps(dict(facts), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"facts must be JSON values: {error}") from None
    for key, value in facts.items():
        if copy.get(key) != value:
            raise CheckpointError(f"facts must survive JSON: {key}={value!r} comes back as {copy.get(key)!r}")
    return copy

"""Predicted against measured: every run leaves the pair in its directory and in the user's ledger, and plans learn."""

import importlib.metadata
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import jax

from jaxlm.files import DiskFull, room
from jaxlm.folder import write_json
from jaxlm.ledger import calibration_path, ledger_path, machine_of
from jaxlm.setup import Setup
from jaxlm.trainer.loop import Finished
from planners.learning.ledger import LATEST, Entry, Measured, append, bare, learn, read

PACKAGES = ("jax", "jaxlib", "jaxlm")


@dataclass(slots=True)
class Recorder:
    """Collects the seconds of a run's steps, and at its end writes what was predicted beside what was measured.

    `compiled`: bytes per device by part, from the compiler; set once the step is compiled.
    """

    setup: Setup
    compiled: dict[str, float] = field(default_factory=dict)
    seconds: list[float] = field(default_factory=list)

    def __call__(self, finished: Finished) -> None:
        self.seconds.append(finished.seconds)

    def entry(self) -> Entry | None:
        """This run as a line of the ledger; None where too few steps were taken to speak of a step time, and where an
        experiment made replicas slower than they are."""
        setup = self.setup
        if setup.options.pace is not None:
            return None
        measured = Measured.of(self.seconds, peak_memory())
        if measured is None:
            return None
        return Entry(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine_of(setup.cluster),
            workload=setup.workload,
            cluster=setup.cluster,
            plan=bare(setup.plan),
            predicted=setup.plan.predicted,
            compiled=self.compiled,
            measured=measured,
            calibration=setup.plan.assumptions.get("calibration", ""),
            versions={name: importlib.metadata.version(name) for name in PACKAGES},
        )

    def finish(self, *, learning: bool = True) -> tuple[dict[str, Any], str]:
        """Writes the pair into the run directory and the ledger, and if asked to learns from it; facts and a sentence.

        A ledger that cannot be written is said to be so and stops no run.
        """
        entry = self.entry()
        if entry is None:
            return {}, ""
        facts = entry.compared()
        write_json(self.setup.folder.comparison, facts | {"entry": entry.to_json()})
        said = sentence(facts)
        path = ledger_path()
        try:
            with room(path):
                append(path, entry)
                if learning and (calibration := learn(read(path, entry.machine)[-LATEST:])):
                    calibration.save(calibration_path(entry.machine))
                    said += f"\n{calibration.describe()}; the next plan on this kind of machine uses it"
        except (DiskFull, OSError) as error:
            said += f"\nnot added to the ledger {path}: {error}"
        return facts, said


def sentence(facts: dict[str, Any]) -> str:
    """The comparison in words."""
    step, memory = facts["step_seconds"], facts["memory_bytes"]
    parts = [f"step {step['measured']:.3g} s measured"]
    if step["predicted"] is not None:
        parts[0] += f", {step['predicted']:.3g} s predicted ({step['error']:+.0%})"
    figures = [
        f"{memory[name] / 2**20:,.0f} MiB {name}" for name in ("measured", "compiled", "predicted") if memory[name]
    ]
    return "; ".join([*parts, *([f"memory {', '.join(figures)}"] if figures else [])])


def peak_memory() -> int | None:
    """Peak bytes in use of the first local device, where the backend tells; a CPU does not."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return None if peak is None else int(peak)

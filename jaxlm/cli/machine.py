"""`jaxlm probe` and `jaxlm doctor`: what this machine is."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from jaxlm.cli.common import Common, Member, Refused, report


@dataclass(kw_only=True)
class Probe(Member):
    """Measure this machine or job: FLOP/s by dtype and size, memory bandwidth, every collective by ranks and size.

    Writes a cluster file for --cluster. In a job of several processes start this on each, as `jaxlm train`; process 0
    writes. Other work on the machine spoils the figures.

    Example: jaxlm probe --out here.yaml && jaxlm plan configs/quickstart.yaml --cluster here.yaml
    """

    out: Path | None = None
    """Cluster file to write; default print it."""
    quick: bool = False
    """Fewer and smaller sizes, within about a minute."""
    seconds: float | None = None
    """Time budget; default 300, with --quick 60."""
    compare: Path | None = None
    """Older cluster file: list every figure that changed by more than its noise."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        self.no_overrides()
        if self.seconds is not None and self.seconds <= 0:
            raise Refused(f"--seconds {self.seconds:g} must be positive")
        from jaxlm.probe import FULL, QUICK, probe

        extent = QUICK if self.quick else FULL
        if self.seconds is not None:
            extent = dataclasses.replace(extent, seconds=self.seconds)
        text, facts = probe(self.job(), extent, self.out, self.compare)
        import jax

        if jax.process_index() == 0:
            print(text)
            report(self.json, facts)
        return 0


@dataclass(kw_only=True)
class Doctor(Common):
    """Versions, devices, attention kernel, XLA options that this jaxlib accepts, and advice.

    Example: jaxlm doctor
    """

    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.doctor import examine

        text, facts = examine()
        print(text)
        report(self.json, facts)
        return 0

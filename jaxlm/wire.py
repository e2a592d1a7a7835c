"""What a run's exchange of gradients costs, for its metrics: bytes on the wire, the time of the exchange, its rung."""

from pathlib import Path
from typing import Any

import jax

from jaxlm.collectives.compressed import Compressed
from jaxlm.collectives.local import LocalSteps
from jaxlm.collectives.sync import GradSync
from jaxlm.collectives.timing import Cost, cost
from jaxlm.trainer.loop import Finished

COUNTERS = Path("/proc/self/net/dev")
"""The kernel's counters of every network interface of this process's network namespace (proc(5)); Linux only."""


def sent(counters: Path = COUNTERS) -> int | None:
    """Bytes that all network interfaces but the loopback have sent so far; None where the system does not say."""
    try:
        lines = counters.read_text().splitlines()[2:]
    except OSError:
        return None
    fields = {name.strip(): rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return sum(int(values[8]) for name, values in fields.items() if name != "lo")


class Wire:
    """What the metrics say of the exchange, on top of what the step itself reports (`residual_ratio`, `dense`,
    `fallback`).

    A record has `rung`: how gradients travel at its last step, `dense` where a lossy scheme sends bfloat16 or int8
    for now. In a job of several processes it has `wire_bytes`: what this host has sent per step since the record
    before, of everything that it sends, headers and retransmissions too; and where codes travel also
    `exchange_seconds`, `codec_ms` and `exposed_seconds` (see `Cost`), measured once, before the first step.
    """

    def __init__(self, sync: GradSync | LocalSteps, *, several: bool, counters: Path = COUNTERS):
        self.sync, self.counters = sync, counters
        self.before = sent(counters) if several else None
        self.cost: Cost | None = cost(sync) if several and isinstance(sync, Compressed) else None

    def restart(self) -> None:
        """What was sent up to now belongs to no step."""
        self.before = None if self.before is None else sent(self.counters)

    def __call__(self, finished: Finished, steps: int) -> dict[str, Any]:
        """The facts for the record of that step, and of the `steps` since the record before."""
        record: dict[str, Any] = {"rung": self._rung(finished)}
        if self.before is not None and (now := sent(self.counters)) is not None:
            record["wire_bytes"] = round((now - self.before) / steps)
            self.before = now
        if self.cost is not None:
            record |= {"exchange_seconds": self.cost.exchange, "codec_ms": 1e3 * self.cost.codec}
            record |= {"exposed_seconds": self.cost.exposed}
        return record

    def _rung(self, finished: Finished) -> str:
        if isinstance(self.sync, Compressed):
            return "dense" if finished.scalars.get("dense") else self.sync.scheme.kind
        return "local_sgd" if isinstance(self.sync, LocalSteps) else "none"

    def sentence(self) -> str | None:
        """One line on what was measured."""
        if self.cost is None:
            return None
        one = self.cost
        return f"one exchange takes {one.exchange:.3g} s on this link, {one.codec:.3g} s of it in codecs (zeros, alone)"


def wire_of(sync: GradSync | LocalSteps) -> Wire:
    """The wire of this job."""
    return Wire(sync, several=jax.process_count() > 1)

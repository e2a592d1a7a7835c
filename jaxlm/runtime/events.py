"""What the reports of all hosts say together: who is hot, held back, late with its data, slow, or has bad memory.

Collectives make every host as slow as the slowest, so step times tell nothing of who that is. What does: the time that
a host waits for its own data, the processor time that equal work costs it, the seconds that each replica measured of
itself (`plan.balance`), and its hardware. Where steps take longer though nobody's own work does, the links are slower.
"""

import statistics
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

HOT = 85.0
"""Degrees Celsius above which a device counts as hot where the hardware does not name its own limit."""

HELD_BACK = 0.7
"""Fraction of the highest clock below which a device that computes is held back."""

BEHIND = 1.5
"""How many times the median of the others a host's own time must be for it to count as a straggler."""

NOTICEABLE = 0.1
"""Fraction of the step that is lost at least before anybody is bothered."""

NOTICED = 0.05
"""Seconds of each step that are lost at least, since the processor time of small steps is mostly noise."""

AT_WORK = ("step", "waits for data")
"""Phases in which the times of a host mean something."""

UNCHANGED = 1.25
"""How much the own work of a step may have grown for the collectives to be to blame that it takes longer."""

EVIDENCE = 5
"""Reports in a row that must say so, and over which the rate of the network is taken."""

SAMPLES = 5
"""Steps before a host's times mean anything: the first ones warm up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a host, or is over.

    Attributes:
        kind: hot, clock, ecc, straggler, data, replica or link.
        host: which.
        over: whether it has ended.
        value: what was measured, in the unit of the sentence.
        slows: whether devices are now faster or slower than before, so that shares and plans should be measured anew.
        sentence: for a person.
    """

    kind: str
    host: int
    over: bool
    value: float
    slows: bool
    sentence: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Judge:
    """Calls out each finding once when it begins and once when it ends; `evidence` reports in a row must agree.

    Args:
        evidence: so many.
        link: bytes/s of each device between the hosts that the plan counts on, where it was told by a cluster file.
    """

    def __init__(self, evidence: int = EVIDENCE, link: float | None = None):
        self.evidence, self.link = evidence, link
        self._sent: dict[int, deque[tuple[float, int]]] = {}
        self.current: set[tuple[str, int]] = set()
        self._agreeing: dict[tuple[str, int], int] = {}
        self._beats: dict[int, int] = {}
        self._ecc: dict[int, int] = {}

    def __call__(self, reports: Sequence[Mapping[str, Any]]) -> list[Event]:
        """The events of this round; reports that are not newer than the last ones do not count again."""
        fresh = {report["host"] for report in reports if self._beats.get(report["host"]) != report["beat"]}
        self._beats |= {report["host"]: report["beat"] for report in reports}
        for report in reports:
            if report["host"] in fresh and report.get("network_bytes_sent") is not None:
                sent = self._sent.setdefault(report["host"], deque(maxlen=EVIDENCE))
                sent.append((report["seconds"], report["network_bytes_sent"]))
        found = {(kind, host): (value, text) for kind, host, value, text in self._findings(reports)}
        events = []
        for key in set(found) | set(self._agreeing) | self.current:
            if key[1] not in fresh:
                continue
            (kind, host), agrees = key, key in found
            if kind not in _MOMENTARY:
                if agrees == (key in self.current):
                    self._agreeing.pop(key, None)
                    continue
                self._agreeing[key] = self._agreeing.get(key, 0) + 1
                if self._agreeing[key] < self.evidence:
                    continue
                self._agreeing.pop(key)
                self.current ^= {key}
            value, text = found[key] if agrees else (0.0, f"{_WORDS[kind]} no longer")
            events.append(
                Event(
                    kind=kind,
                    host=host,
                    over=not agrees,
                    value=value,
                    slows=kind in ("hot", "clock", "replica", "link"),
                    sentence=f"host {host} {text}",
                )
            )
        return sorted(events, key=lambda event: (event.host, event.kind))

    def _findings(self, reports: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int, float, str]]:
        for report in reports:
            yield from self._hardware(report)
        steps = [report["step_seconds"]["median"] for report in reports if report["finished"] and _settled(report)]
        if not steps:
            return
        step = statistics.median(steps)
        for report in reports:
            data = report["data_seconds"]["median"]
            if _settled(report) and data is not None and data > 2 * NOTICEABLE * step:
                text = f"waits for data {data:.3g} s of each step of {step:.3g} s"
                yield "data", report["host"], data, text
        yield from _behind(reports, step)
        yield from _replicas(reports)
        yield from _links(reports, self.link, self._rate(reports[0]["host"]))

    def _rate(self, host: int) -> float | None:
        """Bytes/s that this host sent over its last reports, by its own clock that only goes forward."""
        sent = self._sent.get(host)
        if sent is None or len(sent) < EVIDENCE or sent[-1][0] <= sent[0][0] or sent[-1][1] < sent[0][1]:
            return None
        return (sent[-1][1] - sent[0][1]) / (sent[-1][0] - sent[0][0])

    def _hardware(self, report: Mapping[str, Any]) -> Iterator[tuple[str, int, float, str]]:
        host, hardware = report["host"], report["hardware"]
        limit = hardware.get("limit", HOT)
        if (heat := hardware.get("temperature")) is not None and heat >= limit:
            yield "hot", host, heat, f"is hot: {heat:.0f} C, its limit is {limit:.0f} ({hardware['source']})"
        clock = hardware.get("clock")
        if clock is not None and clock < HELD_BACK and report["phase"] == "step":
            yield "clock", host, clock, f"is held back: its clock is at {clock:.0%} ({hardware['source']})"
        if (errors := hardware.get("ecc")) is not None:
            before = self._ecc.setdefault(host, errors)
            self._ecc[host] = errors
            if errors > before:
                yield "ecc", host, errors - before, f"has {errors - before} new uncorrected memory errors"


_MOMENTARY = ("ecc",)
"""Findings that last no time, and are events as they are."""

_WORDS = {
    "hot": "is hot",
    "clock": "is held back",
    "straggler": "is behind the others",
    "data": "waits for data",
    "replica": "computes slower than the others",
    "link": "waits longer in collectives than before",
}


def _settled(report: Mapping[str, Any]) -> bool:
    return report["step_seconds"]["count"] >= SAMPLES


def _behind(reports: Sequence[Mapping[str, Any]], step: float) -> Iterator[tuple[str, int, float, str]]:
    """Hosts whose own time, for data and on the processor, is far above that of the others."""
    own = {
        report["host"]: (report["data_seconds"]["median"] or 0.0) + (report["cpu_seconds"]["median"] or 0.0)
        for report in reports
        if _settled(report) and report["phase"] in AT_WORK
    }
    for host, seconds in own.items():
        others = [value for other, value in own.items() if other != host]
        if not others:
            continue
        usual = statistics.median(others)
        if seconds > BEHIND * usual and seconds - usual > max(NOTICEABLE * step, NOTICED):
            text = f"is behind the others: {seconds:.3g} s of its own in each step, they {usual:.3g} s"
            yield "straggler", host, seconds, text


def _replicas(reports: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, int, float, str]]:
    """Hosts with a replica that measured itself slower; replicas are dealt to processes in order."""
    if not reports:
        return
    seconds = list(reports[0]["replica_seconds"])
    if len(seconds) < 2 or len(seconds) % len(reports):
        return
    each = len(seconds) // len(reports)
    for report in reports:
        own = seconds[report["process"] * each : (report["process"] + 1) * each]
        others = [value for i, value in enumerate(seconds) if i // each != report["process"]]
        if own and others and max(own) > BEHIND * statistics.median(others):
            usual = statistics.median(others)
            text = f"computes slower than the others: {max(own):.3g} s a microbatch, they {usual:.3g} s"
            yield "replica", report["host"], max(own), text


def _links(
    reports: Sequence[Mapping[str, Any]], link: float | None, rate: float | None
) -> Iterator[tuple[str, int, float, str]]:
    """The first host's wait, where all hosts take longer for a step than they did for half of all, at the same work.

    `link` is the bandwidth that the plan counts on, `rate` what the first host sends, on average over whole steps. The
    time by which a step is longer went into collectives, so while they run it sends at most `rate` times the step over
    that time: where even this is less than what one device should reach, the link is below the plan.
    """
    if len(reports) < 2:
        return
    for report in reports:
        step, data, cpu = (report[name] for name in ("step_seconds", "data_seconds", "cpu_seconds"))
        if step["count"] < 2 * SAMPLES or report["phase"] not in AT_WORK or None in (cpu["latest"], data["latest"]):
            return
        longer = step["latest"] - step["p50"]
        own = cpu["latest"] - UNCHANGED * cpu["p50"] + data["latest"] - UNCHANGED * data["p50"]
        if step["latest"] < BEHIND * step["p50"] or longer < NOTICED or own > NOTICEABLE * longer:
            return
    first = reports[0]["step_seconds"]
    text = (
        f"and all others wait longer in collectives than before: {first['latest']:.3g} s a step, half of all took no "
        f"more than {first['p50']:.3g} s, and nobody's own work has grown: a link or the network is slower"
    )
    if link is not None and rate is not None:
        most = rate * first["latest"] / (first["latest"] - first["p50"])
        if most < link:
            text += f"; it carries at most {most / 1e6:.3g} MB/s, the plan counts on {link / 1e6:.3g} for each device"
    yield "link", reports[0]["host"], first["latest"] / first["p50"], text

"""Rematerialisation by layer and value: what recomputing every layer of a choice costs, paid only as far as needed.

Of every mesh, microbatch and loss chunking, `none` keeps everything and `full` keeps the input of each layer. Where the
first does not fit and the second does, the layers are given policies in between (`planners.remat`), so that the extra
seconds are least within the memory that is left (eqs. 8 to 10, 13; eq. 10 adds bytes to seconds, here bytes are
limited). Both ends are priced as ever, and what lies between by its share: bytes by the values kept, seconds by the
part of a block's forward pass that runs again.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import yaml

from planners.candidates import REMATS, Candidates
from planners.machines.topology import Cluster, Device
from planners.plan import PlanError, Prediction, Segment, Workload, structure
from planners.prices.assumptions import Assumptions
from planners.prices.cost import Prices, price
from planners.prices.device_memory import footprint_of, phase_memory
from planners.prices.recompute import Keeping, hosted, hull, keeping, keepings
from planners.remat.host import Host
from planners.remat.policy import Around, Mix, Policy, Problem, Run
from planners.remat.solvers import SOLVERS
from planners.space.choices import Choices
from planners.wishes import REMATS as REMAT_NAMES
from planners.wishes import Search

LESS_IN_FLIGHT = 0.5
"""Share of a kept value's bytes that a block in flight then needs less: steps of Llama-7B compiled for 8 H100 with ten
sets of kept values, jax 0.10.2: within 120 MB of 1.6 to 2 GB (`experiments.benchmarks.remat_memory`)."""

MOST_ROWS = 400
"""Choices whose mix is worked out, by what they would cost if nothing were recomputed, cheapest first."""

HOST_LINK = 0.8
"""Share of the link to host memory that copies reach."""


RESERVE = 0.015
"""Share of the budget that solvers leave free, or a tenth of what they can save if that is less. The worst of 72
compiled plans needed 1.42% more than predicted once both of its ends had been compiled, all of it gaps that XLA left
between buffers in its one block (`experiments.benchmarks.remat_memory`, jaxlib 0.10.2); the mean is 0.25%."""

Phases: TypeAlias = Mapping[str, Mapping[str, float]]
"""Bytes by phase of the step (`planners.prices.memory_phases`) and part."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """One choice without any recomputation and with all of it: bytes per device by part, and seconds by part.

    Attributes:
        layers: of one device.
        carry: bytes of one layer's input.
        sequences: of one device, per microbatch.
        microbatches: of a step.
        in_flight: microbatches whose activations one device holds at once; `carry` is that of all of them.
        phases: of both ends, bytes by phase and part; empty for CPUs and pipelines, whose phases are not known.
    """

    none: Prediction
    full: Prediction
    layers: int
    carry: float
    sequences: int
    in_flight: int = 1
    microbatches: int = 1
    phases: Mapping[str, Phases] = field(default_factory=dict)

    @property
    def price(self) -> float:
        """Extra seconds of recomputing every layer."""
        return max(self.full.step_seconds - self.none.step_seconds, 0.0)

    @property
    def gradient(self) -> float:
        """Bytes of one layer's gradients, for which a segment makes room when it begins to go back."""
        return self.phases["full"]["backward"].get("gradients", 0.0) / self.layers if self.phases else 0.0

    def backward(self, end: Literal["none", "full"]) -> dict[str, float]:
        """Bytes by part while the blocks go back, or at the peak where phases are not known."""
        prediction = self.none if end == "none" else self.full
        return dict(self.phases[end]["backward"] if self.phases else prediction.memory)

    @property
    def around(self) -> Around:
        """What the device holds besides what the layers keep and compute again."""
        if not self.phases:
            return Around()
        full = {phase: sum(parts.values()) for phase, parts in self.phases["full"].items()}
        rest = full["loss"] - self.layers * self.carry
        loss = Policy(name="loss", save=None, kept=0.0, transient=rest, seconds=0.0, layer=False)
        return Around(freed=self.gradient, loss=loss, update=max(full["embedding"], full["update"]))

    @property
    def turned(self) -> float:
        """Bytes of weights that XLA turns round for layers that are computed again, and holds until the last of
        these has gone back."""
        weights = [self.backward(end).get("turned_weights", 0.0) for end in ("full", "none")]
        return max(weights[0] - weights[1], 0.0)

    def peak(self, runs: Sequence[Run]) -> float:
        """Bytes of these runs of the layers, in this order. Solvers count turned weights for every run; they are
        gone by the time that a first run which keeps everything goes back."""
        around = self.around
        found = around.moments(runs)
        if runs[0].policy.layer and runs[0].policy.save is None:
            found[0] -= self.turned
        return max(*found, around.update)


def with_mixes(choices: Choices, workload: Workload, cluster: Cluster, search: Search, a: Assumptions) -> Choices:
    """The choices, those that only fit fully rematerialised with the mix of policies that costs them least."""
    if search.remat in ("none", "full") or not workload.operations:
        return choices
    at, fits = choices.candidates, choices.fits
    rows = np.flatnonzero((at.remat == REMATS.index("full")) & (at.virtual == 1) & fits)
    if not len(rows):
        return choices
    none = price(workload, cluster, _as(at.take(rows), "none"), unroll=search.unroll, assumptions=a)
    tight = none.memory_bytes > choices.budget
    optimistic = none.step_seconds
    best = choices.prices.step_seconds[fits].min()
    blocks = Blocks(workload, cluster.device, search, a)
    given = None if search.remat in REMAT_NAMES else read_segments(search.remat, workload)
    mixes: dict[int, tuple[Segment, ...]] = {}
    priced: dict[int, Prediction] = {}
    refused: dict[int, PlanError] = {}
    for i in np.argsort(optimistic, kind="stable")[: MOST_ROWS + int((~tight).sum())]:
        if not (tight[i] or given):
            continue
        if optimistic[i] >= best and not given:
            break
        row = int(rows[i])
        ends = ends_of(
            workload,
            cluster.device,
            at.take(rows[i : i + 1]),
            none.prediction(int(i)),
            choices.prices.prediction(row),
            a,
        )
        if given:
            mix = blocks.of(given, at.mesh(row), ends)
        else:
            try:
                mix = solver(search.remat)(problem(ends, blocks.policies(at.mesh(row), ends), choices.budget))
            except PlanError as error:  # not by this strategy; another mesh, or another number of microbatches, may do
                refused[row] = error
                continue
        mixes[row], priced[row] = mix.segments(), between(ends, mix)
        best = min(best, priced[row].step_seconds)
    made = dataclasses.replace(choices, prices=_replaced(choices.prices, priced), mixes=mixes)
    if given:
        return made.take(np.array(sorted(mixes)))
    if not refused:
        return made
    left = np.setdiff1d(np.arange(len(at)), list(refused))
    if not made.fits[left].any():
        raise next(iter(refused.values()))
    return made.take(left)


def read_segments(path: str, workload: Workload) -> tuple[Segment, ...]:
    """The segments of a YAML or JSON file: a list of layers, save, offload, group. Raises PlanError naming what is
    wrong."""
    try:
        raw = yaml.safe_load(Path(path).read_text())
    except FileNotFoundError:
        raise PlanError(f"plan.remat: {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PlanError(f"plan.remat: {path} cannot be read: {error}") from None
    if not isinstance(raw, list) or not all(isinstance(each, dict) for each in raw):
        raise PlanError(f"plan.remat: {path} must hold a list of segments, each with layers and save (null keeps all)")
    segments = tuple(structure(each, Segment) for each in raw)
    if (layers := sum(each.layers for each in segments)) != workload.layers:
        raise PlanError(
            f"plan.remat: the segments of {path} have {layers} layers, {workload.name} has {workload.layers}"
        )
    return segments


def solver(name: str) -> Callable[[Problem], Mix]:
    """The strategy of that name; `auto` is the dynamic program."""
    return SOLVERS["dp" if name == "auto" else name]


def problem(ends: Ends, policies: Sequence[Policy], budget: float) -> Problem:
    """The layers of a choice, all that its device holds besides counted as in flight."""
    reserve = min(RESERVE * budget, 0.1 * max(ends.none.memory_bytes - ends.full.memory_bytes, 0.0))
    # What only fits without the reserve is better than nothing.
    aim = max(budget - reserve, min(budget, ends.full.memory_bytes))
    return ends.around.problem(ends.layers, policies, aim)


def between(ends: Ends, mix: Mix) -> Prediction:
    """What a choice with this mix is predicted to cost: its extra seconds in the proportions of its ends."""
    share = mix.seconds / ends.price if ends.price else 0.0
    seconds = _along(ends.none.seconds, ends.full.seconds, share)
    rest = {name: size for name, size in ends.full.memory.items() if name != "activations"}
    peak = ends.peak(mix.runs)
    activations = peak - sum(rest.values())
    if activations < 0:
        rest = {name: size for name, size in ends.none.memory.items() if name != "activations"}
        activations = max(peak - sum(rest.values()), 0.0)
    memory = {"activations": activations, **rest}
    mfu = ends.none.mfu
    total = sum(seconds.values())
    return Prediction(
        seconds=seconds,
        memory=memory,
        link_bytes=_along(ends.none.link_bytes, ends.full.link_bytes, share),
        mfu=None if mfu is None else mfu * ends.none.step_seconds / total,
        unrematerialised=ends.none.memory_bytes,
    )


def _along(start: Mapping[str, float], end: Mapping[str, float], share: float) -> dict[str, float]:
    """What lies a share of the way from one table to the other."""
    names = dict.fromkeys([*start, *end])
    return {name: (1 - share) * start.get(name, 0.0) + share * end.get(name, 0.0) for name in names}


class Blocks:
    """The policies of a block, worked out once for each way in which a mesh splits it."""

    def __init__(self, workload: Workload, device: Device, search: Search, a: Assumptions):
        self.workload, self.device, self.offload, self.a = workload, device, search.offload, a
        self.known: dict[tuple[int, ...], tuple[Keeping, ...]] = {}
        self.away: dict[tuple[tuple[int, ...], Host], tuple[Keeping, ...]] = {}

    def keepings(self, mesh: Mapping[str, int]) -> tuple[Keeping, ...]:
        """On the device alone, fewest bytes first."""
        key = (mesh["tensor"], mesh["context"])
        if key not in self.known:
            self.known[key] = hull(keepings(self.workload, self.device, mesh, self.a))
        return self.known[key]

    def hosted(self, mesh: Mapping[str, int], host: Host) -> tuple[Keeping, ...]:
        """With some values in host memory, as far as no mix of those on the device alone is better."""
        key = ((mesh["tensor"], mesh["context"]), host)
        if key not in self.away:
            both = [*self.keepings(mesh), *hosted(self.workload, self.device, mesh, self.a, host)]
            found = hull(sorted(both, key=lambda each: (each.bytes, each.seconds + each.waiting)))
            self.away[key] = tuple(each for each in found if each.offload)
        return self.away[key]

    def of(self, segments: Sequence[Segment], mesh: Mapping[str, int], ends: Ends) -> Mix:
        """Given segments as a mix. Raises PlanError for values that the blocks do not name."""
        runs = tuple(Run(0, self._policy(segment, mesh, ends), segment.layers) for segment in segments)
        return Mix(
            runs=runs,
            seconds=sum(run.layers * run.policy.seconds for run in runs),
            peak=ends.peak(runs),
            flops=sum(run.layers * run.policy.flops for run in runs),
        )

    def _policy(self, segment: Segment, mesh: Mapping[str, int], ends: Ends) -> Policy:
        if segment.save is None:
            return nothing_again(ends)
        most = self._kept((), mesh).seconds
        each = policy(self._kept(segment.save, mesh, segment.offload, host_of(ends, self.device)), most, ends)
        if segment.group > 1:
            waits = each.transient + ends.carry * (segment.group - 1)
            each = dataclasses.replace(
                each,
                group=segment.group,
                kept=ends.carry / segment.group,
                transient=waits,
                seconds=2 * each.seconds,
                flops=2 * each.flops,
            )
        return each

    def _kept(
        self, save: Sequence[str], mesh: Mapping[str, int], offload: Sequence[str] = (), host: Host | None = None
    ) -> Keeping:
        return keeping(self.workload, save, self.device, mesh, self.a, offload=offload, host=host)

    def policies(self, mesh: dict[str, int], ends: Ends) -> list[Policy]:
        found = self.keepings(mesh)
        host = host_of(ends, self.device) if self.offload else None
        away = self.hosted(mesh, host) if host else ()
        return [nothing_again(ends), *(policy(each, found[0].seconds, ends) for each in (*found, *away))]


def host_of(ends: Ends, device: Device) -> Host | None:
    """The link to host memory for one sequence of one layer, and the passes beside which its copies are free: the
    backward pass is two thirds of a layer's time. None for a device without such a link."""
    if not device.host_bandwidth:
        return None
    layer = ends.none.seconds.get("compute", 0.0) / (ends.layers * ends.sequences * ends.microbatches)
    return Host(bandwidth=device.host_bandwidth * HOST_LINK, forward=layer / 3.0, backward=layer * 2.0 / 3.0)


def policy(kept: Keeping, most: float, ends: Ends) -> Policy:
    """A block that keeps these values; `most` are the seconds of keeping none."""
    rest = sum(ends.backward("full").values()) - ends.layers * (ends.carry + ends.gradient)
    floor = min(rest, nothing_again(ends).transient)
    flying = ends.sequences * ends.in_flight
    name = "+".join(kept.save) or "full"
    return Policy(
        name=f"{name}, host {'+'.join(kept.offload)}" if kept.offload else name,
        save=kept.save,
        offload=kept.offload,
        kept=ends.carry + flying * kept.bytes,
        # What comes back from the host is in place as what was kept is.
        transient=max(rest - LESS_IN_FLIGHT * flying * (kept.bytes + kept.away), floor),
        seconds=ends.price / ends.layers * (kept.seconds / most if most else 0.0)
        + ends.sequences * ends.microbatches * kept.waiting,
        flops=ends.sequences * kept.flops,
    )


def nothing_again(ends: Ends) -> Policy:
    """A block that keeps everything. Where any layer is rematerialised, XLA turns the weights of all of them."""
    memory = ends.backward("none")
    held = memory["activations"] + memory.get("cast_weights", 0.0)
    rest = sum(memory.values()) - held - ends.layers * ends.gradient + ends.turned
    return Policy(name="none", save=None, kept=held / ends.layers, transient=rest, seconds=0.0)


def ends_of(
    workload: Workload, device: Device, one: Candidates, none: Prediction, full: Prediction, a: Assumptions
) -> Ends:
    """The ends of the only candidate, given what both are predicted to cost."""
    sizes = {axis: int(size[0]) for axis, size in one.sizes.items()}
    sequences = int(one.microbatch[0] // one.replicas[0])
    where = footprint_of(workload, one.sizes)
    carry = sequences * float(np.ravel(where.carry)[0]) / (sizes["tensor"] if one.sequence[0] else 1)
    layers = -(-workload.layers // sizes["stage"])
    # Stages hold the activations of several microbatches: what one device keeps of a layer is that many times more.
    flying = max(none.memory["activations"] / (layers * sequences * float(np.ravel(where.activations)[0])), 1.0)
    flying = round(flying) if sizes["stage"] > 1 else 1
    known = device.kind != "cpu" and sizes["stage"] == 1
    return Ends(
        none=none,
        full=full,
        layers=layers,
        carry=carry * flying,
        sequences=sequences,
        in_flight=flying,
        microbatches=max(workload.batch // int(one.microbatch[0]), 1),
        phases={name: _phases(workload, device, _as(one, name), a) for name in REMATS} if known else {},
    )


def _phases(workload: Workload, device: Device, one: Candidates, a: Assumptions) -> Phases:
    found = phase_memory(workload, device, one, assumptions=a)
    return {phase: {part: float(size[0]) for part, size in parts.items()} for phase, parts in found.items()}


def _as(candidates: Candidates, remat: str) -> Candidates:
    return dataclasses.replace(candidates, remat=np.full(len(candidates), REMATS.index(remat)))


def _replaced(prices: Prices, rows: dict[int, Prediction]) -> Prices:
    if not rows:
        return prices

    def put(table: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
        names = dict.fromkeys([*table, *(name for each in rows.values() for name in getattr(each, part))])
        whole = {name: np.array(table.get(name, 0.0 * prices.step_seconds), dtype=float) for name in names}
        for row, each in rows.items():
            for name in names:
                whole[name][row] = getattr(each, part).get(name, 0.0)
        return whole

    mfu = prices.mfu
    if mfu is not None:
        mfu = np.array(mfu)
        for row, each in rows.items():
            mfu[row] = each.mfu
    return dataclasses.replace(
        prices,
        seconds=put(prices.seconds, "seconds"),
        memory=put(prices.memory, "memory"),
        link_bytes=put(prices.link_bytes, "link_bytes"),
        mfu=mfu,
        unrematerialised={row: each.unrematerialised for row, each in rows.items() if each.unrematerialised},
    )

"""Training steps whose memory is planned to a budget: what is predicted of them, and what the compiler makes of it."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from experiments.benchmarks.memory import plan_of, run_of, workload
from experiments.benchmarks.memory_cases import Case
from jaxlm.compiled import Compiler, target_of
from jaxlm.model.config import PRESETS
from planners.candidates import REMATS, Candidates
from planners.machines.cluster_file import load_cluster
from planners.machines.topology import Cluster
from planners.plan import PlanError, Prediction, Segment, Workload
from planners.prices.assumptions import Assumptions
from planners.prices.cost import price
from planners.prices.recompute import Keeping, keeping
from planners.programs.compiled import Compiled
from planners.remat.policy import Mix, Policy
from planners.search import plan
from planners.space.mixes import Blocks, Ends, Phases, between, ends_of, problem, solver
from planners.suggestions import suggest
from planners.wishes import Search

NAMED: dict[str, tuple[str, ...]] = {
    "full": (),
    "qkv": ("q", "k", "v"),
    "attention": ("context", "statistics"),
    "attention + qkv": ("q", "k", "v", "context", "statistics"),
    "all but mlp": ("q", "k", "v", "context", "statistics", "attn_out"),
    "mlp": ("mlp_gate", "mlp_up"),
    "products": ("q", "k", "v", "attn_out", "mlp_gate", "mlp_up"),
    "products + attention": ("q", "k", "v", "context", "statistics", "attn_out", "mlp_gate", "mlp_up"),
}
"""One policy for all layers, as trainers offer it. MaxText's remat_policy (docs/guides/optimization, 2025): full,
save_qkv_proj, save_dot_with_context_except_mlp ("all but mlp"), minimal (JAX's dots_with_no_batch_dims_saveable:
"products"), minimal_with_context ("products + attention"). `mlp_out` is left out: no backward pass reads it."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One training step on one cluster, everything decided but its rematerialisation.

    `beyond`: bytes that steps of this mesh need beyond what is predicted of them, learned from a few compiled mixes.
    """

    case: Case
    cluster_name: str
    offload: bool = False
    beyond: float = 0.0

    def __str__(self) -> str:
        return f"{self.case.preset} on {self.cluster_name}, {self.case.mesh}"

    @cached_property
    def cluster(self) -> Cluster:
        return load_cluster(self.cluster_name)

    @cached_property
    def workload(self) -> Workload:
        return workload(self.case)

    @cached_property
    def ends(self) -> Ends:
        """Without any recomputation and with all of it; the runtime libraries' own memory is left out."""
        case = self.case
        both = Candidates.of(
            case.sizes, microbatch=case.microbatch, remat=range(len(REMATS)), loss_chunks=case.loss_chunks
        )
        prices = price(self.workload, self.cluster, both, assumptions=Assumptions())
        found = {name: prices.prediction(row) for row, name in enumerate(REMATS)}

        def known(name: str) -> Prediction:
            parts = {part: size for part, size in found[name].memory.items() if part != "runtime"}
            return dataclasses.replace(found[name], memory=parts)

        one = both.take(np.array([0]))
        ends = ends_of(self.workload, self.cluster.device, one, known("none"), known("full"), Assumptions())
        return dataclasses.replace(ends, phases={name: self._alone(found) for name, found in ends.phases.items()})

    @staticmethod
    def _alone(phases: Phases) -> Phases:
        return {name: {k: v for k, v in found.items() if k != "runtime"} for name, found in phases.items()}

    @cached_property
    def blocks(self) -> Blocks:
        return Blocks(self.workload, self.cluster.device, Search(offload=self.offload), Assumptions())

    @cached_property
    def policies(self) -> list[Policy]:
        return self.blocks.policies(self.case.sizes, self.ends)

    def learned(self, compiled: Sequence[tuple[Mix, Compiled]]) -> "Subject":
        """The same, once some mixes have been compiled: what XLA needs beyond the prediction is taken to be the same
        number of bytes for all of them. The two ends teach less: either is off by itself, mixes much alike."""
        plain = dataclasses.replace(self, beyond=0.0)
        gaps = [made.memory_bytes - plain.of(mix.segments()).peak for mix, made in compiled]
        return dataclasses.replace(self, beyond=float(np.mean(gaps)))

    def mix(self, strategy: str, budget: float) -> Mix:
        """What a strategy of `planners.remat` makes of a budget in bytes. Raises PlanError where nothing fits."""
        return self._with(solver(strategy)(problem(self.ends, self.policies, budget - self.beyond)))

    def cheapest_in_flops(self, budget: float) -> Mix:
        """The mix with the fewest extra FLOPs of a causal step, whatever they take."""
        counted = [dataclasses.replace(each, seconds=self._flops(each, causal=True)) for each in self.policies]
        found = solver("dp")(problem(self.ends, counted, budget - self.beyond))
        return self.of(found.segments())

    def of(self, segments: Sequence[Segment]) -> Mix:
        """Given segments as a mix, priced."""
        return self._with(self.blocks.of(segments, self.case.sizes, self.ends))

    def _with(self, mix: Mix) -> Mix:
        return dataclasses.replace(mix, peak=mix.peak + self.beyond)

    def uniform(self, name: str) -> Mix:
        """One of the NAMED policies, or `none`, for all layers."""
        save = None if name == "none" else NAMED[name]
        return self.of([Segment(layers=self.ends.layers, save=save)])

    def predicted(self, mix: Mix) -> Prediction:
        return between(self.ends, mix)

    def extra_flops(self, mix: Mix, *, causal: bool) -> float:
        """Extra FLOPs of a step over those of a step without recomputation; causal: masked pairs not counted."""
        per_device = sum(run.layers * self._flops(run.policy, causal=causal) for run in mix.runs if run.policy.layer)
        replicas = self.case.microbatch // self.ends.sequences
        return per_device * replicas / self.workload.step_flops(causal=causal)

    def compile(self, mix: Mix, progress: Callable[[float], None] = lambda seconds: None) -> Compiled:
        """The real step, compiled for the real target without its hardware; results are cached."""
        run = run_of(self.case)
        made = dataclasses.replace(plan_of(self.case), remat=mix.segments())
        return Compiler(run, run.model.vocab, target_of(self.cluster), progress=progress)(made)

    def _kept(self, names: Sequence[str]) -> Keeping:
        return keeping(self.workload, names, self.cluster.device, self.case.sizes, Assumptions())

    def _flops(self, each: Policy, *, causal: bool) -> float:
        """Extra FLOPs of one layer for the sequences of one device."""
        if each.save is None:
            return 0.0
        kept = self._kept((*each.save, *each.offload))
        hidden = 0.5 * kept.attention if causal and self.workload.causal else 0.0
        return self.ends.sequences * (kept.flops - hidden)


def planned_subject(
    preset: str,
    cluster_name: str,
    *,
    sequence: int,
    sequences: int,
    loss_chunks: int = 1,
    mesh: Mapping[str, int] | None = None,
) -> Subject:
    """A step of a model on a cluster, its mesh as the planner chooses it where all is recomputed.

    Args:
        preset: of the model.
        cluster_name: preset or file.
        sequence: tokens of one sequence; `sequences` of them per device make the batch, all of it one microbatch.
        loss_chunks: pieces of the loss.
        mesh: sizes of axes that are not the planner's to choose.

    Raises PlanError for an unknown model, where no mesh divides the work or nothing fits.
    """
    if preset not in PRESETS:
        raise PlanError(f"there is no model {preset!r}{suggest(preset, PRESETS)}")
    cluster = load_cluster(cluster_name)
    batch = cluster.count * sequences
    any_mesh = Case(
        preset=preset, mesh=f"data={cluster.count}", remat="full", microbatch=batch, sequence=sequence,
        loss_chunks=loss_chunks, chip=target_of(cluster).kind,
    )  # fmt: skip
    first = Subject(case=any_mesh, cluster_name=cluster_name)
    wish = Search(mesh=dict(mesh or {}), microbatch=batch, loss_chunks=loss_chunks, remat="full")
    chosen = plan(first.workload, cluster, wish).mesh
    named = " ".join(f"{axis}={size}" for axis, size in chosen.items() if size > 1) or "data=1"
    return dataclasses.replace(first, case=dataclasses.replace(any_mesh, mesh=named))

"""`jaxlm plan`."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from tyro.conf import Positional

from jaxlm.cli.common import Common, Refused, report

if TYPE_CHECKING:
    from planners.machines.topology import Cluster
    from planners.plan import Plan, Workload
    from planners.wishes import Search


@dataclass(kw_only=True)
class MakePlan(Common):
    """Show the plan for a configuration: mesh, batch split, rematerialisation, predicted memory and time.

    Example: jaxlm plan configs/quickstart.yaml --cluster h100x8 --explain
    """

    config: Positional[Path | None] = None
    """YAML file of the run; left out with --workload."""
    cluster: str | None = None
    """Preset such as h100x8, mixture such as v100x16+a100-80x16, or YAML file of a cluster; default this machine."""
    mesh: str | None = None
    """Fix mesh axes by hand: data=8,tensor=4; axes left out are searched."""
    memory_budget: str | None = None
    """Bytes of each device that a plan may use: 24GiB, 80GB or 8e10."""
    remat: str | None = None
    """Who decides what each layer keeps: auto, dp, greedy, lagrangian, learned, static, threshold, full, none, or a
    YAML file of segments. Prints all of them side by side; with --verify each of them is compiled too."""
    explain: bool = False
    """Print the predicted time and memory, why the runners-up lost, what rules of thumb would pick, and which plans
    take less memory for more time."""
    executable: bool = False
    """Search only the mesh axes that `jaxlm train` executes."""
    objective: Literal["time", "eq1"] = "time"
    """`time`: step time times steps to the target. `eq1`: eq. 1 of the paper as printed, with --beta."""
    beta: float = 0.0
    """Weight of the communication term of eq. 1."""
    gradient_norm: float = 1.0
    """Norm of the gradient in eqs. 1 and 7; a clipped one is at most the clip norm."""
    workload: Path | None = None
    """Plan for a saved description of the work instead of a configuration; neither model nor JAX is needed."""
    save_workload: Path | None = None
    """Save what the model asks of a machine, for --workload."""
    verify: bool = False
    """Compile the best plans for the cluster, without needing it, and judge them by XLA's memory and collectives.
    GPUs need the extra `aot`."""
    verify_top: int = 3
    """Plans to compile."""
    verify_seconds: float = 1200.0
    """Time that one compilation may take."""
    out: Path | None = None
    """Save the plan, for `jaxlm train --plan`."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        if self.verify_top < 1 or self.verify_seconds <= 0:
            raise Refused("--verify-top and --verify-seconds must be positive")
        if self.objective == "time" and self.beta:
            raise Refused("--beta weighs the second term of eq. 1; add --objective eq1")
        return self._planned() if not self.verify else self._verified()

    def _planned(self) -> int:
        from planners.explain import explain
        from planners.layout import EXECUTABLE
        from planners.plan import MESH_AXES
        from planners.prices.paper_cost import Eq1
        from planners.search import beyond
        from planners.search import plan as search_plan
        from planners.space.remat_strategies import remat_strategies, strategies_table
        from planners.space.rivals import compare

        workload, cluster, search, steps = self._work()
        assumptions, learnt = None, "none: a saved workload is planned with the constants as shipped"
        if self.config is not None:
            from jaxlm.ledger import constants

            assumptions, learnt = constants(cluster, workload, search)
        if self.save_workload is not None:
            workload.save(self.save_workload)
            print(f"saved {self.save_workload}")
        axes = EXECUTABLE if self.executable else MESH_AXES
        objective = None
        if self.objective == "eq1":
            objective = Eq1(beta=self.beta, steps=steps, gradient_norm=self.gradient_norm)
        plan = search_plan(workload, cluster, search, assumptions, axes, objective)
        plan = dataclasses.replace(plan, assumptions={"calibration": learnt, **plan.assumptions})
        comparison = None
        if self.explain or self.json:
            norm = self.gradient_norm
            comparison = compare(plan, workload, cluster, search, axes, gradient_norm=norm, assumptions=assumptions)
        self._print(plan, f"{explain(plan, cluster)}\n\n{comparison.text()}" if self.explain and comparison else None)
        strategies = remat_strategies(plan, workload, cluster, search, assumptions)
        if strategies and (self.explain or self.remat or self.memory_budget):
            print(f"\n{strategies_table(strategies)}")
        missing = [axis for axis, size in plan.mesh.items() if axis not in EXECUTABLE and size > 1]
        if missing:
            print(f"the trainer does not execute {' and '.join(missing)} yet; --executable plans without")
        elif self.executable and (better := beyond(plan, workload, cluster, search, assumptions)):
            print(better)
        self._save(plan)
        facts = {"digest": plan.digest, "remat_strategies": [each.facts() for each in strategies]}
        report(self.json, plan.to_json() | facts | (comparison.facts() if comparison else {}))
        return 0

    def _wishes(self) -> list[str]:
        """All that overrides the configuration, flags included."""
        flags = {"--plan.memory_budget": self.memory_budget, "--plan.remat": self.remat}
        given = [text for flag, value in flags.items() if value is not None for text in (flag, value)]
        return [*self.overrides(), *mesh_overrides(self.mesh), *given]

    def _work(self) -> tuple["Workload", "Cluster", "Search", int]:
        """What is to be planned, on what, within which limits, and for how many steps."""
        overrides = self._wishes()
        if (self.config is None) == (self.workload is None):
            raise Refused("give either a configuration or --workload FILE")
        if self.workload is not None:
            from jaxlm.decode import decode, dotted, override
            from planners.machines.cluster_file import load_cluster
            from planners.plan import Workload
            from planners.wishes import Search

            raw = override({}, dotted(overrides))
            if other := sorted(set(raw) - {"plan"}):
                raise Refused(f"--{other[0]}: a saved workload takes no keys but plan.*")
            if self.cluster is None:
                raise Refused("--workload needs --cluster: it says for what to plan")
            search = decode(raw.get("plan", {}), Search)
            return Workload.load(self.workload), load_cluster(self.cluster), search, 1
        from jaxlm.finetune import load
        from jaxlm.inspect import described

        run = load(cast(Path, self.config), overrides)
        return *described(run, self.cluster), run.plan, run.train.steps

    def _verified(self) -> int:
        from jaxlm.finetune import load
        from jaxlm.inspect import verify_plan, verify_remat
        from planners.explain import compiled_table, explain
        from planners.space.remat_strategies import strategies_table

        if self.config is None:
            raise Refused("--verify compiles the model, so it needs a configuration")
        if self.objective != "time":
            raise Refused("--verify ranks by time; leave --objective out")
        run = load(self.config, self._wishes())
        plan, cluster, checked = verify_plan(run, self.cluster, top=self.verify_top, seconds=self.verify_seconds)
        self._print(plan, explain(plan, cluster) if self.explain else None)
        if not self.explain:
            print(compiled_table(plan))
        strategies = []
        if self.remat or self.memory_budget:
            strategies = verify_remat(run, self.cluster, plan, seconds=self.verify_seconds)
            print(f"\n{strategies_table(strategies)}" if strategies else "")
        self._save(plan)
        facts = {"digest": plan.digest, "verified": [each.facts() for each in checked]}
        facts |= {"remat_strategies": [each.facts() for each in strategies]}
        report(self.json, plan.to_json() | facts)
        return 0

    def _print(self, plan: "Plan", explained: str | None) -> None:
        """The plan in full, or in one line with what to be warned of."""
        print(explained or plan.summary())
        if explained is None and (warning := plan.assumptions.get("warning")):
            print(f"warning: {warning}")

    def _save(self, plan: "Plan") -> None:
        if self.out is not None:
            plan.save(self.out)
            print(f"saved {self.out}")


def mesh_overrides(mesh: str | None) -> list[str]:
    """`data=8,tensor=4` as overrides of plan.mesh."""
    if mesh is None:
        return []
    pairs = [part.partition("=") for part in mesh.split(",")]
    if bad := [name + equals + size for name, equals, size in pairs if not equals or not size.isdigit()]:
        raise Refused(f"--mesh {mesh}: {bad[0]!r} is no AXIS=SIZE; write data=8,tensor=4")
    names = [name for name, _, _ in pairs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise Refused(f"--mesh {mesh}: {repeated[0]} stands twice")
    return [text for name, _, size in pairs for text in (f"--plan.mesh.{name}", size)]

"""The same policy for all layers: `full`, `none`, and any other one."""

from planners.plan import PlanError
from planners.remat.policy import Mix, Policy, Problem, Run, fits
from planners.remat.refusal import refusal


def is_none(policy: Policy) -> bool:
    """Whether it keeps everything: nothing is rematerialised."""
    return policy.save is None and not policy.offload


def is_full(policy: Policy) -> bool:
    """Whether it keeps the input of each layer only."""
    return policy.save == () and not policy.offload and policy.group == 1


def none(problem: Problem) -> Mix:
    """No rematerialisation. Raises PlanError when that does not fit."""
    return _only(problem, [[p for p in kind.policies if is_none(p)] for kind in problem.classes], "none")


def full(problem: Problem) -> Mix:
    """Every layer is recomputed from its input. Raises PlanError when that does not fit."""
    return _only(problem, [[p for p in kind.policies if is_full(p)] for kind in problem.classes], "full")


def uniforms(problem: Problem) -> dict[str, Mix]:
    """For each policy that all classes know by name and may run: all layers under it, whether it fits or not."""
    found = {}
    for first in problem.classes[0].policies:
        chosen = [next((p for p in kind.policies if p.name == first.name), None) for kind in problem.classes]
        policies = [p for p in chosen if p is not None]
        if len(policies) == len(chosen) and all(problem.may_run(k, p) for k, p in enumerate(policies)):
            found[first.name] = of_classes(problem, policies)
    return found


def of_classes(problem: Problem, policies: list[Policy]) -> Mix:
    """One policy for each class, one run each."""
    runs = [Run(k, policy, problem.classes[k].count) for k, policy in enumerate(policies)]
    return Mix.of(runs, problem.classes)


def _only(problem: Problem, found: list[list[Policy]], name: str) -> Mix:
    for kind, policies in zip(problem.classes, found, strict=True):
        if not policies:
            raise PlanError(f"remat {name}: no such policy among {', '.join(p.name for p in kind.policies)}")
    mix = of_classes(problem, [policies[0] for policies in found])
    if not fits(mix, problem):
        raise PlanError(refusal(problem, mix, f"{name} for every layer"))
    return mix

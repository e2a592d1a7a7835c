"""Says why no mix of policies fits, what the least hungry one needs, and what would lower it."""

from planners.remat.policy import Mix, Problem

GIB = 2.0**30


def refusal(problem: Problem, least: Mix, who: str = "the least hungry mix of policies") -> str:
    """`least` is the least hungry mix that could have been chosen, `who` says what it is."""
    over = least.peak - problem.budget
    lines = [
        f"remat: {who} needs {least.peak / GIB:,.3f} GiB for activations and transients; "
        f"{problem.budget / GIB:,.3f} GiB are left for them, {over / GIB:,.3f} GiB too little.",
        f"That mix: {least.summary()}",
        "What would lower it:",
        "  - fewer sequences per microbatch: all of it grows with them",
        "  - more loss chunks, where the head and not the layers sets the peak",
    ]
    policies = [policy for kind in problem.classes for policy in kind.policies]
    if all(policy.group == 1 for policy in policies):
        lines.append("  - layers recomputed in groups: one kept input per group instead of one per layer")
    if any(kind.freed for kind in problem.classes):
        lines.append("  - gradients that do not wait beside the activations: more fsdp")
    if any(kind.in_flight > 1 for kind in problem.classes):
        waiting = max(kind.in_flight for kind in problem.classes)
        lines.append(f"  - fewer pipeline stages: {waiting} microbatches are held at once")
    lines.append("  - more tensor or fsdp ranks: fewer tokens, weights and values per device")
    return "\n".join(lines)

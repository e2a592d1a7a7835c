"""The learning agent on plans whose step times are all published: what is lost after so many probes.

Files: vtrain_single.csv and vtrain_multi.csv (MIT, VIA-Research/vTrain).
"""

from collections.abc import Sequence

import numpy as np

from experiments.benchmarks.published.judge import Verdict
from experiments.benchmarks.published.replay import CHANCE, POLICIES, losses
from experiments.benchmarks.published.tables import Source
from experiments.benchmarks.published.vtrain_jobs import Fold, folds

TARGETS = {3: 0.5, 5: 0.3}
"""Most that may be lost on average after so many probes, % (planners.md P2e and P6)."""
PROBES = (1, 2, 3, 5)
MANY = 10
"""Jobs with more plans than this are reported on their own: five probes of ten plans are half of them."""
SEEDS = 20


FILES = ("vtrain_single", "vtrain_multi")


def verdicts(source: Source, seed: int, files: Sequence[str] = FILES) -> list[Verdict]:
    """Regret after each number of probes, for all jobs and for those with many plans; empty without the files."""
    found = []
    for name in files:
        held = list(folds(source, name))
        if held:
            found += _verdicts(name, held, seed)
    return found


def _verdicts(name: str, held: list[Fold], seed: int) -> list[Verdict]:
    jobs = [job for fold in held for job in fold.jobs]
    lost = {
        policy: np.array(
            [
                losses(job, choose, PROBES, range(seed, seed + (SEEDS if policy in CHANCE else 1))).mean(0)
                for job in jobs
            ]
        )
        for policy, choose in POLICIES.items()
    }
    many = np.array([len(job.arms) > MANY for job in jobs])
    made = []
    for what, rows in ((name, np.full(len(jobs), True)), (f"{name}, jobs with more than {MANY} plans", many)):
        for column, count in enumerate(PROBES):
            if not rows.any():
                continue
            target = {"mean": TARGETS[count]} if count in TARGETS else {}
            made.append(
                Verdict(
                    what=what,
                    league="held-out model, probing",
                    quantity=f"regret after {count} probes, %" if count > 1 else "regret after 1 probe, %",
                    ours=lost["agent"][rows, column],
                    baselines={policy: values[rows, column] for policy, values in lost.items() if policy != "agent"},
                    targets=target,
                    folds=tuple((fold.fitted, fold.judged) for fold in held),
                    constants="closed form and evidence from rows of other models; spreads as in training, their form "
                    "chosen knowing these tables",
                    details={"plans": [len(job.arms) for job in jobs]},
                )
            )
    return made

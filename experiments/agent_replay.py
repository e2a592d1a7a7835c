"""Does the learning agent find the fastest plan in fewer probes, and does it notice when a link slows down?

Question: after k probes, how much slower than the best is the plan found, beside predicted order, epsilon-greedy, UCB
          and chance? And when a link halves its bandwidth: how many steps pass until the run is planned again, how
          often is there a false alarm, does it ever flap?
Cost:     about three minutes on one core; nothing is trained.
Run:      python -m experiments.agent_replay [--groundtruth DIR]
"""

import dataclasses
import os
from pathlib import Path

import numpy as np

from experiments.benchmarks.published.agent import verdicts
from experiments.benchmarks.published.judge import Verdict, interval, statistic
from experiments.benchmarks.published.tables import Source
from experiments.entry import main
from experiments.link_drift import Outcome, Weather, simulate
from experiments.report import Report, Row

WEATHERS = {
    "1% noise": Weather(noise=0.01, odd=0.0),
    "2% noise, 2% odd steps": Weather(),
    "5% noise, 2% odd steps": Weather(noise=0.05),
    "2% noise, wandering by 2%": Weather(wander=0.02),
}
PROMPT = 20
"""Steps of evidence within which a halved link must be planned for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What is replayed.

    Attributes:
        groundtruth: folder of the published step times; by itself JAXLM_SHARED/groundtruth, without which only the
            simulation runs.
        calibrate_on: folder of the rows that the predictor is fitted on; by itself the same, split by whole models.
        runs: simulated runs of each kind of machine.
        steps: of each run; the link changes in the middle.
        seed: of every random draw.
    """

    groundtruth: str = ""
    calibrate_on: str = ""
    runs: int = 100
    steps: int = 2000
    seed: int = 0


def execute(config: Config, out: Path) -> Report:
    """Replays the published step times, then simulates the link."""
    rows, remarks = [], []
    shared = os.environ.get("JAXLM_SHARED")
    folder = config.groundtruth or (f"{shared}/groundtruth" if shared else "")
    if folder:
        source = Source(Path(folder), Path(config.calibrate_on or folder))
        for verdict in verdicts(source, config.seed):
            rows += _replayed(verdict, config.seed)
        remarks += [f"Skipped, because missing: {name}." for name in source.missing]
    else:
        remarks.append("No published step times: give --groundtruth DIR or set JAXLM_SHARED.")
    for name, weather in WEATHERS.items():
        rows += _simulated(name, weather, config)
    remarks.append(
        "Regret: excess of the fastest plan probed over the fastest of the job, mean over jobs; each vTrain run was "
        "timed once, so less than about 1% is within the noise of the measurement. Simulated rows are no measurement."
    )
    return Report(title="The learning agent: replay and drift", rows=rows, remarks=remarks)


def _replayed(verdict: Verdict, seed: int) -> list[Row]:
    low, high = interval("mean", verdict.ours, samples=1000, seed=seed)
    note = f"OURS, {len(verdict.ours)} jobs, 95% {low:.3g} to {high:.3g}, max {verdict.ours.max():.3g}"
    if (met := verdict.met("mean")) is not None:
        note += f"; target <= {verdict.targets['mean']:g}: {'met' if met else 'MISSED'}"
    rows = [Row(what=verdict.what, quantity=verdict.quantity, predicted=statistic("mean", verdict.ours), note=note)]
    return rows + [
        Row(
            what=verdict.what,
            quantity=verdict.quantity,
            predicted=statistic("mean", values),
            note=f"baseline: {other}; max {values.max():.3g}",
        )
        for other, values in verdict.baselines.items()
    ]


def _simulated(name: str, weather: Weather, config: Config) -> list[Row]:
    seeds = range(config.seed, config.seed + config.runs)
    calm = [simulate(seed, weather, steps=config.steps, change=None) for seed in seeds]
    changed = [simulate(seed, weather, steps=config.steps, change=config.steps // 2) for seed in seeds]
    watched, alarms = sum(o.quiet for o in calm), sum(o.false for o in calm)
    concerned = [o for o in changed if o.felt > 0.1]
    delays = [o.delay if o.delay is not None else config.steps for o in concerned]
    late = sum(delay > PROMPT for delay in delays)
    what = f"simulated, {name}"
    return [
        Row(what=what, quantity="false alarms per 10,000 steps", predicted=1e4 * alarms / max(watched, 1)),
        Row(what=what, quantity="changes of plan without cause, per run", predicted=_mean(calm, "changes_before")),
        Row(
            what=what,
            quantity="steps from a halved link to a new decision, median",
            predicted=float(np.median(delays)),
            note=f"{len(delays)} runs that it slows by more than 10%; {late} later than {PROMPT} steps: "
            + ("target met" if late == 0 else "target MISSED"),
        ),
        Row(
            what=what,
            quantity="plans returned to after being left",
            predicted=sum(o.flaps for o in (*calm, *changed)),
            note=f"in {2 * config.runs} runs: "
            + ("never flaps" if not any(o.flaps for o in changed + calm) else "FLAPS"),
        ),
        Row(
            what=what,
            quantity="regret at the end, %",
            predicted=100 * _mean(changed, "regret"),
            note=f"{100 * _mean(changed, 'stayed'):.2f}% had the plan not been changed",
        ),
    ]


def _mean(outcomes: list[Outcome], name: str) -> float:
    return float(np.mean([getattr(outcome, name) for outcome in outcomes]))


if __name__ == "__main__":
    main("agent_replay", __doc__, Config, execute)

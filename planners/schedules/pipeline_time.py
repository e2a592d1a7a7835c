"""Expected seconds of a pipeline; a long one is extended from two shorter ones."""

import dataclasses
from collections.abc import Mapping

from planners.schedules.durations import Duration
from planners.schedules.pipelines import Shape
from planners.schedules.profiling import Profile
from planners.schedules.simulate import run

FULL = 3
"""Microbatches, in stages, from which on every further one adds the same time: the pipeline is full and steady."""


def pipeline_seconds(shape: Shape, durations: Mapping[str, Duration]) -> float:
    """Seconds of the passes and of `shape.tail` when every operation takes its mean.

    Beyond `FULL` times as many microbatches as stages the time grows in a straight line, so a pipeline of 64 stages and
    512 microbatches costs what one of 192 does. Exact for steady schedules (a test compares); noise is left out.
    """
    long = shape.microbatches > FULL * shape.stages
    if not long:
        return _simulated(shape, durations)
    rest = shape.microbatches % shape.stages
    counts = [shape.stages * turns + rest for turns in (FULL - 1, FULL)]
    first, second = (_simulated(dataclasses.replace(shape, microbatches=m), durations) for m in counts)
    return second + (shape.microbatches - counts[1]) * (second - first) / (counts[1] - counts[0])


def _simulated(shape: Shape, durations: Mapping[str, Duration]) -> float:
    profile = Profile({kind: Duration(d.mean) for kind, d in durations.items()})
    return float(run(shape.graph, shape.order(), profile.draw(shape.graph, 1, 0)).makespan[0])

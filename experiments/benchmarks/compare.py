"""Is a step of today faster or slower than one measured before, or is the difference chance?

    python -m experiments.benchmarks.compare OLD.json NEW.json [--json]

Both files are reports of `gpu_throughput` or `cpu_throughput`. Where both hold a torch side, what is compared is our
step time over torch's in the same round: torch stands for the machine, so a slower machine is no regression. Without
one, plain step times are compared, and the table says so. A difference counts as real when the 95 % interval of the
ratio, of rounds drawn again with replacement, leaves out 1. Exit code 1 where any entry is slower.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.report import Report, Row
from jaxlm.decode import ConfigError

DRAWS = 4000


def change(old: Sequence[float], new: Sequence[float]) -> tuple[float, float, float]:
    """The median of `new` over that of `old`, and its 95 % interval."""
    rng = np.random.default_rng(0)
    medians = [np.median(rng.choice(np.asarray(each), (DRAWS, len(each))), axis=1) for each in (old, new)]
    low, high = np.quantile(medians[1] / medians[0], (0.025, 0.975))
    return float(np.median(new) / np.median(old)), float(low), float(high)


def rounds(found: dict[str, Any], beside: bool) -> list[float]:
    """Of each round our seconds per step, over torch's where `beside`."""
    if not beside:
        return list(found["pairs"]["ours"] if "pairs" in found else found["alone"])
    pairs = found["pairs"]
    return [a / b for a, b in zip(pairs["ours"], pairs["torch"], strict=True)]


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[Report, bool]:
    """The report, and whether an entry has become slower. Raises ConfigError where no entry is in both."""
    sides = [{found["entry"]["name"]: found for found in each["details"]["found"]} for each in (old, new)]
    shared = [name for name in sides[0] if name in sides[1]]
    if not shared:
        raise ConfigError(
            f"no entry is in both: {', '.join(sides[0])} in the first, {', '.join(sides[1])} in the other"
        )
    made, slower = [], False
    for name in shared:
        before, after = sides[0][name], sides[1][name]
        if before["entry"] != after["entry"]:
            made.append(
                Row(what=name, quantity="not compared", note="the two files mean different models by this name")
            )
            continue
        beside = "pairs" in before and "pairs" in after
        ratio, low, high = change(rounds(before, beside), rounds(after, beside))
        verdict = "slower" if low > 1 else "faster" if high < 1 else "no difference that is not chance"
        slower |= low > 1
        kind = "over torch's" if beside else "alone (the machines may differ)"
        note = f"{verdict}; 95 % interval {low:.3f} to {high:.3f}"
        made.append(Row(what=name, quantity=f"step time {kind}, new over old", measured=ratio, note=note))
    where = " against ".join(f"{e['commit']} of {e['date']} on {e['devices']}" for e in _facts(new, old))
    return Report(title="Step times, new against old", rows=made, remarks=[where]), slower


def _facts(*reports: dict[str, Any]) -> list[dict[str, Any]]:
    return [each["environment"] for each in reports]


def load(path: Path) -> dict[str, Any]:
    """A saved report. Raises ConfigError where it is none of those that can be compared."""
    try:
        report = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} is not JSON") from None
    if not (isinstance(report, dict) and report.get("details", {}).get("found")):
        raise ConfigError(f"{path} is no report of gpu_throughput or cpu_throughput with measured steps")
    return report


class _Comparison:
    debug = False

    def __init__(self, arguments: Sequence[str]):
        self.arguments = list(arguments)

    def run(self) -> int:
        files = [a for a in self.arguments if not a.startswith("-")]
        if len(files) != 2 or set(self.arguments) - set(files) - {"--json"}:
            print((__doc__ or "").strip())
            return 0 if {"--help", "-h"} & set(self.arguments) else 2
        report, slower = compare(*(load(Path(file)) for file in files))
        print(f"\n{report.title}\n\n{report.table()}\n\n{report.remarks[0]}")
        if "--json" in self.arguments:
            from dataclasses import asdict

            print(json.dumps({"rows": [asdict(row) for row in report.rows], "slower": slower}))
        return 1 if slower else 0


if __name__ == "__main__":
    from jaxlm.cli import guarded

    sys.exit(guarded(_Comparison(sys.argv[1:])))

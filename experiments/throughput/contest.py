"""One model, both sides: is the loss the same, how long is a step, how much memory, which kernels."""

import dataclasses
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.report import Row
from experiments.throughput.sides import Pairs, Side, SideError, blocks, in_turns, running
from experiments.throughput.suite import PEAK, Entry

PARITY_STEPS = 4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How both sides are run.

    Attributes:
        rounds: in each of which both sides run a block of steps.
        steps: of a block.
        warm: steps before the first round.
        mode: of the torch side: `eager`, or a mode of torch.compile.
        torch_python: the Python that has torch.
        first_moment: dtype of our first moment.
        profile: whether our kernels are listed.
        cold: whether our time to the first step is taken with and without compiled programs on the disk.
        tolerance: the most that losses may differ, relative to the loss.
    """

    rounds: int = 6
    steps: int = 10
    warm: int = 20
    mode: str = "default"
    torch_python: str
    first_moment: str = "float32"
    profile: bool = True
    cold: bool = True
    tolerance: float = 1e-2


def contest(entry: Entry, how: How, out: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that is found out about one entry. `torch` in it is an error message where that side cannot run."""
    found: dict[str, Any] = {"entry": dataclasses.asdict(entry), "tokens": entry.tokens}
    try:
        found["parity"] = parity(entry, how, say)
    except SideError as error:
        if not str(error).startswith("torch"):
            raise
        found["no_torch"] = str(error)
        say(f"{error}: our side is timed alone")
    with tempfile.TemporaryDirectory(prefix="jaxlm-programs-") as cache:
        if how.cold:
            found["first_step_cold"] = _first_step(entry, how, cache, say)
            found["first_step_warm"] = _first_step(entry, how, cache, say)
        timed = _alone if entry.alone or "no_torch" in found else _together
        found |= timed(entry, how, cache if how.cold else None, out, say, with_torch="no_torch" not in found)
    return found


def parity(entry: Entry, how: How, say: Callable[[str], None]) -> dict[str, Any]:
    """The losses of both sides over the same few steps, from the same weights on the same rows."""
    with tempfile.TemporaryDirectory(prefix="jaxlm-weights-") as folder:
        path, found = str(Path(folder) / "weights.npz"), {}
        with running("ours") as ours:
            ours.start(entry, layers=entry.parity_layers, first_moment=how.first_moment)
            ours.ask("save", path=path)
            found["ours"] = ours.ask("losses", count=PARITY_STEPS)
        with running("torch", how.torch_python) as torch:
            torch.start(entry, layers=entry.parity_layers, mode="eager")
            torch.ask("load", path=path)
            found["torch"] = torch.ask("losses", count=PARITY_STEPS)
    found["error"] = max(abs(a - b) / abs(b) for a, b in zip(found["ours"], found["torch"], strict=True))
    say(f"{entry.name}: losses {_losses(found['ours'])} ours, {_losses(found['torch'])} torch")
    if found["error"] > how.tolerance:
        raise SideError(
            f"{entry.name}: the two sides do not train the same model: their losses differ by {found['error']:.2%}"
        )
    return found


def _losses(values: Sequence[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)


def _first_step(entry: Entry, how: How, cache: str, say: Callable[[str], None]) -> float:
    """Seconds from starting a process to the end of its first step."""
    began = time.perf_counter()
    with running("ours") as ours:
        ours.start(entry, first_moment=how.first_moment, cache=cache)
        ours.ask("steps", count=1)
        seconds = time.perf_counter() - began
    say(f"{entry.name}: {seconds:.1f} s from the start of a process to the end of the first step")
    return seconds


def _ours(entry: Entry, how: How, cache: str | None) -> dict[str, Any]:
    return {"entry": entry, "first_moment": how.first_moment, "cache": cache}


def _together(
    entry: Entry, how: How, cache: str | None, out: Path, say: Callable[[str], None], with_torch: bool
) -> dict[str, Any]:
    """Both resident, in turns."""
    with running("ours") as ours, running("torch", how.torch_python) as torch:
        found: dict[str, Any] = {"ours": ours.start(**_ours(entry, how, cache))}
        found["theirs"] = torch.start(entry, mode=how.mode)
        pairs = in_turns(ours, torch, rounds=how.rounds, steps=how.steps, warm=how.warm, say=say)
        found |= {"pairs": dataclasses.asdict(pairs)} | _after(ours, entry, how, out)
        found["memory_torch"] = torch.ask("memory")
    return found


def _alone(
    entry: Entry, how: How, cache: str | None, out: Path, say: Callable[[str], None], with_torch: bool
) -> dict[str, Any]:
    """Each in fresh processes: ours, torch, torch, ours."""
    found: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {"ours": [], "torch": []}

    def once(side: Side) -> None:
        side.ask("steps", count=how.warm)
        times = side.ask("steps", count=how.rounds * how.steps)
        half = blocks(times, how.rounds)
        seconds[side.name] += half
        say(f"{side.name}: {sum(half) / len(half):.4f} s per step")

    def ours() -> None:
        with running("ours") as side:
            found["ours"] = side.start(**_ours(entry, how, cache))
            once(side)
            found.update(_after(side, entry, how, out) if "memory_ours" not in found else {})

    def torch() -> None:
        with running("torch", how.torch_python) as side:
            found["theirs"] = side.start(entry, mode=how.mode)
            once(side)
            found["memory_torch"] = side.ask("memory")

    for turn in (ours, torch, torch, ours) if with_torch else (ours,):
        turn()
    if not with_torch:
        return found | {"alone": seconds["ours"]}
    return found | {"pairs": dataclasses.asdict(Pairs(ours=tuple(seconds["ours"]), torch=tuple(seconds["torch"])))}


def _after(ours: Side, entry: Entry, how: How, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"memory_ours": ours.ask("memory")}
    if how.profile:
        found["kernels"] = ours.ask("kernels", folder=str((out / f"profile-{entry.name}").resolve()))
    return found


def rows(found: dict[str, Any], on_gpu: bool) -> list[Row]:
    """What one contest found, as rows of a report."""
    entry, ours = found["entry"], found["ours"]
    what = f"{entry['name']}: {entry['model'].get('preset', '')} T={entry['sequence']}, {found['tokens']:,} tokens"
    step = lambda values: sorted(values)[len(values) // 2]
    mine = step(found["pairs"]["ours"] if "pairs" in found else found["alone"])
    made = [Row(what=what, quantity="seconds per step, ours", measured=mine, predicted=ours["predicted_seconds"])]
    if "pairs" in found:
        pairs = Pairs(**{k: tuple(v) for k, v in found["pairs"].items()})
        ratio, low, high = pairs.ratio()
        wanted = entry["target"]
        verdict = "" if not wanted else f"; aim {wanted:g}: {'met' if low >= wanted else 'missed'}"
        made += [
            Row(what=what, quantity=f"seconds per step, torch {found['theirs']['mode']}", measured=step(pairs.torch)),
            Row(
                what=what,
                quantity="tokens/s, ours over torch",
                measured=ratio,
                note=f"95 % interval {low:.3f} to {high:.3f}, {len(pairs.ours)} rounds{verdict}",
            ),
            Row(what=what, quantity="largest difference of losses", measured=found["parity"]["error"]),
        ]
    made.append(Row(what=what, quantity="tokens/s, ours", measured=found["tokens"] / mine))
    made.append(Row(what=what, quantity="TFLOP/s, attention not halved", measured=ours["flops"] / mine / 1e12))
    if on_gpu:
        for label, key in (("not halved", "flops"), ("halved", "flops_causal")):
            share = ours[key] / mine / PEAK
            aim = entry["mfu"] if label == "not halved" else 0.0
            note = "" if not aim else f"aim {aim:.0%}: {'met' if share >= aim else 'missed'}"
            made.append(Row(what=what, quantity=f"MFU, attention {label}, %", measured=100 * share, note=note))
    for side in ("ours", "torch"):
        if found.get(f"memory_{side}"):
            made.append(
                Row(
                    what=what,
                    quantity=f"peak GB, {side}",
                    measured=found[f"memory_{side}"] / 1e9,
                    predicted=ours["predicted_bytes"] / 1e9 if side == "ours" and ours["predicted_bytes"] else None,
                )
            )
    for label in ("cold", "warm"):
        if f"first_step_{label}" in found:
            made.append(
                Row(what=what, quantity=f"seconds to the first step, {label}", measured=found[f"first_step_{label}"])
            )
    return made


def kernel_table(found: dict[str, Any]) -> str:
    """The kernels of our step, as a Markdown table; empty where none were listed."""
    if not found.get("kernels"):
        return ""
    lines = [
        f"Kernels of {found['entry']['name']} by time (of our step):",
        "",
        "| kernel | ms per step | runs | share | bounded by |",
        "|---|---|---|---|---|",
    ]
    for k in found["kernels"]:
        name = k["name"].replace("|", "/")[:80]
        lines.append(f"| {name} | {k['seconds'] * 1e3:.3f} | {k['calls']:.0f} | {k['share']:.1%} | {k['bound']} |")
    return "\n".join(lines)

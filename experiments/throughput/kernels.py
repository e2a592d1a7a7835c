"""Which kernels take the time of a step, read off a profile that JAX recorded."""

import dataclasses
import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

AROUND = ("while", "call", "conditional")
"""Operations whose time is that of others inside them."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel: its seconds in one step, how often it runs there, its share of all kernels, what bounds it."""

    name: str
    seconds: float
    calls: float
    share: float
    bound: str


BOUNDS = (
    (("flash", "fmha", "sdpa"), "attention: matrix units while the softmax keeps up; its bytes do not grow with T^2"),
    (("nccl", "all-reduce", "all-gather", "reduce-scatter"), "the link: bytes over bandwidth"),
    (("gemm", "nvjet", "cutlass", "xmma", "dot", "matmul"), "matrix units: FLOPs, once the tiles fill the device"),
    (("copy", "transpose", "memcpy", "bitcast", "slice"), "memory: bytes read and written"),
    (("reduce", "fusion", "loop", "input", "scatter", "select", "add", "multiply"), "memory: bytes read and written"),
)
"""Words in the names of kernels, and what limits kernels of that kind."""


def bound(name: str) -> str:
    """What limits a kernel, by the words in its name; `unknown` where they say nothing."""
    low = name.lower()
    return next((limit for words, limit in BOUNDS if any(word in low for word in words)), "unknown")


def busiest(folder: Path, steps: int, most: int = 20) -> list[Kernel]:
    """The kernels with the most time, of a profile of `steps` steps in `folder`; of all devices together.

    On a GPU these are the events of its streams. A CPU has none: there they are those of XLA's own threads. Raises
    FileNotFoundError where nothing was recorded.
    """
    files = sorted(folder.rglob("perfetto_trace.json.gz"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no perfetto_trace.json.gz")
    with gzip.open(files[-1], "rt") as file:
        events = json.load(file)
    return rank(events["traceEvents"] if isinstance(events, dict) else events, steps, most)


def rank(events: list[dict[str, Any]], steps: int, most: int) -> list[Kernel]:
    """As `busiest`, of the events themselves (Chrome's trace format, durations in microseconds)."""
    rooms = {e["pid"]: e["args"]["name"] for e in events if e.get("ph") == "M" and e.get("name") == "process_name"}
    lanes = {
        (e["pid"], e["tid"]): e["args"]["name"] for e in events if e.get("ph") == "M" and e.get("name") == "thread_name"
    }
    devices = {pid for pid, name in rooms.items() if "device:gpu" in name.lower()}
    on_gpu = lambda e: e["pid"] in devices and "stream" in lanes.get((e["pid"], e["tid"]), "").lower()
    on_cpu = lambda e: "hlo_op" in e.get("args", {}) and not e["name"].startswith(AROUND)
    counted = on_gpu if devices else on_cpu
    seconds, calls = defaultdict(float), defaultdict(int)
    for event in events:
        if event.get("ph") == "X" and counted(event):
            seconds[event["name"]] += event.get("dur", 0.0) * 1e-6
            calls[event["name"]] += 1
    total = sum(seconds.values())
    first = sorted(seconds, key=lambda name: -seconds[name])[:most]
    return [
        Kernel(name, seconds[name] / steps, calls[name] / steps, seconds[name] / total, bound(name)) for name in first
    ]

"""What an experiment found: one table that keeps apart what others claim, what we measured and what we computed."""

import dataclasses
import importlib.metadata
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jaxlm.files import write_whole

Value = float | int | str | None
ORIGINS = ("paper", "published", "measured", "compiled", "predicted")
"""The paper we implement; other people's reports; a run of ours; the compiler's analysis; our cost model."""
PACKAGES = ("jaxlm", "jax", "jaxlib", "flax", "optax", "numpy")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One quantity of one thing. A value stands in the column of its origin; None is printed as a dash."""

    what: str
    quantity: str
    paper: Value = None
    published: Value = None
    measured: Value = None
    compiled: Value = None
    predicted: Value = None
    note: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Rows, remarks under the table, and details for machines."""

    title: str
    rows: Sequence[Row]
    remarks: Sequence[str] = ()
    details: dict[str, Any] = dataclasses.field(default_factory=dict)

    def table(self) -> str:
        """A Markdown table whose columns line up in a terminal."""
        header = ["", "quantity", *ORIGINS, "note"]
        cells = [[r.what, r.quantity, *(_text(getattr(r, o)) for o in ORIGINS), r.note] for r in self.rows]
        if not any(r.note for r in self.rows):
            header, cells = header[:-1], [c[:-1] for c in cells]
        widths = [max(3, *(len(c[i]) for c in [header, *cells])) for i in range(len(header))]
        line = lambda row: "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        rule = "|" + "|".join("-" * (w + 2) for w in widths) + "|"
        return "\n".join([line(header), rule, *map(line, cells)])

    def markdown(self, facts: dict[str, Any]) -> str:
        """The report as a page, with where and how it was made."""
        made = [f"- {name}: {value}" for name, value in facts.items()]
        parts = [f"# {self.title}", self.table(), *self.remarks, "\n".join(made)]
        return "\n\n".join(parts) + "\n"

    def save(self, folder: Path, name: str) -> list[Path]:
        """Writes NAME.md and NAME.json into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        facts = environment()
        content = {"title": self.title, "rows": [dataclasses.asdict(r) for r in self.rows]}
        content |= {"remarks": list(self.remarks), "details": self.details, "environment": facts}
        page, data = folder / f"{name}.md", folder / f"{name}.json"
        write_whole(page, self.markdown(facts).encode())
        write_whole(data, (json.dumps(content, indent=2) + "\n").encode())
        return [page, data]


def _text(value: Value) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def environment() -> dict[str, Any]:
    """Date, command, versions, commit and devices of this process."""
    import jax

    devices = jax.devices()
    kinds = ", ".join(sorted({d.device_kind for d in devices}))
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "-m", *sys.argv[:1], *sys.argv[1:]]) if len(sys.argv) else "",
        "commit": _commit(),
        "devices": f"{len(devices)} x {kinds} ({devices[0].platform})",
        "processor": f"{_processor()}, {_cores()} cores",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def _commit() -> str:
    """The commit of this checkout, with a `+` where files have changed since; `unknown` outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    from jaxlm.runtime.distributed import cores

    return cores()

"""Which machine this is, as far as it can say so itself, and how much that is worth."""

import getpass
import hashlib
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxlm.governance.trail import Trail

LEVELS = ("self-reported", "quoted", "attested")
"""Whose word the facts are: the host's own; a TPM's, signed over the run id; an attestation service's."""


def facts(process: int, platform_name: str) -> dict[str, Any]:
    """Hardware facts of this host. They are the host's own word, which whoever controls it can forge: nothing here ever
    rises above `self-reported`.

    Args:
        process: index of this process in the job.
        platform_name: of JAX's backend, `cpu` or `gpu`.
    """
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "process": process,
        "platform": platform_name,
        "kernel": platform.release(),
        "cpu": platform.machine(),
        "machine": _digest("/etc/machine-id"),
        "serial": _digest("/sys/class/dmi/id/product_serial"),
    }
    return found | (_gpus() if platform_name == "gpu" else {}) | {"assurance": LEVELS[0]}


def account() -> str:
    """Who runs this, by the word of the operating system."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


def cloned(nodes: Iterable[Mapping[str, Any]]) -> list[str]:
    """One sentence for each identity that more than one host claims: one of them is a copy."""
    seen: dict[str, str] = {}
    alerts = []
    for node in nodes:
        identities = [("machine id", node.get("machine")), ("serial", node.get("serial"))]
        identities += [("GPU", uuid) for uuid in node.get("gpus", [])]
        identities += [("GPU serial", serial) for serial in node.get("gpu_serials", [])]
        for kind, value in identities:
            if not value:
                continue
            host = seen.setdefault(f"{kind} {value}", str(node.get("host")))
            if host != node.get("host"):
                alerts.append(f"{kind} {str(value)[:12]} is claimed by the hosts {host} and {node.get('host')}")
    return sorted(set(alerts))


def watch(trail: Trail, nodes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Looks for identities that two hosts claim, among these nodes and those of earlier starts in the log; each is an
    alert in the log and in what is returned. It proves nothing about who is the copy, nor that there is none."""
    alerts = cloned([*(entry.body["node"] for entry in trail.find("run.start")), *nodes])
    for why in alerts:
        trail.record("policy.verdict", {"rule": "node identity", "policy": "built in", "action": "alert", "why": why})
    return alerts


def _digest(path: str) -> str | None:
    """Of a file that identifies the machine: recognised again, not published."""
    try:
        content = Path(path).read_bytes().strip()
    except OSError:
        return None
    return _hidden(content) if content else None


def _hidden(content: bytes) -> str:
    return hashlib.sha256(b"jaxlm node\0" + content).hexdigest()


def _gpus() -> dict[str, Any]:
    """UUIDs, serials and driver by nvidia-smi; nothing where it is not."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return {}
    command = [tool, "--query-gpu=uuid,serial,driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.split(", ") for line in lines if line.count(", ") == 2]
    return {
        "gpus": [uuid for uuid, _, _ in rows],
        "gpu_serials": [_hidden(serial.encode()) for _, serial, _ in rows if serial.isalnum()],  # [N/A] on many
        "driver": rows[0][2] if rows else None,
    }

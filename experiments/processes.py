"""Processes that an experiment starts on this machine, and waits for."""

import os
import socket
import subprocess
from collections.abc import Sequence


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def run_all(commands: Sequence[Sequence[str]], *, devices: int = 1, flags: str | None = None) -> None:
    """Runs all commands at once, each on that many CPU devices and with these XLA flags, until the last has ended.

    Raises RuntimeError when one of them fails. None outlives this call.
    """
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    running = [subprocess.Popen(command, env=environment) for command in commands]
    try:
        codes = [process.wait() for process in running]
    finally:
        for process in running:
            process.kill()
    if any(codes):
        raise RuntimeError(f"{' '.join(commands[0][:4])} ... ended with exit codes {codes}")

"""Processes on hosts of their own whose link is as slow as we like: network namespaces of this machine.

Latency is that of the machine (some tens of microseconds); only the rate is shaped.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.processes import free_port
from experiments.report import Report, Row
from jaxlm.decode import ConfigError, dump
from jaxlm.drills.network import Network, NoNetworks, network


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Hosts and what joins them.

    Attributes:
        rate: of what each host sends, as tc writes it: 100mbit, 1gbit.
        hosts: how many, each a network namespace.
        processes: of each host, with one CPU device each.
        probe_seconds: time budget of the probe whose cluster file the planner works with.
    """

    rate: str = "100mbit"
    hosts: int = 2
    processes: int = 2
    probe_seconds: float = 60.0


def over_link(name: str, config: Any, link: Link, out: Path) -> Report:
    """The report of experiment `name`, run by processes that are joined by the link; `config` has the keys `cluster`,
    `coordinator`, `processes`, `process` and `link`. Raises ConfigError where this machine allows no namespaces."""
    out.mkdir(parents=True, exist_ok=True)
    total = link.hosts * link.processes
    cluster = (out / "cluster.yaml").absolute()
    try:
        with network(link.hosts) as net:
            net.shape(link.rate)
            job = lambda i, port: [
                "--coordinator",
                f"{net.address(0)}:{port}",
                "--processes",
                str(total),
                "--process",
                str(i),
            ]
            probe = ["jaxlm", "probe", "--seconds", str(link.probe_seconds), "--out", str(cluster)]
            port = free_port()
            run_on_hosts(net, link, [[*probe, *job(i, port)] for i in range(total)], out / "probe")
            mine = dataclasses.replace(config, link=None, cluster=str(cluster))
            (out / "workers.yaml").write_text(dump(mine))
            port, sent = free_port(), [net.sent(host) for host in range(link.hosts)]
            commands = []
            for i in range(total):
                folder = ["--out", str(out / f"process{i}")]
                commands.append([f"experiments.{name}", str(out / "workers.yaml"), *folder, *job(i, port)])
            run_on_hosts(net, link, commands, out / "process")
            sent = [net.sent(host) - before for host, before in enumerate(sent)]
    except NoNetworks as error:
        raise ConfigError(f"link.rate={link.rate}: {error}; set link to null") from None
    content = json.loads((out / "process0" / f"{name}.json").read_text())
    remark = (
        f"{link.hosts} hosts x {link.processes} processes, each host a network namespace that sends at most "
        f"{link.rate}; the planner knew what `jaxlm probe` had measured there. Sent in all: "
        f"{', '.join(f'{count / 1e6:,.0f} MB' for count in sent)}."
    )
    return Report(
        title=f"{content['title']} over {link.rate}",
        rows=[Row(**row) for row in content["rows"]],
        remarks=[remark, *content["remarks"]],
        details={**content["details"], "bytes_sent": sent},
    )


def run_on_hosts(net: Network, link: Link, commands: Sequence[Sequence[str]], log: Path) -> None:
    """Runs `python -m` each command, the first ones on host 0, and waits. Raises RuntimeError where one fails."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONUNBUFFERED": "1"}
    running, files = [], []
    try:
        for i, command in enumerate(commands):
            files.append(log.with_name(f"{log.name}{i}.log").open("wb"))
            whole = net.command(i // link.processes, [sys.executable, "-m", *command])
            running.append(subprocess.Popen(whole, env=environment, stdout=files[-1], stderr=subprocess.STDOUT))
        while any(process.poll() is None for process in running) and not any(process.poll() for process in running):
            time.sleep(0.1)  # one that fails leaves the others waiting
        codes = [process.poll() for process in running]
    finally:
        for process in running:
            process.kill()
        for file in files:
            file.close()
    if any(codes):
        words = log.with_name(f"{log.name}0.log").read_text(errors="replace").splitlines()[-3:]
        raise RuntimeError(f"{commands[0][0]} ended with exit codes {codes}: {' '.join(words)}; see {log}*.log")

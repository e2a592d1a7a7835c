"""Hosts of one machine with a network of their own each, joined by a link that can be cut and throttled.

Each host is a network namespace with an interface on a bridge; hostnames resolve inside, which gloo needs. Linux, root,
`ip` and `tc`. The rate is that of the kernel's token bucket filter, on the way out of every host.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoNetworks(Exception):
    """This machine does not let us make network namespaces, and why."""


class Network:
    """`hosts` namespaces named PREFIX0, PREFIX1, ...; use `network()` to make and remove one."""

    def __init__(self, prefix: str, hosts: int, subnet: str):
        self.prefix, self.hosts, self.subnet = prefix, hosts, subnet

    def name(self, host: int | str) -> str:
        return f"{self.prefix}{host}"

    def address(self, host: int) -> str:
        return f"{self.subnet}.{host + 1}"

    @property
    def wrap(self) -> str:
        """For `jaxlm launch local --wrap`: runs a host in its namespace, under its name."""
        name = self.name("{host}")
        return f"ip netns exec {name} unshare --uts sh -c 'hostname {name}; exec \"$@\"' sh"

    def command(self, host: int, command: list[str]) -> list[str]:
        """The command, run on that host."""
        name = self.name(host)
        return [
            "ip",
            "netns",
            "exec",
            name,
            "unshare",
            "--uts",
            "sh",
            "-c",
            f'hostname {name}; exec "$@"',
            "sh",
            *command,
        ]

    def connect(self, host: int) -> None:
        """Gives the host's interface its address and turns it on."""
        name = self.name(host)
        _run("ip", "-n", name, "addr", "add", f"{self.address(host)}/24", "dev", "e0")
        _run("ip", "-n", name, "link", "set", "e0", "txqueuelen", "2000", "up")

    def shape(self, rate: str | None) -> None:
        """Limits what every host sends, as `100mbit`; None: no limit."""
        for host in range(self.hosts):
            tc = ["ip", "netns", "exec", self.name(host), "tc", "qdisc"]
            subprocess.run([*tc, "del", "dev", "e0", "root"], capture_output=True)  # there may be none
            if rate is not None:
                _run(*tc, "add", "dev", "e0", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "100ms")

    def cut(self, host: int) -> None:
        """Takes the host off the network."""
        _run("ip", "-n", self.name(host), "link", "set", "e0", "down")

    def mend(self, host: int) -> None:
        _run("ip", "-n", self.name(host), "link", "set", "e0", "up")

    def sent(self, host: int) -> int:
        """Bytes that the host has sent so far."""
        found = _run("ip", "netns", "exec", self.name(host), "cat", "/sys/class/net/e0/statistics/tx_bytes")
        return int(found)


@contextmanager
def network(hosts: int, prefix: str = "jaxlm", subnet: str = "10.77.3") -> Iterator[Network]:
    """A network of so many hosts while the block runs. Raises NoNetworks where that is not allowed here."""
    with stand_alone(hosts, prefix, subnet) as made:
        bridge = made.name("bridge")
        try:
            with _refusals():
                _run("ip", "netns", "add", bridge)
                _run("ip", "-n", bridge, "link", "add", "b0", "type", "bridge")
                _run("ip", "-n", bridge, "link", "set", "b0", "up")
                for host in range(hosts):
                    port = ["name", f"p{host}", "netns", bridge]
                    _run("ip", "link", "add", "e0", "netns", made.name(host), "type", "veth", "peer", *port)
                    _run("ip", "-n", bridge, "link", "set", f"p{host}", "master", "b0")
                    _run("ip", "-n", bridge, "link", "set", f"p{host}", "up")
                    made.connect(host)
            yield made
        finally:
            subprocess.run(["ip", "netns", "del", bridge], capture_output=True)


@contextmanager
def stand_alone(hosts: int, prefix: str = "jaxlm", subnet: str = "10.77.3") -> Iterator[Network]:
    """Hosts without any link, for whoever makes an interface `e0` in each and calls `connect`. Raises NoNetworks."""
    for tool in ("ip", "tc", "unshare"):
        if shutil.which(tool) is None:
            raise NoNetworks(f"there is no `{tool}` on this machine")
    made = Network(f"{prefix}{os.getpid() % 10000}-", hosts, subnet)
    try:
        with _refusals():
            for host in range(hosts):
                _host(made, host)
        yield made
    finally:
        for host in range(hosts):
            subprocess.run(["ip", "netns", "del", made.name(host)], capture_output=True)
            shutil.rmtree(Path("/etc/netns") / made.name(host), ignore_errors=True)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except subprocess.CalledProcessError as error:
        said = " ".join((error.stderr or "").split())
        raise NoNetworks(f"`{' '.join(error.cmd)}` is refused here: {said}") from None


def _host(made: Network, host: int) -> None:
    name = made.name(host)
    folder = Path("/etc/netns") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NoNetworks(f"{folder} cannot be made: {error.strerror}") from None
    lines = ["127.0.0.1 localhost", *(f"{made.address(i)} {made.name(i)}" for i in range(made.hosts))]
    (folder / "hosts").write_text("\n".join(lines) + "\n")
    _run("ip", "netns", "add", name)
    _run("ip", "-n", name, "link", "set", "lo", "up")


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout

"""Two hosts whose link takes its time: the networks of `jaxlm drill`, with latency.

Rate is the kernel's token bucket, as there. Latency is a small program between two TAP devices (`delay.c`, compiled
here by the machine's C compiler), since not every kernel has netem; it carries about 1 Gbit/s.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxlm.drills.network import Network, NoNetworks, network, stand_alone

SOURCE = Path(__file__).with_name("delay.c")


@contextmanager
def two_hosts(rate: str | None, milliseconds: float = 0.0) -> Iterator[Network]:
    """Two hosts that each send at most `rate` (as tc writes it; None: no limit), every frame arriving so many
    milliseconds later, one way. Raises NoNetworks where that is not allowed here."""
    if milliseconds == 0.0:
        with network(2) as net:
            net.shape(rate)
            yield net
        return
    compiler = shutil.which("cc")
    if compiler is None:
        raise NoNetworks("latency needs a C compiler, and there is no `cc` on this machine")
    with tempfile.TemporaryDirectory() as folder, stand_alone(2) as net:
        program = f"{folder}/delay"
        subprocess.run([compiler, "-O2", "-o", program, str(SOURCE)], check=True)
        # The link must not wait for the processor: what is measured is how long frames take.
        command = ["nice", "-n", "-10", program, net.name(0), net.name(1), "e0", str(round(1000 * milliseconds))]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as carrier:
            try:
                assert carrier.stdout is not None
                assert carrier.stderr is not None
                if carrier.stdout.readline().strip() != "ready":
                    raise NoNetworks(f"no TAP devices here: {carrier.stderr.read().strip()}")
                for host in range(2):
                    net.connect(host)
                net.shape(rate)
                yield net
            finally:
                carrier.kill()

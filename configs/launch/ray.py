"""@{hosts} hosts, one process on each, as actors of Ray; made by `jaxlm launch ray`.

Submit it where the cluster is: ray job submit -- python THIS_FILE
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

HOSTS, GPUS, CPUS, PORT, RETRIES = @{hosts}, @{gpus}, @{cpus}, @{port}, @{retries}
TRAIN = @{train}
LOGS = Path(@{folder})
NOT_RETRIED = (2, 3)  # bad input; stopped on purpose


@ray.remote(max_concurrency=2, max_restarts=0)
class Host:
    """One process of the job, on a node of its own."""

    def __init__(self):
        self.process = None

    def address(self):
        return ray.util.get_node_ip_address()

    def train(self, coordinator, process):
        LOGS.mkdir(parents=True, exist_ok=True)
        job = ["--coordinator", coordinator, "--processes", str(HOSTS), "--process", str(process)]
        with open(LOGS / f"{process}.log", "ab") as log:
            command = [sys.executable, "-m", "jaxlm", "train", *TRAIN, *(job if HOSTS > 1 else [])]
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        return self.process.wait()

    def stop(self):
        if self.process is not None and self.process.poll() is None:
            self.process.kill()


def attempt(number):
    """One start of all hosts; the first exit code that is not 0, else 0."""
    group = placement_group([{"CPU": CPUS, **({"GPU": GPUS} if GPUS else {})}] * HOSTS, strategy=@{strategy})
    ray.get(group.ready())
    hosts = []
    try:
        for i in range(HOSTS):
            place = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=i)
            hosts.append(Host.options(num_cpus=CPUS, num_gpus=GPUS, scheduling_strategy=place).remote())
        coordinator = f"{ray.get(hosts[0].address.remote())}:{PORT + number}"
        waiting = [host.train.remote(coordinator, i) for i, host in enumerate(hosts)]
        names = {ref: i for i, ref in enumerate(waiting)}
        while waiting:
            (done,), waiting = ray.wait(waiting, num_returns=1)
            try:
                code = ray.get(done)
            except ray.exceptions.RayActorError as error:
                print(f"host {names[done]} of {HOSTS} died first: {error}", file=sys.stderr)
                return 1
            if code:
                print(f"host {names[done]} of {HOSTS} failed first with exit code {code}: see {LOGS}", file=sys.stderr)
                ray.wait(waiting, num_returns=len(waiting), timeout=15) if waiting else None
                return code
        return 0
    finally:
        for host in hosts:
            try:
                ray.get(host.stop.remote(), timeout=5)
            except Exception as error:
                print(f"a host could not be stopped: {error}", file=sys.stderr)
            ray.kill(host)
        remove_placement_group(group)


def main():
    ray.init()
    code = 1
    for number in range(RETRIES + 1):
        code = attempt(number)
        if code == 0 or code in NOT_RETRIED or code > 128:
            break
        time.sleep(min(2**number, 30))
    sys.exit(code)


if __name__ == "__main__":
    main()

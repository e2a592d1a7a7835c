"""`jaxlm launch ...`: one job on many hosts."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, subcommand

from jaxlm.cli.common import Common, Refused, report
from jaxlm.cli.training import Train, again

if TYPE_CHECKING:
    from jaxlm.runtime.manifests import Job


@dataclass(kw_only=True)
class Launching(Common):
    """What every way of launching shares."""

    config: Positional[Path]
    """YAML file of the run."""
    run_dir: Path | None = None
    """Where everything is written, visible to all hosts; default runs/NAME."""
    hosts: int = 2
    """How many hosts, one process on each."""
    dry_run: bool = False
    """Print what would be run, checked, and start nothing."""

    def training(self) -> tuple[Train, Any, Path]:
        """The command that every host runs, its configuration, and the run directory. Raises what is wrong now."""
        if self.hosts < 1:
            raise Refused(f"--hosts {self.hosts} must be at least 1")
        given = [str(self.config), *self.rest]
        command, rest = tyro.cli(
            Train, prog="jaxlm train", args=given, return_unknown_args=True, config=(tyro.conf.FlagCreatePairsOff,)
        )
        command.rest = tuple(rest)
        command.run_dir = self.run_dir
        if command.coordinator is not None or command.processes != 1:
            raise Refused("--coordinator, --processes and --process are given to each host by `jaxlm launch`")
        if command.print_config:
            raise Refused("--print-config is for `jaxlm train`")
        run = command.load()
        return command, run, self.run_dir or Path("runs") / run.name


@dataclass(kw_only=True)
class Local(Launching):
    """Start all hosts on this machine as processes: over gloo on CPU devices, over NCCL on GPUs.

    Host 0's output is shown, everybody's is in RUN/hosts/K.log. An error on any host ends all of them within seconds
    and is named first. What can be retried goes on from the last good checkpoint by itself, without a host that fails
    twice in a row. Make RUN/hosts/K.down to take host K out at the next step, remove it to bring the host back.
    All other flags and overrides are those of `jaxlm train`.

    Example: jaxlm launch local configs/quickstart.yaml --hosts 4 --run-dir runs/four
    """

    devices: int = 1
    """CPU devices of each host; GPUs, where there are any, are shared out evenly."""
    platform: str = "auto"
    """cpu, gpu, or auto: GPUs where there are any."""
    retries: int = 3
    """Failures in a row, without a step in between, that are retried."""
    min_hosts: int = 1
    """Give up below this many hosts."""
    back_after: float | None = None
    """Try a host that was left out again after this many seconds; default only when its .down file is removed."""
    dead_after: float = 60.0
    """Seconds without a sign of life after which a process of the job counts as dead."""
    silent_after: float = 20.0
    """Seconds without a sign of life after which a host is taken to hang, named, and the job retried. This and the
    next two need train.monitor."""
    stall_factor: float = 20.0
    """Likewise when no host takes a step in this many times the median step,"""
    stall_seconds: float = 30.0
    """and in this many seconds at least."""
    address: str = "localhost"
    """Address of host 0, where the hosts do not share one network."""
    wrap: str = ""
    """Command that runs each host, {host} being its number, as 'numactl --cpunodebind={host}'."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        from jaxlm.runtime.launch import Launch, free_port, launch, local_gpus
        from jaxlm.runtime.watchdog import Patience

        if self.platform not in ("auto", "cpu", "gpu"):
            raise Refused(f"--platform {self.platform} must be auto, cpu or gpu")
        _, run, directory = self.training()
        if self.devices < 1 or self.retries < 0 or not 1 <= self.min_hosts <= self.hosts:
            raise Refused("--devices must be positive, --retries not negative, --min-hosts in 1..--hosts")
        if min(self.silent_after, self.stall_factor, self.stall_seconds) < 2:
            raise Refused("--silent-after, --stall-factor and --stall-seconds must be at least 2")
        if not run.train.monitor:
            self.unwatched()
        gpus = () if self.platform == "cpu" else local_gpus(os.environ)
        if self.platform == "gpu" and not gpus:
            raise Refused("--platform gpu, but there is no NVIDIA GPU here")
        if gpus and len(gpus) < self.hosts:
            raise Refused(f"--hosts {self.hosts} need a GPU each and there are {len(gpus)}; or say --platform cpu")
        job = Launch(
            hosts=self.hosts,
            train=(str(self.config), "--run-dir", str(directory), *self.rest),
            run_dir=directory,
            batch=run.train.batch,
            devices=self.devices,
            gpus=gpus,
            retries=self.retries,
            fewest=self.min_hosts,
            back_after=self.back_after,
            dead_after=self.dead_after,
            address=self.address,
            wrap=self.wrap,
            patience=Patience(silent=self.silent_after, factor=self.stall_factor, least=self.stall_seconds),
            again=f"{again()} launch local --hosts {self.hosts} --devices {self.devices}",
        )
        if self.dry_run:
            print(job.describe(list(range(self.hosts)), free_port()))
            return 0
        result = launch(job, lambda text: print(text, file=sys.stderr, flush=True))
        failures = [{"host": f.host, "why": f.why, "seconds_to_end": round(f.seconds, 3)} for f in result.failures]
        report(self.json, {"code": result.code, "attempts": result.attempts, "failures": failures})
        return result.code

    def unwatched(self) -> None:
        """Says what is missing where the hosts write no reports. Raises Refused where it was asked for."""
        for name in ("silent_after", "stall_factor", "stall_seconds"):
            if getattr(self, name) != getattr(Local, name):
                flag = "--" + name.replace("_", "-")
                raise Refused(f"{flag} needs the reports of the hosts, and train.monitor is false: they write none")
        print(
            "launch: train.monitor is false, so the hosts write no reports: one that hangs is not found by its silence "
            f"or its steps, only one that dies, or that the others miss for {self.dead_after:g} s (--dead-after)",
            file=sys.stderr,
            flush=True,
        )


@dataclass(kw_only=True)
class OnCluster(Launching):
    """What every cluster is asked for."""

    pools: str | None = None
    """Kinds of nodes and how many of each, as v100:2,a100-40:2; default any. Known: configs/launch/pools.yaml."""
    pools_file: Path | None = None
    """Your own kinds of nodes."""
    gpus: int | None = None
    """GPUs of one host, 0 for none; default what its kind has, else 8."""
    retries: int = 10
    """How often a job that failed is started again; it goes on from its last good checkpoint."""
    port: int = 8476
    """Where process 0 listens."""

    def job(self) -> "Job":
        """Raises ConfigError and Refused."""
        from jaxlm.decode import dump
        from jaxlm.runtime.manifests import Job, kinds, pools

        command, run, directory = self.training()
        if command.profile is not None or command.plan is not None or command.cluster is not None:
            raise Refused("--profile, --plan and --cluster name files that another machine does not have")
        if not 1024 <= self.port <= 65535:
            raise Refused(f"--port {self.port} must be in 1024..65535")
        if self.retries < 0 or (self.gpus is not None and self.gpus < 0):
            raise Refused("--retries and --gpus must not be negative")
        return Job(
            name=_name(run.name),
            pools=pools(self.pools, self.hosts, self.gpus, kinds(self.pools_file)),
            config=dump(run),
            config_path=self.config.absolute(),
            run_dir=directory.absolute(),
            overrides=self.rest,
            retries=self.retries,
            port=self.port,
        )

    def hand_over(self, text: str, faults: list[str], file: Path, tool: str, command: list[str]) -> int:
        """Checks the manifest, and prints or submits it."""
        from jaxlm.runtime.manifest_checks import ask

        if faults:
            raise Refused("\n".join(["the manifest breaks our own rules:", *(f"  {fault}" for fault in faults)]))
        with tempfile.TemporaryDirectory() as folder:
            kept = Path(folder) / file.name if self.dry_run else file
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(text)
            said = ask(tool, kept) if tool != "ray" else "checked by our own rules"
            if self.dry_run:
                print(text, end="")
                print(said, file=sys.stderr)
                return 0
            if shutil.which(command[0]) is None:
                raise Refused(f"{command[0]} is not installed here; {kept} is written: submit it where it is")
            return subprocess.run([*command, str(kept)]).returncode


@dataclass(kw_only=True)
class K8s(OnCluster):
    """Start a job on Kubernetes: a JobSet over pools of unequal nodes, spread over zones.

    The configuration travels in the manifest. All other flags and overrides are those of `jaxlm train`.

    Example: jaxlm launch k8s CONFIG --hosts 4 --pools v100:2,a100-40:2 --zones eu-a,eu-b --image me/jaxlm --dry-run
    """

    image: str = "jaxlm:latest"
    """Container image that holds jaxlm."""
    claim: str = "jaxlm-runs"
    """PersistentVolumeClaim that all nodes may write."""
    mount: str = "/runs"
    """Where it is mounted; --run-dir must lie below."""
    namespace: str = "default"
    """Namespace of the job."""
    zones: str = ""
    """Zones to spread the hosts over evenly, as eu-a,eu-b; default any, evenly where possible."""
    cpus: int = 8
    """CPU cores of one host."""
    memory: str = "64Gi"
    """Memory of one host."""

    def run(self) -> int:
        from jaxlm.runtime.manifest_checks import check_jobset
        from jaxlm.runtime.manifests import Kubernetes, jobset

        job = self.job()
        if self.run_dir is None:
            job = dataclasses.replace(job, run_dir=Path(self.mount) / job.name)
        if not job.run_dir.is_relative_to(self.mount):
            raise Refused(f"--run-dir {job.run_dir} must lie below {self.mount}, where the hosts share a volume")
        zones = tuple(zone.strip() for zone in self.zones.split(",") if zone.strip())
        if len(zones) > job.hosts:
            raise Refused(f"--zones {self.zones} are {len(zones)} zones for {job.hosts} hosts")
        cluster = Kubernetes(
            image=self.image,
            claim=self.claim,
            mount=self.mount,
            namespace=self.namespace,
            zones=zones,
            cpus=self.cpus,
            memory=self.memory,
        )
        text = jobset(dataclasses.replace(job, overrides=()), cluster)
        file = Path("runs") / job.name / "hosts" / "jobset.yaml"
        return self.hand_over(text, check_jobset(text, job.hosts), file, "kubectl", ["kubectl", "apply", "-f"])


@dataclass(kw_only=True)
class Slurm(OnCluster):
    """Start a job with Slurm: one process on each node, requeued when a node fails.

    All other flags and overrides are those of `jaxlm train`.

    Example: jaxlm launch slurm CONFIG --hosts 8 --pools a100-40:8 --time 2-00:00:00 --run-dir /shared/run --dry-run
    """

    time: str = "1-00:00:00"
    """Longest time of one start; two minutes before it ends the run saves and stops."""
    partition: str | None = None
    """Partition to run in."""
    account: str | None = None
    """Account to charge."""

    def run(self) -> int:
        from jaxlm.runtime.manifest_checks import check_slurm
        from jaxlm.runtime.manifests import slurm

        job = self.job()
        text = slurm(job, time=self.time, partition=self.partition, account=self.account)
        return self.hand_over(text, check_slurm(text, job.hosts), job.folder / "job.sh", "sbatch", ["sbatch"])


@dataclass(kw_only=True)
class Ray(OnCluster):
    """Start a job on a Ray cluster: one actor on each node.

    All other flags and overrides are those of `jaxlm train`.

    Example: jaxlm launch ray CONFIG --hosts 4 --gpus 8 --run-dir /shared/run --dry-run
    """

    cpus: int = 8
    """CPU cores of one host."""

    def run(self) -> int:
        from jaxlm.runtime.manifest_checks import check_ray
        from jaxlm.runtime.manifests import ray

        if self.pools is not None:
            raise Refused("--pools: Ray knows no kinds of nodes; start the cluster from the nodes that you want")
        job = self.job()
        text = ray(job, cpus=self.cpus)
        command = ["ray", "job", "submit", "--", "python"]
        return self.hand_over(text, check_ray(text, job.hosts), job.folder / "ray_job.py", "ray", command)


@dataclass(kw_only=True)
class LaunchJob(Common):
    """Run one job on many hosts: of this machine, or of a cluster."""

    where: (
        Annotated[Local, subcommand("local")]
        | Annotated[Slurm, subcommand("slurm")]
        | Annotated[K8s, subcommand("k8s")]
        | Annotated[Ray, subcommand("ray")]
    )

    def run(self) -> int:
        self.where.rest = self.rest
        self.where.debug = self.debug or self.where.debug
        return self.where.run()


def _name(name: str) -> str:
    """The run's name as clusters allow names."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "jaxlm"

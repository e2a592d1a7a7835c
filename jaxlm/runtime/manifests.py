"""Jobs for clusters, rendered from the templates in `configs/launch`: a JobSet, a Slurm script, a Ray driver.

Placeholders are written `@{name}`, so that the shell's own `$` stays what it is.
"""

import json
import shlex
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxlm.decode import ConfigError, decode, read, suggest

PORT = 8476
"""Where process 0 listens, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Nodes of one kind, as `pools.yaml` describes them.

    Attributes:
        labels: what Kubernetes calls them.
        constraint: what Slurm calls them.
        gpus: GPUs of one node.
    """

    labels: dict[str, str] = field(default_factory=dict)
    constraint: str | None = None
    gpus: int = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """So many hosts of one kind."""

    name: str
    hosts: int
    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to run where.

    Attributes:
        name: of the job.
        pools: the hosts, in order of their processes; process 0 is the first host of the first pool.
        config: text of the run's configuration.
        config_path: where that text lies on a file system that all hosts see; not used on Kubernetes.
        run_dir: the run directory, as the hosts see it.
        overrides: further arguments of `jaxlm train`.
        retries: how often a failed job is started again.
        port: of process 0.
    """

    name: str
    pools: tuple[Pool, ...]
    config: str
    config_path: Path
    run_dir: Path
    overrides: tuple[str, ...] = ()
    retries: int = 10
    port: int = PORT

    @property
    def hosts(self) -> int:
        return sum(pool.hosts for pool in self.pools)

    @property
    def folder(self) -> Path:
        return self.run_dir / "hosts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kubernetes:
    """What only Kubernetes asks for: image, volume, zones.

    Attributes:
        image: holds jaxlm, Python and bash.
        claim: name of a PersistentVolumeClaim that many nodes may write, mounted at `mount`.
        zones: the zones that hosts are spread over evenly; empty: any.
    """

    image: str
    claim: str
    mount: str = "/runs"
    namespace: str = "default"
    zones: tuple[str, ...] = ()
    cpus: int = 8
    memory: str = "64Gi"


class _Template(string.Template):
    delimiter = "@"
    pattern: Any = r"@\{(?P<braced>[a-z_]+)\} | (?P<escaped>(?!)) | (?P<named>(?!)) | (?P<invalid>(?!))"


def templates() -> Path:
    """The folder `configs/launch`: inside the installed package, or in the checkout that runs."""
    package = Path(__file__).parents[1]
    for folder in (package / "configs" / "launch", package.parent / "configs" / "launch"):
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the templates of `jaxlm launch` are not installed: there is no {package / 'configs' / 'launch'}"
    )


def kinds(file: Path | None = None) -> dict[str, Kind]:
    """The kinds of nodes by name. Raises ConfigError."""
    path = file or templates() / "pools.yaml"
    found: dict[str, Kind] = {}
    for name, raw in read(path).items():
        if not isinstance(raw, dict):
            raise ConfigError(f"{path}: {name} must be a mapping with labels, constraint and gpus")
        try:
            found[str(name)] = decode(raw, Kind)
        except ConfigError as error:
            raise ConfigError(f"{path}: {name}.{error}") from None
    return found


def pools(text: str | None, hosts: int, gpus: int | None, known: Mapping[str, Kind]) -> tuple[Pool, ...]:
    """`v100:2,a100-40:2` as pools; without a text all hosts are alike and of any kind. Raises ConfigError."""
    if text is None:
        return (Pool(name="hosts", hosts=hosts, kind=Kind(gpus=8 if gpus is None else gpus)),)
    made = []
    for part in text.split(","):
        name, colon, count = part.strip().partition(":")
        if not colon or not count.isdigit() or int(count) < 1:
            raise ConfigError(f"--pools {text}: write NAME:HOSTS,..., such as v100:2,a100-40:2")
        if name not in known:
            raise ConfigError(f"--pools {text}: {name!r} is unknown{suggest(name, known)}")
        kind = (
            known[name]
            if gpus is None
            else Kind(labels=known[name].labels, constraint=known[name].constraint, gpus=gpus)
        )
        made.append(Pool(name=name, hosts=int(count), kind=kind))
    total = sum(pool.hosts for pool in made)
    if total != hosts:
        raise ConfigError(f"--pools {text} are {total} hosts, but --hosts is {hosts}")
    return tuple(made)


def jobset(job: Job, cluster: Kubernetes) -> str:
    """A ConfigMap and a JobSet: one replicated job for each pool, processes numbered through."""
    rendered, before = [], 0
    first = f"{job.name}-{job.pools[0].name}-0-0.{job.name}:{job.port}"
    for pool in job.pools:
        train = _train("/etc/jaxlm/config.yaml", job.run_dir, job.overrides)
        place = f" --coordinator {first} --processes {job.hosts} --process $process" if job.hosts > 1 else ""
        folder = shlex.quote(str(job.folder))
        command = (
            f'let "process = {before} + JOB_COMPLETION_INDEX"\n'
            f"mkdir -p {folder}\nexec > >(tee -a {folder}/$process.log) 2>&1\nexec {train}{place}\n"
        )
        affinity = ""
        if cluster.zones:
            wanted = {"key": "topology.kubernetes.io/zone", "operator": "In", "values": list(cluster.zones)}
            terms = {"nodeSelectorTerms": [{"matchExpressions": [wanted]}]}
            affinity = "          affinity: " + json.dumps(
                {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}
            )
        limits = {"memory": cluster.memory} | ({"nvidia.com/gpu": pool.kind.gpus} if pool.kind.gpus else {})
        text = _render(
            "k8s-pool.yaml",
            name=job.name,
            pool=pool.name,
            hosts=pool.hosts,
            labels=json.dumps(pool.kind.labels),
            affinity=affinity,
            unsatisfiable="DoNotSchedule" if cluster.zones else "ScheduleAnyway",
            image=json.dumps(cluster.image),
            command=json.dumps(command),
            port=job.port,
            cpus=json.dumps(str(cluster.cpus)),
            memory=json.dumps(cluster.memory),
            limits=json.dumps(limits),
            mount=json.dumps(cluster.mount),
            claim=json.dumps(cluster.claim),
        )
        rendered.append("\n".join(f"    {line}" for line in text.splitlines() if line.strip()))
        before += pool.hosts
    return _render(
        "k8s.yaml",
        name=job.name,
        namespace=cluster.namespace,
        hosts=job.hosts,
        retries=job.retries,
        config="\n".join(f"    {line}" if line else "" for line in job.config.splitlines()),
        pools="\n".join(rendered),
    )


def slurm(job: Job, *, time: str, partition: str | None = None, account: str | None = None) -> str:
    """A script for `sbatch`: one process on each node, found by JAX through Slurm's own variables."""
    gpus = {pool.kind.gpus for pool in job.pools}
    if len(gpus) > 1:
        raise ConfigError("Slurm gives every node of a job the same number of GPUs; set --gpus to one that all have")
    count = gpus.pop()
    lines = [f"#SBATCH --gpus-per-node={count}"] if count else []
    named = [(pool.kind.constraint, pool.hosts) for pool in job.pools if pool.kind.constraint]
    if len(named) == 1:
        lines.append(f"#SBATCH --constraint={named[0][0]}")
    elif named:
        lines.append(f'#SBATCH --constraint="[{"&".join(f"{name}*{hosts}" for name, hosts in named)}]"')
    lines += [f"#SBATCH --partition={partition}"] if partition else []
    lines += [f"#SBATCH --account={account}"] if account else []
    # Without this JAX takes one GPU only, that of the task's number on its node.
    devices = f"export JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(count)))}" if count else ""
    place = " --coordinator auto" if job.hosts > 1 else ""
    return _render(
        "slurm.sh",
        name=job.name,
        hosts=job.hosts,
        time=time,
        folder=job.folder,
        lines="\n".join(lines),
        devices=devices,
        retries=job.retries,
        command=_train(str(job.config_path), job.run_dir, job.overrides) + place,
    )


def ray(job: Job, *, cpus: int) -> str:
    """A Python program that starts one actor on each node of a Ray cluster."""
    (gpus,) = {pool.kind.gpus for pool in job.pools}
    return _render(
        "ray.py",
        hosts=job.hosts,
        gpus=gpus,
        cpus=cpus,
        port=job.port,
        retries=job.retries,
        train=json.dumps([str(job.config_path), "--run-dir", str(job.run_dir), *job.overrides]),
        folder=json.dumps(str(job.folder)),
        strategy=json.dumps("STRICT_SPREAD" if gpus else "SPREAD"),
    )


def _train(config: str, run_dir: Path, overrides: Sequence[str]) -> str:
    return shlex.join(["python", "-m", "jaxlm", "train", config, "--run-dir", str(run_dir), *overrides])


def _render(template: str, **values: Any) -> str:
    text = (templates() / f"{template}.template").read_text()
    try:
        return _Template(text).substitute({name: str(value) for name, value in values.items()})
    except KeyError as error:
        raise ConfigError(f"{templates() / template}: there is no value for @{{{error.args[0]}}}") from None

"""What must hold of a manifest before it goes to a cluster: our own rules, and the cluster's tools where they are here.

A mistake here would be found minutes later by a scheduler, or never: a wrong name of process 0 is a job that waits.
"""

import ast
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_COORDINATOR = re.compile(r"--coordinator (\S+):(\d+) --processes (\d+) --process ")
_OFFSET = re.compile(r'let "process = (\d+) \+ JOB_COMPLETION_INDEX"')
_QUANTITY = re.compile(r"[1-9]\d*(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?")
_TIME = re.compile(r"(\d+-)?\d{1,2}(:\d{2}){0,2}|\d+")
_SBATCH = {
    *("job-name", "nodes", "ntasks-per-node", "exclusive", "time", "output", "open-mode", "signal", "requeue"),
    *("gpus-per-node", "constraint", "partition", "account"),
}
_UNREACHABLE = ("connection refused", "couldn't get current server", "no configuration has been provided", "dial tcp")


def check_jobset(text: str, hosts: int) -> list[str]:
    """What is wrong with the manifest of a job of so many hosts; empty where nothing is."""
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except yaml.YAMLError as error:
        return [f"not YAML: {' '.join(str(error).split())}"]
    return list(_jobset(documents, hosts))


def _jobset(documents: list[Any], hosts: int) -> Iterator[str]:
    by_kind = {document.get("kind"): document for document in documents}
    if sorted(by_kind) != ["ConfigMap", "JobSet"]:
        yield f"the kinds must be ConfigMap and JobSet, not {', '.join(sorted(by_kind))}"
        return
    job = by_kind["JobSet"]
    name, spec = job["metadata"]["name"], job["spec"]
    if job["apiVersion"] != "jobset.x-k8s.io/v1alpha2":
        yield f"apiVersion {job['apiVersion']} is not that of JobSet"
    if by_kind["ConfigMap"]["metadata"] != job["metadata"]:
        yield "ConfigMap and JobSet must have the same name and namespace"
    yield from _dns("metadata.name", name)
    yield from _dns("metadata.namespace", job["metadata"]["namespace"])
    if spec["network"]["subdomain"] != name or spec["network"]["enableDNSHostnames"] is not True:
        yield "without network.enableDNSHostnames and a subdomain of its name no host finds process 0"
    if not isinstance(yaml.safe_load(by_kind["ConfigMap"]["data"]["config.yaml"]), dict):
        yield "config.yaml in the ConfigMap is no mapping"
    pools, before = spec["replicatedJobs"], 0
    names = [pool["name"] for pool in pools]
    if len(set(names)) != len(names):
        yield f"two pools have the same name: {', '.join(names)}"
    for pool in pools:
        for sentence in _pool(pool, name, names[0], before, hosts):
            yield f"{pool['name']}: {sentence}"
        before += pool["template"]["spec"]["parallelism"]
    if before != hosts:
        yield f"the pools are {before} hosts, not {hosts}"


def _pool(pool: dict[str, Any], job: str, first: str, before: int, hosts: int) -> Iterator[str]:
    spec = pool["template"]["spec"]
    pod = spec["template"]["spec"]
    yield from _dns("the name of its pods", f"{job}-{pool['name']}-0-{spec['parallelism'] - 1}")
    if spec["parallelism"] != spec["completions"] or spec["completionMode"] != "Indexed" or pool["replicas"] != 1:
        yield "it must be one indexed job whose parallelism equals its completions"
    if spec["backoffLimit"] != 0 or pod["restartPolicy"] != "Never":
        yield "a pod must not be restarted alone: the others wait in a collective"
    if any(not isinstance(v, str) or not v for v in pod["nodeSelector"].values()):
        yield f"nodeSelector {pod['nodeSelector']} must map labels to texts"
    (spread,) = pod["topologySpreadConstraints"]
    if not spread["labelSelector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items():
        yield "topologySpreadConstraints select labels that its pods do not have"
    (container,) = pod["containers"]
    limits = container["resources"]["limits"]
    for what, value in {**container["resources"]["requests"], **limits}.items():
        if not _QUANTITY.fullmatch(str(value)):
            yield f"resource {what}={value} is no quantity such as 8, 500m or 64Gi"
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    if mounts != {volume["name"] for volume in pod["volumes"]}:
        yield "volumes and volumeMounts do not name the same"
    yield from _command(container, f"{job}-{first}-0-0.{job}", before, hosts)


def _command(container: dict[str, Any], coordinator: str, before: int, hosts: int) -> Iterator[str]:
    ports = [port["containerPort"] for port in container["ports"]]
    script = container["command"][-1]
    offset = _OFFSET.search(script)
    if offset is None or int(offset[1]) != before:
        yield f"its processes must be numbered from {before}"
    if not 1024 <= ports[0] <= 65535:
        yield f"port {ports[0]} must be in 1024..65535"
    if hosts == 1:
        return
    place = _COORDINATOR.search(script)
    if place is None:
        yield "its command does not say --coordinator HOST:PORT --processes N --process I"
        return
    if place[1] != coordinator:
        yield f"process 0 is {coordinator}, not {place[1]}"
    if int(place[2]) != ports[0]:
        yield f"process 0 listens on port {place[2]}, but the pod opens {ports[0]}"
    if int(place[3]) != hosts:
        yield f"--processes {place[3]} is not the number of hosts, {hosts}"


def _dns(what: str, name: str) -> Iterator[str]:
    if len(name) > 63 or not _LABEL.fullmatch(name):
        yield f"{what} {name!r} must be at most 63 of a-z, 0-9 and -, and begin and end with a letter or digit"


def check_slurm(text: str, hosts: int) -> list[str]:
    """What is wrong with a batch script for so many nodes."""
    return list(_slurm(text, hosts))


def _slurm(text: str, hosts: int) -> Iterator[str]:
    lines = text.splitlines()
    if lines[0] != "#!/bin/bash":
        yield "the first line must be #!/bin/bash"
    commands = next((i for i, line in enumerate(lines) if line and not line.startswith("#")), len(lines))
    if late := [line for line in lines[commands:] if line.startswith("#SBATCH")]:
        yield f"{late[0]!r} comes after the first command, where sbatch does not read it"
    options: dict[str, str] = {}
    for line in lines[:commands]:
        if line.startswith("#SBATCH"):
            name, _, value = line.removeprefix("#SBATCH --").partition("=")
            options[name] = value.strip('"')
            if name not in _SBATCH:
                yield f"{line!r}: --{name} is not an option that we give"
    if options.get("nodes") != str(hosts) or options.get("ntasks-per-node") != "1":
        yield f"--nodes must be {hosts}, with one task on each"
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", options.get("job-name", "")):
        yield f"--job-name {options.get('job-name')!r} must be letters, digits, dots, dashes"
    if not _TIME.fullmatch(options.get("time", "")):
        yield f"--time {options.get('time')!r} must be MINUTES, HH:MM:SS or DAYS-HH:MM:SS"
    for name in ("partition", "account"):
        if name in options and not re.fullmatch(r"[\w.,-]+", options[name]):
            yield f"--{name} {options[name]!r} must be one word"
    counted = [int(n) for n in re.findall(r"\*(\d+)", options.get("constraint", ""))]
    if counted and sum(counted) != hosts:
        yield f"--constraint asks for {sum(counted)} nodes, --nodes for {hosts}"
    if ("--coordinator auto" in text) != (hosts > 1):
        yield "the processes do not look for each other: --coordinator auto"
    shell = shutil.which("bash")
    if shell is not None:
        parsed = subprocess.run([shell, "-n"], input=text, capture_output=True, text=True)
        if parsed.returncode:
            yield f"bash cannot read it: {' '.join(parsed.stderr.split())}"


def check_ray(text: str, hosts: int) -> list[str]:
    """What is wrong with the driver of a job of so many hosts."""
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        return [f"not Python: {error}"]
    values: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Tuple):
            names = [each.id for each in target.elts if isinstance(each, ast.Name)]
            values |= dict(zip(names, ast.literal_eval(node.value), strict=True))
    faults = []
    if values.get("HOSTS") != hosts:
        faults.append(f"HOSTS is {values.get('HOSTS')}, not {hosts}")
    if not 1024 <= values.get("PORT", 0) <= 65535 - values.get("RETRIES", 0):
        faults.append(f"port {values.get('PORT')} and one more for each retry must be in 1024..65535")
    if values.get("CPUS", 0) < 1 or values.get("GPUS", -1) < 0:
        faults.append("CPUS must be positive and GPUS not negative")
    return faults


def ask(tool: str, file: Path) -> str:
    """What the cluster's own tool says of the manifest, in one line; it changes nothing there.

    Raises:
        ValueError: the tool refuses the manifest.
    """
    commands = {
        "kubectl": ["kubectl", "create", "--dry-run=client", "--output=name", f"--filename={file}"],
        "sbatch": ["sbatch", "--test-only", str(file)],
    }
    if shutil.which(tool) is None:
        return f"{tool} is not installed here: checked by our own rules only"
    try:
        done = subprocess.run(commands[tool], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        return f"{tool} did not answer within 60 s: checked by our own rules only"
    said = " ".join((done.stdout + " " + done.stderr).split())
    if done.returncode and any(words in said.lower() for words in _UNREACHABLE):
        return f"{tool} reaches no cluster here: checked by our own rules only"
    if done.returncode:
        raise ValueError(f"{tool} refuses it: {said[:400]}")
    return f"{tool} accepts it: {said[:200]}"

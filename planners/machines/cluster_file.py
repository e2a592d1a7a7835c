"""Clusters by name or from YAML files, and back into YAML."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from planners.machines.link_table import Timing
from planners.machines.presets import LARGEST, NODE, device, facts, local_cluster, mixture, nodes, tiers
from planners.machines.topology import Cluster, Device, Edge, Link, Pool, join
from planners.plan import PlanError, structure
from planners.suggestions import suggest


def load_cluster(name_or_path: str | Path) -> Cluster:
    """A preset such as `h100x8` or `a100-80x512`, a mixture such as `v100x16+a100-80x16`, this host as `cpux8`
    (eight forced devices), or a YAML file.

    A file describes equal devices by `device` (a known name, or a mapping with the fields of `Device`), `count`, and
    where the device is no known name `tiers` (a list with the fields of `Link`). Unequal ones stand under `pools` (a
    list of such descriptions, each with a `name`), joined by `tiers`. `edges` are links that differ from their tier
    (fields of `Edge`). Raises PlanError with a suggestion for an unknown name, and naming each unknown key.
    """
    text = str(name_or_path)
    path = Path(text)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return _read(path)
    parts = [re.fullmatch(r"(.+?)x(\d+)", part) for part in text.lower().split("+")]
    by_name = {name.lower(): name for name in facts()}
    known = [(by_name[part[1]], int(part[2])) for part in parts if part and part[1] in by_name and int(part[2]) > 0]
    if len(parts) == 1 and parts[0] and parts[0][1] == "cpu" and int(parts[0][2]) > 0:
        return local_cluster("cpu", int(parts[0][2]), None, 1, os.cpu_count() or 1)
    if len(known) == len(parts):
        total = sum(count for _, count in known)
        if total > LARGEST:
            raise PlanError(
                f"cluster {text!r} has {total} devices; presets end at {LARGEST}, a larger cluster needs a YAML file"
            )
        return nodes(*known[0]) if len(known) == 1 else mixture(known)
    presets = [f"{name}x{count}" for name in (*by_name, "cpu") for count in (1, 8, 16, 64, 512)]
    raise PlanError(
        f"unknown cluster {text!r}{suggest(text.lower(), presets)}; it is DEVICExCOUNT with a device of "
        f"{', '.join(by_name)} or cpu, several of them joined by +, or a YAML file"
    )


def save_cluster(cluster: Cluster, path: Path) -> None:
    """Writes a file that `load_cluster` reads back to an equal cluster."""
    path.write_text(cluster_yaml(cluster))


def cluster_yaml(cluster: Cluster) -> str:
    """The cluster as YAML, every figure spelt out."""

    raw: dict[str, Any] = {"name": cluster.name}
    if cluster.pools:
        raw["pools"] = [
            {"name": pool.name, "device": _plain(pool.device), "count": pool.count, "tiers": _plain(pool.tiers)}
            for pool in cluster.pools
        ]
        raw["tiers"] = _plain(_outer(cluster))
    else:
        raw |= {"device": _plain(cluster.device), "count": cluster.count, "tiers": _plain(cluster.tiers)}
        raw |= {"shared": True} if cluster.shared else {}
    if cluster.edges:
        raw["edges"] = _plain(cluster.edges)
    return yaml.dump(raw, sort_keys=False, default_flow_style=None, width=120)


def _outer(cluster: Cluster) -> tuple[Link, ...]:
    """The tiers that join the pools."""
    inner = join(cluster.name, cluster.pools, [dataclasses.replace(cluster.tiers[-1])])
    return cluster.tiers[len(inner.tiers) - 1 :]


def _plain(value: Any) -> Any:
    """Dataclasses as mappings and tuples as lists; fields that are empty, zero or None are their defaults, left out."""
    if dataclasses.is_dataclass(value):
        rows = ((item.name, getattr(value, item.name), item.default) for item in dataclasses.fields(value))
        return {
            name: _plain(found)
            for name, found, default in rows
            if found or (default is not dataclasses.MISSING and found != default)
        }
    if isinstance(value, dict):
        return {key: _plain(found) for key, found in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _read(path: Path) -> Cluster:
    try:
        raw = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise PlanError(f"cluster file {path} does not exist") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PlanError(f"cluster file {path} cannot be read: {error}") from None
    where = f"cluster file {path}"
    if not isinstance(raw, dict):
        raise PlanError(f"{where} must hold a mapping with device, count and tiers")
    return read_cluster({"name": path.stem, **raw}, where)


def read_cluster(raw: Mapping[str, Any], where: str = "cluster") -> Cluster:
    """A cluster from its YAML form. Raises PlanError that begins with `where` and names what is wrong."""
    try:
        if "pools" in raw:
            _check_keys(raw, ("name", "pools", "tiers", "edges"), where)
            pools = [
                Pool(**_group(pool, f"{where}, pools[{index}]", ("name", "device", "count", "tiers")))
                for index, pool in enumerate(_list(raw, "pools", where))
            ]
            outer = [_link(link, f"{where}, tiers[{index}]") for index, link in enumerate(_list(raw, "tiers", where))]
            return join(raw["name"], pools, outer, _edges(raw, where))
        keys = ("name", "device", "count", "tiers", "shared", "edges")
        fields = _group(raw, where, keys)
        return Cluster(**fields, shared=bool(raw.get("shared", False)), edges=tuple(_edges(raw, where)))
    except PlanError as error:
        text = str(error)
        raise PlanError(text if text.startswith(where) else f"{where}: {text}") from None


def _group(raw: Any, where: str, keys: Sequence[str]) -> dict[str, Any]:
    """Name, device, count and tiers of equal devices."""
    if not isinstance(raw, dict):
        raise PlanError(f"{where} must be a mapping with device, count and tiers")
    _check_keys(raw, keys, where)
    if missing := [key for key in ("device", "count") if key not in raw]:
        raise PlanError(f"{where}: {' and '.join(missing)} missing")
    count = raw["count"]
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise PlanError(f"{where}: count={count!r} must be a positive whole number")
    name = raw["device"]
    if isinstance(name, str):
        if name not in facts():
            raise PlanError(f"{where}: unknown device {name!r}{suggest(name, facts())}")
        if "tiers" not in raw and count > NODE and count % NODE:
            raise PlanError(f"{where}: {count} devices do not fill nodes of {NODE}; say its tiers")
        found, links = device(name), tiers(name, NODE, count)
    else:
        if not isinstance(name, dict):
            raise PlanError(f"{where}: device={name!r} must be a known name or a mapping")
        _check_keys(name, [item.name for item in dataclasses.fields(Device)], f"{where}, device")
        found, links = _structure(name, Device, f"{where}, device"), ()
    if "tiers" in raw:
        links = tuple(_link(link, f"{where}, tiers[{index}]") for index, link in enumerate(_list(raw, "tiers", where)))
    return {"name": str(raw.get("name", f"{found.kind}x{count}")), "device": found, "count": count, "tiers": links}


def _link(raw: Any, where: str) -> Link:
    if not isinstance(raw, dict):
        raise PlanError(f"{where} must be a mapping with name, devices and bandwidth")
    _check_keys(raw, [item.name for item in dataclasses.fields(Link)], where)
    for collective, samples in (raw.get("measured") or {}).items():
        for index, sample in enumerate(samples if isinstance(samples, list) else ()):
            if isinstance(sample, dict):
                label = f"{where}, measured.{collective}[{index}]"
                _check_keys(sample, [item.name for item in dataclasses.fields(Timing)], label)
    return _structure(raw, Link, where)


def _edges(raw: Mapping[str, Any], where: str) -> list[Edge]:
    found = []
    for index, edge in enumerate(_list(raw, "edges", where)):
        label = f"{where}, edges[{index}]"
        if not isinstance(edge, dict):
            raise PlanError(f"{label} must be a mapping with tier, between and bandwidth")
        _check_keys(edge, [item.name for item in dataclasses.fields(Edge)], label)
        found.append(_structure(edge, Edge, label))
    return found


def _list(raw: Mapping[str, Any], key: str, where: str) -> list[Any]:
    value = raw.get(key)
    if value is None:
        return []
    if not isinstance(value, list):
        raise PlanError(f"{where}: {key} must be a list")
    return value


def _structure(raw: Any, kind: type, where: str) -> Any:
    try:
        return structure(raw, kind)
    except PlanError as error:
        raise PlanError(f"{where}: {error}") from None


def _check_keys(raw: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    if unknown := [f"{key!r}{suggest(str(key), known)}" for key in raw if key not in known]:
        raise PlanError(f"{where}: unknown key {', '.join(unknown)}; the keys are {', '.join(known)}")

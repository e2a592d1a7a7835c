"""What this machine has, what is in use, and what to change: the first thing to look at when a step is slow."""

import importlib.metadata
import platform as system
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm.decode import ConfigError
from jaxlm.files import user_cache
from jaxlm.ledger import calibration_for, ledger_path, said
from jaxlm.model.config import ModelConfig
from jaxlm.session import local_machine, numerics
from planners.wishes import Search

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "sentencepiece", "numpy", "jaxlm")

OPTIONS: dict[str, str | bool | int] = {
    "xla_gpu_enable_latency_hiding_scheduler": True,
    "xla_gpu_enable_command_buffer": "",
    "xla_gpu_all_reduce_combine_threshold_bytes": 1 << 30,
    "xla_gpu_all_gather_combine_threshold_bytes": 1 << 30,
    "xla_gpu_reduce_scatter_combine_threshold_bytes": 1 << 27,
    "xla_gpu_enable_while_loop_double_buffering": True,
    "xla_gpu_autotune_level": 4,
    "xla_gpu_triton_gemm_any": True,
    "xla_gpu_enable_triton_softmax_fusion": False,
    "xla_disable_hlo_passes": "rematerialization",
}
"""XLA options that guides recommend, among them one that was removed: each is tried on a tiny program, because
a name that this jaxlib does not know stops a run."""


def examine() -> tuple[str, dict[str, Any]]:
    """A text for a person and the same facts as one object."""
    versions = {name: _version(name) for name in PACKAGES} | {"python": system.python_version()}
    cluster = local_machine()
    backend = jax.default_backend()
    options = {name: accepted(name, value) for name, value in OPTIONS.items()}
    try:
        how = numerics(ModelConfig(vocab=1), backend)
        kernel, dtype = how.kernel, how.dtype
    except ConfigError as error:
        kernel, dtype = f"none: {error}", "float32"
    facts: dict[str, Any] = {
        "versions": versions,
        "backend": backend,
        "devices": [str(d.device_kind) for d in jax.devices()],
        "processes": jax.process_count(),
        "memory_bytes_per_device": cluster.device.memory,
        "peak_flops": cluster.device.peak,
        "attention": kernel,
        "dtype": dtype,
        "xla_options": options,
        "compilation_cache": str(user_cache("xla")),
        "ledger": str(ledger_path()),
        "calibration": said(calibration_for(cluster, Search())),
    }
    facts["advice"] = advice(facts)
    lines = [
        "versions   " + "  ".join(f"{name} {version}" for name, version in versions.items()),
        f"devices    {cluster.describe()}, backend {backend}, {jax.process_count()} process(es)",
        f"peak       {_peaks(cluster.device.peak)}",
        f"attention  {kernel} kernel, {dtype} compute unless the configuration says otherwise",
        f"ledger     predicted against measured of every run in {facts['ledger']}",
        f"learnt     {facts['calibration']}",
        f"cache      compiled programs in {user_cache('xla')}, data in {user_cache('data')}",
        "XLA options this jaxlib accepts (plan.options):",
        *(f"  {'yes' if ok else 'NO '}  {name}" for name, ok in options.items()),
        "advice:",
        *(f"  - {line}" for line in facts["advice"] or ["nothing to change"]),
    ]
    return "\n".join(lines), facts


def accepted(name: str, value: str | bool | int) -> bool:
    """Whether this jaxlib compiles a program with the option."""
    program = jax.jit(lambda x: x + 1, compiler_options={name: value})
    try:
        program.lower(jax.ShapeDtypeStruct((), jnp.float32)).compile()
    except jax.errors.JaxRuntimeError as error:
        if "No such compile option" in str(error):
            return False
        raise
    return True


def advice(facts: dict[str, Any]) -> list[str]:
    """One sentence for each thing worth changing."""
    found = []
    if facts["backend"] == "cpu" and system.system() == "Linux" and _has_nvidia():
        found.append("an NVIDIA driver is here but JAX runs on CPU: install the extra, uv sync --extra cuda12")
    if (ours := _version("jax")) != (theirs := _version("jaxlib")):
        found.append(f"jax {ours} and jaxlib {theirs} differ: install matching versions")
    if facts["backend"] == "gpu" and not facts["attention"].startswith("cudnn"):
        found.append("attention does not use cuDNN: set model.dtype to bfloat16 and head_dim to a multiple of 8")
    if facts["backend"] != "cpu" and not facts["peak_flops"]:
        found.append(f"the peak of {facts['devices'][0]} is unknown: MFU is not reported; add it to a cluster file")
    if facts["memory_bytes_per_device"] < 4 * 2**30:
        found.append("less than 4 GiB per device: choose a small preset or batch")
    return found


def _peaks(peak: dict[str, float]) -> str:
    listed = ", ".join(f"{dtype} {flops / 1e12:,.1f} TFLOP/s" for dtype, flops in peak.items())
    return listed or "unknown for this device: rates are reported, MFU is not"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _has_nvidia() -> bool:
    from pathlib import Path

    return Path("/proc/driver/nvidia/version").exists()

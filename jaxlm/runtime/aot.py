"""GPUs that are not there: topologies to compile a step for on any machine, without a card or a driver.

    devices = target("H100", 8)
    mesh = make_mesh(plan, devices)
    compiled = jax.jit(step).lower(state, batch).compile()     # shapes with shardings of that mesh
    compiled.memory_analysis(), compiled.as_text()

It needs XLA's CUDA plugin, ptxas and cuDNN as packages, which `uv sync --extra aot` installs. This is the only module
that reaches into JAX for it. What it does to the process stays: do it in a process of its own, with
JAX_PLATFORMS=cpu set before JAX starts.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax._src import xla_bridge
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental import topologies

PACKAGES = {
    "jax_plugins.xla_cuda12": "jax-cuda12-pjrt",
    "nvidia.cuda_nvcc": "nvidia-cuda-nvcc-cu12",
    "nvidia.cudnn": "nvidia-cudnn-cu12",
}
"""Module -> the package that holds it."""

CUDNN = (9, 10)
"""cuDNN that a target is taken to have, as in XLA's own target files."""


class AotError(RuntimeError):
    """This machine cannot compile for an absent GPU; the message says what to install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """What XLA's compiler asks about a GPU; sizes in bytes, bandwidth in bytes/s, clock in GHz."""

    description: str
    capability: tuple[int, int]
    features: str
    cores: int
    fpus: int
    shared: int
    optin: int
    cache: int
    clock: float
    bandwidth: int
    memory: int

    def text(self) -> str:
        """The GpuTargetConfigProto, in text form."""
        major, minor = self.capability
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_block: 49152 shared_memory_per_core: {self.shared}
              shared_memory_per_block_optin: {self.optin}
              core_count: {self.cores} fpus_per_core: {self.fpus} clock_rate_ghz: {self.clock}
              l2_cache_size: {self.cache} memory_bandwidth: {self.bandwidth} device_memory_size: {self.memory}
              cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {self.features} }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: {CUDNN[0]} minor: {CUDNN[1]} }}
            runtime_version {{ major: 12 minor: 8 }}
            device_description_str: {json.dumps(self.description)}
        """


# Facts about the chips, as XLA records them in xla/backends/gpu/target_config/specs of github.com/openxla/xla
# (h100_sxm, h200, a100_sxm_40, a100_sxm_80, v100), under the names of planners/facts/devices.yaml. XLA's V100 is the
# 16 GB part; ours has 32 GB, its memory in devices.yaml, and is the same chip otherwise.
_hopper = partial(
    Chip, capability=(9, 0), features="ACCELERATED_FEATURES", cores=132, fpus=128, shared=233472, optin=232448,
    cache=52428800, clock=1.98,
)  # fmt: skip
_ampere = partial(
    Chip, capability=(8, 0), features="NONE", cores=108, fpus=64, shared=167936, optin=166912, cache=41943040,
    clock=1.41,
)  # fmt: skip
_volta = partial(
    Chip, capability=(7, 0), features="NONE", cores=80, fpus=64, shared=98304, optin=98304, cache=6291456, clock=1.53,
)  # fmt: skip
CHIPS: dict[str, Chip] = {
    "H100": _hopper(description="NVIDIA H100 80GB HBM3", bandwidth=3352320000000, memory=84942979072),
    "H200": _hopper(description="NVIDIA H200", bandwidth=4800000000000, memory=151397597184),
    "A100-40": _ampere(description="NVIDIA A100-SXM4-40GB", bandwidth=1555200000000, memory=42331013120),
    "A100-80": _ampere(description="NVIDIA A100-SXM4-80GB", bandwidth=2039040000000, memory=85100068864),
    "V100": _volta(description="Tesla V100-SXM2-32GB", bandwidth=898048000000, memory=34088157184),
}

NODE = 8
"""GPUs of one host in a target of more than that."""


def chip_name(kind: str) -> str | None:
    """The name in CHIPS of a device, called by that name or as JAX reports it; None for a device not in it."""
    return next((name for name, chip in CHIPS.items() if kind in (name, chip.description)), None)


def missing() -> tuple[str, ...]:
    """The packages that compiling for an absent GPU needs and this environment lacks."""
    return tuple(package for module, package in PACKAGES.items() if not _installed(module))


def target(name: str, devices: int) -> list[Any]:
    """`devices` GPUs of a kind in CHIPS, to build a mesh of and compile for; nothing can run on them.

    Every GPU target of one process must be of one compute capability, which JAX's cuDNN attention is told here.

    Raises AotError when a package is missing or JAX was told to use another platform than the CPU, and ValueError for
    an unknown name or a number of devices that does not fill its hosts.
    """
    if name not in CHIPS:
        raise ValueError(f"unknown GPU {name!r}; it is one of {', '.join(CHIPS)}")
    if devices < 1 or (devices > NODE and devices % NODE):
        raise ValueError(f"devices={devices} must be at least 1, and beyond {NODE} a multiple of {NODE}")
    if lacking := missing():
        raise AotError(f"compiling for {name} needs {', '.join(lacking)}; install them with: uv sync --extra aot")
    if jax.config.jax_platforms != "cpu":  # pyright: ignore[reportAttributeAccessIssue]
        raise AotError(
            f"compiling for {name} without a GPU needs JAX_PLATFORMS=cpu, it is {os.environ.get('JAX_PLATFORMS', '')!r}"
        )
    chip = CHIPS[name]
    _register()
    _tell_attention(chip.capability)
    hosts, each = max(devices // NODE, 1), min(devices, NODE)
    described = topologies.get_topology_desc(
        "", platform="cuda", target_config=chip.text(), topology=f"1x{hosts}x{each}"
    )
    return list(described.devices)


@cache
def _register() -> None:
    """Makes XLA's CUDA compiler known to JAX, where plugin discovery has not done so already.

    The plugin's own `initialize` asks the driver for its version, and without one registers nothing.
    """
    import jax_plugins.xla_cuda12 as plugin  # pyright: ignore[reportMissingImports]

    if version("jax-cuda12-pjrt") != version("jaxlib"):
        raise AotError(
            f"jax-cuda12-pjrt {version('jax-cuda12-pjrt')} and jaxlib {version('jaxlib')} must be the same version"
        )
    # Libraries that cuDNN looks up by name, loaded from their packages.
    plugin._load_nvidia_libraries()
    jax.local_devices()  # discovers and registers the plugins, those that can
    if "cuda" not in xla_bridge._topology_factories:
        library = Path(plugin.__path__[0]) / "xla_cuda_plugin.so"
        xla_bridge.register_plugin("cuda", library_path=str(library), options={})


def _tell_attention(capability: tuple[int, int]) -> None:
    """JAX asks the GPU present which attention patterns cuDNN supports; here the target answers."""

    def compare(holds: Callable[[tuple[int, ...], tuple[int, ...]], bool], wanted: str) -> bool:
        return holds(capability, tuple(map(int, wanted.split("."))))

    module: Any = fused_attention_stablehlo
    module.check_cudnn_version = lambda: CUDNN[0] * 10_000 + CUDNN[1] * 100
    module.check_compute_capability = partial(compare, lambda have, want: have >= want)
    module.is_cuda_compute_capability_equal = partial(compare, lambda have, want: have == want)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False

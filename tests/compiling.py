"""How programs are compiled in tests, which wait for compilation and not for compute."""

import functools
import importlib.util
import mmap
from pathlib import Path

FAST = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
"""Machine code that is not optimised comes three times faster, and loops by XLA's older emitter in 0.6 of the time."""


@functools.cache
def flags() -> str:
    """Those of `FAST` that this jaxlib knows, for XLA_FLAGS: XLA ends a process that names another. Loads no JAX."""
    spec = importlib.util.find_spec("jaxlib")
    assert spec is not None
    assert spec.origin is not None
    library = Path(spec.origin).with_name("libjax_common.so")
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as code:
        known = [flag for flag in FAST if code.find(flag.removeprefix("--").partition("=")[0].encode()) >= 0]
    assert FAST[0] in known, f"{library} knows no flag of ours"
    return " ".join(known)


def as_shipped() -> dict[str, bool]:
    """For `jax.jit(compiler_options=)`: programs that are compared bit for bit keep the emitter that users have."""
    name, _, _ = FAST[1].removeprefix("--").partition("=")
    return {name: True} if name in flags() else {}

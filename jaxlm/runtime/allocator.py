"""Memory that a step has freed stays with the process, for the next step.

On a CPU XLA asks for the temporaries of every step anew. glibc gives a block of more than 32 MiB back to the system as
soon as it is free, which must then fill each of its pages with zeros again.
"""

import ctypes
import os
import platform
from pathlib import Path

TRIM, MMAP_THRESHOLD, ARENAS = -1, -3, -8
"""Parameters of mallopt, https://man7.org/linux/man-pages/man3/mallopt.3.html."""

MOST = 2**31 - 1
"""The largest value that it takes."""

DRIVER = Path("/proc/driver/nvidia")


def keep_freed(environment: dict[str, str] | None = None) -> bool:
    """Keeps freed blocks of up to a sixteenth of the machine's memory (and 2 GiB) in the process; whether it does.

    Fragments of them can take as much again. Nothing changes where a GPU's driver is loaded and not JAX_PLATFORMS=cpu,
    where the C library is not glibc, or where the user has settings of its own (MALLOC_... or GLIBC_TUNABLES).
    To be called before JAX starts its threads: a thread keeps the arena that it began with.
    """
    environment = dict(os.environ) if environment is None else environment
    on_gpu = DRIVER.is_dir() and environment.get("JAX_PLATFORMS", "").split(",")[0] != "cpu"
    own = [name for name in environment if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if on_gpu or own or platform.libc_ver()[0] != "glibc":
        return False
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    libc, most = ctypes.CDLL(None), min(MOST, memory // 16)
    return all(libc.mallopt(name, value) for name, value in ((ARENAS, 1), (MMAP_THRESHOLD, most), (TRIM, most)))

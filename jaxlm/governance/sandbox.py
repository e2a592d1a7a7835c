"""What a process gives up before it reads anything that it need not trust: as much as Python can reach through the
operating system. It is no enclave: whoever is root on the machine can still change it, and no entry says otherwise.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress

NOBODY = 65534
MEMORY = 1 << 30
"""Bytes of address space."""

_PDEATHSIG, _SECCOMP, _NO_NEW_PRIVS, _GET_NO_NEW_PRIVS, _FILTER = 1, 22, 38, 39, 2
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32 = 0x40000000
# fmt: off
_ARCHITECTURES: dict[str, tuple[int, tuple[int, ...]]] = {
    # read write close fstat poll lseek mmap mprotect munmap brk rt_sigaction rt_sigprocmask rt_sigreturn sched_yield
    # mremap madvise getpid exit sigaltstack gettid futex restart_syscall clock_gettime clock_nanosleep exit_group
    # getrandom rseq
    "x86_64": (
        0xC000003E,
        (0, 1, 3, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 28, 39, 60, 131, 186, 202, 219, 228, 230, 231, 318, 334),
    ),
    "aarch64": (
        0xC00000B7,
        (63, 64, 57, 80, 73, 62, 222, 226, 215, 214, 134, 135, 139, 124, 216, 233, 172, 93, 132, 178, 98, 128, 113, 115,
         94, 278, 293),
    ),
}
# fmt: on
"""By machine, the number that Linux gives it, and its system calls that a process needs which only computes, and reads
and writes what is open already."""


def apply() -> list[str]:
    """Gives up what it can, for good. Returns what was found to hold afterwards, in words for the log.

    The process must have no second thread, and must have imported all it needs: it opens no file any more.
    """
    held: list[str] = []
    if os.environ.keys() <= {"LC_CTYPE"}:  # which Python sets itself where nothing says the locale
        held.append("empty environment")
    if not os.listdir("."):
        held.append("empty folder")
    os.closerange(3, 1 << 16)
    libc = _libc()
    limits = {
        "RLIMIT_AS": MEMORY,
        "RLIMIT_CORE": 0,
        "RLIMIT_FSIZE": 0,
        "RLIMIT_NOFILE": 3,
        "RLIMIT_NPROC": 0,
    }
    for name, most in limits.items():
        with suppress(OSError, ValueError, AttributeError):
            resource.setrlimit(getattr(resource, name), (most, most))
    if os.getuid() == 0:
        with suppress(OSError):
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
    if os.getuid() != 0:
        held.append(f"account {os.getuid()}")
    set_to = [name for name, most in limits.items() if _limit(name) == most]
    if set_to:
        held.append("limits: " + ", ".join(f"{name.removeprefix('RLIMIT_').lower()}={limits[name]}" for name in set_to))
    if libc is not None:
        if libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0) == 0:
            held.append("ends with its parent")
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        if libc.prctl(_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1:
            held.append("no new privileges")
        if (count := _filter_calls(libc)) and _refused():
            held.append(f"seccomp: {count} system calls, none that opens, connects or starts anything")
    return held


def _libc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _limit(name: str) -> int | None:
    found = getattr(resource, name, None)
    return None if found is None else resource.getrlimit(found)[0]


def _filter_calls(libc: ctypes.CDLL) -> int:
    """Lets the kernel refuse every system call that is not on the list; how many are on it, 0 where that failed."""
    known = _ARCHITECTURES.get(platform.machine())
    if known is None:
        return 0
    architecture, calls = known
    load, equal, least, give = 0x20, 0x15, 0x35, 0x06
    steps = [
        (load, 0, 0, 4),  # the architecture
        (equal, 1, 0, architecture),
        (give, 0, 0, _REFUSE),
        (load, 0, 0, 0),  # the number of the call
        (least, 0, 1, _X32),
        (give, 0, 0, _REFUSE),
        *((equal, len(calls) - n, 0, call) for n, call in enumerate(calls)),
        (give, 0, 0, _REFUSE),
        (give, 0, 0, _ALLOW),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    described = struct.pack("@HP", len(steps), ctypes.addressof(program))
    done = libc.prctl(_SECCOMP, _FILTER, ctypes.c_char_p(described), 0, 0)
    return len(calls) if done == 0 else 0


def _refused() -> bool:
    """Whether opening a file, connecting and starting a process are in fact refused, and not for want of numbers."""
    for attempt in (lambda: os.open(os.sep, os.O_RDONLY), socket.socket, os.fork):
        try:
            found = attempt()
        except OSError as error:
            if error.errno != errno.EPERM:
                return False
        else:
            if found == 0 and attempt is os.fork:  # the child of a fork that was not refused
                os._exit(0)
            return False
    return True

"""Freed memory is kept for the next step, unless somebody else decides."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.runtime import allocator
from jaxlm.runtime.allocator import keep_freed

FAULTS = """
import resource, sys
import numpy as np
from jaxlm.runtime.allocator import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed({})
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(2**24, np.float32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_a_block_that_was_freed_is_used_again() -> None:
    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, env={})
        return int(done.stdout)

    assert faults("kept") < 100 < faults("given back")


def test_settings_of_the_user_and_of_a_gpu_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not keep_freed({"MALLOC_ARENA_MAX": "4"})
    assert not keep_freed({"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"})
    monkeypatch.setattr(allocator, "DRIVER", tmp_path)
    assert not keep_freed({})

"""Compressed training steps compile for 512 H100s, and nothing but codes crosses the slow axis; no GPU is needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxlm.runtime import aot


@pytest.mark.slow
def test_no_floats_cross_the_slow_axis_of_512_gpus():
    if lacking := aot.missing():
        pytest.skip(f"{', '.join(lacking)} not installed: uv sync --extra aot")
    program = Path(__file__).with_name("codes.py")
    schemes = ["none", "int8_shared", "int8", "sign", "topk"]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, program, *schemes], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {"f32", "bf16"} & set(found.pop("none")), "the exact step has them, or this test looks for the wrong thing"
    for scheme, types in found.items():
        assert set(types) <= {"u8", "u16", "u32"}, (scheme, types)
        assert {"u8", "u16"} & set(types), (scheme, types)

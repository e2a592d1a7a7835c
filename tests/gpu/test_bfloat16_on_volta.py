"""What XLA makes of a bfloat16 product for a V100, which has no tensor cores for it; no GPU is needed."""

import os
import subprocess
import sys

import pytest

from jaxlm.runtime import aot

PROGRAM = """
import sys
import jax, jax.numpy as jnp
from jaxlm.runtime.aot import target

place = jax.sharding.SingleDeviceSharding(target("V100", 1)[0])
for dtype in (jnp.bfloat16, jnp.float16):
    a = jax.ShapeDtypeStruct((1024, 1024), dtype, sharding=place)
    compiled = jax.jit(jnp.dot).lower(a, a).compile()
    (product,) = (line for line in compiled.as_text().splitlines() if "__cublas" in line)
    print(product.split("custom-call(")[0])
"""


@pytest.mark.slow
def test_a_v100_multiplies_bfloat16_in_float32_as_the_planner_prices_it() -> None:
    if lacking := aot.missing():
        pytest.skip(f"{', '.join(lacking)} not installed: uv sync --extra aot")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    bfloat16, float16 = done.stdout.strip().splitlines()
    assert "f32[1024,1024]" in bfloat16
    assert "f16[1024,1024]" in float16

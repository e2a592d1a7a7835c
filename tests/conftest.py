"""Every test runs on eight forced CPU devices, with warnings as errors and no implicit broadcasting of ranks."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

from tests.compiling import flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags()}"

# The keys of the audit trails that tests leave are made for them; the account's own are left alone.
if "JAXLM_KEYS" not in os.environ:
    os.environ["JAXLM_KEYS"] = tempfile.mkdtemp(prefix="jaxlm-test-keys-")
    atexit.register(shutil.rmtree, os.environ["JAXLM_KEYS"], ignore_errors=True)

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data named by JAXLM_SHARED; a test that asks for it is skipped where there is none."""
    folder = os.environ.get("JAXLM_SHARED")
    if not folder:
        pytest.skip("JAXLM_SHARED is not set: no real data here")
    return Path(folder)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "JAXLM_SHARED" in str(r.longrepr)]
    if skipped:
        terminalreporter.write_line(f"{len(skipped)} tests were skipped for want of JAXLM_SHARED")

"""Each extra of pyproject.toml installs alone, on the oldest Python and on a new one, and gives what it is for."""

import functools
import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
IMPORTS = {
    "clean": ["py3langid", "trafilatura", "warcio"],
    "cloud": ["gcsfs", "s3fs"],
    "fairness": ["sklearn"],
    "hf": ["tokenizers"],
    "policy": ["celpy"],
    "tracking": ["wandb"],
    "translate": ["sacrebleu"],
}
"""What an extra makes importable; those with programs and libraries of NVIDIA, gigabytes, are only resolved."""

RESOLVED = {"aot", "cuda12", "cuda13"}
pytestmark = pytest.mark.slow


@functools.cache
def interpreter(version: str) -> str | None:
    """An installed Python of one of these versions; none is downloaded."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for each in version.split(" or "):
        # A shim of pyenv for a version that is not switched on makes uv give up; its own folders are looked at then.
        found = uv("python", "find", "--no-python-downloads", each)
        if found.returncode == 0:
            return found.stdout.strip()
        if program := next(pyenv.glob(f"{each}.*/bin/python"), None):
            return str(program)
    return None


def uv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["uv", *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(params=["3.11", "3.13 or 3.12"])
def python(request) -> str:
    if shutil.which("uv") is None:
        pytest.skip("uv is not installed")
    found = interpreter(request.param)
    if found is None:
        pytest.skip(f"no Python {request.param} is installed")
    return found


def test_every_extra_is_tried():
    assert set(IMPORTS) | RESOLVED == set(EXTRAS)


@pytest.mark.parametrize("extra", sorted(set(EXTRAS) - RESOLVED))
def test_an_extra_installs_alone_and_can_be_imported(extra, python, tmp_path):
    assert uv("venv", "--python", python, tmp_path / "venv").returncode == 0
    program = tmp_path / "venv" / "bin" / "python"
    installed = uv("pip", "install", "--python", program, f"{ROOT}[{extra}]")
    assert installed.returncode == 0, installed.stderr
    names = ", ".join(["jaxlm.cli", *IMPORTS[extra]])
    command = [program, "-c", f"import {names}"]
    tried = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr
    shutil.rmtree(tmp_path / "venv")


@pytest.mark.parametrize("extra", sorted(RESOLVED & set(EXTRAS)))
def test_an_extra_of_gigabytes_can_be_resolved_alone(extra, python):
    resolved = uv("pip", "compile", "--quiet", "--python", python, "--extra", extra, ROOT / "pyproject.toml")
    assert resolved.returncode == 0, resolved.stderr
    wanted = EXTRAS[extra][0].split("[")[0].split(">")[0]
    assert f"{wanted}==" in resolved.stdout

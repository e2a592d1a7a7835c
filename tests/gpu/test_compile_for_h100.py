"""The training step compiles for eight H100s, with cuDNN attention and without surprises; no GPU is needed."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jaxlm.model.packed_attention import DOCUMENTS
from jaxlm.runtime import aot

SEGMENTS = ("long-segments", "long-segments-grouped-remat")
PROGRAMS = ("llama-truncate", "llama-pack", "gpt2-tensor", "long-masked", *SEGMENTS)


@functools.cache
def compiled() -> tuple[dict[str, Any], dict[str, str]]:
    """Reports and compiler messages by program. In a process of its own: a platform, once registered, stays."""
    if lacking := aot.missing():
        pytest.skip(f"{', '.join(lacking)} not installed: uv sync --extra aot")
    program = Path(__file__).with_name("absent.py")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "TF_CPP_MIN_LOG_LEVEL": "0"}
    done = subprocess.run(
        [sys.executable, program, *PROGRAMS], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    sections = [part.split("\n", 1) for part in done.stderr.split("== ")[1:]]
    return json.loads(done.stdout), {name: text for name, text in sections}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_attention_is_fused_forward_and_backward(name: str) -> None:
    report = compiled()[0][name]
    assert report["kernel"] == ("cudnn_segments" if name in SEGMENTS else "cudnn")
    backward = [call for call in report["attention"] if call.endswith("Backward")]
    assert backward, report
    assert len(report["attention"]) > len(backward), report


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiler_has_nothing_to_complain_about(name: str) -> None:
    """XLA warns where a sharding makes it gather a whole tensor, JAX where a donated buffer is not reused."""
    messages = compiled()[1][name].lower()
    assert "involuntary full rematerialization" not in messages, messages
    assert "donated buffers" not in messages, messages


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_state_is_updated_in_place(name: str) -> None:
    report = compiled()[0][name]
    # What is not aliased are the metrics: a few numbers, and one norm per tensor.
    assert report["outputs"] - report["aliased"] < 4096, report


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_gradients_are_scattered(name: str) -> None:
    assert compiled()[0][name]["collectives"]["reduce-scatter"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SEGMENTS)
def test_segment_offsets_need_no_number_for_each_pair_of_positions(name: str) -> None:
    report = compiled()[0][name]
    assert report["documents"] == [DOCUMENTS]
    assert report["masks"] == ["PADDING_CAUSAL"]
    assert report["pairs"] == []
    assert compiled()[0]["long-masked"]["pairs"], "the masked step has them, or this test looks for the wrong thing"


@pytest.mark.slow
def test_segment_offsets_need_less_memory_than_a_mask_on_long_rows() -> None:
    masked, segments = (compiled()[0][name]["temporaries"] for name in ("long-masked", "long-segments"))
    print(f"temporaries per GPU at 8,192 tokens: {masked / 2**20:.0f} MiB masked, {segments / 2**20:.0f} MiB segments")
    assert segments < masked / 2


def test_unknown_target_is_named() -> None:
    with pytest.raises(ValueError, match="unknown GPU 'H99'; it is one of H100, H200, A100-40, A100-80, V100"):
        aot.target("H99", 8)
    with pytest.raises(ValueError, match="devices=12 must be"):
        aot.target("H100", 12)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aot, "PACKAGES", {"nvidia.no_such_module": "no-such-package"})
    with pytest.raises(aot.AotError, match="needs no-such-package; install them with: uv sync --extra aot"):
        aot.target("H100", 8)

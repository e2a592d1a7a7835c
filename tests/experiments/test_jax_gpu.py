"""JAX curves on H100: rows become work, policies recompute what they say, and no model is fitted on itself."""

import os
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.published import jax_gpu
from experiments.benchmarks.published.tables import Source, Table

SHARED = os.environ.get("JAXLM_SHARED")
COLUMNS = "framework model gpu gpus precision seq_len per_device_batch global_batch dcn_fsdp ici_fsdp fsdp_total dcn_dp"
COLUMNS += " ici_dp dp_total remat_policy step_time_s"
COUNTED = {name: prior.value for name, prior in jax_gpu.PRIORS.items()}


def row(**changes: str) -> dict[str, str]:
    """A row in the form of the file; the values are invented."""
    base = dict.fromkeys(COLUMNS.split(), "")
    base |= {"framework": "MaxText (JAX)", "model": "llama2-70b", "gpu": "H100-80GB SXM", "gpus": "64"}
    base |= {"precision": "bf16", "seq_len": "4096", "per_device_batch": "2", "global_batch": "128"}
    base |= {"dcn_fsdp": "8", "ici_fsdp": "8", "remat_policy": "minimal_flash", "step_time_s": "5.0"}
    return base | changes


def predict(*rows: dict[str, str]) -> np.ndarray:
    return jax_gpu.predict(Table("t", rows), COUNTED, None)


def test_what_a_policy_recomputes_takes_time():
    policies = ("minimal_flash", "SAVE_DOT_ONLY", "custom: save q,k,v,qkv,out_proj", "full")
    seconds = predict(*(row(remat_policy=policy) for policy in policies))
    assert np.all(np.diff(seconds) > 0)


def test_a_policy_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="save_everything_but"):
        predict(row(remat_policy="save_everything_but"))


def test_eight_bits_are_faster_but_not_twice_as_fast():
    wide, narrow = predict(row(), row(precision="fp8"))
    assert narrow < wide < 2 * narrow


def test_the_same_work_per_device_grows_slowly_with_the_cluster():
    small, large = predict(row(), row(gpus="1024", global_batch="2048", dcn_fsdp="16", dcn_dp="8"))
    assert 1.0 < large / small < 1.05


def test_growth_comes_from_other_models_only():
    def run(workload: str, gpus: int, seconds: float) -> dict[str, str]:
        return {
            "release": "v1",
            "workload": workload,
            "gpu": "H100",
            "gpus": str(gpus),
            "gbs": str(gpus),
            "ep": "",
            "step_time_s": str(seconds),
        }

    table = Table(
        "t",
        tuple(
            run(name, 8 * 2**i, 10.0 * (1 + each) ** i)
            for name, each in (("Llama 3.1 70b BF16", 0.5), ("Nemotron4 15b BF16", 0.01))
            for i in range(4)
        ),
    )
    assert jax_gpu.growth_per_doubling(table, "llama3-70b")["bf16"] == pytest.approx(0.01, rel=0.05)
    assert jax_gpu.growth_per_doubling(table, "llama2-70b")["bf16"] > 0.05


def test_a_missing_file_is_skipped_and_named(tmp_path: Path):
    source = Source(tmp_path, tmp_path)
    assert jax_gpu.verdicts(source, 0) == []
    assert "jax_gpu.csv" in next(iter(source.missing))


@pytest.mark.skipif(not SHARED, reason="JAXLM_SHARED names no folder of published measurements")
def test_no_model_of_the_published_rows_is_fitted_on_itself():
    folder = Path(SHARED or "") / "groundtruth"
    rows = Source(folder, folder).judged("jax_gpu")
    assert rows is not None
    rows = rows.where(lambda row: row["model"] in jax_gpu.MODELS)
    for mine, known in jax_gpu.splits(rows, rows):
        judged = rows.take(mine)
        assert not set(judged.digests) & set(known.digests)
        assert not set(judged.text("model")) & set(known.text("model"))

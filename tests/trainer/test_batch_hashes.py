"""The hash of every batch goes from the step into the metrics, exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.checkpoints.schedule import CheckpointConfig, Schedule
from jaxlm.collectives.sync import Implicit
from jaxlm.data.fingerprint import as_text, fingerprint
from jaxlm.trainer.hooks import Saving
from jaxlm.trainer.loop import Finished, train
from jaxlm.trainer.metrics import JsonLines, Meter, TensorBoard, Work, read_jsonl
from jaxlm.trainer.state import init_state
from jaxlm.trainer.step import make_train_step

TX = optax.sgd(0.1)
WORK = Work(tokens=1, flops_full=1, flops_causal=1, devices=1, peak=None, bytes_per_token=1)


def objective(model, batch, key):
    return jnp.sum(model["w"] * jnp.sum(batch["targets"], axis=0)), {"weight": jnp.ones(())}


def toy_batch(step: int, accumulation: int) -> dict[str, np.ndarray]:
    rows = np.random.default_rng(step).integers(0, 2**17, (2, 4, 8)).astype(np.int32)
    cut = (accumulation, 4 // accumulation, 8)
    return {"tokens": rows[0].reshape(cut), "targets": rows[1].reshape(cut)}


def run(writers, *, every: int, steps: int, last: int, accumulation: int = 1) -> Meter:
    step = jax.jit(make_train_step(objective, TX, Implicit()))
    meter = Meter(WORK, every, last, writers)
    batches = (toy_batch(k, accumulation) for k in range(steps))
    state = init_state({"w": jnp.zeros(8)}, TX, Implicit())
    train(state, step=step, batches=batches, start=0, steps=steps, tensors=["w"], report=meter)
    return meter


@pytest.mark.parametrize("accumulation", [1, 2])
def test_each_record_holds_the_hashes_of_all_batches_since_the_one_before(tmp_path, accumulation):
    writers = [JsonLines(tmp_path / "metrics.jsonl", 0), TensorBoard(tmp_path / "events", 0)]
    run(writers, every=4, steps=10, last=10, accumulation=accumulation)
    for writer in writers:
        writer.close()
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [(r["step"], len(r["batches"])) for r in records] == [(1, 1), (4, 3), (8, 4), (10, 2)]
    hashes = [text for r in records for text in r["batches"]]
    assert hashes == [as_text(fingerprint(toy_batch(k, 1))) for k in range(10)]


def test_a_run_that_stops_between_two_lines_still_writes_its_hashes():
    records = []
    meter = run([records.append], every=4, steps=6, last=10)
    assert [r["step"] for r in records] == [1, 4]
    meter.close()
    meter.close()
    assert [(r["step"], len(r["batches"])) for r in records] == [(1, 1), (4, 3), (6, 2)]
    assert records[-1]["batches"] == [as_text(fingerprint(toy_batch(k, 1))) for k in (4, 5)]


def test_every_hash_up_to_a_checkpoint_is_on_disk_before_it(tmp_path):
    """Killed after step 7, with a checkpoint of step 6: what goes on from there finds steps 1 to 6 in the file."""
    writer = JsonLines(tmp_path / "metrics.jsonl", 0)
    meter = Meter(WORK, 4, 100, [writer])

    class Store:
        saved = None

        def save(self, step, leaves, facts):
            assert sum(len(r["batches"]) for r in read_jsonl(tmp_path / "metrics.jsonl")) == step

    saving = Saving(Store(), Schedule(CheckpointConfig(every_steps=6)), {}, True, meter.flush)  # pyright: ignore[reportArgumentType]
    step = jax.jit(make_train_step(objective, TX, Implicit()))
    state = init_state({"w": jnp.zeros(8)}, TX, Implicit())
    batches = (toy_batch(k, 1) for k in range(7))
    train(state, step=step, batches=batches, start=0, steps=7, tensors=["w"], report=meter, hooks=[saving])
    writer.close()
    JsonLines(tmp_path / "metrics.jsonl", keep=6).close()
    hashes = [text for r in read_jsonl(tmp_path / "metrics.jsonl") for text in r["batches"]]
    assert hashes == [as_text(fingerprint(toy_batch(k, 1))) for k in range(6)]


def test_a_hash_is_text_and_loses_no_bit():
    records = []
    Meter(WORK, 1, 1, [records.append])(
        Finished(1, {"loss": 1.0, "grad_norm": 1.0, "weight": 1.0}, 1.0, "00000001ffffffff")
    )
    assert records[0]["batches"] == ["00000001ffffffff"]
    assert as_text(np.array([1, 2**32 - 1], np.uint32)) == "00000001ffffffff"

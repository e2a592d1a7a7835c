"""Training through the command line, in this process on eight forced devices."""

import contextlib
import json
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm.task
from jaxlm.checkpoints import arrays
from jaxlm.cli import main
from jaxlm.cli.training import Sturdy
from jaxlm.config import load
from jaxlm.data.corpus import open_corpus
from jaxlm.session import Session, inference_plan, numerics, resolve
from jaxlm.tree import named_leaves
from tests.cli.programs import losses, write_config


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_config(folder)
    return folder


@pytest.fixture(autouse=True)
def own_cache(home, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))


def run(home: Path, name: str, *arguments: str, code: int = 0) -> Path:
    with pytest.raises(SystemExit) as ended:
        main(["train", str(home / "tiny.yaml"), "--run-dir", str(home / name), *arguments])
    assert ended.value.code == code
    return home / name


def test_the_step_is_traced_and_compiled_exactly_once(home, monkeypatch, caplog):
    traced = []
    original = jaxlm.task.next_token

    def counted(model, batch, key=None):
        traced.append("train" if key is not None else "evaluate")
        return original(model, batch, key)

    monkeypatch.setattr(jaxlm.task, "next_token", counted)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
        run(home, "once", "--train.steps", "6", "--train.eval_every", "2", "--checkpoint.every_steps", "3")
    steps = [r for r in caplog.messages if r.startswith("Compiling jit(step)")]
    assert len(steps) == 1, caplog.messages
    assert traced.count("train") == 1
    assert traced.count("evaluate") == 1
    assert [s for s, *_ in losses(home / "once")] == [1, 2, 3, 4, 5, 6]
    evaluations = [json.loads(line) for line in (home / "once" / "evaluations.jsonl").read_text().splitlines()]
    assert [e["step"] for e in evaluations] == [2, 4, 6]
    assert len({e["tokens"] for e in evaluations}) == 1


def test_a_step_that_is_not_finite_stops_with_exit_3_names_tensors_and_keeps_the_last_good_state(
    home, monkeypatch, capsys
):
    original = jaxlm.task.next_token

    def poisoned(model, batch, key=None):
        """The gradient of the queries becomes NaN once the weights have moved far enough from where they began."""
        total, sums = original(model, batch, key)
        q = model.blocks.attn.q[...]
        factor = jnp.where(jnp.sum(jnp.abs(model.table[...])) > limit, jnp.nan, 0.0)
        return total + factor * jnp.sum(jnp.square(q)), sums

    limit = 1e9
    monkeypatch.setattr(jaxlm.task, "next_token", poisoned)
    good = run(home, "finite", "--train.steps", "3")
    limit = 0.0
    capsys.readouterr()
    run(home, "finite", "--train.steps", "9", code=3)
    printed = capsys.readouterr().out
    assert "stopped: step 4 is not finite in loss, blocks/attn/q" in printed
    assert "state after step 3 saved" in printed
    assert f"data show {good}/config.yaml --step 3" in printed
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    run(home, "finite", "--train.steps", "5")
    assert [s for s, *_ in losses(good)] == [1, 2, 3, 4, 5]


def test_a_full_disk_stops_with_exit_3_and_leaves_the_checkpoint_before(home, monkeypatch, capsys):
    original = arrays.Writer.start

    def full(self, path, state):
        if "4" in path.parent.name:
            raise OSError(28, "No space left on device")
        return original(self, path, state)

    monkeypatch.setattr(arrays.Writer, "start", full)
    run(home, "full", "--train.steps", "6", "--checkpoint.every_steps", "2", code=3)
    printed = capsys.readouterr().err
    assert "stopped: checkpoint 4 was not written" in printed, printed
    assert "Checkpoints saved before are intact" in printed
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    run(home, "full", "--train.steps", "6", "--checkpoint.every_steps", "2")
    assert "after step 2" in capsys.readouterr().out


def test_a_saved_plan_is_replayed_and_gives_the_same_losses(home, capsys):
    with pytest.raises(SystemExit):
        main(["plan", str(home / "tiny.yaml"), "--mesh", "fsdp=2,tensor=4", "--out", str(home / "plan.json")])
    mesh = json.loads((home / "plan.json").read_text())["mesh"]
    assert (mesh["fsdp"], mesh["tensor"], mesh["data"]) == (2, 4, 1)
    steps = ("--train.steps", "4", "--model.dropout", "0.0", "--checkpoint.enabled", "false")
    replayed = run(home, "replayed", *steps, "--plan", str(home / "plan.json"))
    assert "replayed from" in capsys.readouterr().out
    assert json.loads((replayed / "plan.json").read_text())["mesh"] == mesh
    searched = run(home, "searched", *steps)
    np.testing.assert_allclose([l for _, l, _ in losses(replayed)], [l for _, l, _ in losses(searched)], rtol=1e-5)
    assert not (searched / "checkpoints").exists(), "checkpoint.enabled=false writes nothing"


def test_the_state_is_born_sharded_and_never_held_whole(home):
    config = load(home / "tiny.yaml", ["--model.embed", "256", "--model.mlp", "1024", "--model.vocab", "4096"])
    model = resolve(config, 360)
    session = Session(config, model, numerics(model, "cpu"), inference_plan(model, 8, 8))
    with jax.set_mesh(session.mesh):
        state = session.fresh()
        for name, leaf in named_leaves(state.model).items():
            if leaf.ndim > 2:
                assert leaf.addressable_shards[0].data.nbytes * 8 == leaf.nbytes, name
        whole = sum(leaf.nbytes for leaf in named_leaves(state).values())
        init = jax.jit(session._init, out_shardings=session.places)
        memory = init.lower(jax.random.key(0)).compile().memory_analysis()
    assert memory is not None
    assert memory.output_size_in_bytes < whole / 6
    assert memory.temp_size_in_bytes < whole / 4


def test_a_run_killed_after_its_last_step_still_gets_its_final_results(home, capsys):
    made = run(home, "late", "--train.steps", "3", "--model.vocab", "2000")
    summary = json.loads((made / "summary.json").read_text())
    (made / "summary.json").unlink()
    (made / "loss.png").unlink()
    run(home, "late", "--train.steps", "3", "--model.vocab", "2000")
    assert "all 3 steps are done; what comes after them is not, and follows" in capsys.readouterr().out
    again = json.loads((made / "summary.json").read_text())
    assert again["bits_per_byte"] == summary["bits_per_byte"]
    assert (made / "loss.png").exists()
    run(home, "late", "--train.steps", "3", "--model.vocab", "2000")
    assert "is complete: 3 steps are done" in capsys.readouterr().out


def test_training_outlives_a_closed_pipe(capfd):
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w", buffering=1)
    stream = Sturdy(pipe)
    stream.write("nobody reads this\n")
    stream.write("nor this\n")
    stream.flush()
    stream.stream.close()
    with contextlib.suppress(BrokenPipeError):
        pipe.close()
    assert "the run goes on" in capfd.readouterr().err


def test_data_show_and_prepare_describe_the_same_corpus(home, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["data", "prepare", str(home / "tiny.yaml"), "--json"])
    assert ended.value.code == 0
    facts = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    folder = next(p for p in (home / "cache").iterdir() if p.is_dir())
    corpus = open_corpus(folder)
    assert facts["digest"] == corpus.digest
    assert facts["splits"]["train"]["tokens"] == len(corpus.split("train"))
    with pytest.raises(SystemExit):
        main(["data", "show", str(home / "tiny.yaml"), "--step", "3"])
    assert "the" in capsys.readouterr().out


def test_a_run_whose_checkpoints_are_all_damaged_does_not_silently_begin_again(home, capsys):
    path = run(home, "damaged", "--train.steps", "2")
    before = losses(path)
    for file in (path / "checkpoints").rglob("_METADATA"):
        file.write_bytes(b"")
    capsys.readouterr()
    run(home, "damaged", "--train.steps", "3", code=2)
    printed = capsys.readouterr()
    assert "skipped: checkpoints/2: state/_METADATA is 0 bytes" in printed.out
    assert (
        f"every checkpoint in {path}/checkpoints is damaged or cannot be verified (steps 2, see above): restore one"
        in printed.err
    )
    assert losses(path) == before

"""A run that starts from the weights of another: its configuration filled in from there, its first state."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxlm.checkpoints import layout
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.folders import Folders, Keep
from jaxlm.checkpoints.store import Found
from jaxlm.config import Parent, Run, build, with_preset
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decode import ConfigError, Raw, dotted, encode, override, read
from jaxlm.folder import Folder, open_run
from jaxlm.model.config import ModelConfig
from jaxlm.model.transformer import Execution, Transformer
from jaxlm.reading import accessed, newest_to_read, reader
from jaxlm.session import Session
from jaxlm.trainer.state import TrainState
from jaxlm.tree import named_leaves


def load(
    path: Path,
    arguments: Sequence[str] = (),
    *,
    start: str | None = None,
    run_dir: Path | None = None,
    training: bool = False,
) -> Run:
    """The run in a YAML file with overrides, as `config.load`; one that starts from another takes from it what the
    file does not say: the keys of the model, and the tokenizer.

    Args:
        path: the YAML file.
        arguments: overrides such as `--model.dropout 0.1`.
        start: `RUN` or `RUN@STEP`, what `--from` says; the key `parent` says the same.
        run_dir: the run directory, by default runs/NAME.
        training: whether the run goes on where it left off; what lies in its directory then says what it started from.

    Raises:
        ConfigError: something in there cannot be used.
        CheckpointError: the other run has no such checkpoint.
    """
    origin = f"{path} with the command line" if arguments else str(path)
    raw = override(read(path), dotted(list(arguments)))
    if start is not None:
        raw["parent"] = _named(start)
    folder = Folder(run_dir or Path("runs") / str(raw.get("name") or Run().name))
    before = folder.before() if training and folder.path.is_dir() else None
    if before is not None and before.parent is not None:
        raw = _as_before(raw, before, before.parent, folder)
    elif isinstance(raw.get("parent"), dict) and raw["parent"].get("manifest") is None:
        raw = _from_parent(raw, origin)
    return build(raw, origin)


def _named(start: str) -> Raw:
    """`runs/base@200` as a parent; a run directory may have an @ in its name."""
    run, at, step = start.rpartition("@")
    if at and step.isdigit() and not Path(start).is_dir():
        return {"run": run, "step": int(step)}
    return {"run": start}


def _as_before(raw: Raw, before: Run, parent: Parent, folder: Folder) -> Raw:
    """A run that goes on: what it started from is written in its directory, and is not looked at again."""
    given = raw.get("parent")
    if isinstance(given, dict):
        same_run = Path(str(given.get("run"))).absolute() == Path(parent.run)
        if not same_run or given.get("step") not in (None, parent.step):
            step = "" if given.get("step") is None else f"@{given['step']}"
            raise ConfigError(
                f"{folder.path} holds a run that started from {parent.run}@{parent.step}, "
                f"not from {given.get('run')}{step}; choose another --run-dir"
            )
    recorded = before.data.tokenizer.path
    gone = recorded is None or not Path(recorded).is_file()
    filled = _filled(raw, parent, encode(before.model), folder.tokenizer if gone else str(recorded))
    data = filled.get("data")
    if gone and isinstance(data, dict) and data["tokenizer"].get("path") == recorded:
        filled["data"] = data | {"tokenizer": data["tokenizer"] | {"path": str(folder.tokenizer)}}  # its own copy
    return filled


def _from_parent(raw: Raw, origin: str) -> Raw:
    asked = build({"parent": raw["parent"]}, origin).parent
    assert asked is not None
    folder, parent_run = open_run(Path(asked.run))
    body = _manifest(folder, parent_run, asked.step)
    tokenizer = Tokenizer.load(folder.tokenizer)
    _check_tokenizer(raw, tokenizer, folder)
    model = encode(parent_run.model) | {"vocab": parent_run.model.vocab or tokenizer.vocab}
    if parent_run.model.position == "learned":
        model["positions"] = parent_run.model.positions or parent_run.data.sequence
    parent = Parent(run=str(folder.path.absolute()), step=body["step"], manifest=body["digest"])
    return _filled(raw, parent, model, folder.tokenizer)


def _filled(raw: Raw, parent: Parent, model: Raw, tokenizer: Path | str) -> Raw:
    """`raw` with parent, model and tokenizer where it does not speak of them; what is no mapping is left to `build`."""
    filled = with_preset(raw) | {"parent": encode(parent)}
    own, data = filled.get("model") or {}, filled.get("data") or {}
    if isinstance(own, dict):
        filled["model"] = model | own
    if isinstance(data, dict) and isinstance(data.get("tokenizer") or {}, dict):
        filled["data"] = data | {"tokenizer": {"path": str(Path(tokenizer).absolute())} | (data.get("tokenizer") or {})}
    return filled


def _check_tokenizer(raw: Raw, tokenizer: Tokenizer, folder: Folder) -> None:
    data = raw.get("data")
    given = data.get("tokenizer") if isinstance(data, dict) else None
    if not isinstance(given, dict):
        return
    its = f"the tokenizer of {folder.path}, which its weights were trained with"
    remedy = "leave data.tokenizer out to use that"
    path = given.get("path")
    if path is not None and Tokenizer.load(path).digest != tokenizer.digest:
        raise ConfigError(f"data.tokenizer.path={path} is not {its} ({tokenizer.vocab:,} tokens); {remedy}")
    if path is None and given.get("vocab", tokenizer.vocab) != tokenizer.vocab:
        raise ConfigError(f"data.tokenizer.vocab={given['vocab']} is not that of {its} ({tokenizer.vocab:,}); {remedy}")


def _manifest(folder: Folder, run: Run, step: int | None) -> dict[str, Any]:
    """The manifest of a checkpoint, by default of the newest good one; without an audit trail of the newest complete
    one, whose bytes are verified when it is read."""
    folders = Folders(run.checkpoint.build(folder.checkpoints).directory, Keep())
    if step is not None:
        return folders.manifest(step)
    faults: list[str] = []
    judge = reader(folder, run)
    if judge is not None:  # which one it is must not be the choice of whoever can write there
        folders = Folders(folders.directory, Keep(), judge)
        newest = next((step for step in folders.steps() if folders.good(step, faults) is not None), None)
        found = Found(newest, [f"{fault}; skipped" for fault in faults])
        newest = newest_to_read(judge, found, folders.damaged, remedy="say --from RUN@STEP")
        steps = [] if newest is None else [newest]
    else:
        steps = folders.steps()
    for newest in steps:
        try:
            return folders.manifest(newest)
        except CheckpointError as error:
            faults.append(str(error))
    raise CheckpointError("\n".join([f"{folder.path} has no usable checkpoint yet to start from", *faults]))


def check_parent(parent: Parent, model: ModelConfig) -> None:
    """Raises CheckpointError naming the tensors in which the weights of the parent are not those of `model`, or when
    its checkpoint is gone or is another than when this run was set up."""
    body = _manifest(*open_run(Path(parent.run)), parent.step)
    if body["digest"] != parent.manifest:
        raise CheckpointError(
            f"checkpoint {parent.step} of {parent.run} is another one now (manifest {body['digest'][:12]}, "
            f"recorded {str(parent.manifest)[:12]}); choose another --run-dir to start from the new one"
        )
    abstract = jax.eval_shape(lambda: Transformer(model, Execution(), key=jax.random.key(0)))
    like = {f"model/{name}": leaf for name, leaf in named_leaves(abstract).items()}
    saved = {name: leaf for name, leaf in body["tensors"].items() if name.startswith("model/")}
    try:
        layout.match(f"{parent.run}@{parent.step}", saved, like, partial=False)
    except CheckpointError as error:
        raise CheckpointError(f"{error}\nLeave the model section out to take that of {parent.run}.") from None


def begin(session: Session, parent: Parent) -> TrainState[Transformer]:
    """A new state with the verified weights of the parent: step 0, a fresh optimizer."""
    check_parent(parent, session.model)
    assert parent.step is not None
    state: Any = dataclasses.replace(session.fresh(), model=None)  # its random weights are let go first
    folder, run = open_run(Path(parent.run))
    with run.checkpoint.build(folder.checkpoints, reader(folder, run)) as store:
        model = session.restore_model(store, parent.step)
    if jax.process_index() == 0:
        accessed(folder, "train --from", step=parent.step)
    return dataclasses.replace(state, model=model, sync=session.begun(model, state.sync))


def starting(run: Run, parent: Parent) -> str:
    """What a run starts from, and the keys of the model in which it departs from there."""
    theirs, ours = (encode(model) for model in (open_run(Path(parent.run))[1].model, run.model))
    filled = ("vocab", "positions", "preset")
    other = [f"model.{key} {theirs[key]} -> {ours[key]}" for key in ours if theirs[key] != ours[key]]
    other = [text for text in other if not text.startswith(tuple(f"model.{key} " for key in filled))]
    return f"starting from the weights of {parent.run} after step {parent.step}" + (
        f", with {', '.join(other)}" if other else ""
    )

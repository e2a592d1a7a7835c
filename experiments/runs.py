"""The runs an experiment makes: a configuration in sections, changes to it, and training that goes on where it left."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from jaxlm.config import Run, build
from jaxlm.decode import ConfigError, dump, read
from jaxlm.files import write_whole
from jaxlm.folder import Folder

Sections = dict[str, Any]
"""What a file for `jaxlm train` holds, or part of it: {"train": {"steps": 20}}."""


def sections(given: Any, key: str, steps: int | None = None) -> Sections:
    """The sections that the configuration key `key` names: a YAML file, or the sections themselves. `steps` takes the
    place of theirs."""
    if isinstance(given, str):
        given = read(Path(given))
    if isinstance(given, dict):
        return given if steps is None else merged(given, {"train": {"steps": steps}})
    raise ConfigError(f"{key}={given!r} must be a YAML file for `jaxlm train`, or its sections")


def merged(base: Sections, changes: Sections) -> Sections:
    """`base` with `changes` laid over it, section by section; neither is altered."""
    result = dict(base)
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def run_of(base: Sections, changes: Sections, name: str, origin: str) -> Run:
    """The run called `name`. Raises ConfigError beginning with `origin`, the key that the changes come from."""
    return build(merged(merged(base, changes), {"name": name}), origin)


def trained(run: Run, path: Path, *, apart: bool, devices: int | None = None) -> Folder:
    """The directory of the finished run, trained here unless it is finished already; an interrupted one goes on.

    `apart` trains in a process of its own, so that the memory it reports is its own; there `devices` forces that many
    CPU devices. Raises ConfigError where the
    directory holds another run. Ends this process with the code of the training where that was stopped by a signal
    (130, 143) or by a loss that is not finite (3): both have saved their state.
    """
    folder = Folder(path)
    try:
        before = folder.admit(run)
    except ConfigError as error:
        raise ConfigError(f"{error}\nOf an experiment that is: choose another --out, or remove {path}") from None
    if before is not None and folder.finished() == run.train.steps:
        print(f"{path} is trained already: {run.train.steps} steps")
        return folder
    print(f"training {path}", flush=True)
    code = _apart(run, folder, devices) if apart else _here(run, path)
    if code:
        print(f"training {path} ended with code {code}; the same command goes on from there", file=sys.stderr)
        raise SystemExit(code)
    return folder


def _here(run: Run, path: Path) -> int:
    from jaxlm.run import train

    return train(run, path)


def _apart(run: Run, folder: Folder, devices: int | None) -> int:
    """In another process, which gets the signals that this one gets, and time to save."""
    config = folder.path.with_name(f"{folder.path.name}.yaml")
    config.parent.mkdir(parents=True, exist_ok=True)
    write_whole(config, dump(run).encode())
    command = [sys.executable, "-m", "jaxlm", "train", str(config), "--run-dir", str(folder.path)]
    forced = {} if devices is None else {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | forced)
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda n, _: process.send_signal(n)) for number in numbers}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code

"""`jaxlm ...`: the only package that knows the command-line library. One file for each group of commands."""

import dataclasses
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from tyro.conf import subcommand

from jaxlm.cli.audit import Audit
from jaxlm.cli.common import Refused
from jaxlm.cli.data import Data
from jaxlm.cli.drilling import Drill
from jaxlm.cli.explain import Explain
from jaxlm.cli.launching import LaunchJob
from jaxlm.cli.machine import Doctor, Probe
from jaxlm.cli.planning import MakePlan
from jaxlm.cli.runs import Eval, Generate, Plot
from jaxlm.cli.training import Train

USER_ERROR, STOPPED, DENIED, FAILURE = 2, 3, 4, 1

Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[MakePlan, subcommand("plan")]
    | Annotated[Probe, subcommand("probe")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Plot, subcommand("plot")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Explain, subcommand("explain")]
    | Annotated[LaunchJob, subcommand("launch")]
    | Annotated[Drill, subcommand("drill")]
    | Annotated[Audit, subcommand("audit")]
    | Annotated[Doctor, subcommand("doctor")]
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, runs, and exits: 0 done, 2 bad input, 3 stopped on purpose, 4 a policy said no, 1 failure, 128+n after a
    signal and a save."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    marks = (tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff)
    description = "Plans how to train a language model, trains it, and leaves checkpoints and a record behind."
    command, rest = tyro.cli(
        Command,  # pyright: ignore[reportArgumentType]
        prog="jaxlm",
        description=description,
        args=given,
        config=marks,
        return_unknown_args=True,
    )
    command = dataclasses.replace(command, rest=tuple(rest))
    sys.exit(guarded(command))


def guarded(command: Any) -> int:
    """Runs a command; every error becomes one message on stderr and an exit code."""
    try:
        return command.run()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if command.debug:
            traceback.print_exc()
        code = _code(error)
        kind = "" if code != FAILURE else f"{type(error).__name__}: "
        hint = "" if code != FAILURE or command.debug else "\n(--debug shows where)"
        print(f"jaxlm: error: {kind}{error}{hint}", file=sys.stderr)
        return code


def _code(error: Exception) -> int:
    from jaxlm.files import DiskFull
    from jaxlm.governance.errors import Denied

    if isinstance(error, Denied):
        return DENIED
    return USER_ERROR if isinstance(error, _user_errors()) else STOPPED if isinstance(error, DiskFull) else FAILURE


def _user_errors() -> tuple[type[Exception], ...]:
    from jaxlm.checkpoints.errors import CheckpointError
    from jaxlm.data.config import DataError
    from jaxlm.decode import ConfigError
    from jaxlm.governance.errors import GovernanceError
    from jaxlm.runtime.lock import LockedError
    from planners.plan import PlanError

    return (Refused, ConfigError, DataError, PlanError, CheckpointError, LockedError, GovernanceError)

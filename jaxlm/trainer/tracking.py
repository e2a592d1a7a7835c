"""The same records in Weights & Biases, for those who follow their runs there; needs the extra `tracking`."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxlm.decode import ConfigError
from jaxlm.files import write_whole
from jaxlm.trainer.metrics import Record

ID = "wandb_id.txt"
"""The file in a run directory that says which run at Weights & Biases goes on when this one does."""


def require_tracking(project: str | None) -> None:
    """Raises ConfigError where records shall be sent to Weights & Biases and the package is not installed."""
    if project is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"train.wandb={project} needs the package wandb, which is not installed: "
            "run `uv sync --extra tracking` (or pip install 'jaxlm[tracking]'), or set train.wandb to null"
        )


class WeightsAndBiases:
    """Sends each record to one run of `project`; a resumed run goes on in the same one.

    Steps cannot be taken back there: those that a resumed run takes again are kept as they were first sent. The
    variables of wandb itself are honoured: WANDB_MODE=offline sends nothing and keeps all below `directory`/wandb, for
    `wandb sync`. Raises ConfigError where wandb refuses, for example without a login.
    """

    def __init__(self, project: str, name: str, directory: Path, config: Mapping[str, Any]):
        import wandb  # pyright: ignore[reportMissingImports]

        known = directory / ID
        identity = known.read_text().strip() if known.exists() else None
        try:
            self.run: Any = wandb.init(
                project=project,
                name=name,
                id=identity,
                resume="allow",
                dir=str(directory),
                config=dict(config),
                settings=wandb.Settings(console="off"),  # standard output stays as it is
            )
        except wandb.Error as error:
            remedy = "`wandb login` once, or set WANDB_MODE=offline, or train.wandb to null"
            raise ConfigError(f"train.wandb={project}: {str(error).rstrip('.')}. {remedy}") from error
        if identity is None:
            write_whole(known, f"{self.run.id}\n".encode())

    def __call__(self, record: Record) -> None:
        self._log("train", record)

    def evaluated(self, record: Record) -> None:
        """A record of a held-out evaluation."""
        self._log("valid", record)

    def _log(self, group: str, record: Record) -> None:
        numbers = {k: v for k, v in record.items() if k != "step" and isinstance(v, (int, float))}
        self.run.log({f"{group}/{name}": value for name, value in numbers.items()}, step=record["step"])

    def close(self) -> None:
        self.run.finish()

"""Who vouches for checkpoints: the store asks, and knows neither keys nor logs."""

from pathlib import Path
from typing import Any, Protocol


class Notary(Protocol):
    """Signs what is saved and judges what is read. Called on process 0 alone, from any thread."""

    def sign(self, folder: Path, body: dict[str, Any], content: bytes) -> None:
        """Signs the complete checkpoint in `folder`, whose manifest `body` has the bytes `content` and gets its name
        next. An exception makes the save fail."""
        ...

    def saved(self, body: dict[str, Any]) -> None:
        """The checkpoint of this manifest has its final name and is durable."""
        ...

    def fault(self, folder: Path, body: dict[str, Any]) -> str | None:
        """Why the checkpoint in `folder`, undamaged by its manifest, must not be restored; None if it may."""
        ...

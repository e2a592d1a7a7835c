"""The files of a corpus by the part they belong to: all in one without a mixture, else those of each part."""

import dataclasses
import os
import re
from collections.abc import Mapping

from jaxlm.data.config import DataConfig, DataError
from jaxlm.data.sources import TRAIN, Source, find_sources

WHOLE = ""  # the part of a file that belongs to no part: of a corpus without a mixture, or held out from all parts

Parts = Mapping[str, list[Source]]


def find_parts(config: DataConfig) -> tuple[Parts, list[str]]:
    """The files of each part, in the order of the names (so that the order they are written in changes nothing), and
    the binary files left out. Raises DataError that names the key of the part."""
    if not config.mixture:
        sources, left_out = find_sources(config)
        return {WHOLE: sources}, left_out
    parts: dict[str, list[Source]] = {WHOLE: []} if config.validation is not None else {}
    binary: dict[str, None] = {}
    for name, part in sorted(config.mixture.items()):
        held_out = part.validation if config.validation is None else config.validation
        alone = dataclasses.replace(config, mixture={}, path=part.path, validation=held_out)
        try:
            sources, left_out = find_sources(alone)
        except DataError as error:
            raise DataError(_renamed(str(error), name, config)) from error
        if config.validation is not None:
            parts[WHOLE] = [source for source in sources if source.split != TRAIN]
            sources = [source for source in sources if source.split == TRAIN]
        parts[name] = sources
        binary |= dict.fromkeys(left_out)
    _check_apart(parts)
    return parts, list(binary)


def origin(config: DataConfig, part: str) -> str:
    """Where the text of a part comes from, as the user wrote it: `data.mixture.novels.path=DIR`."""
    return f"data.path={config.path}" if part == WHOLE else f"data.mixture.{part}.path={config.mixture[part].path}"


def _renamed(message: str, name: str, config: DataConfig) -> str:
    """A message about `data.path` as one about the part whose path it was."""
    keys = "path" if config.validation is not None else "path|validation"
    return re.sub(rf"\bdata\.({keys})\b", rf"data.mixture.{name}.\1", message)


def _check_apart(parts: Parts) -> None:
    owners: dict[tuple[str, str], str] = {}  # of each file, or part of a data set
    for name, sources in parts.items():
        for source in sources:
            if (other := owners.setdefault((os.path.realpath(source.path), source.part), name)) != name:
                raise DataError(
                    f"{source.path} is in both data.mixture.{other} and data.mixture.{name}: its text would count "
                    "twice, and one part could train on what the other holds out; give each file to one part"
                )

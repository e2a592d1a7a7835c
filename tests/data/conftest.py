import argparse
import inspect
import json
import subprocess
from pathlib import Path

import pytest

from jaxlm.data.config import DataConfig, TokenizerConfig
from jaxlm.data.tokenizer import Tokenizer

# Real text on every machine: sources of modules that we import anyway.
TEXTS = [inspect.getsource(module) for module in (argparse, inspect, subprocess, json, pytest)]


@pytest.fixture(scope="session")
def real_texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, TokenizerConfig(vocab=600))


@pytest.fixture(scope="session")
def tokenizer_file(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(tokenizer.model)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve text files of some kilobytes, a few of them one folder deeper."""
    root = tmp_path / "corpus"
    (root / "deep").mkdir(parents=True)
    lines = "\n".join(TEXTS).splitlines(keepends=True)
    for number in range(12):
        text = "".join(lines[number * 60 : number * 60 + 60])
        (root / ("deep" if number % 3 == 0 else ".") / f"{number:02d}.txt").write_text(text, newline="")
    return root


@pytest.fixture
def config(folder: Path, tmp_path: Path, tokenizer_file: str) -> DataConfig:
    return DataConfig(
        path=str(folder),
        cache=str(tmp_path / "cache"),
        sequence=16,
        validation_fraction=0.2,
        tokenizer=TokenizerConfig(path=tokenizer_file),
    )

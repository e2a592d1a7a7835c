"""Small labelled data sets in the formats of the real ones, made up, with nothing offensive in them."""

import json
from pathlib import Path

import numpy as np

from tests.data.writers import compressed

CLASSES = ("normal", "offensive", "hatespeech")
TELLING = (("kind", "lovely"), ("rude", "silly"), ("awful", "nasty"))
FILLER = ("the", "a", "cat", "dog", "sat", "ran", "women", "men", "muslim", "jewish", "black", "white", "immigrant")


def hatexplain(folder: Path, rows: int = 240, seed: int = 0) -> Path:
    """A folder with hatexplain.jsonl.gz, in which two words tell the class."""
    random, lines = np.random.default_rng(seed), []
    for number in range(rows):
        label, length = int(random.integers(3)), int(random.integers(3, 9))
        tokens = [str(random.choice(FILLER)) for _ in range(length)]
        place = int(random.integers(length))
        tokens[place] = TELLING[label][int(random.integers(2))]
        split = ("train", "train", "train", "val", "test")[number % 5]
        row = {"id": f"p{number}", "split": split, "label": CLASSES[label], "tokens": tokens}
        if number % 2:
            row["rationale_spans"] = [[place, place + 1]] if label else []
        lines.append(json.dumps(row) + "\n")
    compressed(folder / "hatexplain.jsonl.gz", "".join(lines).encode())
    return folder


def config(folder: Path, more: str = "") -> Path:
    """A tiny run on such a folder."""
    path = folder / "tiny.yaml"
    path.write_text(
        f"""name: tiny
data: {{path: {folder}, sequence: 12, mode: truncate, tokenizer: {{vocab: 320}}}}
model: {{layers: 1, embed: 16, heads: 2, mlp: 32, causal: false, tied: false}}
classify: {{dataset: hatexplain, word_dropout: 0.1}}
optim: {{lr: 2e-2, warmup: 4}}
train: {{steps: 40, batch: 16, log_every: 10, tensorboard: false}}
checkpoint: {{every_steps: 20}}
{more}
"""
    )
    return path

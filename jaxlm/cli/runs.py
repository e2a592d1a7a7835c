"""`jaxlm eval`, `jaxlm plot`, `jaxlm generate`: what became of a run."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from jaxlm.cli.common import Common, Refused, report


@dataclass(kw_only=True)
class Eval(Common):
    """Judge a trained model on its held-out text, or on any other text.

    Prints bits per byte, loss in nats per token, perplexity, next-token accuracy, macro F1 over the vocabulary, and the
    latency of one forward pass. Every token of the text is predicted once. Bits per byte can be compared between
    tokenizers; loss, perplexity, accuracy and F1 cannot.

    Example: jaxlm eval runs/quickstart --data my_texts/
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    data: str | None = None
    """Folder, glob or file of text or JSONL to evaluate on; default the run's own held-out split."""
    step: int | None = None
    """Which checkpoint; default the newest good one."""
    allow_unverified: bool = False
    """Read a checkpoint whose signature cannot be verified."""
    no_latency: bool = False
    """Do not time the forward pass (1 x 512 tokens, compiled and warmed up)."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.inspect import evaluate_run

        text, facts = evaluate_run(
            self.folder, self.data, self.step, timed=not self.no_latency, allow_unverified=self.allow_unverified
        )
        print(text)
        report(self.json, facts)
        return 0


@dataclass(kw_only=True)
class Plot(Common):
    """Draw loss, throughput and memory of any set of runs, also of those still under way.

    Example: jaxlm plot runs/a runs/b --out compared.png --by tokens
    """

    runs: Annotated[Positional[list[Path]], arg(metavar="RUN [RUN ...]")]
    """Run directories."""
    out: Path = Path("plot.png")
    """The picture: .png, .svg or .pdf."""
    by: Literal["step", "tokens", "seconds"] = "step"
    """Along the bottom: steps, tokens seen, or seconds spent in steps."""
    unit: Literal["bits_per_byte", "loss"] = "bits_per_byte"
    """Of the loss: bits per byte of text, or nats per token."""
    smooth: float = 0.0
    """From 0 (as it is) to below 1: weight of the past in the moving average of the training loss."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.folder import Folder
        from jaxlm.reading import accessed
        from jaxlm.trainer.plot import plot_runs

        for run in self.runs:
            accessed(Folder(run), "plot")
        plot_runs(self.runs, self.out, by=self.by, unit=self.unit, smooth=self.smooth)
        print(f"saved {self.out}")
        return 0


@dataclass(kw_only=True)
class Generate(Common):
    """Continue a prompt with a trained model.

    Example: jaxlm generate runs/quickstart --prompt 'def main(' --tokens 80 --temperature 0.7
    """

    folder: Annotated[Positional[Path], arg(metavar="RUN")]
    """Run directory."""
    prompt: str = ""
    """What the text starts with."""
    tokens: int = 100
    """Most tokens to add."""
    temperature: float = 0.8
    """0 takes the most likely token each time."""
    top_k: int = 0
    """Choose among this many tokens; 0 means all."""
    top_p: float = 0.95
    """Choose among the most likely tokens that hold this much probability."""
    seed: int = 0
    """The same seed gives the same text."""
    stop: list[str] = field(default_factory=list)
    """End before any of these texts."""
    step: int | None = None
    """Which checkpoint; default the newest good one."""
    allow_unverified: bool = False
    """Read a checkpoint whose signature cannot be verified."""
    json: bool = False
    """One JSON object as the last line, instead of the text as it is made."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.config import Sample
        from jaxlm.inspect import generate_text

        chosen = {"tokens": self.tokens, "temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        try:
            how = Sample(prompt=self.prompt, **chosen)  # pyright: ignore[reportArgumentType]
        except ValueError as error:
            raise Refused(f"--{error}".replace("_", "-", 1)) from None
        pieces = generate_text(self.folder, how, self.step, self.seed, tuple(self.stop), self.allow_unverified)
        made = b""
        if not self.json:
            print(self.prompt, end="", flush=True)
        for piece in pieces:
            made += piece
            if not self.json:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
        print()
        report(self.json, {"prompt": self.prompt, "text": made.decode("utf-8", errors="replace")})
        return 0

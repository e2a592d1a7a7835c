"""Where a person looks: a bar with ETA on a terminal, one plain line per record elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from jaxlm.trainer.metrics import Record


def seconds_as_text(seconds: float) -> str:
    """`45s`, `3m20s`, `5h02m`, `2d07h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def rate(tflops: float) -> str:
    """Achieved rate of one device, attention not halved."""
    return f"{tflops:.0f} TFLOP/s" if tflops >= 10 else f"{1000 * tflops:,.0f} GFLOP/s"


def line(record: Record, steps: int, eta: float) -> str:
    """One record as a line of text."""
    parts = [
        f"step {record['step']:>{len(str(steps))}}/{steps}",
        f"loss {record['loss']:.4f}",
        f"bits/byte {record['bits_per_byte']:.3f}" if "bits_per_byte" in record else "",
        f"correct {record['correct']:.3f}" if "correct" in record else "",
        f"grad {record['grad_norm']:.3f}",
        f"lr {record['lr']:.2e}" if record.get("lr") is not None else "",
        f"{record['tokens_per_second']:,.0f} tok/s",
        f"{record['step_seconds']:.3f} s/step",
        rate(record["tflops_per_device"]),
        f"mfu {record['mfu']:.1%} ({record['mfu_causal']:.1%} causal)" if "mfu" in record else "",
        f"mem {record['memory_bytes'] / 2**30:.2f} GiB",
        f"eta {seconds_as_text(eta)}",
    ]
    return "  ".join(part for part in parts if part)


class Progress:
    """Writes records as they come; `say` prints a message without tearing the bar."""

    def __init__(
        self,
        start: int,
        steps: int,
        *,
        out: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.start, self.steps, self.out, self.clock = start, steps, out or sys.stdout, clock
        self.began = clock()
        self.bar = None
        if self.out.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=steps, initial=start, unit="step", file=self.out, dynamic_ncols=True)

    def __call__(self, record: Record) -> None:
        done = record["step"] - self.start
        eta = (self.clock() - self.began) / max(done, 1) * (self.steps - record["step"])
        if self.bar is None:
            print(line(record, self.steps, eta), file=self.out, flush=True)
            return
        self.bar.update(record["step"] - self.bar.n)
        self.bar.set_postfix_str(
            f"loss {record['loss']:.3f} "
            + (f"bits/byte {record['bits_per_byte']:.3f} " if "bits_per_byte" in record else "")
            + f"{record['tokens_per_second']:,.0f} tok/s"
            + (f" mfu {record['mfu']:.1%}" if "mfu" in record else "")
        )

    def say(self, text: str) -> None:
        if self.bar is None:
            print(text, file=self.out, flush=True)
        else:
            self.bar.write(text, file=self.out)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

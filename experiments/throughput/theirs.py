# pyright: reportMissingImports=false
"""The torch side of a comparison, with torch's best settings: cuDNN attention, compiled, fused AdamW."""

import contextlib
import importlib.metadata
import time
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.throughput import twin
from experiments.throughput.suite import Entry
from jaxlm.session import resolve

BACKENDS = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""In this order: on Hopper FlashAttention-2, torch's own first choice, is about half as fast as cuDNN for training
(huggingface/transformers pull request 48163)."""


class Theirs:
    """As `experiments.throughput.ours.Ours`, in torch.

    Args:
        entry: what is trained.
        layers: of the model, where not the entry's; 0: the entry's.
        mode: `eager`, or a mode of torch.compile.
        first_moment: must be float32: torch keeps both moments in the dtype of the weights.
        cache: unused; torch keeps compiled kernels where TORCHINDUCTOR_CACHE_DIR says.
    """

    def __init__(
        self,
        entry: Entry,
        layers: int = 0,
        mode: str = "default",
        first_moment: str = "float32",
        cache: str | None = None,
    ):
        if first_moment != "float32":
            raise ValueError("torch's fused AdamW keeps its moments in the dtype of the weights, float32")
        run = entry.run(layers=layers)
        self.entry, self.config, self.mode = entry, resolve(run, run.model.vocab), mode
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.set_float32_matmul_precision("high" if self.config.dtype != "float32" else "highest")
        torch.manual_seed(0)
        with torch.device(self.device):
            self.model = twin.Twin(self.config, entry.checkpoint)
        for module in self.model.modules():
            if isinstance(module, torch.nn.Embedding | torch.nn.Linear):
                torch.nn.init.normal_(module.weight, std=0.02)
        self.call: Any = self.model if mode == "eager" else torch.compile(self.model, mode=mode)
        matrices = [p for p in self.model.parameters() if p.dim() > 1]
        vectors = [p for p in self.model.parameters() if p.dim() <= 1]
        how: dict[str, Any] = {"lr": 1e-4, "betas": (0.9, 0.95), "eps": 1e-8, "fused": True}
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizers: list[torch.optim.Optimizer] = []
        self.at_once: list[torch.optim.Optimizer] = []
        if entry.clip:
            self.optimizers = [torch.optim.AdamW(groups, **how)]
        else:  # a gradient is applied and freed as soon as it is there
            for group in groups:
                for p in group["params"]:
                    self._at_once(p, torch.optim.AdamW([p], weight_decay=group["weight_decay"], **how))
        rng = np.random.default_rng(0)
        tokens = rng.integers(0, self.config.vocab, (entry.rows, entry.sequence), np.int32)
        self.put(tokens, tokens)
        began = time.perf_counter()
        self._one()
        self._wait()
        self.compiled = time.perf_counter() - began

    def _at_once(self, p: torch.nn.Parameter, optimizer: torch.optim.Optimizer) -> None:
        self.at_once.append(optimizer)

        def apply(_: torch.Tensor) -> None:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        p.register_post_accumulate_grad_hook(apply)

    def put(self, tokens: np.ndarray, targets: np.ndarray) -> None:
        """The rows of every step from now on, [rows, sequence]."""
        as_torch = lambda a: torch.from_numpy(a.astype(np.int64)).to(self.device).split(self.entry.microbatch)
        self.parts = list(zip(as_torch(tokens), as_torch(targets), strict=True))

    def load(self, weights: dict[str, np.ndarray]) -> None:
        """Weights of a jaxlm model; the optimizer begins anew."""
        twin.load(self.model, weights)
        for optimizer in (*self.optimizers, *self.at_once):
            optimizer.state.clear()

    def _low(self) -> contextlib.AbstractContextManager[Any]:
        if self.config.dtype == "float32" or (self.config.dtype == "auto" and self.device == "cpu"):
            return contextlib.nullcontext()
        return torch.autocast(self.device, torch.bfloat16)

    def _one(self) -> torch.Tensor:
        total = torch.zeros((), device=self.device)
        with sdpa_kernel(BACKENDS, set_priority=True):
            for tokens, targets in self.parts:
                with self._low():
                    loss = self.call(tokens, targets) / len(self.parts)
                loss.backward()
                total = total + loss.detach()
        if self.entry.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.entry.clip, foreach=True)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return total

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def steps(self, count: int) -> list[float]:
        """Seconds of each of `count` steps, one step in flight."""
        seconds, waiting = [], None
        last = time.perf_counter()
        for _ in range(count):
            self._one()
            event = None
            if self.device == "cuda":
                event = torch.cuda.Event()
                event.record()
            if waiting is not None or (self.device == "cpu" and len(seconds) < count - 1):
                if waiting is not None:
                    waiting.synchronize()
                now = time.perf_counter()
                seconds.append(now - last)
                last = now
            waiting = event
        self._wait()
        if len(seconds) < count:
            seconds.append(time.perf_counter() - last)
        return seconds

    def losses(self, count: int) -> list[float]:
        return [float(self._one()) for _ in range(count)]

    def memory(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self.device == "cuda" else None

    def facts(self) -> dict[str, Any]:
        name = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
        return {
            "side": "torch",
            "mode": self.mode,
            "rows_at_once": self.entry.microbatch,
            "recompute": self.entry.checkpoint,
            "compile_seconds": self.compiled,
            "device": name,
            "versions": {"torch": importlib.metadata.version("torch"), "cuda": torch.version.cuda},
        }

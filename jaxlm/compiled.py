"""Compiles the real training step of a plan for the real target, in a process of its own, and remembers the result.

    compile = Compiler(run, vocab, target_of(cluster))
    compiled = compile(plan)          # planners.programs.compiled.Compiled: memory, program text, warnings

No device of the target is needed: GPUs are described to XLA (`jaxlm.runtime.aot`, extra `aot`), CPU devices are forced.
Results are kept under the user's cache by a digest of all that went into them.
"""

import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxlm.config import Run
from jaxlm.decode import encode
from jaxlm.files import user_cache, write_whole
from jaxlm.model.attention import require_kernel
from jaxlm.runtime.aot import CHIPS, PACKAGES, chip_name, missing
from planners.machines.topology import Cluster
from planners.plan import Plan, PlanError
from planners.programs.compiled import Compiled, CompileError, OutOfMemory, TooSlow

SECONDS = 1200.0
"""Time that one compilation is given: a Llama-70B step for 512 GPUs took 3 minutes on a busy machine of two cores."""

VERSIONS = ("jax", "jaxlib", "flax", "optax", *PACKAGES.values())
"""Packages that shape a compiled program."""

ROOMS = (
    *("model", "trainer", "optim", "collectives", "runtime"),
    *("sharding.py", "session.py", "tree.py", "compile_worker.py"),
)
"""Parts of this package that shape a compiled program."""

CONFIGURED = ("model", "optim", "seed")
"""Sections of a run that shape a compiled program, beside the rows of `data` and the steps and batch of `train`."""

REMATERIALIZED = re.compile(r"involuntary full rematerialization.*", re.IGNORECASE)
DONATED = re.compile(r"Some donated buffers were not usable.*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What to compile for: `platform` cpu or gpu, `kind` a name in `aot.CHIPS` (cpu: the word itself), how many."""

    platform: str
    kind: str
    devices: int

    def __str__(self) -> str:
        return f"{self.devices} x {self.kind}"


def target_of(cluster: Cluster) -> Target:
    """Of unequal GPUs the oldest: all of them run what it can run, and there is the least memory as a rule.

    Raises PlanError for a GPU whose facts XLA's compiler is not told.
    """
    kinds = [pool.device.kind for pool in cluster.parts]
    if all(kind.lower() == "cpu" for kind in kinds):
        return Target(platform="cpu", kind="cpu", devices=cluster.count)
    names = [chip_name(kind) for kind in kinds]
    for kind, name in zip(kinds, names, strict=True):
        if name is None:
            raise PlanError(f"--verify cannot compile for {kind!r}: it knows {', '.join(CHIPS)} and CPUs")
    oldest = min((name for name in names if name), key=lambda name: (CHIPS[name].capability, CHIPS[name].memory))
    return Target(platform="gpu", kind=oldest, devices=cluster.count)


@dataclass(frozen=True, slots=True)
class Compiler:
    """Plan -> Compiled, for one run and one target.

    Attributes:
        run: the configuration that would be trained.
        vocab: tokens of its tokenizer.
        target: what to compile for.
        seconds: that one compilation may take.
        progress: called now and then with the seconds spent on the compilation under way.
        keep: look into the cache, and keep results there.
    """

    run: Run
    vocab: int
    target: Target
    seconds: float = SECONDS
    progress: Callable[[float], None] = lambda seconds: None
    keep: bool = True

    def __call__(self, plan: Plan) -> Compiled:
        """Raises CompileError where it takes too long or fails, PlanError where this environment cannot compile."""
        self.require()
        if plan.devices != self.target.devices:
            raise PlanError(f"the plan is for {plan.devices} devices, the target is {self.target}")
        request = self._request(plan)
        versions = _versions()
        text = json.dumps([request, versions, os.environ.get("XLA_FLAGS", ""), _source()], sort_keys=True)
        folder = user_cache("compiled")
        result = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
        program = result.with_suffix(".hlo.gz")
        if not (self.keep and result.exists()):
            found, hlo = self._compile(request)
            found |= {"target": str(self.target), "versions": versions}
            if not self.keep:
                return _compiled(found, hlo)
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(program, hlo)
            write_whole(result, json.dumps(found).encode())
        return _compiled(json.loads(result.read_text()), program.read_bytes())

    def require(self) -> None:
        """Raises PlanError when packages are missing that compiling for this target needs."""
        if self.target.platform == "gpu" and (lacking := missing()):
            raise PlanError(
                f"compiling for {self.target} needs {', '.join(lacking)}; install them with: uv sync --extra aot"
            )

    def _request(self, plan: Plan) -> dict[str, Any]:
        """What the worker is told; of plan and run only what shapes the program, so that the rest may change."""
        bare = dataclasses.replace(plan, predicted=None, compiled=None, assumptions={}, alternatives=())
        run: dict[str, Any] = {name: encode(getattr(self.run, name)) for name in CONFIGURED}
        run["data"] = {"sequence": self.run.data.sequence, "mode": self.run.data.mode}
        run["train"] = {"steps": self.run.train.steps, "batch": self.run.train.batch}
        return {"run": run, "vocab": self.vocab, "plan": bare.to_json(), **dataclasses.asdict(self.target)}

    def _compile(self, request: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """What the worker found, and the compressed text of the program."""
        with tempfile.TemporaryDirectory(prefix="jaxlm-compile-") as name:
            folder = Path(name)
            asked, result, program, log = (folder / part for part in ("request.json", "result.json", "hlo.gz", "log"))
            asked.write_text(json.dumps(request))
            command = [sys.executable, "-m", "jaxlm.compile_worker", *map(str, (asked, result, program))]
            with log.open("wb") as stderr:
                worker = subprocess.Popen(
                    command, env=self._environment(), stdout=subprocess.DEVNULL, stderr=stderr, stdin=subprocess.DEVNULL
                )
                self._wait(worker)
            messages = log.read_text(errors="replace")
            if worker.returncode:
                raise failure(self.target, worker.returncode, messages)
            return json.loads(result.read_text()) | {"warnings": complaints(messages)}, program.read_bytes()

    def _wait(self, worker: subprocess.Popen[bytes]) -> None:
        """Raises TooSlow when the time is up; the worker never outlives this call."""
        began = time.monotonic()
        try:
            while True:
                spent = time.monotonic() - began
                try:
                    worker.wait(timeout=min(1.0, max(self.seconds - spent, 0.01)))
                    return
                except subprocess.TimeoutExpired:
                    spent = time.monotonic() - began
                    self.progress(spent)
                    if spent >= self.seconds:
                        raise TooSlow(
                            f"compiling for {self.target} took more than {self.seconds:.0f} s; allow more with "
                            "--verify-seconds, or verify fewer plans with --verify-top"
                        ) from None
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()

    def _environment(self) -> dict[str, str]:
        """That of this process, with the CPU as JAX's platform, XLA's warnings on, and devices as the target has."""
        kept = {k: v for k, v in os.environ.items() if k not in ("JAX_COMPILATION_CACHE_DIR", "JAX_NUM_CPU_DEVICES")}
        flags = re.sub(r"--xla_force_host_platform_device_count=\S+", "", kept.get("XLA_FLAGS", "")).strip()
        kept |= {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "0", "XLA_FLAGS": flags}
        if self.target.platform == "cpu":
            kept["JAX_NUM_CPU_DEVICES"] = str(self.target.devices)
        return kept


class Ticking:
    """Tells a person on standard error what is compiled, and for how long: in place on a terminal, else a line each
    half minute."""

    def __init__(self) -> None:
        self.terminal = sys.stderr.isatty()
        self.text, self.told = "", 0.0

    def say(self, text: str) -> None:
        self.close()
        self.text, self.told = text, 0.0
        print(text, file=sys.stderr, end="" if self.terminal else "\n", flush=True)

    def __call__(self, seconds: float) -> None:
        if self.terminal:
            print(f"\r{self.text} ({seconds:.0f} s)", file=sys.stderr, end="", flush=True)
        elif seconds - self.told >= 30.0:
            self.told = seconds
            print(f"  still compiling after {seconds:.0f} s", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.terminal and self.text:
            print(file=sys.stderr)


def complaints(messages: str) -> list[str]:
    """What XLA and JAX said against a program, each once: a tensor gathered whole for want of a path between two
    shardings, a buffer given up that is not reused."""
    found = [hit[0].strip() for pattern in (REMATERIALIZED, DONATED) for hit in pattern.finditer(messages)]
    return list(dict.fromkeys(found))


def failure(target: Target, code: int, messages: str) -> Exception:
    """The last words of a worker as an error of this process: bad input stays bad input."""
    lines = [line for line in messages.splitlines() if line.strip()]
    last = next((n for n in range(len(lines) - 1, -1, -1) if re.match(r"^[\w.]+(Error|Exception)\b", lines[n])), None)
    said = " ".join(lines[last:]) if last is not None else " ".join(lines[-3:])
    kind, _, sentence = said.partition(": ")
    if kind.endswith(("ConfigError", "PlanError", "AotError")):
        return PlanError(sentence)
    if code < 0:
        return CompileError(
            f"the compiler for {target} was ended by signal {-code} (out of host memory?): {said[:500]}"
        )
    if "RESOURCE_EXHAUSTED" in said or "Out of memory" in said:
        return OutOfMemory(f"the compiler for {target} ran out of memory: {said[:500]}")
    return CompileError(f"the compiler for {target} failed: {said[:1000]}")


def _compiled(found: dict[str, Any], program: bytes) -> Compiled:
    """Raises CompileError where the program lacks the attention kernel that it was planned with."""
    known = {field.name for field in dataclasses.fields(Compiled)}
    values = {name: value for name, value in found.items() if name in known}
    made = Compiled(**values | {"warnings": tuple(found["warnings"]), "hlo": gzip.decompress(program).decode()})
    try:
        require_kernel(found["kernel"], made.hlo)
    except RuntimeError as error:
        raise CompileError(str(error)) from None
    return made


def _versions() -> dict[str, str]:
    found = {}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def _source() -> str:
    """A digest of the code of this package that shapes a program."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for room in ROOMS:
        path = package / room
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()

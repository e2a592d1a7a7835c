"""`jaxlm ...`: the only file that knows the command-line library."""

import contextlib
import dataclasses
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO, cast

import tyro
from tyro.conf import Positional, arg, subcommand

if TYPE_CHECKING:
    from planners.machines.topology import Cluster
    from planners.plan import Search, Workload

USER_ERROR, STOPPED, FAILURE = 2, 3, 1


class Refused(ValueError):
    """Something on the command line itself that cannot be."""


@dataclass(kw_only=True)
class Common:
    debug: bool = False
    """Show the full traceback of an error."""
    rest: tyro.conf.Suppress[tuple[str, ...]] = ()

    def overrides(self) -> Sequence[str]:
        return self.rest

    def no_overrides(self) -> None:
        if self.rest:
            raise Refused(f"unexpected argument {self.rest[0]!r}; see --help")


@dataclass(kw_only=True)
class Train(Common):
    """Plan, train, checkpoint and evaluate; resumes the same run directory by itself.

    Every key of the configuration can be overridden: --model.layers 8 --optim.lr 1e-3.
    --print-config lists all keys with their values and what they mean.
    Presets for model.preset: gpt2-124m gpt2-350m gpt2-774m gpt2-1558m llama-1b llama-7b llama-8b nano.

    Example: jaxlm train configs/quickstart.yaml --train.steps 200 --run-dir runs/short
    """

    config: Positional[Path]
    """YAML file of the run."""
    run_dir: Path | None = None
    """Where everything is written; default runs/NAME."""
    plan: Path | None = None
    """Replay a saved plan (plan.json) instead of searching."""
    cluster: Path | None = None
    """Plan with what `jaxlm probe` measured here, a YAML file; default what JAX reports."""
    replan: bool = False
    """Try the next best plans while training and change to one that proves faster; see train.replan."""
    from_: Annotated[str | None, arg(name="from", metavar="RUN[@STEP]")] = None
    """Start from the weights of another run, with its tokenizer; model keys left out are its own."""
    profile: Annotated[str | None, arg(metavar="START:STOP")] = None
    """Record these steps, both included and numbered as in the log, into the run directory, for xprof or Perfetto."""
    print_config: bool = False
    """Print the resolved configuration, each key explained, and stop."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for a job of several processes."""
    processes: int = 1
    """Processes of the job."""
    process: int = 0
    """Which of them this is, from 0."""
    dead_after: float = 60.0
    """Seconds without a sign of life after which a process of the job counts as dead and the others end."""

    def run(self) -> int:
        from jaxlm.decode import dump
        from jaxlm.finetune import load
        from jaxlm.trainer.profile import Steps

        overrides = [*self.overrides(), *(["--train.replan.enabled", "true"] if self.replan else [])]
        run = load(self.config, overrides, start=self.from_, run_dir=self.run_dir, training=True)
        if self.print_config:
            print(dump(run, comments=True), end="")
            return 0
        profile = None if self.profile is None else Steps.parse(self.profile, run.train.steps)
        from jaxlm.run import train
        from jaxlm.runtime.distributed import Job
        from jaxlm.setup import Options

        sys.stdout = cast(TextIO, Sturdy(sys.stdout))
        job = Job(
            coordinator=self.coordinator,
            processes=self.processes,
            process=self.process,
            dead_after=self.dead_after,
        )
        directory = self.run_dir or Path("runs") / run.name
        chosen = Options(job=job, plan_file=self.plan, cluster_file=self.cluster, profile=profile, again=again())
        return train(run, directory, chosen)


@dataclass(kw_only=True)
class MakePlan(Common):
    """Show the plan for a configuration: mesh, batch split, rematerialisation, predicted memory and time.

    Example: jaxlm plan configs/quickstart.yaml --cluster h100x8 --explain
    """

    config: Positional[Path | None] = None
    """YAML file of the run; left out with --workload."""
    cluster: str | None = None
    """Preset such as h100x8, mixture such as v100x16+a100-80x16, or YAML file of a cluster; default this machine."""
    mesh: str | None = None
    """Fix mesh axes by hand: data=8,tensor=4; axes left out are searched."""
    explain: bool = False
    """Print the predicted time and memory, why the runners-up lost, what rules of thumb would pick, and which plans
    take less memory for more time."""
    executable: bool = False
    """Search only the mesh axes that `jaxlm train` executes."""
    objective: Literal["time", "eq1"] = "time"
    """`time`: step time times steps to the target. `eq1`: eq. 1 of the paper as printed, with --beta."""
    beta: float = 0.0
    """Weight of the communication term of eq. 1."""
    gradient_norm: float = 1.0
    """Norm of the gradient in eqs. 1 and 7; a clipped one is at most the clip norm."""
    workload: Path | None = None
    """Plan for a saved description of the work instead of a configuration; neither model nor JAX is needed."""
    save_workload: Path | None = None
    """Save what the model asks of a machine, for --workload."""
    verify: bool = False
    """Compile the best plans for the cluster, without needing it, and judge them by XLA's memory and collectives.
    GPUs need the extra `aot`."""
    verify_top: int = 3
    """Plans to compile."""
    verify_seconds: float = 1200.0
    """Time that one compilation may take."""
    out: Path | None = None
    """Save the plan, for `jaxlm train --plan`."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        if self.verify_top < 1 or self.verify_seconds <= 0:
            raise Refused("--verify-top and --verify-seconds must be positive")
        if self.objective == "time" and self.beta:
            raise Refused("--beta weighs the second term of eq. 1; add --objective eq1")
        return self._planned() if not self.verify else self._verified()

    def _planned(self) -> int:
        from planners.explain import explain
        from planners.layout import EXECUTABLE
        from planners.plan import MESH_AXES
        from planners.prices.paper_cost import Eq1
        from planners.search import beyond
        from planners.search import plan as search_plan
        from planners.space.rivals import compare

        workload, cluster, search, steps = self._work()
        assumptions, learnt = None, "none: a saved workload is planned with the constants as shipped"
        if self.config is not None:
            from jaxlm.ledger import constants

            assumptions, learnt = constants(cluster, workload, search)
        if self.save_workload is not None:
            workload.save(self.save_workload)
            print(f"saved {self.save_workload}")
        axes = EXECUTABLE if self.executable else MESH_AXES
        objective = None
        if self.objective == "eq1":
            objective = Eq1(beta=self.beta, steps=steps, gradient_norm=self.gradient_norm)
        plan = search_plan(workload, cluster, search, assumptions, axes, objective)
        plan = dataclasses.replace(plan, assumptions={"calibration": learnt, **plan.assumptions})
        comparison = None
        if self.explain or self.json:
            norm = self.gradient_norm
            comparison = compare(plan, workload, cluster, search, axes, gradient_norm=norm, assumptions=assumptions)
        print(f"{explain(plan, cluster)}\n\n{comparison.text()}" if self.explain and comparison else plan.summary())
        missing = [axis for axis, size in plan.mesh.items() if axis not in EXECUTABLE and size > 1]
        if missing:
            print(f"the trainer does not execute {' and '.join(missing)} yet; --executable plans without")
        elif self.executable and (better := beyond(plan, workload, cluster, search, assumptions)):
            print(better)
        if self.out is not None:
            plan.save(self.out)
            print(f"saved {self.out}")
        report(self.json, plan.to_json() | {"digest": plan.digest} | (comparison.facts() if comparison else {}))
        return 0

    def _work(self) -> tuple["Workload", "Cluster", "Search", int]:
        """What is to be planned, on what, within which limits, and for how many steps."""
        overrides = [*self.overrides(), *mesh_overrides(self.mesh)]
        if (self.config is None) == (self.workload is None):
            raise Refused("give either a configuration or --workload FILE")
        if self.workload is not None:
            from jaxlm.decode import decode, dotted, override
            from planners.machines.cluster_file import load_cluster
            from planners.plan import Search, Workload

            raw = override({}, dotted(overrides))
            if other := sorted(set(raw) - {"plan"}):
                raise Refused(f"--{other[0]}: a saved workload takes no keys but plan.*")
            if self.cluster is None:
                raise Refused("--workload needs --cluster: it says for what to plan")
            search = decode(raw.get("plan", {}), Search)
            return Workload.load(self.workload), load_cluster(self.cluster), search, 1
        from jaxlm.finetune import load
        from jaxlm.inspect import described

        run = load(cast(Path, self.config), overrides)
        return *described(run, self.cluster), run.plan, run.train.steps

    def _verified(self) -> int:
        from jaxlm.finetune import load
        from jaxlm.inspect import verify_plan
        from planners.explain import compiled_table, explain

        if self.config is None:
            raise Refused("--verify compiles the model, so it needs a configuration")
        if self.objective != "time":
            raise Refused("--verify ranks by time; leave --objective out")
        run = load(self.config, [*self.overrides(), *mesh_overrides(self.mesh)])
        plan, cluster, checked = verify_plan(run, self.cluster, top=self.verify_top, seconds=self.verify_seconds)
        print(explain(plan, cluster) if self.explain else plan.summary())
        if not self.explain:
            print(compiled_table(plan))
        if self.out is not None:
            plan.save(self.out)
            print(f"saved {self.out}")
        report(self.json, plan.to_json() | {"digest": plan.digest, "verified": [each.facts() for each in checked]})
        return 0


@dataclass(kw_only=True)
class Probe(Common):
    """Measure this machine or job: FLOP/s by dtype and size, memory bandwidth, every collective by ranks and size.

    Writes a cluster file for --cluster. In a job of several processes start this on each, as `jaxlm train`; process 0
    writes. Other work on the machine spoils the figures.

    Example: jaxlm probe --out here.yaml && jaxlm plan configs/quickstart.yaml --cluster here.yaml
    """

    out: Path | None = None
    """Cluster file to write; default print it."""
    quick: bool = False
    """Fewer and smaller sizes, within about a minute."""
    seconds: float | None = None
    """Time budget; default 300, with --quick 60."""
    compare: Path | None = None
    """Older cluster file: list every figure that changed by more than its noise."""
    coordinator: str | None = None
    """HOST:PORT of process 0, for a job of several processes."""
    processes: int = 1
    """Processes of the job."""
    process: int = 0
    """Which of them this is, from 0."""
    dead_after: float = 60.0
    """Seconds without a sign of life after which a process of the job counts as dead and the others end."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        self.no_overrides()
        if self.seconds is not None and self.seconds <= 0:
            raise Refused(f"--seconds {self.seconds:g} must be positive")
        from jaxlm.probe import FULL, QUICK, probe
        from jaxlm.runtime.distributed import Job

        job = Job(
            coordinator=self.coordinator,
            processes=self.processes,
            process=self.process,
            dead_after=self.dead_after,
        )
        extent = QUICK if self.quick else FULL
        if self.seconds is not None:
            extent = dataclasses.replace(extent, seconds=self.seconds)
        text, facts = probe(job, extent, self.out, self.compare)
        if self.process == 0:
            print(text)
            report(self.json, facts)
        return 0


@dataclass(kw_only=True)
class Prepare(Common):
    """Read the text, train the tokenizer, write token shards; an interrupted preparation goes on where it was.

    Example: jaxlm data prepare configs/quickstart.yaml
    """

    config: Positional[Path]
    """YAML file of the run."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        from jaxlm.finetune import load
        from jaxlm.inspect import prepare_data

        text, facts = prepare_data(load(self.config, self.overrides()))
        print(text)
        report(self.json, facts)
        return 0


@dataclass(kw_only=True)
class Show(Common):
    """Show what the model sees at one step: decoded rows, document boundaries, what is not predicted.

    Example: jaxlm data show configs/quickstart.yaml --step 3
    """

    config: Positional[Path]
    """YAML file of the run."""
    step: int = 0
    """Which step, from 0."""

    def run(self) -> int:
        from jaxlm.finetune import load
        from jaxlm.inspect import show_data

        if self.step < 0:
            raise Refused(f"--step {self.step} must not be negative: steps are counted from 0")
        print(show_data(load(self.config, self.overrides()), self.step))
        return 0


@dataclass(kw_only=True)
class Clean(Common):
    """Clean web pages (.warc, .wet, .html, .jsonl) into JSON lines of text, URL and timestamp, as C4 was made.

    Every rule can be set: --language de --minimum_characters 200 --rules.javascript false --deduplicate spans.
    --print-config lists all rules with their values and what they mean.
    An interrupted cleaning goes on where it was. Train on the result with --data.path OUT.

    Example: jaxlm data clean crawl/ --out cleaned/ --blocklist words.txt
    """

    source: Annotated[Positional[str], arg(metavar="INPUT")]
    """Folder, glob or file of web pages."""
    out: Path
    """Folder for the cleaned text and its report."""
    config: Path | None = None
    """YAML file of a cleaning, as --print-config prints it; default C4's English set."""
    processes: int = 0
    """Processes that share the work; 0 means one per core."""
    print_config: bool = False
    """Print the rules that would be applied, each explained, and stop."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        from jaxlm.data.cleaning.clean import clean
        from jaxlm.data.cleaning.config import Cleaning
        from jaxlm.data.progress import show_progress
        from jaxlm.decode import decode, dotted, dump, override, read

        raw = {} if self.config is None else read(self.config)
        config = decode(override(raw, dotted(list(self.overrides()))), Cleaning)
        if self.print_config:
            print(dump(config, comments=True), end="")
            return 0
        found = clean(config, self.source, self.out, processes=self.processes, progress=show_progress())
        print("\n".join([*found.lines(), f"train on it: --data.path {self.out}"]))
        report(self.json, found.to_json())
        return 0


@dataclass(kw_only=True)
class Data(Common):
    """Clean web pages, prepare the data of a configuration, or look at it."""

    action: (
        Annotated[Prepare, subcommand("prepare")]
        | Annotated[Show, subcommand("show")]
        | Annotated[Clean, subcommand("clean")]
    )

    def run(self) -> int:
        self.action.rest = self.rest
        return self.action.run()


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
    no_latency: bool = False
    """Do not time the forward pass (1 x 512 tokens, compiled and warmed up)."""
    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.inspect import evaluate_run

        text, facts = evaluate_run(self.folder, self.data, self.step, timed=not self.no_latency)
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
        from jaxlm.trainer.plot import plot_runs

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
        pieces = generate_text(self.folder, how, self.step, self.seed, tuple(self.stop))
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


@dataclass(kw_only=True)
class Doctor(Common):
    """Versions, devices, attention kernel, XLA options that this jaxlib accepts, and advice.

    Example: jaxlm doctor
    """

    json: bool = False
    """One JSON object as the last line."""

    def run(self) -> int:
        self.no_overrides()
        from jaxlm.doctor import examine

        text, facts = examine()
        print(text)
        report(self.json, facts)
        return 0


Command = (
    Annotated[Train, subcommand("train")]
    | Annotated[MakePlan, subcommand("plan")]
    | Annotated[Probe, subcommand("probe")]
    | Annotated[Data, subcommand("data")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Plot, subcommand("plot")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Doctor, subcommand("doctor")]
)


class Sturdy:
    """Standard output that a run outlives: when its reader goes away (`| head`), training goes on in silence."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError as error:
            self._lost(error)
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError as error:
            self._lost(error)

    def _lost(self, error: OSError) -> None:
        if isinstance(error, BrokenPipeError):
            why = "nobody reads standard output any more"
        else:
            why = f"standard output cannot be written ({error.strerror})"
        with contextlib.suppress(OSError):  # standard error may have gone the same way
            print(f"jaxlm: {why}; the run goes on, see metrics.jsonl", file=sys.stderr, flush=True)
        self.stream = open(os.devnull, "w")  # noqa: SIM115 (it lives as long as the process)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def report(wanted: bool, facts: dict[str, Any]) -> None:
    if wanted:
        print(json.dumps(facts))


def mesh_overrides(mesh: str | None) -> list[str]:
    """`data=8,tensor=4` as overrides of plan.mesh."""
    if mesh is None:
        return []
    pairs = [part.partition("=") for part in mesh.split(",")]
    if bad := [name + equals + size for name, equals, size in pairs if not equals or not size.isdigit()]:
        raise Refused(f"--mesh {mesh}: {bad[0]!r} is no AXIS=SIZE; write data=8,tensor=4")
    names = [name for name, _, _ in pairs]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise Refused(f"--mesh {mesh}: {repeated[0]} stands twice")
    return [text for name, _, size in pairs for text in (f"--plan.mesh.{name}", size)]


def again() -> str:
    """How a person started this program, for the commands that it prints."""
    return "uv run jaxlm" if os.environ.get("UV") else "jaxlm"


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses, runs, and exits: 0 done, 2 bad input, 3 stopped on purpose, 1 failure, 128+n signal after saving."""
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

    return USER_ERROR if isinstance(error, _user_errors()) else STOPPED if isinstance(error, DiskFull) else FAILURE


def _user_errors() -> tuple[type[Exception], ...]:
    from jaxlm.checkpoints.errors import CheckpointError
    from jaxlm.data.config import DataError
    from jaxlm.decode import ConfigError
    from jaxlm.runtime.lock import LockedError
    from planners.plan import PlanError

    return (Refused, ConfigError, DataError, PlanError, CheckpointError, LockedError)

"""The composition root of training: configuration, data, model, plan, mesh, loop and checkpoints meet here."""

import dataclasses
import hashlib
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.processes import first_decides
from jaxlm.checkpoints.schedule import Schedule
from jaxlm.checkpoints.store import Store
from jaxlm.config import Run
from jaxlm.data.corpus import Corpus, gzip_bits_per_byte
from jaxlm.data.loader import Loader
from jaxlm.data.prepare import prepare
from jaxlm.data.progress import show_progress, silent
from jaxlm.decode import ConfigError, dump
from jaxlm.evaluation import Judge, sample
from jaxlm.files import user_cache, write_whole
from jaxlm.folder import Folder, write_json
from jaxlm.model.attention import require_kernel
from jaxlm.runtime.distributed import Job, start
from jaxlm.runtime.lock import run_lock
from jaxlm.session import Session, expected_vocab, local_machine, numerics, resolve, workload_of
from jaxlm.trainer.hooks import Evaluating, Saving
from jaxlm.trainer.loop import Outcome
from jaxlm.trainer.loop import train as run_loop
from jaxlm.trainer.metrics import JsonLines, Meter, TensorBoard, Work, read_jsonl
from jaxlm.trainer.plot import plot_runs
from jaxlm.trainer.progress import Progress, seconds_as_text
from jaxlm.trainer.state import TrainState
from jaxlm.trainer.stop import StopSignal
from jaxlm.tree import named_leaves
from planners.explain import explain
from planners.plan import Plan, Workload
from planners.search import check
from planners.search import plan as search_plan
from planners.topology import Cluster

Say = Callable[[str], None]

DONE, STOPPED = 0, 3


def train(run: Run, directory: Path, *, job: Job = Job(), plan_file: Path | None = None, again: str = "jaxlm") -> int:
    """Plans, trains, checkpoints, evaluates and samples; goes on by itself where this run directory left off.

    Returns the exit code: 0 done, 3 stopped with the last good state saved, 128+n after a signal and a save.
    `again` is how the printed commands begin.
    """
    start(job, user_cache("xla") if run.train.compilation_cache else None)
    leader = jax.process_index() == 0
    say: Say = (lambda text: print(text, flush=True)) if leader else (lambda text: None)
    folder = Folder(directory)
    how = numerics(run.model, jax.default_backend())
    cluster = local_machine()
    model = resolve(run, expected_vocab(run))
    workload = workload_of(run, model, how)
    before = folder.admit(run)
    plan, origin = choose_plan(run, before, folder, plan_file, workload, cluster)
    say(f"model: {workload.parameter_count:,} parameters, {run.train.batch} x {run.data.sequence} tokens per step")
    say(f"attention: {how.kernel} kernel, {how.dtype} compute on {how.platform}")
    say(f"plan ({origin}): {plan.summary()}")
    say(predicted(plan, cluster))
    with StopSignal() as stop:
        if not leader:
            return _train(Setup(run, folder, how, cluster, plan, workload, job), stop, say, again)
        folder.make()
        with run_lock(directory):
            return _train(Setup(run, folder, how, cluster, plan, workload, job), stop, say, again)


def choose_plan(
    run: Run, before: Run | None, folder: Folder, file: Path | None, workload: Workload, cluster: Cluster
) -> tuple[Plan, str]:
    """The plan to follow and where it comes from: a file, this run's own, or a new search. Raises PlanError."""
    if file is not None:
        plan = Plan.load(file)
        check(plan, workload, cluster)
        return plan, f"replayed from {file}"
    if before is not None and before.plan == run.plan and folder.plan.exists():
        plan = Plan.load(folder.plan)
        if plan.devices == cluster.count:
            check(plan, workload, cluster)
            return plan, "as this run was started"
    return search_plan(workload, cluster, run.plan), "searched for the devices found"


def predicted(plan: Plan, cluster: Cluster) -> str:
    """What the cost model expects, in one line, and where the rest is written."""
    if plan.predicted is None:
        return "no prediction: the plan was made by hand"
    memory, capacity = plan.predicted.memory_bytes, cluster.device.memory
    rival = f"; next best: {plan.alternatives[0].summary}" if plan.alternatives else ""
    return (
        f"predicted: {memory / 2**30:.2f} of {capacity / 2**30:.1f} GiB per device, "
        f"{plan.predicted.step_seconds:.3g} s per step{rival} (why: plan.txt in the run directory)"
    )


@dataclass(frozen=True, slots=True)
class Setup:
    """What is decided before any data is read."""

    run: Run
    folder: Folder
    how: Any
    cluster: Cluster
    plan: Plan
    workload: Workload
    job: Job


def _train(setup: Setup, stop: StopSignal, say: Say, again: str) -> int:
    run, folder, leader = setup.run, setup.folder, jax.process_index() == 0
    corpus = prepare(run.data, show_progress() if leader else silent)
    say("\n".join(corpus.report.lines()))
    session = Session(run, resolve(run, corpus.tokenizer.vocab), setup.how, setup.plan)
    with (
        jax.set_mesh(session.mesh),
        run.checkpoint.build(folder.checkpoints) as store,
    ):
        state, done = _state(session, store, corpus, say)
        if leader:
            folder.write_config(run)
            setup.plan.save(folder.plan)
            write_whole(folder.explanation, (explain(setup.plan, setup.cluster) + "\n").encode())
            write_whole(folder.tokenizer, corpus.tokenizer.model)
        training = _Training(setup, session, corpus, store, stop, say, again)
        if done < run.train.steps:
            return training.run(state, done)
        if folder.finished() == done:
            say(f"{folder.path} is complete: {done} steps are done, {run.train.steps} asked for. Raise --train.steps.")
            return DONE
        say(f"all {done} steps are done; what comes after them is not, and follows")
        return training.finish(Outcome(state, done, "done"), {"train_seconds": 0.0, "compile_seconds": 0.0})


def _state(session: Session, store: Store, corpus: Corpus, say: Say) -> tuple[TrainState[Any], int]:
    """The newest good checkpoint, or a fresh state; and how many steps it has done. Raises ConfigError."""
    found = store.latest()
    for sentence in found.skipped:
        say(f"skipped: {sentence}")
    if found.step is None:
        return session.fresh(), 0
    facts = store.facts(found.step)
    if facts["data"] != corpus.digest:
        raise ConfigError(
            f"the data has changed since this run began (digest {facts['data'][:12]}, now {corpus.digest[:12]}): "
            "a resumed run would see other tokens. Take the old data back, or choose another --run-dir."
        )
    state, _ = session.restore(store, found.step)
    say(f"resuming {store.directory} after step {found.step}")
    return state, found.step


class _Training:
    """One pass through the loop, from a state to its last checkpoint, evaluation, sample and summary."""

    def __init__(
        self, setup: Setup, session: Session, corpus: Corpus, store: Store, stop: StopSignal, say: Say, again: str
    ):
        self.setup, self.session, self.corpus, self.store = setup, session, corpus, store
        self.stop, self.say, self.again = stop, say, again
        self.run_config, self.folder = setup.run, setup.folder
        self.leader = jax.process_index() == 0
        self.judge = Judge(session, corpus)

    def run(self, state: TrainState[Any], done: int) -> int:
        run, plan = self.run_config, self.setup.plan
        stream = self.corpus.split("train")
        loader = Loader(stream, run.train.batch, run.data.sequence, run.data.mode, run.seed)
        feed = self.session.feed(loader, plan.batch.accumulation, plan.batch.microbatch)
        step, compile_seconds = self._compile(feed[done])
        rows = f"{loader.rows_per_epoch:,} rows, {loader.steps_per_epoch:,.1f} steps per epoch"
        self.say(f"training data: {len(stream):,} tokens in {rows}")
        saving = self._saving()
        progress = Progress(done, run.train.steps) if self.leader else None
        writers = self._writers(done, progress)
        say = progress.say if progress else self.say
        evaluating = Evaluating(
            run.train.eval_every, lambda at, state: self._evaluate(at, state, run.train.eval_batches, say)
        )
        began = time.monotonic()
        try:
            outcome = run_loop(
                state,
                step=step,
                batches=feed.iterate(done, run.train.steps),
                start=done,
                steps=run.train.steps,
                tensors=list(named_leaves(self.session.abstract.model)),
                report=Meter(self._work(stream), run.train.log_every, run.train.steps, writers),
                hooks=(saving, evaluating),
                stop=self._asked,
            )
            seconds = time.monotonic() - began
            saved = saving.finally_save(outcome.step, outcome.state)
        except CheckpointError as error:
            say(f"stopped: {error}. Checkpoints saved before are intact. Resume: {self._resume()}")
            return STOPPED
        finally:
            for writer in (*writers, progress):
                if hasattr(writer, "close"):
                    writer.close()  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
        if outcome.reason != "done":
            return self._stopped(outcome, saved)
        return self.finish(outcome, {"train_seconds": seconds, "compile_seconds": compile_seconds})

    def _asked(self, step: int) -> int | None:
        """A signal to stop, if any process got one; several processes agree at each log line."""
        if jax.process_count() > 1 and step % self.run_config.train.log_every:
            return None
        return self.stop.agreed()

    def _compile(self, batch: Any) -> tuple[Any, float]:
        began = time.monotonic()
        compiled = self.session.compile_step(batch)
        seconds = time.monotonic() - began
        require_kernel(self.session.how.kernel, compiled.as_text() or "")
        analysis = compiled.memory_analysis()
        if analysis is not None:
            used = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
            predicted = self.setup.plan.predicted
            expected = predicted.memory_bytes - predicted.memory.get("runtime", 0.0) if predicted else 0.0
            beside = f" (predicted {expected / 2**20:,.0f} MiB, both without runtime libraries)" if predicted else ""
            self.say(f"step compiled in {seconds:.1f} s: {used / 2**20:,.0f} MiB per device by XLA{beside}")
        return compiled, seconds

    def _saving(self) -> Saving:
        run = self.run_config
        agree = first_decides if jax.process_count() > 1 else bool
        facts = {
            "config": hashlib.sha256(dump(run).encode()).hexdigest(),
            "plan": self.setup.plan.digest,
            "data": self.corpus.digest,
            "seed": run.seed,
        }
        return Saving(self.store, Schedule(run.checkpoint, agree=agree), facts, run.checkpoint.enabled)

    def _writers(self, done: int, progress: Progress | None) -> list[Any]:
        if progress is None:
            return []
        writers: list[Any] = [progress, JsonLines(self.folder.metrics, keep=done)]
        if self.run_config.train.tensorboard:
            writers.append(TensorBoard(self.folder.tensorboard, keep=done))
        return writers

    def _work(self, stream: Any) -> Work:
        workload, cluster = self.setup.workload, self.setup.cluster
        return Work(
            tokens=workload.tokens,
            flops_full=workload.step_flops(causal=False),
            flops_causal=workload.step_flops(causal=True),
            devices=cluster.count,
            peak=cluster.device.peak.get(self.session.how.dtype),
            bytes_per_token=stream.bytes / max(len(stream) - stream.documents, 1),
        )

    def _evaluate(self, step: int, state: TrainState[Any], batches: int, say: Say) -> dict[str, Any]:
        result = dataclasses.asdict(self.judge(state.model, batches))
        record = {"step": step, **result}
        if self.leader:
            writer = JsonLines(self.folder.evaluations, keep=step - 1)
            writer(record)
            writer.close()
        say(f"held-out at step {step}: {result['bits_per_byte']:.4f} bits per byte, loss {result['loss']:.4f}")
        return result

    def _stopped(self, outcome: Outcome, saved: bool) -> int:
        where = f"state after step {outcome.step} saved" if saved else "nothing saved: checkpoint.enabled is false"
        if outcome.reason == "signal":
            assert outcome.signal is not None
            self.say(f"stopped by signal {outcome.signal}; {where}. Resume: {self._resume()}")
            return 128 + outcome.signal
        named = ", ".join(outcome.tensors) or "the gradient norm"
        self.say(f"stopped: step {outcome.step + 1} is not finite in {named}; {where} (the last good one).")
        self.say(f"Look at its batch: {self.again} data show {self.folder.config} --step {outcome.step}")
        return STOPPED

    def _resume(self) -> str:
        job, quote = self.setup.job, shlex.quote
        several = (
            f" --coordinator {job.coordinator} --processes {job.processes} --process I" if job.processes > 1 else ""
        )
        config, path = quote(str(self.folder.config)), quote(str(self.folder.path))
        return f"{self.again} train {config} --run-dir {path}{several}"

    def finish(self, outcome: Outcome, seconds: dict[str, float]) -> int:
        run, folder, say = self.run_config, self.folder, self.say
        result = self._evaluate(outcome.step, outcome.state, 0, lambda text: None)
        gzip = gzip_bits_per_byte(self.corpus, self.judge.split) if self.leader else 0.0
        say(
            f"trained {outcome.step} steps in {seconds_as_text(seconds['train_seconds'])}\n"
            f"held-out text ({self.judge.split}, {result['bytes']:,} bytes): "
            f"{result['bits_per_byte']:.3f} bits per byte; gzip -9 of the same text: {gzip:.3f}"
        )
        if run.sample.prompt is not None:
            say(f"sample ({run.sample.tokens} tokens, temperature {run.sample.temperature}):")
            say(sample(outcome.state.model, self.corpus.tokenizer, run.sample))
        if self.leader:
            plan = self.setup.plan
            records = read_jsonl(folder.metrics)
            summary = {
                "name": run.name,
                "step": outcome.step,
                **result,
                "gzip_bits_per_byte": gzip,
                "split": self.judge.split,
                **seconds,
                "tokens_per_second": records[-1]["tokens_per_second"],
                "parameters": self.setup.workload.parameter_count,
                "plan": plan.summary(),
                "plan_digest": plan.digest,
                "devices": self.setup.cluster.describe(),
                "attention": self.session.how.kernel,
                "jax": jax.__version__,
                "date": time.strftime("%Y-%m-%d"),
            }
            write_json(folder.summary, summary)
            plot_runs([folder.path], folder.plot)
        path = shlex.quote(str(folder.path))
        say(
            f"run directory: {folder.path} (config.yaml plan.json metrics.jsonl summary.json loss.png checkpoints/)\n"
            f"  resume    {self._resume()} --train.steps {2 * run.train.steps}\n"
            f"  generate  {self.again} generate {path} --prompt {shlex.quote(run.sample.prompt or '')}\n"
            f"  evaluate  {self.again} eval {path}"
        )
        return DONE if self.stop.received is None else 128 + self.stop.received

"""The composition root of training: configuration, data, model, plan, mesh, loop and checkpoints meet here."""

import dataclasses
import hashlib
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import jax

from jaxlm.balancing import Balancer
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.processes import first_decides
from jaxlm.checkpoints.schedule import Schedule
from jaxlm.checkpoints.store import Store
from jaxlm.config import Run, schedule_change
from jaxlm.data.corpus import Corpus, gzip_bits_per_byte
from jaxlm.data.loader import Loader
from jaxlm.data.prepare import prepare
from jaxlm.data.progress import show_progress, silent
from jaxlm.decode import ConfigError, dump, encode
from jaxlm.evaluation import Judge, sample
from jaxlm.files import DiskFull, room, user_cache, write_whole
from jaxlm.finetune import begin, check_parent, starting
from jaxlm.folder import Folder, write_json
from jaxlm.measured import Recorder
from jaxlm.model.attention import require_kernel, say_kernel
from jaxlm.planned import choose_plan, predicted
from jaxlm.replan import Replanner, reshard
from jaxlm.runtime.distributed import start
from jaxlm.runtime.lock import run_lock
from jaxlm.runtime.peers import Peers
from jaxlm.session import Session, described_machine, expected_vocab, local_machine, numerics, resolve, workload_of
from jaxlm.setup import Options, Setup, resume_command
from jaxlm.trainer.hooks import Evaluating, Saving
from jaxlm.trainer.loop import Finished, Hook, Outcome
from jaxlm.trainer.loop import train as run_loop
from jaxlm.trainer.metrics import JsonLines, Meter, TensorBoard, Work, read_jsonl
from jaxlm.trainer.plot import plot_runs
from jaxlm.trainer.profile import Profiling
from jaxlm.trainer.progress import Progress, seconds_as_text
from jaxlm.trainer.state import TrainState
from jaxlm.trainer.stop import Asked, Interrupted, StopSignal, never
from jaxlm.trainer.tracking import WeightsAndBiases, require_tracking
from jaxlm.tree import named_leaves
from planners.explain import explain
from planners.learning.arms import program

Say = Callable[[str], None]

DONE, STOPPED = 0, 3
NOTHING_LOST = "no step was taken since the last checkpoint, so nothing is lost; start it again to go on"


def train(run: Run, directory: Path, options: Options = Options()) -> int:
    """Plans, trains, checkpoints, evaluates and samples; goes on by itself where this run directory left off.

    Returns the exit code: 0 done, 3 stopped with the last good state saved, 128+n after a signal and a save.
    """
    require_tracking(run.train.wandb)
    run.checkpoint.require()
    start(options.job, user_cache("xla") if run.train.compilation_cache else None)
    try:
        with Peers(options.job) as peers, StopSignal(peers.depart, NOTHING_LOST) as stop:
            return _begin(run, directory, options, stop)
    except Stopped as stopped:
        sentence = f"stopped: {stopped}. Checkpoints saved before are intact. {stopped.remedy}"
        with suppress(OSError):  # the log may lie on the same full disk
            print(sentence, file=sys.stderr, flush=True)
        return stopped.code


class Stopped(Exception):
    """The run cannot go on for want of something a person can give, such as room; `remedy` says what to do."""

    code = STOPPED

    def __init__(self, why: str, remedy: str):
        super().__init__(why)
        self.remedy = remedy


def _begin(run: Run, directory: Path, options: Options, stop: StopSignal) -> int:
    """Everything that is decided before data is read, then the run itself."""
    leader = jax.process_index() == 0
    say: Say = (lambda text: print(text, flush=True)) if leader else (lambda text: None)
    folder = Folder(directory)
    how = numerics(run.model, jax.default_backend())
    file = options.cluster_file
    cluster = local_machine() if file is None else described_machine(file)
    model = resolve(run, expected_vocab(run))
    workload = workload_of(run, model, how)
    before = folder.admit(run)
    if run.parent is not None and before is None:
        check_parent(run.parent, model)
    plan, origin = choose_plan(run, before, folder, options.plan_file, workload, cluster)
    say(f"model: {workload.parameter_count:,} parameters, {run.train.batch} x {run.data.sequence} tokens per step")
    kernel = say_kernel(how.kernel, packed=run.data.mode == "pack")
    say(f"attention: {kernel}, {how.dtype} compute on {how.platform}")
    say(f"plan ({origin}): {plan.summary()}")
    say(predicted(plan, cluster))
    if before is not None and (change := schedule_change(before, run)) is not None:
        say(change)
    setup = Setup(run, folder, how, cluster, plan, workload, options)
    try:
        with room(directory), ExitStack() as lock:
            if leader:
                folder.make()
                lock.enter_context(run_lock(directory))
            return _train(setup, stop, say)
    except DiskFull as error:
        raise Stopped(str(error), f"Make room, then resume: {resume_command(setup)}") from error


def _train(setup: Setup, stop: StopSignal, say: Say) -> int:
    run, folder, leader = setup.run, setup.folder, jax.process_index() == 0
    corpus = prepare(run.data, show_progress() if leader else silent)
    say("\n".join(corpus.report.lines()))
    session = Session(run, resolve(run, corpus.tokenizer.vocab), setup.how, setup.plan)
    with (
        jax.set_mesh(session.mesh),
        run.checkpoint.build(folder.checkpoints) as store,
    ):
        state, done = _state(session, store, corpus, folder, say)
        if leader:
            folder.write_config(run)
            write_json(folder.plan, setup.plan.to_json())
            write_whole(folder.explanation, (explain(setup.plan, setup.cluster) + "\n").encode())
            write_whole(folder.tokenizer, corpus.tokenizer.model)
        training = _Training(setup, session, corpus, store, stop, say)
        if done < run.train.steps:
            return training.run(state, done)
        if folder.finished() == done:
            say(f"{folder.path} is complete: {done} steps are done, {run.train.steps} asked for. Raise --train.steps.")
            return DONE
        say(f"all {done} steps are done; what comes after them is not, and follows")
        stop.kept = f"all {done} steps are done and saved. Resume: {resume_command(setup)}"
        return training.finish(Outcome(state, done, "done"), {"train_seconds": 0.0, "compile_seconds": 0.0})


def config_digest(run: Run) -> str:
    """Which configuration a checkpoint was saved under."""
    return hashlib.sha256(dump(run).encode()).hexdigest()


def _state(session: Session, store: Store, corpus: Corpus, folder: Folder, say: Say) -> tuple[TrainState[Any], int]:
    """The newest good checkpoint, or a fresh state; and how many steps it has done. Raises ConfigError."""
    found = store.latest()
    for sentence in found.skipped:
        say(f"skipped: {sentence}")
    if found.step is None:
        if lost := store.begun():
            raise CheckpointError(
                f"every checkpoint in {store.directory} is damaged (steps {', '.join(map(str, lost))}, see above): "
                "restore one from a backup, or begin again in another --run-dir"
            )
        if session.run.parent is None:
            return session.fresh(), 0
        say(starting(session.run, session.run.parent))
        return begin(session, session.run.parent), 0
    facts = store.facts(found.step)
    if not folder.config.exists() and facts["config"] != config_digest(session.run):
        raise ConfigError(
            f"checkpoint.path={session.run.checkpoint.path} holds step {found.step} of a run with another "
            f"configuration, and {folder.path} is new. Give exactly the configuration of that run, or another path"
        )
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

    def __init__(self, setup: Setup, session: Session, corpus: Corpus, store: Store, stop: StopSignal, say: Say):
        self.setup, self.session, self.corpus, self.store = setup, session, corpus, store
        self.stop, self.say, self.again = stop, say, setup.options.again
        self.run_config, self.folder = setup.run, setup.folder
        self.leader = jax.process_index() == 0
        self.judge = Judge(session, corpus)
        self.tracking: WeightsAndBiases | None = None
        self.recorder = Recorder(setup)
        self.balancer: Balancer | None = None

    def run(self, state: TrainState[Any], done: int) -> int:
        """Everything that is left to do of a run of which `done` steps are done; its exit code."""
        project = self.run_config.train.wandb
        with ExitStack() as self.meshes:
            if project is None or not self.leader:
                return self._run(state, done)
            name, directory, config = self.run_config.name, self.folder.path, encode(self.run_config)
            with closing(WeightsAndBiases(project, name, directory, config)) as self.tracking:
                return self._run(state, done)

    def _run(self, state: TrainState[Any], done: int) -> int:
        run = self.run_config
        loader = Loader(self.corpus.training(run.data), run.train.batch, run.data.sequence, run.data.mode, run.seed)
        saved_facts = self.store.facts(done) if done else {}
        self.balancer = self._balancer(saved_facts.get("shares"))
        feed = self._feed(loader)
        step, compile_seconds = self._compile(feed[done])
        self.say(loader.describe(run.train.steps))
        progress = Progress(done, run.train.steps) if self.leader else None
        writers = self._writers(done, progress)
        say = progress.say if progress else self.say
        evaluating = Evaluating(run.train.eval_every, lambda at, state: self._evaluate_between_steps(at, state, say))
        meter = Meter(self._work(loader), run.train.log_every, run.train.steps, writers)
        replanner = self._replanner(done, saved_facts.get("replan"), compile_seconds, say)

        def report(finished: Finished) -> None:
            self.recorder(finished)
            if self.balancer is not None:
                self.balancer.say = say
                finished = self.balancer.observe(finished)
            if replanner is not None:
                replanner.observe(finished)
            meter(finished)

        def moving() -> dict[str, Any]:
            shares = {} if self.balancer is None else {"shares": self.balancer.to_json()}
            return shares | (replanner.facts() if replanner is not None else {})

        saving = self._saving(meter.flush, moving)
        hooks: Sequence[Hook] = (saving, evaluating)
        programs = {program(self.setup.plan): (self.session, self.judge, step)}
        began = time.monotonic()
        try:
            with self.stop.deferred(), ExitStack() as last:
                for each in (step, progress, *writers, meter, replanner):
                    if hasattr(each, "close") and each is not self.tracking:
                        last.callback(each.close)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
                if self.setup.options.profile is not None and self.leader:
                    profiling = Profiling(self.setup.options.profile, self.folder.profile, say)
                    profiling.begin(done)
                    last.callback(profiling.close)
                    hooks = profiling.around(hooks)
                while True:
                    with closing(feed.iterate(done, run.train.steps)) as batches:
                        outcome = run_loop(
                            state,
                            step=step,
                            batches=batches,
                            start=done,
                            steps=run.train.steps,
                            tensors=list(named_leaves(self.session.abstract.model)),
                            report=report,
                            hooks=hooks,
                            stop=self._asked,
                            pause=replanner.pause if replanner is not None else lambda step: False,
                        )
                    if outcome.reason != "paused":
                        break
                    assert replanner is not None
                    state, done = outcome.state, outcome.step
                    if replanner.decide(done):
                        step, feed, state, seconds = self._change(replanner, programs, loader, state, done, last)
                        compile_seconds += seconds
                seconds = time.monotonic() - began
                saved = saving.finally_save(outcome.step, outcome.state)
                asked = self.stop.agreed() if outcome.signal is None else outcome.signal
                self.stop.kept = self._kept(outcome.step, saved)
        except CheckpointError as error:
            raise Stopped(str(error), f"Remove the cause, then resume: {self._resume()}") from error
        if asked is not None or outcome.reason != "done":
            return self._stopped(outcome, saved, asked)
        return self.finish(outcome, {"train_seconds": seconds, "compile_seconds": compile_seconds})

    def _replanner(self, done: int, saved: dict[str, Any] | None, compile_seconds: float, say: Say) -> Replanner | None:
        """What tries other plans, where the configuration asks for it."""
        if not self.run_config.train.replan.enabled or self.setup.cluster.count == 1:
            return None
        replanner = Replanner(self.setup, done, saved, say)
        replanner.conductor.compiled(compile_seconds)
        return replanner

    def _feed(self, loader: Loader) -> Any:
        batch = self.setup.plan.batch
        if self.balancer is None:
            return self.session.feed(loader, batch.accumulation, batch.microbatch)
        return self.session.shared_feed(loader, self.balancer.slots, self.balancer.sequences, self.balancer.now)

    def _change(
        self,
        replanner: Replanner,
        programs: dict[str, tuple[Session, Judge, Any]],
        loader: Loader,
        state: TrainState[Any],
        done: int,
        last: ExitStack,
    ) -> tuple[Any, Any, TrainState[Any], float]:
        """Goes over to the plan of `replanner`: its step, its batches, the state laid out for it, and the seconds of
        compiling. Where it does not fit, all that is as before."""
        before, arm = (self.setup, self.session, self.judge, self.balancer, self.recorder), replanner.before
        self.setup = dataclasses.replace(self.setup, plan=replanner.plan)
        self.recorder = Recorder(self.setup)  # what is compared is the plan that the run ends with
        name, seconds = program(replanner.plan), 0.0
        shares = None if self.balancer is None else self.balancer.to_json()
        known = programs.get(name)
        if known is None:
            session = Session(self.run_config, self.session.model, self.setup.how, self.setup.plan)
            with jax.set_mesh(session.mesh):
                self.session = session
                self.balancer = self._balancer(shares)
                step, seconds = self._compile(self._feed(loader)[done])
                analysis = step.memory_analysis()
                used = 0 if analysis is None else analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
                if replanner.refuse(used, arm):
                    self.setup, self.session, self.judge, self.balancer, self.recorder = before
                    name = program(self.setup.plan)
                    return programs[name][2], self._feed(loader), state, seconds
                programs[name] = known = (session, Judge(session, self.corpus), step)
            if hasattr(step, "close"):
                last.callback(step.close)
            replanner.conductor.compiled(seconds)
        self.session, self.judge, step = known
        self.meshes.enter_context(jax.set_mesh(self.session.mesh))
        self.balancer = self._balancer(shares)
        if self.session is not before[1]:
            state, moved = reshard(state, self.session)
            replanner.conductor.moved(moved)
        return step, self._feed(loader), state, seconds

    def _kept(self, step: int, saved: bool) -> str:
        where = f"state after step {step} saved" if saved else "nothing saved: checkpoint.enabled is false"
        return f"{where}. Resume: {self._resume()}"

    def _asked(self, step: int) -> int | None:
        """A signal to stop, if any process got one; several processes agree at each log line."""
        if jax.process_count() > 1 and step % self.run_config.train.log_every:
            return None
        return self.stop.agreed()

    def _compile(self, batch: Any) -> tuple[Any, float]:
        began = time.monotonic()
        balanced = self.setup.plan.batch.balance is not None
        compile_balanced = lambda batch: self.session.compile_balanced(batch, self.setup.options.pace)
        compiled = compile_balanced(batch) if balanced else self.session.compile_step(batch)
        seconds = time.monotonic() - began
        require_kernel(self.session.how.kernel, compiled.as_text() or "")
        analysis = compiled.memory_analysis()
        if analysis is not None:
            used = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
            new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
            if not balanced:  # a step of two programs teaches nothing about the memory of one
                self.recorder.compiled = {
                    "arguments": float(analysis.argument_size_in_bytes),
                    "temporaries": float(analysis.temp_size_in_bytes),
                    "outputs": float(new),
                }
            predicted = self.setup.plan.predicted
            expected = predicted.memory_bytes - predicted.memory.get("runtime", 0.0) if predicted else 0.0
            beside = f" (predicted {expected / 2**20:,.0f} MiB, both without runtime libraries)" if predicted else ""
            self.say(f"step compiled in {seconds:.1f} s: {used / 2**20:,.0f} MiB per device by XLA{beside}")
        return compiled, seconds

    def _balancer(self, saved: dict[str, Any] | None) -> Balancer | None:
        """What keeps the replicas' shares, where the plan has them unequal: as they were when the run was left."""
        plan = self.setup.plan
        if plan.batch.balance is None:
            return None
        return Balancer(plan, self.run_config.data.sequence, saved)

    def _saving(self, report: Callable[[], None], moving: Callable[[], dict[str, Any]]) -> Saving:
        run = self.run_config
        agree = first_decides if jax.process_count() > 1 else bool
        facts = {
            "config": config_digest(run),
            "plan": self.setup.plan.digest,
            "data": self.corpus.digest,
            "seed": run.seed,
            "parent": encode(run.parent),
        }
        return Saving(self.store, Schedule(run.checkpoint, agree=agree), facts, run.checkpoint.enabled, report, moving)

    def _writers(self, done: int, progress: Progress | None) -> list[Any]:
        if progress is None:
            return []
        writers: list[Any] = [progress, JsonLines(self.folder.metrics, keep=done)]
        if self.run_config.train.tensorboard:
            writers.append(TensorBoard(self.folder.tensorboard, keep=done))
        if self.tracking is not None:
            writers.append(self.tracking)
        return writers

    def _work(self, loader: Loader) -> Work:
        workload, cluster = self.setup.workload, self.setup.cluster
        return Work(
            tokens=workload.tokens,
            flops_full=workload.step_flops(causal=False),
            flops_causal=workload.step_flops(causal=True),
            devices=cluster.count,
            peak=cluster.device.peak.get(self.session.how.dtype),
            bytes_per_token=loader.bytes_per_token,
        )

    def _evaluate(
        self,
        step: int,
        state: TrainState[Any],
        batches: int,
        say: Say,
        *,
        predictions: bool = False,
        asked: Asked = never,
    ) -> dict[str, Any]:
        result = self.judge(state.model, batches, predictions=predictions, asked=asked).facts()
        record = {"step": step, **result}
        if self.leader:
            writer = JsonLines(self.folder.evaluations, keep=step - 1)
            writer(record)
            writer.close()
        if self.tracking is not None:
            self.tracking.evaluated(record)
        say(f"held-out at step {step}: {result['bits_per_byte']:.4f} bits per byte, loss {result['loss']:.4f}")
        return result

    def _evaluate_between_steps(self, step: int, state: TrainState[Any], say: Say) -> None:
        """Raises Interrupted after a signal; all processes give up before the same batch."""
        try:
            self._evaluate(step, state, self.run_config.train.eval_batches, say, asked=self.stop.agreed)
        except Interrupted:
            say(f"the evaluation at step {step} is given up")
            raise

    def _stopped(self, outcome: Outcome, saved: bool, asked: int | None) -> int:
        self._compare(learning=False)
        if outcome.reason != "nonfinite":
            assert asked is not None
            self.say(f"stopped by signal {asked}; {self.stop.kept}")
            return 128 + asked
        where = f"state after step {outcome.step} saved" if saved else "nothing saved: checkpoint.enabled is false"
        named = ", ".join(outcome.tensors) or "the gradient norm"
        self.say(f"stopped: step {outcome.step + 1} is not finite in {named}; {where} (the last good one).")
        self.say(f"Look at its batch: {self.again} data show {self.folder.config} --step {outcome.step}")
        return STOPPED

    def _compare(self, *, learning: bool = True) -> dict[str, Any]:
        """Leaves predicted beside measured in the run directory and in the ledger. A run that was told to stop has no
        time for learning."""
        if not self.leader:
            return {}
        facts, said = self.recorder.finish(learning=learning)
        if said:
            self.say(said)
        return facts

    def _resume(self) -> str:
        return resume_command(self.setup)

    def finish(self, outcome: Outcome, seconds: dict[str, float]) -> int:
        run, folder, say = self.run_config, self.folder, self.say
        compared = self._compare()
        result = self._evaluate(outcome.step, outcome.state, 0, lambda text: None, predictions=True)
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
                "predicted_vs_measured": compared,
                "devices": self.setup.cluster.describe(),
                "attention": self.session.how.kernel,
                "jax": jax.__version__,
                "date": time.strftime("%Y-%m-%d"),
            }
            write_json(folder.summary, summary)
            with room(folder.plot):
                plot_runs([folder.path], folder.plot)
        path = shlex.quote(str(folder.path))
        say(
            f"run directory: {folder.path} (config.yaml plan.json metrics.jsonl summary.json loss.png checkpoints/)\n"
            f"  resume    {self._resume()} --train.steps {2 * run.train.steps}\n"
            f"  generate  {self.again} generate {path} --prompt {shlex.quote(run.sample.prompt or '')}\n"
            f"  evaluate  {self.again} eval {path}"
        )
        return DONE

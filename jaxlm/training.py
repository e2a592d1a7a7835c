"""One pass through the training loop: what is done after each step, at its end, and when it is told to stop."""

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import jax
import numpy as np

from jaxlm.auditing import Auditing, Unaudited
from jaxlm.changing import Changes, Chooser
from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.processes import first_decides
from jaxlm.checkpoints.schedule import Schedule
from jaxlm.checkpoints.store import Store
from jaxlm.collectives.replicas import Diverged, require_identical
from jaxlm.data.corpus import Corpus, gzip_bits_per_byte
from jaxlm.data.labelled.corpus import LabelledCorpus
from jaxlm.debiasing import Debiasing
from jaxlm.decode import encode
from jaxlm.evaluation import sample
from jaxlm.fairness.text import CELLS, Gaps
from jaxlm.feedback import Feedback
from jaxlm.files import room
from jaxlm.folder import write_json
from jaxlm.governance.errors import GovernanceError
from jaxlm.policing import Policing, Unpoliced
from jaxlm.replan import Replanner
from jaxlm.running import Running
from jaxlm.runtime.monitor import Monitor
from jaxlm.setup import resume_command
from jaxlm.state import config_digest
from jaxlm.syncing import fallen_back
from jaxlm.task import AnyCorpus, AnyLoader, loader_of
from jaxlm.trainer.hooks import Every, Saving
from jaxlm.trainer.loop import Finished, Hook, Outcome
from jaxlm.trainer.loop import train as run_loop
from jaxlm.trainer.metrics import JsonLines, Meter, TensorBoard, Work, read_jsonl
from jaxlm.trainer.plot import plot_runs
from jaxlm.trainer.profile import Profiling
from jaxlm.trainer.progress import Progress, seconds_as_text
from jaxlm.trainer.state import TrainState
from jaxlm.trainer.stop import Asked, Interrupted, StopSignal, never
from jaxlm.trainer.tracking import WeightsAndBiases
from jaxlm.tree import named_leaves
from jaxlm.watching import Fallback, note, react
from jaxlm.wire import wire_of

Say = Callable[[str], None]

DONE, STOPPED, HALTED = 0, 3, 4


def with_gaps(finished: Finished, gaps: Gaps) -> Finished:
    """A finished step whose cells of groups and labels have become the gaps up to there."""
    vectors = dict(finished.vectors)
    found = gaps(np.asarray(vectors.pop(CELLS)) * finished.scalars["weight"])  # a step reports means per weight
    return dataclasses.replace(finished, scalars={**finished.scalars, **found}, vectors=vectors)


class Stopped(Exception):
    """The run cannot go on for want of something a person can give, such as room; `remedy` says what to do."""

    def __init__(self, why: str, remedy: str, code: int = STOPPED):
        super().__init__(why)
        self.remedy, self.code = remedy, code


class Training:
    """One pass through the loop, from a state to its last checkpoint, evaluation, sample and summary.

    `now`: what runs under the plan that is followed at the moment.
    """

    def __init__(
        self,
        now: Running,
        corpus: AnyCorpus,
        store: Store,
        audit: Auditing | Unaudited,
        policing: Policing | Unpoliced,
        stop: StopSignal,
        say: Say,
        monitor: Monitor,
    ):
        self.now, self.corpus, self.store, self.monitor = now, corpus, store, monitor
        self.audit, self.policing = audit, policing
        self.stop, self.say, self.again = stop, say, now.setup.options.again
        self.run_config, self.folder = now.setup.run, now.setup.folder
        self.leader = jax.process_index() == 0
        self.tracking: WeightsAndBiases | None = None
        self.debiasing: Debiasing | None = None

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
        loader = loader_of(run, self.corpus)
        self.monitor.steps_per_epoch = loader.steps_per_epoch
        feed = self.now.feed(loader)
        with self.monitor.phase("compiles"):
            compile_seconds = self.now.compile(feed[done], self.say)
        self.say(loader.describe(run.train.steps))
        progress = Progress(done, run.train.steps) if self.leader else None
        writers = self._writers(done, progress)
        say = progress.say if progress else self.say
        evaluating = Every(run.train.eval_every, lambda at, state: self._evaluate_between_steps(at, state, say))
        wire = wire_of(self.now.session.sync)
        if (travel := wire.sentence()) is not None:
            say(travel)
        meter = Meter(self._work(loader), run.train.log_every, run.train.steps, writers, wire)
        chooser = self._chooser(done, compile_seconds, say)
        changes = None if chooser is None else Changes(chooser, self.now, self.corpus, loader, self.meshes, say)

        gaps = None if run.fairness is None else Gaps(run.fairness)
        fallback = Fallback(say, known=fallen_back(state.sync))

        def report(finished: Finished) -> None:
            if gaps is not None:
                finished = with_gaps(finished, gaps)
            note(self.monitor, finished)
            fallback(finished)
            self.audit.observe(finished)
            self.policing.observe(finished)
            self.now.recorder(finished)
            if self.now.balancer is not None:
                self.now.balancer.say = say
                finished = self.now.balancer.observe(finished)
            if chooser is not None:
                chooser.observe(finished)
            meter(finished)

        def moving() -> dict[str, Any]:
            shares = self.now.shares()
            facts = {} if shares is None else {"shares": shares}
            facts |= {} if self.debiasing is None else {"debiasing": self.debiasing.facts()}
            return facts | (chooser.facts() if chooser is not None else {})

        self.debiasing = self._debiasing(done, say)
        saving = self._saving(meter.flush, moving)
        checking = Every(run.train.check_replicas, self._check_replicas)
        self.policing.say, self.policing.save = say, saving.finally_save
        # Before the saving: weights that have lost their task are not saved.
        watching = () if self.debiasing is None else (self.debiasing,)
        hooks: Sequence[Hook] = self.monitor.around((self.policing, checking, *watching, saving, evaluating))
        began = time.monotonic()
        wire.restart()
        try:
            with self.stop.deferred(), ExitStack() as last:
                for each in (changes or self.now, progress, *writers, meter, chooser):
                    if hasattr(each, "close") and each is not self.tracking:
                        last.callback(each.close)  # pyright: ignore[reportAttributeAccessIssue, reportOptionalMemberAccess]
                if self.now.setup.options.profile is not None and self.leader:
                    profiling = Profiling(self.now.setup.options.profile, self.folder.profile, say)
                    profiling.begin(done)
                    last.callback(profiling.close)
                    hooks = profiling.around(hooks)
                while True:
                    if self.debiasing is not None and self.debiasing.settled:
                        outcome = Outcome(state, done, "done", why="it was done before")
                        break
                    with closing(feed.iterate(done, run.train.steps)) as batches:
                        outcome = run_loop(
                            state,
                            step=self.now.step,
                            batches=self.monitor.batches(batches, done),
                            start=done,
                            steps=run.train.steps,
                            tensors=list(named_leaves(self.now.session.abstract.model)),
                            report=report,
                            hooks=hooks,
                            stop=lambda step: self._asked(step, chooser),
                            pause=chooser.pause if chooser is not None else lambda step: False,
                        )
                    if outcome.reason != "paused":
                        outcome = self.policing.last(outcome)
                        break
                    assert changes is not None
                    state, done = outcome.state, outcome.step
                    if changes.chooser.decide(done):
                        with self.monitor.phase("changes the plan"):
                            self.now, state, seconds = changes.follow(self.now, state, done)
                        self.audit.adopted(done, self.now.setup.plan)
                        feed = self.now.feed(loader)
                        compile_seconds += seconds
                seconds = time.monotonic() - began
                saved = saving.finally_save(outcome.step, outcome.state)
                asked = self.stop.agreed() if outcome.signal is None else outcome.signal
                self.stop.kept = self._kept(outcome.step, saved)
        except (CheckpointError, GovernanceError) as error:
            raise Stopped(str(error), f"Remove the cause, then resume: {self._resume()}") from error
        if asked is not None or outcome.reason != "done":
            return self._stopped(outcome, saved, asked)
        return self.finish(outcome, {"train_seconds": seconds, "compile_seconds": compile_seconds})

    def _debiasing(self, done: int, say: Say) -> Debiasing | None:
        """What watches a run that debiases."""
        how = self.run_config.fairness
        if how is None or not isinstance(self.corpus, LabelledCorpus):
            return None

        def record(found: dict[str, Any]) -> None:
            if self.leader:
                with closing(JsonLines(self.folder.checks, keep=found["step"] - 1)) as writer:
                    writer(found)

        saved = self.store.facts(done).get("debiasing") if done else None
        return Debiasing(self.now.session, self.corpus, how, saved, record, say)

    def _chooser(self, done: int, compile_seconds: float, say: Say) -> Chooser | None:
        """What goes over to other plans while the run trains, where the configuration asks for it."""
        if self.run_config.plan.remat_feedback.every:
            saved = self.store.facts(done).get("remat_feedback") if done else None
            memory = self.now.memory()
            used = None if memory is None else memory.used
            return Feedback(self.now.setup, done, saved, used, compile_seconds, say)
        if not self.run_config.train.replan.enabled or self.now.setup.cluster.count == 1:
            return None
        saved = self.store.facts(done).get("replan") if done else None
        replanner = Replanner(self.now.setup, done, saved, say)
        replanner.compiled(compile_seconds)
        return replanner

    def _check_replicas(self, step: int, state: TrainState[Any]) -> None:
        """Raises Stopped where replicas have drifted apart."""
        if self.now.setup.plan.groups == 1:
            return
        try:
            require_identical(state.model, self.now.session.mesh, step)
        except Diverged as error:
            raise Stopped(str(error), f"Resume: {self._resume()}") from error

    def _kept(self, step: int, saved: bool) -> str:
        where = f"state after step {step} saved" if saved else "nothing saved: checkpoint.enabled is false"
        return f"{where}. Resume: {self._resume()}"

    def _asked(self, step: int, chooser: Chooser | None) -> int | None:
        """A signal to stop, if any process got one; several processes agree at each log line."""
        if jax.process_count() > 1 and step % self.run_config.train.log_every:
            return None
        react(self.monitor, self.now.balancer, chooser)
        return self.stop.agreed()

    def _saving(self, report: Callable[[], None], moving: Callable[[], dict[str, Any]]) -> Saving:
        run = self.run_config
        agree = first_decides if jax.process_count() > 1 else bool
        facts = {
            "config": config_digest(run),
            "plan": self.now.setup.plan.digest,
            "data": self.corpus.digest,
            "seed": run.seed,
            "parent": encode(run.parent),
        }
        return Saving(self.store, Schedule(run.checkpoint, agree=agree), facts, run.checkpoint.enabled, report, moving)

    def _writers(self, done: int, progress: Progress | None) -> list[Any]:
        if progress is None:
            return []
        writers: list[Any] = [self.monitor.complete, progress, JsonLines(self.folder.metrics, keep=done)]
        if self.run_config.train.tensorboard:
            writers.append(TensorBoard(self.folder.tensorboard, keep=done))
        if self.tracking is not None:
            writers.append(self.tracking)
        return writers

    def _work(self, loader: AnyLoader) -> Work:
        workload, cluster = self.now.setup.workload, self.now.setup.cluster
        return Work(
            tokens=workload.tokens,
            flops_full=workload.step_flops(causal=False),
            flops_causal=workload.step_flops(causal=True),
            devices=cluster.count,
            peak=cluster.device.peak.get(self.now.session.how.dtype),
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
        result = self.now.judge(state.model, batches, predictions=predictions, asked=asked).facts()
        record = {"step": step, **result}
        if self.leader:
            writer = JsonLines(self.folder.evaluations, keep=step - 1)
            writer(record)
            writer.close()
        self.audit.evaluated(record)
        self.policing.evaluated(record)
        if self.tracking is not None:
            self.tracking.evaluated(record)
        say(f"held-out at step {step}: {self.now.judge.sentence(result)}")
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
        if outcome.reason == "halted":
            where = f"state after step {outcome.step} saved and verified" if saved else "nothing saved"
            by = "halted" if outcome.restored else "halted by its policy"
            self.say(f"{by} ({outcome.why}); {where}. Resume: {self._resume()}")
            return HALTED
        if outcome.reason == "budget":
            where = f"state after step {outcome.step} saved" if saved else "nothing saved: checkpoint.enabled is false"
            self.say(f"stopped: {outcome.why}; {where}. Nothing more can be learned from these documents within it.")
            return STOPPED
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
        facts, said = self.now.recorder.finish(learning=learning)
        if said:
            self.say(said)
        return facts

    def _resume(self) -> str:
        return resume_command(self.now.setup)

    def finish(self, outcome: Outcome, seconds: dict[str, float]) -> int:
        run, folder, say = self.run_config, self.folder, self.say
        compared = self._compare()
        result = self._evaluate(outcome.step, outcome.state, 0, lambda text: None, predictions=True)
        trained = f"trained {outcome.step} steps in {seconds_as_text(seconds['train_seconds'])}"
        corpus = self.corpus
        if isinstance(corpus, Corpus):
            gzip = gzip_bits_per_byte(corpus, self.now.judge.split) if self.leader else 0.0
            say(
                f"{trained}\nheld-out text ({self.now.judge.split}, {result['bytes']:,} bytes): "
                f"{result['bits_per_byte']:.3f} bits per byte; gzip -9 of the same text: {gzip:.3f}"
            )
            result["gzip_bits_per_byte"] = gzip
            if run.sample.prompt is not None:
                say(f"sample ({run.sample.tokens} tokens, temperature {run.sample.temperature}):")
                pairs = run.data.parallel is not None
                say(sample(outcome.state.model, corpus.tokenizer, run.sample, pairs=pairs))
        else:
            if self.debiasing is not None and self.debiasing.how.probe:
                result |= self.debiasing.concluded(outcome.state.model)
                linear, mlp = result["probe_linear"], result["probe_mlp"]
                say(f"fresh probes on held-out rows: AUC {linear:.3f} linear, {mlp:.3f} MLP")
            if outcome.why:
                say(f"ended after step {outcome.step}: {outcome.why}")
            rows = f"{result['rows']:,} rows"
            say(f"{trained}\nheld-out {self.now.judge.split} ({rows}): {self.now.judge.sentence(result)}")
        if self.leader:
            plan = self.now.setup.plan
            records = read_jsonl(folder.metrics)
            summary = {
                "name": run.name,
                "step": outcome.step,
                **result,
                "split": self.now.judge.split,
                **seconds,
                **self.monitor.summary(),
                "tokens_per_second": records[-1]["tokens_per_second"],
                "parameters": self.now.setup.workload.parameter_count,
                "plan": plan.summary(),
                "plan_digest": plan.digest,
                "predicted_vs_measured": compared,
                "devices": self.now.setup.cluster.describe(),
                "attention": self.now.session.how.kernel,
                "jax": jax.__version__,
                "date": time.strftime("%Y-%m-%d"),
            }
            write_json(folder.summary, summary)
            with room(folder.plot):
                plot_runs([folder.path], folder.plot, unit="loss" if run.classify else "bits_per_byte")
        path, prompt = shlex.quote(str(folder.path)), shlex.quote(run.sample.prompt or "")
        say(
            f"run directory: {folder.path} (config.yaml plan.json metrics.jsonl summary.json loss.png checkpoints/ "
            "audit/)\n"
            f"  resume    {self._resume()} --train.steps {2 * run.train.steps}\n"
            + ("" if run.classify else f"  generate  {self.again} generate {path} --prompt {prompt}\n")
            + f"  evaluate  {self.again} eval {path}"
        )
        if (why := self.policing.concluded(outcome.step, lambda: read_jsonl(folder.metrics)[-1])) is not None:
            say(f"all steps are done, and the policy of this run does not agree with what came of it ({why})")
            return HALTED
        return DONE

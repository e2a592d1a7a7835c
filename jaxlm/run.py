"""The composition root of training: configuration, data, model, plan, mesh, loop and checkpoints meet here."""

import dataclasses
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

import jax

from jaxlm.auditing import Auditing, Unaudited, auditing
from jaxlm.config import Run, schedule_change
from jaxlm.data.corpus import Corpus
from jaxlm.data.progress import show_progress, silent
from jaxlm.data.sources import TRAIN
from jaxlm.files import DiskFull, room, user_cache, write_whole
from jaxlm.finetune import check_parent
from jaxlm.folder import Folder, write_json
from jaxlm.governance.policy import load as load_policy
from jaxlm.model.attention import say_kernel
from jaxlm.planned import beside, choose_plan, predicted
from jaxlm.policing import Policing, Unpoliced
from jaxlm.running import running
from jaxlm.runtime.distributed import start
from jaxlm.runtime.lock import run_lock
from jaxlm.runtime.monitor import Monitor
from jaxlm.runtime.peers import Peers
from jaxlm.session import Session, described_machine, expected_vocab, local_machine, numerics, resolve, workload_of
from jaxlm.setup import Options, Setup, resume_command
from jaxlm.spending import Spending, hidden
from jaxlm.state import first_state
from jaxlm.syncing import asked, describe, held_bytes
from jaxlm.task import corpus_of
from jaxlm.trainer.loop import Halted, Outcome
from jaxlm.trainer.stop import StopSignal
from jaxlm.trainer.tracking import require_tracking
from jaxlm.training import DONE, HALTED, Say, Stopped, Training
from jaxlm.tree import named_leaves
from jaxlm.watching import monitor_of
from planners.explain import explain

NOTHING_LOST = "no step was taken since the last checkpoint, so nothing is lost; start it again to go on"


def train(run: Run, directory: Path, options: Options = Options()) -> int:
    """Plans, trains, checkpoints, evaluates and samples; goes on by itself where this run directory left off.

    Returns the exit code: 0 done, 3 stopped with the last good state saved, 4 halted by its policy,
    128+n after a signal and a save.
    """
    require_tracking(run.train.wandb)
    run.checkpoint.require()
    job = start(options.job, user_cache("xla") if run.train.compilation_cache else None)
    options = dataclasses.replace(options, job=job)
    try:
        with Peers(options.job) as peers, StopSignal(peers.depart, NOTHING_LOST) as stop:
            return _begin(run, directory, options, stop)
    except Stopped as stopped:
        sentence = f"stopped: {stopped}. Checkpoints saved before are intact. {stopped.remedy}"
        with suppress(OSError):  # the log may lie on the same full disk
            print(sentence, file=sys.stderr, flush=True)
        return stopped.code


def _begin(run: Run, directory: Path, options: Options, stop: StopSignal) -> int:
    """Everything that is decided before data is read, then the run itself."""
    leader = jax.process_index() == 0
    say: Say = (lambda text: print(text, flush=True)) if leader else (lambda text: None)
    folder = Folder(directory)
    if leader and run.governance.policy is not None:
        load_policy(Path(run.governance.policy))
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
    kernel = say_kernel(how.kernel, packed=run.apart)
    say(f"attention: {kernel}, {how.dtype} compute on {how.platform}")
    asked(run, plan)
    say(f"plan ({origin}): {plan.summary()}")
    say(predicted(plan, cluster))
    if (warning := plan.assumptions.get("warning")) is not None:
        say(f"warning: {warning}")
    if before is not None and (change := schedule_change(before, run)) is not None:
        say(change)
    setup = Setup(run, folder, how, cluster, plan, workload, options)
    try:
        with room(directory), ExitStack() as lock:
            if leader:
                folder.make()
                lock.enter_context(run_lock(directory))
            return _train(setup, stop, say, lock.enter_context(monitor_of(setup, say)))
    except Halted as halted:
        raise Stopped(f"its policy lets it not go on ({halted})", f"Resume: {resume_command(setup)}", HALTED) from None
    except DiskFull as error:
        raise Stopped(str(error), f"Make room, then resume: {resume_command(setup)}") from error


def _train(setup: Setup, stop: StopSignal, say: Say, monitor: Monitor) -> int:
    run, folder, leader = setup.run, setup.folder, jax.process_index() == 0
    with monitor.phase("prepares data"):
        corpus = corpus_of(run, show_progress() if leader else silent)
    say("\n".join(corpus.report.lines()))
    session = Session(run, resolve(run, corpus.tokenizer.vocab), setup.how, setup.plan)
    with (
        jax.set_mesh(session.mesh),
        auditing(setup, say) as audit,
        _policing(setup, audit, stop, say, monitor) as police,
        run.checkpoint.build(folder.checkpoints, audit.notary) as store,
    ):
        if run.privacy.enabled:
            corpus.digest = hidden(audit, corpus.digest)
        if extra := held_bytes(session.sync, session.abstract.sync):
            say(beside(setup.plan, setup.cluster, extra, run.plan.fraction(setup.cluster.device.memory)))
        state, done = first_state(session, store, corpus, folder, say, lambda found: audit.check(found, store))
        monitor.accept()
        audit.started(corpus.digest, done, list(named_leaves(session.abstract.model)))
        audit.restored(store, done)
        police.started(done, list(named_leaves(session.abstract.model)), store)
        if (travel := describe(session.sync)) is not None:
            say(travel)
        if leader:
            folder.write_config(run)
            write_json(folder.plan, setup.plan.to_json())
            write_whole(folder.explanation, (explain(setup.plan, setup.cluster) + "\n").encode())
            write_whole(folder.tokenizer, corpus.tokenizer.model)
        shares = store.facts(done).get("shares") if done else None
        # Before anything of the protected documents is read: what there is to spend, and what a step costs.
        spending = None
        if run.privacy.enabled and isinstance(corpus, Corpus):
            spending = Spending(run, folder, corpus.split(TRAIN).documents, audit, say)
        if spending is not None and isinstance(police, Policing):
            police.sources["dp"] = spending.facts
        now = running(setup, session, corpus, shares, spending)
        training = Training(now, corpus, store, audit, police, stop, say, monitor)
        if done < run.train.steps:
            return training.run(state, done)
        if folder.finished() == done:
            say(f"{folder.path} is complete: {done} steps are done, {run.train.steps} asked for. Raise --train.steps.")
            return DONE
        say(f"all {done} steps are done; what comes after them is not, and follows")
        stop.kept = f"all {done} steps are done and saved. Resume: {resume_command(setup)}"
        return training.finish(Outcome(state, done, "done"), {"train_seconds": 0.0, "compile_seconds": 0.0})


def _policing(
    setup: Setup, audit: Auditing | Unaudited, stop: StopSignal, say: Say, monitor: Monitor
) -> Policing | Unpoliced:
    if not isinstance(audit, Auditing):
        return Unpoliced(setup.folder, say)
    assert audit.trail is not None
    return Policing(setup, audit.trail, audit.log_facts, lambda: stop.received, say, monitor.phase)

"""Commands that look at a configuration or a finished run and train nothing."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Store
from jaxlm.classification import ClassifierJudge, Predictor, classification_table
from jaxlm.compiled import Compiler, Ticking, target_of
from jaxlm.config import Run, Sample
from jaxlm.consulting import consult
from jaxlm.data.config import DataError
from jaxlm.data.corpus import Corpus, gzip_bits_per_byte
from jaxlm.data.labelled.corpus import CLASSES, LabelledCorpus, prepare_labelled
from jaxlm.data.labelled.loader import LabelledLoader
from jaxlm.data.labelled.vocabulary import Vocabulary
from jaxlm.data.prepare import prepare, prepare_text
from jaxlm.data.progress import show_progress
from jaxlm.data.show import show
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.decode import ConfigError
from jaxlm.evaluation import Judge, continuation, evaluation_table
from jaxlm.files import user_cache
from jaxlm.folder import Folder, open_run
from jaxlm.ledger import constants, memory_for, memory_path
from jaxlm.model.generate import plain
from jaxlm.model.latency import latency
from jaxlm.privacy.mechanisms import mechanism
from jaxlm.reading import accessed, inferred, newest_to_read, reader
from jaxlm.runtime.aot import CHIPS, chip_name
from jaxlm.runtime.distributed import Job, start
from jaxlm.session import (
    Numerics,
    Session,
    expected_vocab,
    inference_plan,
    local_machine,
    numerics,
    resolve,
    workload_of,
)
from jaxlm.task import attributes_of, corpus_of, loader_of, tokenizer_at
from planners.machines.cluster_file import load_cluster
from planners.machines.topology import Cluster
from planners.plan import Plan, Workload
from planners.search import shortlist
from planners.space.remat_strategies import Strategy, remat_strategies, verified_strategies
from planners.verify import Checked, learn_memory, verify


def described(run: Run, cluster_name: str | None) -> tuple[Workload, Cluster]:
    """What a run asks of this machine, or of a cluster by preset name or file."""
    cluster = load_cluster(cluster_name) if cluster_name else local_machine()
    return _workload(run, cluster, here=cluster_name is None), cluster


def verify_plan(
    run: Run, cluster_name: str | None, *, top: int, seconds: float
) -> tuple[Plan, Cluster, tuple[Checked, ...]]:
    """The best of the `top` plans after XLA has compiled them for the cluster, and how each of them fared.

    `seconds` is what one compilation may take. Raises PlanError where nothing fits, CompileError where nothing
    compiles.
    """
    cluster = load_cluster(cluster_name) if cluster_name else local_machine()
    workload = _workload(run, cluster, here=cluster_name is None)
    (assumptions, learnt), progress = constants(cluster, workload, run.plan), Ticking()
    compile = Compiler(run, expected_vocab(run), target_of(cluster), seconds=seconds, progress=progress)
    compile.require()

    def best(share: float, count: int) -> tuple[Plan, ...]:
        search = dataclasses.replace(run.plan, memory_fraction=share, memory_budget=None)
        return shortlist(workload, cluster, search, count, assumptions)

    with closing(progress):
        plan, checked = verify(
            best,
            compile,
            cluster,
            fraction=run.plan.fraction(cluster.device.memory),
            top=top,
            assumptions=assumptions,
            say=progress.say,
        )
    if target_of(cluster).platform == "gpu":
        remember_memory(cluster, workload, checked)
    return dataclasses.replace(plan, assumptions={"calibration": learnt, **plan.assumptions}), cluster, checked


def verify_remat(run: Run, cluster_name: str | None, plan: Plan, *, seconds: float) -> list[Strategy]:
    """What each strategy would rematerialise in place of a plan, predicted and compiled for the cluster; nothing where
    the blocks are unknown. `seconds` is what one compilation may take."""
    cluster = load_cluster(cluster_name) if cluster_name else local_machine()
    workload = _workload(run, cluster, here=cluster_name is None)
    assumptions, progress = constants(cluster, workload, run.plan)[0], Ticking()
    compile = Compiler(run, expected_vocab(run), target_of(cluster), seconds=seconds, progress=progress)
    with closing(progress):
        strategies = remat_strategies(plan, workload, cluster, run.plan, assumptions)
        return verified_strategies(strategies, plan, compile, cluster, run.plan, progress.say)


def remember_memory(cluster: Cluster, workload: Workload, checked: Sequence[Checked]) -> None:
    """Keeps what the compiled plans teach about the memory of this model's other plans."""
    found = learn_memory(checked, workload, version("jaxlib"), memory_for(cluster, workload))
    if found is not None:
        path = memory_path(workload, cluster.device.kind)
        path.parent.mkdir(parents=True, exist_ok=True)
        found.save(path)


def _workload(run: Run, cluster: Cluster, *, here: bool) -> Workload:
    how = local_numerics(run) if here else numerics_of(run, cluster)
    return workload_of(run, resolve(run, expected_vocab(run)), how)


def local_numerics(run: Run) -> Numerics:
    """Dtype and kernel on this machine."""
    return numerics(run.model, "cpu" if jax.default_backend() == "cpu" else "gpu")


def numerics_of(run: Run, cluster: Cluster) -> Numerics:
    """Dtype and kernel on the devices of a cluster that is not here."""
    if cluster.device.kind == "cpu":
        return numerics(run.model, "cpu", elsewhere=True)
    names = [name for pool in cluster.parts if (name := chip_name(pool.device.kind))]
    return numerics(
        run.model, "gpu", elsewhere=True, capability=min((CHIPS[name].capability for name in names), default=None)
    )


def prepare_data(run: Run) -> tuple[str, dict[str, Any]]:
    corpus = corpus_of(run, show_progress())
    loader = loader_of(run, corpus)
    text = "\n".join([*corpus.report.lines(), loader.describe(run.train.steps)])
    known: dict[str, Any] = {"digest": corpus.digest, "vocab": corpus.tokenizer.vocab}
    if isinstance(loader, LabelledLoader) or not isinstance(corpus, Corpus):
        return text, known | {"splits": {name: len(split) for name, split in corpus.splits.items()}}
    splits = {name: corpus.split(name) for name in corpus.splits}
    facts = {name: {"tokens": len(s), "documents": s.documents, "bytes": s.bytes} for name, s in splits.items()}
    known |= {"splits": facts}
    return text, known | ({"mixture": loader.facts(run.train.steps)} if loader.mixed else {})


def show_data(run: Run, step: int) -> str:
    """What the model sees at step `step`. Raises ConfigError where only the run itself may know."""
    if run.privacy.enabled:
        raise ConfigError(
            "privacy.enabled: who is in the sample of a step is a secret that its noise relies on, written nowhere"
        )
    corpus = corpus_of(run, show_progress())
    loader = loader_of(run, corpus)
    if isinstance(loader, LabelledLoader) or not isinstance(corpus, Corpus):
        raise ConfigError("data show prints rows of text that is learned; labelled rows are not printed")
    return show(corpus, loader, step)


def _same(text: str, other: str) -> bool:
    return text == other or Path(text).expanduser().resolve() == Path(other).expanduser().resolve()


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """A checkpoint opened for reading: use inside `with jax.set_mesh(session.mesh)`."""

    run: Run
    folder: Folder
    session: Session
    tokenizer: Tokenizer | Vocabulary
    step: int
    store: Store

    def model(self) -> Any:
        return self.session.restore_model(self.store, self.step)


def open_trained(path: Path, step: int | None, command: str = "read", *, allow_unverified: bool = False) -> Trained:
    """Opens the newest good checkpoint of a run, or that of `step`, for a command, which the audit trail names.

    Raises CheckpointError when there is none, or none that can be verified.
    """
    folder, run = open_run(path)
    start(Job(), user_cache("xla"))
    judge = reader(folder, run, allow_unverified=allow_unverified)
    store = run.checkpoint.build(folder.checkpoints, judge)
    if step is None:
        found, remedy = store.latest(), "say --step, or --allow-unverified"
        if found.step is None and found.skipped:
            raise CheckpointError("\n".join([f"{path} has no usable checkpoint yet", *found.skipped]))
        step = newest_to_read(judge, found, store.damaged, remedy=remedy, allow_unverified=allow_unverified)
        if step is None:
            raise CheckpointError(f"{path} has no usable checkpoint yet")
    store.fetch(step)
    accessed(folder, command, step=step)
    tokenizer = tokenizer_at(run, folder.tokenizer)
    model, how = resolve(run, tokenizer.vocab), numerics(run.model, jax.default_backend())
    devices = jax.device_count()
    plan = inference_plan(model, devices, devices * -(-(run.train.eval_batch or 8) // devices))
    return Trained(run, folder, Session(run, model, how, plan), tokenizer, step, store)


def evaluate_run(
    path: Path, data: str | None, step: int | None, timed: bool = True, allow_unverified: bool = False
) -> tuple[str, dict[str, Any]]:
    """What a run is worth on one text (see `evaluate_texts`), as a table and as facts."""
    if open_run(path)[1].classify is not None:
        return evaluate_classifier(path, data, step, allow_unverified=allow_unverified)
    (facts,) = evaluate_texts(path, [data], step, timed, allow_unverified)
    title = f"{path} after step {facts['step']}, on {data or 'its {} split'.format(facts['split'])}"
    return evaluation_table(title, facts), facts


def evaluate_texts(
    path: Path,
    texts: Sequence[str | None],
    step: int | None = None,
    timed: bool = True,
    allow_unverified: bool = False,
) -> list[dict[str, Any]]:
    """Loss and accuracy of a run on each text, every token of it, and if `timed` the latency of a forward pass.

    A text is a folder, glob or file, which the run's tokenizer encodes; None is the run's own held-out split.
    """
    trained = open_trained(path, step, "eval", allow_unverified=allow_unverified)
    nothing = {"prompt": "", "prompt_chars": 0, "prompt_tokens": 0, "tokens": 0, "temperature": 0.0}
    for text in texts:
        consult(trained.folder, {"command": "eval", "data": text or "", **nothing, "checkpoint": trained.step})
    if trained.run.privacy.enabled and any(text is not None and _same(text, trained.run.data.path) for text in texts):
        mechanism({"kind": "exact"})  # says why not
    corpora = [_text(trained, text) for text in texts]
    with jax.set_mesh(trained.session.mesh):
        model = trained.model()
        machine: dict[str, Any] = {"devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}"}
        machine |= latency(model).facts() if timed else {}
        judge, found = Judge(trained.session, *corpora[0]), []
        for data, (corpus, split) in zip(texts, corpora, strict=True):
            result = judge.on(corpus, split)(model, predictions=True).facts()
            gzip = {"gzip_bits_per_byte": gzip_bits_per_byte(corpus, split)}
            found.append({"step": trained.step, "split": split, "data": data} | result | gzip | machine)
            inferred(trained.folder, {"data": data or split, "result": result}, command="eval", step=trained.step)
    return found


def evaluate_classifier(
    path: Path, data: str | None, step: int | None, *, allow_unverified: bool = False
) -> tuple[str, dict[str, Any]]:
    """What a classifier is worth on the test rows of its data, or of another file of the same format. Where there are
    no test rows, on those held out."""
    trained = open_trained(path, step, "eval", allow_unverified=allow_unverified)
    corpus = labelled_corpus(trained, data)
    split = "test" if "test" in corpus.splits else corpus.held_out.name
    with jax.set_mesh(trained.session.mesh):
        result = ClassifierJudge(trained.session, corpus, split)(trained.model()).facts()
    about = {"licence": corpus.data.licence, "classes": list(corpus.data.classes), "dataset": corpus.data.name}
    facts = {"step": trained.step, "split": split, "data": data} | result | about
    inferred(trained.folder, {"data": data or split, "result": result}, command="eval", step=trained.step)
    title = f"{path} after step {trained.step}, on the {split} split of {data or corpus.data.name}"
    return classification_table(title, facts), facts


def load_classifier(path: str | Path, step: int | None = None, *, allow_unverified: bool = False) -> Predictor:
    """The classifier of a run, ready for `predict_proba`. Raises ConfigError where the run is none."""
    if open_run(Path(path))[1].classify is None:
        raise ConfigError(f"{path} holds a language model, no classifier (its configuration has no section classify)")
    trained = open_trained(Path(path), step, "predict", allow_unverified=allow_unverified)
    run, vocabulary = trained.run, trained.tokenizer
    assert run.classify is not None
    assert isinstance(vocabulary, Vocabulary)
    with jax.set_mesh(trained.session.mesh):
        model = trained.model()
    return Predictor(model, vocabulary, CLASSES[run.classify.dataset], run.data.sequence, trained.session)


def labelled_corpus(trained: Trained, data: str | None = None) -> LabelledCorpus:
    """The rows of a run, or of another file of the same format, in its vocabulary. Raises DataError."""
    run = trained.run
    assert run.classify is not None
    assert isinstance(trained.tokenizer, Vocabulary)
    config = run.data if data is None else dataclasses.replace(run.data, path=data)
    try:
        return prepare_labelled(run.classify.dataset, config, attributes_of(run), trained.tokenizer)
    except DataError as error:
        raise DataError(str(error).replace("data.path=", "--data ", 1) if data is not None else str(error)) from None


def _text(trained: Trained, data: str | None) -> tuple[Corpus, str]:
    """The corpus and the split of it to judge on."""
    if data is None:
        corpus = prepare(trained.run.data, show_progress())
        return corpus, corpus.held_out.name
    try:
        corpus = prepare_text(data, trained.folder.tokenizer, trained.run.data, show_progress())
    except DataError as error:
        raise DataError(str(error).replace("data.path=", "--data ", 1)) from None
    if not corpus.split("text").bytes:
        raise DataError(f"--data {data} holds no text")
    return corpus, "text"


def generate_text(
    path: Path, how: Sample, step: int | None, seed: int, stop: tuple[str, ...], allow_unverified: bool = False
) -> Iterator[bytes]:
    """The bytes that the model adds to the prompt, piece by piece; of a model that translates, the translation."""
    trained = open_trained(path, step, "generate", allow_unverified=allow_unverified)
    if not isinstance(trained.tokenizer, Tokenizer):
        raise ConfigError(f"{path} holds a classifier, which generates nothing; see jaxlm eval {path}")
    tokens = len(trained.tokenizer.encode(how.prompt or ""))
    asked = {"command": "generate", "prompt": how.prompt or "", "prompt_chars": len(how.prompt or ""), "data": ""}
    asked |= {"prompt_tokens": tokens, "tokens": how.tokens, "temperature": how.temperature}
    consult(trained.folder, {**asked, "checkpoint": trained.step})
    pairs = trained.run.data.parallel is not None
    with jax.set_mesh(trained.session.mesh):
        model, made = plain(trained.model()), b""
        try:
            for piece in continuation(model, trained.tokenizer, how, seed=seed, stop=stop, pairs=pairs):
                made += piece
                yield piece
        finally:  # also what a reader who went away has seen
            asked = {"prompt": how.prompt, "tokens": how.tokens, "temperature": how.temperature, "seed": seed}
            body = {**asked, "text": made.decode("utf-8", errors="replace")}
            inferred(trained.folder, body, command="generate", step=trained.step)

"""Commands that look at a configuration or a finished run and train nothing."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Store
from jaxlm.config import Run, Sample
from jaxlm.data.config import DataError
from jaxlm.data.corpus import gzip_bits_per_byte
from jaxlm.data.loader import Loader
from jaxlm.data.prepare import prepare, prepare_text
from jaxlm.data.progress import show_progress
from jaxlm.data.show import show
from jaxlm.data.tokenizer import Tokenizer
from jaxlm.evaluation import Judge, continuation
from jaxlm.files import user_cache
from jaxlm.folder import Folder, open_run
from jaxlm.model.generate import plain
from jaxlm.model.transformer import Transformer
from jaxlm.runtime.distributed import Job, start
from jaxlm.session import (
    Session,
    expected_vocab,
    inference_plan,
    local_machine,
    numerics,
    resolve,
    workload_of,
)
from planners.plan import Plan
from planners.search import plan as search_plan
from planners.topology import Cluster, load_cluster


def make_plan(run: Run, cluster_name: str | None) -> tuple[Plan, Cluster]:
    """The plan for this machine, or for a cluster by preset name or file."""
    cluster = load_cluster(cluster_name) if cluster_name else local_machine()
    platform = "cpu" if cluster.device.kind == "cpu" else "gpu"
    model = resolve(run, expected_vocab(run))
    workload = workload_of(run, model, numerics(run.model, platform))
    return search_plan(workload, cluster, run.plan), cluster


def prepare_data(run: Run) -> tuple[str, dict[str, Any]]:
    corpus = prepare(run.data, show_progress())
    splits = {name: corpus.split(name) for name in corpus.splits}
    facts = {name: {"tokens": len(s), "documents": s.documents, "bytes": s.bytes} for name, s in splits.items()}
    return "\n".join(corpus.report.lines()), {"digest": corpus.digest, "vocab": corpus.tokenizer.vocab, "splits": facts}


def show_data(run: Run, step: int) -> str:
    """What the model sees at step `step`."""
    corpus = prepare(run.data, show_progress())
    loader = Loader(corpus.split("train"), run.train.batch, run.data.sequence, run.data.mode, run.seed)
    return show(corpus, loader, step)


@dataclasses.dataclass(frozen=True, slots=True)
class Trained:
    """A checkpoint opened for reading: use inside `with jax.set_mesh(session.mesh)`."""

    run: Run
    folder: Folder
    session: Session
    tokenizer: Tokenizer
    step: int
    store: Store

    def model(self) -> Transformer:
        return self.session.restore_model(self.store, self.step)


def open_trained(path: Path, step: int | None) -> Trained:
    """Opens the newest good checkpoint of a run, or that of `step`. Raises CheckpointError when there is none."""
    folder, run = open_run(path)
    start(Job(), user_cache("xla"))
    store = run.checkpoint.build(folder.checkpoints)
    if step is None:
        found = store.latest()
        if found.step is None:
            raise CheckpointError("\n".join([f"{path} has no usable checkpoint yet", *found.skipped]))
        step = found.step
    tokenizer = Tokenizer.load(folder.tokenizer)
    model, how = resolve(run, tokenizer.vocab), numerics(run.model, jax.default_backend())
    devices = jax.device_count()
    plan = inference_plan(model, devices, devices * -(-(run.train.eval_batch or 8) // devices))
    return Trained(run, folder, Session(run, model, how, plan), tokenizer, step, store)


def evaluate_run(path: Path, data: str | None, step: int | None) -> tuple[str, dict[str, Any]]:
    """Bits per byte on the run's held-out split, or on the text at `data`, which the run's tokenizer encodes."""
    trained = open_trained(path, step)
    if data is None:
        corpus = prepare(trained.run.data, show_progress())
        split = corpus.held_out.name
    else:
        corpus = prepare_text(data, trained.folder.tokenizer, trained.run.data, show_progress())
        split = "text"
        if not corpus.split(split).bytes:
            raise DataError(f"--data {data} holds no text")
    with jax.set_mesh(trained.session.mesh):
        judge = Judge(trained.session, corpus, split)
        result = judge(trained.model())
    gzip = gzip_bits_per_byte(corpus, split)
    text = (
        f"{path} after step {trained.step}, {data or judge.split}: {result.bits_per_byte:.4f} bits per byte "
        f"(gzip -9: {gzip:.4f})\n"
        f"loss {result.loss:.4f} nats/token, perplexity {result.perplexity:.2f}, "
        f"{result.tokens:,} tokens, {result.bytes:,} bytes"
    )
    facts = {"step": trained.step, "split": judge.split, "data": data, **dataclasses.asdict(result)}
    return text, facts | {"gzip_bits_per_byte": gzip}


def generate_text(path: Path, how: Sample, step: int | None, seed: int, stop: tuple[str, ...]) -> Iterator[bytes]:
    """The bytes that the model adds to the prompt, piece by piece."""
    trained = open_trained(path, step)
    with jax.set_mesh(trained.session.mesh):
        model = plain(trained.model())
        yield from continuation(model, trained.tokenizer, how, seed=seed, stop=stop)

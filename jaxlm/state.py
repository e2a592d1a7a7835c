"""The state from which a run goes on: its newest good checkpoint, its parent's weights, or a fresh one."""

import hashlib
from collections.abc import Callable
from typing import Any

from jaxlm.checkpoints.errors import CheckpointError
from jaxlm.checkpoints.store import Found, Store
from jaxlm.config import Run
from jaxlm.decode import ConfigError, dump
from jaxlm.finetune import begin, starting
from jaxlm.folder import Folder
from jaxlm.session import Session
from jaxlm.task import AnyCorpus, begins_with
from jaxlm.trainer.state import TrainState


def config_digest(run: Run) -> str:
    """Which configuration a checkpoint was saved under."""
    return hashlib.sha256(dump(run).encode()).hexdigest()


def first_state(
    session: Session,
    store: Store,
    corpus: AnyCorpus,
    folder: Folder,
    say: Callable[[str], None],
    check: Callable[[Found], None] = lambda found: None,
) -> tuple[TrainState[Any], int]:
    """The newest good checkpoint, or a fresh state; and how many steps it has done. `check` may refuse what was found.
    Raises ConfigError."""
    found = store.latest()
    for sentence in found.skipped:
        say(f"skipped: {sentence}")
    if found.step is None and (lost := store.begun()):
        raise CheckpointError(
            f"every checkpoint in {store.directory} is damaged or cannot be verified "
            f"(steps {', '.join(map(str, lost))}, see above): "
            "restore one from a backup, or begin again in another --run-dir"
        )
    check(found)
    if found.step is None:
        if session.run.parent is None:
            return session.fresh(begins_with(session.run, corpus)), 0
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
    state, facts = session.restore(store, found.step)
    if "residuals" in facts:
        say(facts["residuals"])
    say(f"resuming {store.directory} after step {found.step}")
    return state, found.step

"""A run that debiases, watched on held-out rows: when it is done, when its task is broken, what is left to read off.

Axes: N rows, D embed, C classes, G groups of all attributes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.labelled.corpus import LabelledCorpus, LabelledSplit
from jaxlm.data.labelled.loader import LabelledEvaluation
from jaxlm.fairness import stopping
from jaxlm.fairness.adversary import discriminator_auc
from jaxlm.fairness.config import FairnessConfig
from jaxlm.fairness.probe import leak
from jaxlm.fairness.text import OpposedClassifier, attributes
from jaxlm.session import Session
from jaxlm.sharding import replicated
from jaxlm.trainer.loop import Enough, Halted
from jaxlm.trainer.state import TrainState

Say = Callable[[str], None]


class Debiasing:
    """A hook of the training loop: every `fairness.check_every` steps the AUC of the task and of the discriminator on
    the held-out rows.

    Raises Enough when the discriminator is at rest near chance and `fairness.stop.early` is set, and Halted, with the
    last state whose task was in order, when the task's AUC has fallen below `fairness.stop.floor`. `saved` are the
    facts of a checkpoint (see `facts`).
    """

    def __init__(
        self,
        session: Session,
        corpus: LabelledCorpus,
        how: FairnessConfig,
        saved: Mapping[str, Any] | None,
        record: Callable[[dict[str, Any]], None],
        say: Say,
    ):
        self.session, self.corpus, self.how, self.record, self.say = session, corpus, how, record, say
        self.attributes = attributes(how)
        self.watch, self.good = stopping.begin(), None
        if saved is not None:
            known = {name: np.nan if value is None else value for name, value in saved.items()}
            self.watch = stopping.Watch(**{name: jnp.asarray(value) for name, value in known.items()})
        place = replicated(session.mesh)

        def look(model: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            tokens, positions, segments = (batch[name][0] for name in ("tokens", "positions", "segments"))
            pooled_BD = model.represent(tokens, positions, segments)
            return pooled_BD, model.joined(model.classify(pooled_BD), tokens, segments)

        self._look = jax.jit(look, out_shardings=place)
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state), out_shardings=session.places)

    @property
    def settled(self) -> bool:
        """Whether an earlier start of the run has already come to its end."""
        return bool(self.watch.stopped) and not bool(self.watch.collapsed)

    def facts(self) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON holds it: None for what is not known yet."""
        found = {name: np.asarray(value).item() for name, value in self.watch._asdict().items()}
        return {name: None if value != value else value for name, value in found.items()}

    def due(self, step: int) -> bool:
        return self.how.check_every > 0 and step % self.how.check_every == 0

    def __call__(self, step: int, state: TrainState[Any]) -> None:
        rows = self.corpus.held_out
        pooled_ND, logits_NC = self.read(state.model, rows)
        skill = stopping.auc(jnp.asarray(rows.labels > 0), 1.0 - jax.nn.softmax(logits_NC, axis=-1)[:, 0])
        found = self.discriminator(state.model, rows, pooled_ND)
        self.watch, fine = stopping.check(self.how.stop, self.watch, skill, found, jnp.asarray(step))
        self.record({"step": step, "task_auc": float(skill), "discriminator_auc": float(found)})
        self.say(
            f"held-out at step {step}: AUC of the task {float(skill):.4f}, of the discriminator {float(found):.4f}"
        )
        if bool(fine):
            self.good = step, self._copy(state)
        elif self.good is not None:
            at, kept = self.good
            # Later batches go on from here: the step counts what was seen, the weights are those of `at`.
            kept = dataclasses.replace(kept, step=state.step)
            floor = self.how.stop.floor
            self.watch, self.good = stopping.begin(), None
            raise Halted(
                f"its task's AUC on held-out rows fell to {float(skill):.3f}, below fairness.stop.floor={floor}; the "
                f"weights of step {at} are restored: lower fairness.weight",
                kept,
            )
        if bool(self.watch.stopped):
            rule = self.how.stop
            raise Enough(
                f"the discriminator's AUC changed by less than {rule.change} in {rule.checks} checks, "
                f"within {rule.near} of 0.5"
            )

    def read(self, model: Any, rows: LabelledSplit) -> tuple[jax.Array, jax.Array]:
        """Representations [N, D] and logits [N, C] of rows, float32."""
        replicas = self.session.plan.replicas
        size = -(-64 // replicas) * replicas
        source = LabelledEvaluation(rows, size, self.session.run.data.sequence)
        feed = self.session.feed(source, 1, size)
        made = [jax.device_get(self._look(model, batch)) for batch in feed.iterate(0, source.batches)]
        pooled, logits = (np.concatenate(part)[: len(rows)] for part in zip(*made, strict=True))
        return jnp.asarray(pooled), jnp.asarray(logits)

    def targets(self, rows: LabelledSplit) -> list[np.ndarray]:
        """The groups of rows, float32 [N, heads] per attribute."""
        ends = np.cumsum([attribute.heads for attribute in self.attributes])
        return np.split(rows.groups, ends[:-1], axis=1)

    def discriminator(self, model: Any, rows: LabelledSplit, pooled: jax.Array) -> jax.Array:
        """The AUC of the run's own adversaries; NaN where it has none."""
        if not isinstance(model, OpposedClassifier):
            return jnp.full((), jnp.nan)
        seen = pooled if self.how.sees == "representation" else model.classify(pooled)
        targets = [jnp.asarray(t) for t in self.targets(rows)]
        return discriminator_auc(model.adversaries, seen, jnp.asarray(rows.labels > 0, int), targets, self.attributes)

    def concluded(self, model: Any) -> dict[str, float]:
        """What networks that the model never met still read off its representations, on held-out rows: `probe_linear`
        and `probe_mlp` (AUC, 0.5 is nothing), and `discriminator_auc` of its own adversary."""
        training, held = self.corpus.split("train"), self.corpus.held_out
        seen, pooled = self.read(model, training)[0], self.read(model, held)[0]
        z = [np.asarray(part, np.float64) for part in (seen, pooled)]
        left = leak(
            self.attributes,
            z[0],
            (training.labels > 0).astype(int),
            self.targets(training),
            z[1],
            (held.labels > 0).astype(int),
            self.targets(held),
        )
        own = float(self.discriminator(model, held, pooled))
        found = {"probe_linear": left.linear, "probe_mlp": left.mlp}
        return found if np.isnan(own) else found | {"discriminator_auc": own}

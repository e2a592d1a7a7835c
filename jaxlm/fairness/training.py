"""Debiases a predictor of table rows while it is trained: one compiled scan over epochs and minibatches.

The model minimises `task + reverse(adversary) + strength * witness` (equations 3 and 14); the adversary minimises its
own cross entropy. Nothing here is specific to one number of attributes or groups. Everything is a pure function of
(recipe, rows, strengths, key), so that `jax.vmap` runs a whole grid of strengths, or of seeds, in one scan.

Axes: B rows of a batch, N all rows, F features, Z representation, H heads, C cells.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxlm.fairness import stopping
from jaxlm.fairness.adversary import Adversaries, Adversary, cross_entropy, discriminator_auc
from jaxlm.fairness.groups import Attribute
from jaxlm.fairness.predictor import Predictor
from jaxlm.fairness.reversal import Schedule, reverse, weight_at
from jaxlm.fairness.reweighting import dro_weights
from jaxlm.fairness.stopping import Rule
from jaxlm.fairness.witness import Memory, Witness, decision_gap, mmd, network_gap, remembered_gap, strata

Mode = Literal["per_step", "per_epoch", "blocks"]
Update = Literal["reversal", "projection", "normalised"]
View = Literal["logit", "representation"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is compiled: sizes, lengths, and which terms exist. Strengths are traced (`Strengths`).

    Attributes:
        hidden: layers of the predictor beside its linear part; none is logistic regression.
        dropout: of the hidden layers.
        epochs: over the training rows.
        batch: rows of a minibatch; the last one of an epoch is filled up from its start.
        lr: of the predictor (Adam), falling to zero along a cosine.
        decay: weight of the squared norm of the predictor's weights in its loss.
        adversary: whether there is one.
        adversary_hidden: its layers (128-64-1 in the paper).
        adversary_lr: its learning rate, constant (0.001 in the paper).
        view: what the adversary and the witness see: the `logit` (the prediction) or the `representation`.
        mode: `per_step`: both learn on every minibatch (algorithm 2). `per_epoch`: `iterations` minibatches of the
            adversary, then an epoch of the model (section 5.6). `blocks`: model and adversary take turns of `block`
            epochs (section 4.6), the first turn without an adversary, which knows nothing yet.
        iterations: of the adversary before each epoch under `per_epoch`.
        block: epochs of a turn under `blocks`.
        update: `reversal`: the adversary's gradient is taken off, times the strength. `projection`: so is the task
            gradient's part along it (Zhang et al. 2018, algorithm 1). `normalised`: it is scaled to the task gradient's
            norm, so that a strength means the same at any time.
        schedule: of both strengths over training.
        witness: class of witness functions of equation 3, or None for no such term.
        sharpness: of the softened decision that the witness `decision` compares.
        memory: of the witness `decision`, from 0 to below 1: the gap whose square is made small is a running mean over
            past minibatches that forgets at this rate, for the gap of one is mostly chance; 0 for that of each alone.
        clip_norm: bound of the gradient's norm in the predictor's weights, sqrt(delta) in equation 4; 0 for none.
        balanced: whether minibatches are drawn with every cell of group and label equally likely.
        dro: step size of group DRO over those cells; 0 for none.
        stop: when to stop and what to restore.
    """

    hidden: tuple[int, ...] = (64,)
    dropout: float = 0.0
    epochs: int = 40
    batch: int = 256
    lr: float = 3e-3
    decay: float = 1e-4
    adversary: bool = True
    adversary_hidden: tuple[int, ...] = (128, 64)
    adversary_lr: float = 1e-3
    view: View = "logit"
    mode: Mode = "per_step"
    iterations: int = 50
    block: int = 5
    update: Update = "reversal"
    schedule: Schedule = "linear"
    witness: Witness | None = None
    sharpness: float = 1.0
    memory: float = 0.0
    clip_norm: float = 0.0
    balanced: bool = False
    dro: float = 0.0
    stop: Rule = Rule()

    def __post_init__(self) -> None:
        if not self.sharpness > 0 or not 0 <= self.memory < 1:
            raise ValueError(f"sharpness={self.sharpness} must be above 0, memory={self.memory} in [0, 1)")


class Strengths(NamedTuple):
    """Weights of the two debiasing terms, scalars."""

    adversary: jax.Array | float = 0.0
    witness: jax.Array | float = 0.0


class Rows(NamedTuple):
    """Rows on the device. `targets` and `weights_of` (for the adversary) hold one [N, H] array per attribute."""

    x: Float[Array, "N F"]
    labels: Int[Array, " N"]
    weights: Float[Array, " N"]
    targets: tuple[Float[Array, "N H"], ...]
    weights_of: tuple[Float[Array, "N H"], ...]
    cells: Int[Array, " N"]
    chances: Float[Array, " N"]

    def take(self, indices_B: jax.Array) -> "Rows":
        return jax.tree.map(lambda column: column[indices_B], self)


class Carry(NamedTuple):
    model: Predictor
    players: Any
    model_state: Any
    players_state: Any
    q_C: jax.Array
    past: tuple[Memory, ...]
    step: jax.Array
    good: Predictor
    watch: stopping.Watch


class Fitted(NamedTuple):
    """A trained predictor; `history` holds one value per epoch: task AUC, discriminator AUC, both on held-out rows."""

    model: Predictor
    adversaries: Any
    history: dict[str, jax.Array]
    watch: stopping.Watch


def train(
    recipe: Recipe, attributes: Sequence[Attribute], rows: Rows, held: Rows, strengths: Strengths, key: PRNGKeyArray
) -> Fitted:
    """Trains from scratch. `recipe` and `attributes` are static; the rest may be traced and mapped over.

    The predictor's own randomness (weights, order of rows, dropout) does not depend on whether there is an adversary.
    """
    kinit, korder, kdrop, kplayers = jax.random.split(key, 4)
    total = rows.x.shape[0]
    size = min(recipe.batch, total)
    steps = -(-total // size)
    model = Predictor(rows.x.shape[1], hidden=recipe.hidden, rate=recipe.dropout, key=kinit)
    width = 1 if recipe.view == "logit" or not recipe.hidden else recipe.hidden[-1]
    players = _players(recipe, attributes, width, kplayers)
    slope = optax.cosine_decay_schedule(recipe.lr, recipe.epochs * steps)
    clip = optax.clip_by_global_norm(recipe.clip_norm) if recipe.clip_norm else optax.identity()
    optimizer, opponent = optax.chain(clip, optax.adam(slope)), optax.adam(recipe.adversary_lr)

    def see(logits_B: jax.Array, z_BZ: jax.Array) -> jax.Array:
        return logits_B[:, None] if recipe.view == "logit" else z_BZ

    def witness(
        players: Any, past: Sequence[Memory], logits_B: jax.Array, z_BZ: jax.Array, batch: Rows
    ) -> tuple[jax.Array, tuple[Memory, ...]]:
        found, now = jnp.zeros(()), list(past)
        for i, attribute in enumerate(attributes):
            within_BS = strata(attribute.criterion, batch.labels)
            if recipe.witness == "decision" and recipe.memory:
                term, now[i] = remembered_gap(
                    past[i], logits_B, within_BS, batch.targets[i], recipe.memory, recipe.sharpness
                )
                found += term
            elif recipe.witness == "decision":
                found += decision_gap(logits_B, within_BS, batch.targets[i], recipe.sharpness)
            elif recipe.witness == "mmd":
                found += mmd(see(logits_B, z_BZ), within_BS, batch.targets[i])
            else:
                # Trained to make the gap large while the model makes it small: the same reversal, the other way round.
                seen_BZ = reverse(see(logits_B, z_BZ))
                found -= network_gap(players["witness"][i], seen_BZ, within_BS, batch.targets[i])
        return found, tuple(now)

    def task(model: Predictor, q_C: jax.Array, batch: Rows, key: jax.Array) -> tuple[jax.Array, Any]:
        logits_B, z_BZ = model(batch.x, key if recipe.dropout else None)
        losses_B = cross_entropy(logits_B, batch.labels.astype(jnp.float32))
        if recipe.dro:
            q_C, weights_B = dro_weights(q_C, losses_B, batch.cells, recipe.dro)
            loss = jnp.mean(losses_B * weights_B)
        else:
            loss = jnp.sum(losses_B * batch.weights) / jnp.sum(batch.weights)
        loss += recipe.decay * sum(jnp.sum(jnp.square(w)) for w in jax.tree.leaves(model))
        return loss, (logits_B, z_BZ, q_C)

    def guess(players: Any, seen_BZ: jax.Array, batch: Rows) -> jax.Array:
        loss = players["adversary"].loss(seen_BZ, batch.labels, batch.targets, batch.weights_of)
        return loss / batch.labels.shape[0]

    def minibatch(carry: Carry, indices_B: jax.Array, learn: bool, play: bool) -> Carry:
        """One step; `learn`: the model moves; `play`: its opponents move."""
        batch = rows.take(indices_B)
        kd = jax.random.fold_in(kdrop, carry.step)
        progress = carry.step / (recipe.epochs * steps)
        active = 1.0
        if recipe.mode == "blocks":
            active = (carry.step >= recipe.block * steps).astype(jnp.float32)
        ladv = weight_at(progress, strengths.adversary, recipe.schedule) * active
        lwit = weight_at(progress, strengths.witness, recipe.schedule) * active

        def everything(model: Predictor, players: Any, adversary_weight: jax.Array) -> tuple[jax.Array, Any]:
            loss, (logits_B, z_BZ, q_C) = task(model, carry.q_C, batch, kd)
            past = carry.past
            if recipe.witness is not None:
                opponents = players if recipe.witness == "network" else None
                term, past = witness(opponents, carry.past, logits_B, z_BZ, batch)
                loss += lwit * term
            if recipe.adversary:
                loss += guess(players, reverse(see(logits_B, z_BZ), adversary_weight), batch)
            return loss, (q_C, past)

        gradients = jax.grad(everything, argnums=(0, 1), has_aux=True)
        if recipe.adversary and recipe.update != "reversal":
            (gm, gp), (q_C, past) = gradients(carry.model, carry.players, jnp.zeros(()))
            against = jax.grad(lambda m: guess(carry.players, see(*m(batch.x)), batch))(carry.model)
            gm = combine(gm, against, ladv, recipe.update)
        else:
            (gm, gp), (q_C, past) = gradients(carry.model, carry.players, ladv)
        model, model_state, players, players_state = carry.model, carry.model_state, carry.players, carry.players_state
        if learn:
            change, model_state = optimizer.update(gm, model_state)
            model = apply(model, change)
        if play and jax.tree.leaves(players):
            change, players_state = opponent.update(gp, players_state)
            players = apply(players, change)
        step = carry.step + int(learn or recipe.mode == "blocks")
        return carry._replace(
            model=model, model_state=model_state, players=players, players_state=players_state, q_C=q_C,
            past=past, step=step,
        )  # fmt: skip

    def run(carry: Carry, indices_KB: jax.Array, learn: bool, play: bool) -> Carry:
        return jax.lax.scan(lambda c, i: (minibatch(c, i, learn, play), None), carry, indices_KB)[0]

    def order(key: jax.Array, count: int) -> jax.Array:
        wanted = count * size
        if recipe.balanced:
            edges = jnp.cumsum(rows.chances)
            drawn = jax.random.uniform(key, (wanted,)) * edges[-1]
            return jnp.minimum(jnp.searchsorted(edges, drawn, side="right"), total - 1).reshape(count, size)
        return jnp.resize(jax.random.permutation(key, total), (wanted,)).reshape(count, size)

    def epoch(carry: Carry, number: jax.Array) -> Carry:
        key = jax.random.fold_in(korder, number)
        if recipe.mode == "per_epoch" and recipe.adversary:
            carry = run(carry, order(jax.random.fold_in(key, 1), recipe.iterations), False, True)
            carry = run(carry, order(key, steps), True, False)
        elif recipe.mode == "blocks":
            models_turn = (number // recipe.block) % 2 == 0
            indices_KB = order(key, steps)
            turn = lambda learn: lambda c: run(c, indices_KB, learn, not learn)
            carry = jax.lax.cond(models_turn, turn(True), turn(False), carry)
        else:
            carry = run(carry, order(key, steps), True, True)
        logits_N, z_NZ = carry.model(held.x)
        skill = stopping.auc(held.labels == 1, logits_N)
        found = jnp.zeros(())
        if recipe.adversary:
            found = discriminator_auc(
                carry.players["adversary"], see(logits_N, z_NZ), held.labels, held.targets, attributes
            )
        watch, fine = stopping.check(recipe.stop, carry.watch, skill, found, number)
        good = jax.tree.map(lambda new, old: jnp.where(fine, new, old), carry.model, carry.good)
        return carry._replace(good=good, watch=watch)

    def guarded(carry: Carry, number: jax.Array) -> tuple[Carry, dict[str, jax.Array]]:
        carry = jax.lax.cond(carry.watch.stopped, lambda c: c, lambda c: epoch(c, number), carry)
        return carry, {"task_auc": carry.watch.skill, "discriminator_auc": carry.watch.found}

    start = Carry(
        model=model,
        players=players,
        model_state=optimizer.init(model),  # pyright: ignore[reportArgumentType]
        players_state=opponent.init(players),
        q_C=jnp.full((_cells(rows),), 1.0 / _cells(rows)),
        past=tuple(Memory.empty(a.criterion, t.shape[1]) for a, t in zip(attributes, rows.targets, strict=True)),
        step=jnp.zeros((), jnp.int32),
        good=model,
        watch=stopping.begin(),
    )
    end, history = jax.lax.scan(guarded, start, jnp.arange(recipe.epochs))
    return Fitted(model=end.good, adversaries=end.players.get("adversary"), history=history, watch=end.watch)


def apply(weights: Any, change: Any) -> Any:
    """The weights after an update, both trees of one shape."""
    return jax.tree.map(jnp.add, weights, change)


def combine(task: Any, against: Any, weight: jax.Array, update: Update) -> Any:
    """The model's gradient from that of its task and that of the adversary's loss, both trees of the model's shape."""
    dot = lambda a, b: sum(jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    square = dot(against, against) + 1e-12
    if update == "projection":
        # A rank-one projection of the whole gradient, not one per layer: only then is the result orthogonal to it.
        along = dot(task, against) / square
        return jax.tree.map(lambda t, a: t - (along + weight) * a, task, against)
    if update == "normalised":
        scale = jnp.sqrt((dot(task, task) + 1e-12) / square)
        return jax.tree.map(lambda t, a: t - weight * scale * a, task, against)
    return jax.tree.map(lambda t, a: t - weight * a, task, against)


def _players(recipe: Recipe, attributes: Sequence[Attribute], width: int, key: PRNGKeyArray) -> dict[str, Any]:
    """The networks that play against the model."""
    ka, kw = jax.random.split(key)
    players: dict[str, Any] = {}
    if recipe.adversary:
        players["adversary"] = Adversaries(attributes, width, 2, hidden=recipe.adversary_hidden, key=ka)
    if recipe.witness == "network":
        outputs = [a.heads * (2 if a.criterion == "equalized_odds" else 1) for a in attributes]
        keys = jax.random.split(kw, len(attributes))
        hidden = recipe.adversary_hidden
        players["witness"] = [Adversary(width, o, hidden=hidden, key=k) for o, k in zip(outputs, keys, strict=True)]
    return players


def _cells(rows: Rows) -> int:
    """An upper bound, known without values: two labels, and two sides of every head."""
    return 2 ** (1 + sum(t.shape[1] for t in rows.targets))

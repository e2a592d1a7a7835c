"""Fair classification of tables in the manner of scikit-learn; needs `pip install jaxlm[fairness]`.

>>> model = FairClassifier(criterion="equalized_odds", strength=2.0, random_state=0)
>>> model.fit(X, y, sensitive_features=race).predict_proba(X_new)
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, clone
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets, type_of_target
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("jaxlm.fairness.estimator needs scikit-learn: pip install 'jaxlm[fairness]'") from error

from jaxlm.fairness import checks, reweighting
from jaxlm.fairness.groups import Attribute, Criterion, balance
from jaxlm.fairness.predictor import Predictor
from jaxlm.fairness.reversal import Schedule
from jaxlm.fairness.reweighting import Reweighting
from jaxlm.fairness.stopping import Rule
from jaxlm.fairness.training import Fitted, Mode, Recipe, Rows, Strengths, Update, View, train
from jaxlm.fairness.witness import Witness

HELD = 2000
"""Most training rows that the collapse guard looks at after each epoch when none are held out."""
LEARNED = ("n_features_in_", "feature_names_in_", "classes_", "mean_", "scale_", "attributes_")
"""What is known of the data before training, and the same for every model of a path."""
INTERACTIONS = 2000
"""Most features that `interactions` may make."""


class FairClassifier(ClassifierMixin, BaseEstimator):
    """A binary classifier (logistic regression plus an MLP) that is debiased while it is trained.

    Without `sensitive_features`, or with both strengths 0 and no reweighting, `fit` trains the undebiased baseline, and
    `debiased_` is False; with the same `random_state` strength 0 gives the same numbers bit for bit.

    Args:
        criterion: `demographic_parity`, `equalized_odds` or `equal_opportunity`; for several attributes one for all,
            or a mapping from column to criterion.
        strength: of the adversary (lambda of equation 14).
        witness_strength: of the witness term (lambda of equation 3).
        witness: `decision`, `mmd` or `network`, see `jaxlm.fairness.witness`.
        sharpness: of the softened decisions that the witness `decision` compares.
        memory: from 0 to below 1: the witness `decision` knows the gap from past minibatches too.
        reweighting: `none`, `kamiran_calders`, `balanced_classes`, `balanced_sampling` or `group_dro`.
        hidden: layers of the MLP; none is logistic regression.
        interactions: adds squares and products of the columns; for tables of few columns.
        adversary_hidden: layers of the adversary.
        view: what the adversary sees: `logit` or `representation`.
        update: `reversal`, `projection` or `normalised`, see `training.Recipe`.
        mode: `per_step`, `per_epoch` or `blocks`, see `training.Recipe`.
        schedule: of the strengths: `constant`, `linear`, `ganin` or `sqrt`.
        dropout: of the hidden layers.
        epochs: over the training rows.
        batch_size: rows of a minibatch.
        learning_rate: of the model, falling to zero.
        adversary_learning_rate: of the adversary.
        decay: weight of the squared norm of the model's weights.
        clip_norm: bound of the gradient norm (square root of delta in equation 4); 0 for none.
        use_attribute: whether the attribute is an input of the model; `predict` then needs `sensitive_features` too.
        early_stopping: whether `validation_fraction` of the rows are held out to stop by the discriminator's AUC.
        validation_fraction: of the rows, with `early_stopping`.
        random_state: seed, generator or None.

    Attributes:
        classes_: the two labels; the second is label 1.
        debiased_: whether anything but the task was asked of the model.
        attributes_: `groups.Attribute` of each protected column; empty without.
        history_: per epoch, `task_auc` and `discriminator_auc` on held-out rows.
        collapsed_: whether the task collapsed under debiasing, so that an earlier state was restored.
        n_iter_: epochs trained.
    """

    def __init__(
        self,
        *,
        criterion: Criterion | Mapping[str, Criterion] = "equalized_odds",
        strength: float = 1.0,
        witness_strength: float = 0.0,
        witness: Witness = "decision",
        sharpness: float = 1.0,
        memory: float = 0.0,
        reweighting: Reweighting = "none",
        hidden: Sequence[int] = (64,),
        interactions: bool = False,
        adversary_hidden: Sequence[int] = (128, 64),
        view: View = "logit",
        update: Update = "reversal",
        mode: Mode = "per_step",
        schedule: Schedule = "linear",
        dropout: float = 0.0,
        epochs: int = 40,
        batch_size: int = 256,
        learning_rate: float = 3e-3,
        adversary_learning_rate: float = 1e-3,
        decay: float = 1e-4,
        clip_norm: float = 0.0,
        use_attribute: bool = False,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        random_state: Any = None,
    ):
        self.criterion: Criterion | Mapping[str, Criterion] = criterion
        self.strength = strength
        self.witness_strength = witness_strength
        self.witness: Witness = witness
        self.sharpness = sharpness
        self.memory = memory
        self.reweighting = reweighting
        self.hidden = hidden
        self.interactions = interactions
        self.adversary_hidden = adversary_hidden
        self.view: View = view
        self.update: Update = update
        self.mode: Mode = mode
        self.schedule: Schedule = schedule
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.adversary_learning_rate = adversary_learning_rate
        self.decay = decay
        self.clip_norm = clip_norm
        self.use_attribute = use_attribute
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, sensitive_features: Any = None, sample_weight: Any = None) -> "FairClassifier":
        """Trains on X [N, F] and labels y of two values. Raises ValueError with one message for what is wrong."""
        ready = self._prepare(X, y, sensitive_features, sample_weight)
        strengths = Strengths(float(self.strength), float(self.witness_strength))
        recipe = self._recipe(ready.attributes, self.strength != 0, self.witness_strength != 0)
        fitted = _train(recipe, ready.attributes, ready.rows, ready.held, strengths, ready.key)
        return self._keep(ready, recipe, fitted)

    def path(
        self,
        X: Any,
        y: Any,
        strengths: Sequence[tuple[float, float]],
        *,
        sensitive_features: Any,
        sample_weight: Any = None,
    ) -> list["FairClassifier"]:
        """One fitted copy for each (strength, witness_strength), all trained side by side in one compiled scan."""
        ready = self._prepare(X, y, sensitive_features, sample_weight)
        adversary, witness = (np.asarray([s[i] for s in strengths], np.float32) for i in (0, 1))
        recipe = self._recipe(ready.attributes, bool(adversary.any()), bool(witness.any()))
        many = _train_many(recipe, ready.attributes, ready.rows, ready.held, Strengths(adversary, witness), ready.key)  # pyright: ignore[reportArgumentType]
        many = jax.device_get(many)
        result = []
        for i, (a, w) in enumerate(strengths):
            each: FairClassifier = clone(self)  # pyright: ignore[reportAssignmentType]
            each.set_params(strength=a, witness_strength=w)
            result.append(each._keep(ready, recipe, jax.tree.map(lambda leaf, i=i: leaf[i], many)))
        return result

    def predict(self, X: Any, *, sensitive_features: Any = None) -> np.ndarray:
        """The label of each row."""
        above = (self.decision_function(X, sensitive_features=sensitive_features) > 0).astype(int)
        return self.classes_[above]

    def predict_proba(self, X: Any, *, sensitive_features: Any = None) -> np.ndarray:
        """P(label 0), P(label 1) of each row, float64 [N, 2]."""
        logits = self.decision_function(X, sensitive_features=sensitive_features)
        positive = 0.5 * (1 + np.tanh(logits / 2))
        return np.stack([1 - positive, positive], axis=1)

    def decision_function(self, X: Any, *, sensitive_features: Any = None) -> np.ndarray:
        """The logit of label 1, float64 [N]."""
        return self._apply(X, sensitive_features)[0].astype(np.float64)

    def represent(self, X: Any, *, sensitive_features: Any = None) -> np.ndarray:
        """The last hidden layer, float32 [N, Z]: what a probe looks at."""
        return self._apply(X, sensitive_features)[1]

    def _apply(self, X: Any, sensitive_features: Any) -> tuple[np.ndarray, np.ndarray]:
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float64)
        if self.use_attribute and self.attributes_:
            if sensitive_features is None:
                raise ValueError("use_attribute=True: the model reads the attribute, give predict sensitive_features")
            codes = checks.known_codes(self.attributes_, checks.columns(sensitive_features, len(X)))
        else:
            codes = ()
        x = jnp.asarray(self._features(X, codes))
        skeleton = jax.eval_shape(lambda: Predictor(x.shape[1], hidden=tuple(self.hidden), key=jax.random.key(0)))
        leaves = [jnp.asarray(leaf) for leaf in self.parameters_]
        model = jax.tree.unflatten(jax.tree.structure(skeleton), leaves)
        logits, seen = _predict(model, x)
        return np.asarray(logits), np.asarray(seen)

    def _prepare(self, X: Any, y: Any, sensitive: Any, weights: Any) -> "_Ready":
        """Everything that is checked and computed before training."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y", raise_unknown=True)
        if kind != "binary":
            raise ValueError(f"Only binary classification is supported. The type of the target is {kind}.")
        self.classes_, labels = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"FairClassifier needs two labels; the data holds one class only: {self.classes_[0]!r}")
        labels = labels.astype(np.int32)
        given = np.asarray(_check_sample_weight(weights, X, dtype=np.float64))
        if not given.sum() > 0 or given.min() < 0:
            raise ValueError("sample_weight must not be negative, nor zero everywhere")
        attributes, codes = (), ()
        if sensitive is not None:
            attributes, codes = checks.attributes(checks.columns(sensitive, len(X)), labels, self.criterion)
        rng = check_random_state(self.random_state)
        seed = int(rng.randint(np.iinfo(np.int32).max))
        kept, held = self._split(labels, codes, np.random.default_rng(seed))
        self.mean_ = np.average(X[kept], axis=0, weights=given[kept] if given[kept].sum() > 0 else None)
        self.scale_ = np.sqrt(np.average((X[kept] - self.mean_) ** 2, axis=0))
        self.scale_[self.scale_ < 1e-12] = 1.0
        self.attributes_ = attributes
        features = self._features(X, codes if self.use_attribute else ())
        cells = reweighting.cells(labels, codes)
        if attributes and self.reweighting in ("kamiran_calders", "balanced_classes"):
            groups = reweighting.cells(np.zeros_like(labels), codes)
            if self.reweighting == "kamiran_calders":
                given = given * reweighting.kamiran_calders(labels, groups, given)
            else:
                given = given * reweighting.balanced_classes(labels, groups)
        targets = [a.targets(c) for a, c in zip(attributes, codes, strict=True)]
        part = lambda rows: Rows(
            x=jnp.asarray(features[rows]),
            labels=jnp.asarray(labels[rows]),
            weights=jnp.asarray(given[rows] / given[rows].mean(), jnp.float32),
            targets=tuple(jnp.asarray(t[rows]) for t in targets),
            weights_of=tuple(jnp.asarray(balance(t[rows])) for t in targets),
            cells=jnp.asarray(cells[rows]),
            chances=jnp.asarray(reweighting.sampling_weights(cells[rows]), jnp.float32),
        )
        learned = {name: getattr(self, name) for name in LEARNED if hasattr(self, name)}
        key = jax.random.key(seed)
        return _Ready(attributes=attributes, rows=part(kept), held=part(held), key=key, learned=learned)

    def _split(
        self, labels: np.ndarray, codes: Sequence[np.ndarray], rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Training rows, and the rows that checks look at: held out by cell, or some of the training rows."""
        order = rng.permutation(len(labels))
        if not (self.early_stopping and codes):
            return np.arange(len(labels)), np.sort(order[:HELD])
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction} must be between 0 and 1")
        cells = reweighting.cells(labels, codes)
        shuffled = [order[cells[order] == cell] for cell in np.unique(cells)]
        held = np.sort(np.concatenate([part[: round(len(part) * self.validation_fraction)] for part in shuffled]))
        if len(held) == 0:
            raise ValueError(f"validation_fraction={self.validation_fraction} holds out no row of {len(labels)}")
        return np.setdiff1d(np.arange(len(labels)), held), held

    def _features(self, X: np.ndarray, codes: Sequence[np.ndarray]) -> np.ndarray:
        """Standardised columns, their interactions, and the attribute where it is an input; float32."""
        x = (X - self.mean_) / self.scale_
        if self.interactions:
            i, j = np.triu_indices(x.shape[1])
            if x.shape[1] + len(i) > INTERACTIONS:
                raise ValueError(f"interactions of {x.shape[1]} columns make {len(i)} more: for tables of few columns")
            # Bounded: a product of two rare large values would otherwise rule its column.
            x = np.concatenate([x, np.clip(x[:, i] * x[:, j], -10, 10)], axis=1)
        if codes:
            sides = [2 * a.targets(c) - 1 for a, c in zip(self.attributes_, codes, strict=True)]
            x = np.concatenate([x, *sides], axis=1)
        return x.astype(np.float32)

    def _recipe(self, attributes: Sequence[Attribute], adversary: bool, witness: bool) -> Recipe:
        protected = bool(attributes)
        return Recipe(
            hidden=tuple(self.hidden), dropout=self.dropout, epochs=self.epochs, batch=self.batch_size,
            lr=self.learning_rate, decay=self.decay, adversary=protected and adversary,
            adversary_hidden=tuple(self.adversary_hidden), adversary_lr=self.adversary_learning_rate, view=self.view,
            mode=self.mode, update=self.update, schedule=self.schedule,
            witness=self.witness if protected and witness else None, sharpness=self.sharpness, memory=self.memory,
            clip_norm=self.clip_norm,
            balanced=protected and self.reweighting == "balanced_sampling",
            dro=0.01 if protected and self.reweighting == "group_dro" else 0.0,
            stop=Rule(early=self.early_stopping and protected and adversary),
        )  # fmt: skip

    def _keep(self, ready: "_Ready", recipe: Recipe, fitted: Fitted) -> "FairClassifier":
        """Takes over what training found, as numpy arrays that can be pickled."""
        for name, value in ready.learned.items():
            setattr(self, name, value)
        self.parameters_ = [np.asarray(leaf) for leaf in jax.tree.leaves(fitted.model)]
        self.n_iter_ = int(fitted.watch.epoch) + 1
        self.history_ = {name: np.asarray(values)[: self.n_iter_] for name, values in fitted.history.items()}
        self.collapsed_ = bool(fitted.watch.collapsed)
        self.debiased_ = bool(ready.attributes) and (
            recipe.adversary or recipe.witness is not None or self.reweighting != "none"
        )
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.non_deterministic = False
        return tags


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Ready:
    attributes: tuple[Attribute, ...]
    rows: Rows
    held: Rows
    key: jax.Array
    learned: dict[str, Any]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train(
    recipe: Recipe, attributes: tuple[Attribute, ...], rows: Rows, held: Rows, strengths: Strengths, key: jax.Array
) -> Fitted:
    return train(recipe, attributes, rows, held, strengths, key)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _train_many(
    recipe: Recipe, attributes: tuple[Attribute, ...], rows: Rows, held: Rows, strengths: Strengths, key: jax.Array
) -> Fitted:
    one = lambda a, w: train(recipe, attributes, rows, held, Strengths(a, w), key)
    return jax.vmap(one)(strengths.adversary, strengths.witness)


@jax.jit
def _predict(model: Predictor, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return model(x)

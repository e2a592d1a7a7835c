"""The incumbents, rerun on our splits: linear models with and without a penalty, fairlearn, AIF360, LEACE.

Each is what a user of that library would write, with the same features as ours (products of columns on small tables
for the penalised regression, as for us) and the same MLP-64 and adversary where it takes them.
"""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import minimize

from experiments.benchmarks.fairness.folds import Fold, Method, Outcome, Part
from experiments.benchmarks.fairness.ours import along
from jaxlm.fairness import leace
from jaxlm.fairness.reweighting import kamiran_calders

PENALTIES = (0.0, 0.5, 1.0, 3.0, 10.0, 30.0, 60.0, 100.0)
ALPHAS = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
"""Of fairlearn's adversary."""
WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0)
"""Of AIF360's adversary; 0.1 is its default."""
SLACKS = (0.2, 0.15, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
"""Bound of the constraint, and eps, of ExponentiatedGradient."""
L2 = 1e-3


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


def scored(score: Callable[[Part], np.ndarray], fold: Fold, strength: float, start: float) -> Outcome:
    """The outcome of a method that gives probabilities, at threshold 0.5."""
    seconds = time.perf_counter() - start
    said = lambda part: ((s := score(part)) > 0.5, s)
    return Outcome(strength=strength, validation=said(fold.validation), test=said(fold.test), seconds=seconds)


def logistic(fold: Fold, grid: int) -> list[Outcome]:
    """Logistic regression, nothing else."""
    return [_fit_logistic(fold, None)]


def reweighing(fold: Fold, grid: int) -> list[Outcome]:
    """Kamiran and Calders' weights, then logistic regression (AIF360's `Reweighing`)."""
    return [_fit_logistic(fold, kamiran_calders(fold.train.y, fold.train.a))]


def _fit_logistic(fold: Fold, weights: np.ndarray | None, change: Callable = lambda x: x) -> Outcome:
    from sklearn.linear_model import LogisticRegression

    start = time.perf_counter()
    model = LogisticRegression(max_iter=1000).fit(change(fold.train.x), fold.train.y, sample_weight=weights)
    return scored(lambda part: model.predict_proba(change(part.x))[:, 1], fold, 0.0, start)


def erased(fold: Fold, grid: int) -> list[Outcome]:
    """LEACE takes the attribute out of the features, then logistic regression."""
    eraser = leace.fit(fold.train.x, np.eye(2)[fold.train.a])
    return [_fit_logistic(fold, None, eraser)]


def penalised(*, attribute: bool = False) -> Method:
    """Logistic regression whose loss adds the squared gaps of its mean probability, within the criterion's labels."""

    def method(fold: Fold, grid: int) -> list[Outcome]:
        expand = lambda part: _expanded(part, fold.few, attribute)
        x, y, a = expand(fold.train), fold.train.y, fold.train.a
        mean, scale = x.mean(0), np.maximum(x.std(0), 1e-9)
        x = (x - mean) / scale
        strata = [np.ones(len(y), bool)] if fold.criterion == "demographic_parity" else [y == 0, y == 1]
        rows = [(s & (a == 1)) / (s & (a == 1)).sum() - (s & (a == 0)) / (s & (a == 0)).sum() for s in strata]
        contrasts = np.stack(rows)
        outcomes, w = [], np.zeros(x.shape[1] + 1)
        for strength in along(PENALTIES, grid):
            start = time.perf_counter()

            def loss(w: np.ndarray, strength: float = strength) -> tuple[float, np.ndarray]:
                z = x @ w[:-1] + w[-1]
                p = sigmoid(z)
                gaps = contrasts @ p
                value = np.mean(np.logaddexp(0, z) - y * z) + strength * gaps @ gaps + L2 * w[:-1] @ w[:-1]
                slope = (p - y) / len(y) + 2 * strength * (gaps @ contrasts) * p * (1 - p)
                return value, np.append(x.T @ slope + 2 * L2 * w[:-1], slope.sum())

            # From the solution before, so that the path is followed rather than found anew.
            w = minimize(loss, w, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
            score = lambda part, w=w: sigmoid((expand(part) - mean) / scale @ w[:-1] + w[-1])
            outcomes.append(scored(score, fold, strength, start))
        return outcomes

    return method


def _expanded(part: Part, products: bool, attribute: bool) -> np.ndarray:
    x = part.x
    if products:
        i, j = np.triu_indices(x.shape[1])
        x = np.concatenate([x, x[:, i] * x[:, j]], axis=1)
    return np.concatenate([x, 2.0 * part.a[:, None] - 1], axis=1) if attribute else x


def exponentiated_gradient(fold: Fold, grid: int) -> list[Outcome]:
    """fairlearn's reduction (Agarwal et al. 2018) over logistic regressions; its decisions are randomised."""
    from fairlearn.reductions import DemographicParity, EqualizedOdds, ExponentiatedGradient, TruePositiveRateParity
    from sklearn.linear_model import LogisticRegression

    kind = {
        "demographic_parity": DemographicParity,
        "equalized_odds": EqualizedOdds,
        "equal_opportunity": TruePositiveRateParity,
    }[fold.criterion]
    outcomes = []
    for slack in along(SLACKS, grid):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = ExponentiatedGradient(
                LogisticRegression(max_iter=200), kind(difference_bound=slack), eps=slack, max_iter=30
            )  # fmt: skip
            model.fit(fold.train.x, fold.train.y, sensitive_features=fold.train.a)
            said = lambda part, model=model: (np.asarray(model.predict(part.x, random_state=fold.seed)), None)
            both = said(fold.validation), said(fold.test)
        seconds = time.perf_counter() - start
        outcomes.append(Outcome(strength=slack, validation=both[0], test=both[1], seconds=seconds))
    return outcomes


def threshold_optimizer(fold: Fold, grid: int) -> list[Outcome]:
    """fairlearn's post-processing (Hardt et al. 2016) of a logistic regression; reads the attribute, randomised."""
    from fairlearn.postprocessing import ThresholdOptimizer
    from sklearn.linear_model import LogisticRegression

    kind = {"equal_opportunity": "true_positive_rate_parity"}.get(fold.criterion, fold.criterion)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ThresholdOptimizer(
            estimator=LogisticRegression(max_iter=1000),
            constraints=kind,  # pyright: ignore[reportArgumentType]
            predict_method="predict_proba",
        )
        model.fit(fold.train.x, fold.train.y, sensitive_features=fold.train.a)
        said = lambda part: (
            np.asarray(model.predict(part.x, sensitive_features=part.a, random_state=fold.seed)).astype(int),
            None,
        )
        both = said(fold.validation), said(fold.test)
    return [Outcome(strength=0.0, validation=both[0], test=both[1], seconds=time.perf_counter() - start)]


def fairlearn_adversarial(*, shipped: bool = False) -> Method:
    """fairlearn's `AdversarialFairnessClassifier` with our sizes of layers, by default with its projection put right.

    Its back end for torch sums all entries of `unit @ gradient.T` where Zhang et al. (2018, algorithm 1) and its back
    end for TensorFlow take an inner product, and it seeds every fit with 0. `shipped` leaves both as they are.
    """

    def method(fold: Fold, grid: int) -> list[Outcome]:
        import torch  # pyright: ignore[reportMissingImports]
        from fairlearn.adversarial import AdversarialFairnessClassifier

        torch.set_num_threads(1)  # With layers this small, more of them wait for each other.
        engine: Any = "torch" if shipped else _projected(fold.seed)
        kind = "demographic_parity" if fold.criterion == "demographic_parity" else "equalized_odds"
        large = len(fold.train.y) > 10_000
        outcomes = []
        for alpha in along(ALPHAS, grid):
            start = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = AdversarialFairnessClassifier(
                    backend=engine, predictor_model=[64, "relu"],
                    adversary_model=[128, "relu", 64, "relu"], constraints=kind, alpha=alpha,
                    epochs=15 if large else 40, batch_size=512 if large else 256, shuffle=True, learning_rate=1e-3,
                    random_state=fold.seed,
                )  # fmt: skip
                model.fit(fold.train.x.astype(np.float32), fold.train.y, sensitive_features=fold.train.a)
                # The only scores it has are private; its own decisions are these at 0.5.
                score = lambda part, model=model: np.asarray(
                    model._raw_predict(part.x.astype(np.float32)), np.float64
                ).ravel()
                outcomes.append(scored(score, fold, alpha, start))
        return outcomes

    return method


def _projected(seed: int) -> type:
    """fairlearn's back end for torch with the projection of its back end for TensorFlow, and a seed."""
    import torch  # pyright: ignore[reportMissingImports]
    from fairlearn.adversarial._pytorch_engine import PytorchEngine

    class Projected(PytorchEngine):
        predictor_model: Any
        adversary_model: Any
        predictor_optimizer: Any
        adversary_optimizer: Any
        predictor_loss: Any
        adversary_loss: Any

        def get_model(self, list_nodes: list) -> Any:
            torch.manual_seed(seed)
            return super().get_model(list_nodes)

        def train_step(self, X: Any, Y: Any, A: Any) -> tuple[float, float]:
            weights, opponents = list(self.predictor_model.parameters()), list(self.adversary_model.parameters())
            said = self.predictor_model(X)
            task = self.predictor_loss(said, Y)
            seen = torch.cat((said, Y), dim=1) if self.base.pass_y_ else said
            guess = self.adversary_loss(self.adversary_model(seen), A)
            wanted = torch.autograd.grad(task, weights, retain_graph=True)
            found = torch.autograd.grad(guess, weights + opponents)
            for weight, own, against in zip(weights, wanted, found, strict=False):
                unit = against / (torch.norm(against) + torch.finfo(torch.float32).tiny)
                weight.grad = own - torch.sum(own * unit) * unit - self.base.alpha * against
            for weight, own in zip(opponents, found[len(weights) :], strict=True):
                weight.grad = own
            self.predictor_optimizer.step()
            self.adversary_optimizer.step()
            return task.item(), guess.item()

    return Projected


def aif360_adversarial(fold: Fold, grid: int) -> list[Outcome]:
    """AIF360's adversary (always given the label, whatever the criterion), one hidden layer of 64."""
    import pandas as pd
    import tensorflow as tf  # pyright: ignore[reportMissingImports, reportMissingModuleSource]
    from aif360.sklearn.inprocessing import AdversarialDebiasing

    tf.compat.v1.disable_eager_execution()
    large = len(fold.train.y) > 10_000
    frame = lambda part: pd.DataFrame(part.x, index=pd.Index(part.a, name="a"))
    outcomes = []
    for weight in along(WEIGHTS, grid):
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tf.compat.v1.reset_default_graph()
            model = AdversarialDebiasing(
                "a", adversary_loss_weight=weight, num_epochs=15 if large else 40, batch_size=256,
                classifier_num_hidden_units=64, debias=weight > 0, random_state=fold.seed,
            )  # fmt: skip
            model.fit(frame(fold.train), pd.Series(fold.train.y, index=frame(fold.train).index))
            score = lambda part, model=model: np.asarray(model.predict_proba(frame(part)))[:, 1]
            outcomes.append(scored(score, fold, weight, start))
            model.sess_.close()
    return outcomes

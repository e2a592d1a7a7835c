"""What a user may say about debiasing a run while it trains."""

from dataclasses import dataclass, field

from jaxlm.data.labelled.lists import LISTS
from jaxlm.fairness.groups import CRITERIA, Criterion
from jaxlm.fairness.stopping import Rule

PAPER: dict[str, Criterion] = {
    "gender": "demographic_parity",
    "ethnicity": "equalized_odds",
    "religion": "equalized_odds",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessConfig:
    """Debiasing while training (equation 14), for runs with a section `classify`.

    Attributes:
        attribute: criterion of each attribute, whose groups are word lists (gender, ethnicity, religion, origin);
            by default those of the paper: parity for gender, odds for ethnicity and religion.
        weight: lambda of the adversary, whose gradient is reversed; 0 builds none, and weights are those of a run
            without this section, bit for bit, with the gaps reported all the same.
        sees: what the adversary reads: the `representation`, or the `logits` (the paper's "prediction").
        hidden: hidden widths of the adversary.
        reweight: weigh training rows so that every group has the share of harmful rows that all rows have.
        mask_identity: probability of hiding the words of the lists in a training row.
        mode: how adversary and model take turns: `per_step`, both in every step (algorithm 2); `per_epoch`, the
            adversary for `iterations` steps, then the model for `turn`; `blocks`, each for `turn` steps.
        turn: steps of a turn; the paper's are one epoch (`per_epoch`) and five (`blocks`). `data prepare` says how many
            steps an epoch has.
        iterations: steps of the adversary before each turn of the model, mode `per_epoch`.
        check_every: steps between checks of task and discriminator on held-out rows; 0: none.
        stop: what those checks may end: training that is done, or that has broken its task.
        probe: after the last step, train fresh probes on the representations and report what they read off.
        decay: of the running sums from which gaps are reported, per step.
    """

    attribute: dict[str, Criterion] = field(default_factory=lambda: dict(PAPER))
    weight: float = 1.0
    sees: str = "representation"
    hidden: tuple[int, ...] = (128, 64)
    reweight: bool = False
    mask_identity: float = 0.0
    mode: str = "per_step"
    turn: int = 0
    iterations: int = 50
    check_every: int = 0
    stop: Rule = field(default_factory=Rule)
    probe: bool = False
    decay: float = 0.99

    def __post_init__(self) -> None:
        if not self.attribute:
            raise ValueError("fairness.attribute is empty: name at least one attribute, e.g. {gender: equalized_odds}")
        for name, criterion in self.attribute.items():
            if name not in LISTS:
                raise ValueError(f"fairness.attribute: {name!r} has no word list; there are {', '.join(LISTS)}")
            if criterion not in CRITERIA:
                raise ValueError(f"fairness.attribute.{name}={criterion!r} must be one of {', '.join(CRITERIA)}")
        if self.weight < 0.0:
            raise ValueError(f"fairness.weight={self.weight} must not be negative")
        if self.sees not in ("representation", "logits"):
            raise ValueError(f"fairness.sees={self.sees!r} must be representation or logits")
        if self.mode not in ("per_step", "per_epoch", "blocks"):
            raise ValueError(f"fairness.mode={self.mode!r} must be per_step, per_epoch or blocks")
        if self.mode != "per_step" and (self.turn < 1 or self.iterations < 1):
            raise ValueError(
                f"fairness.mode={self.mode} needs fairness.turn and iterations of at least 1 step, e.g. "
                "--fairness.turn 240, the steps of an epoch"
            )
        if self.turn < 0 or self.check_every < 0:
            raise ValueError("fairness.turn and fairness.check_every must not be negative")
        if self.stop.early and not (self.check_every and self.weight):
            raise ValueError(
                "fairness.stop.early needs an adversary to watch: set fairness.check_every, and fairness.weight above 0"
            )
        if any(width < 1 for width in self.hidden):
            raise ValueError(f"fairness.hidden={self.hidden} must be positive")
        if not 0.0 <= self.mask_identity < 1.0 or not 0.0 <= self.decay < 1.0:
            raise ValueError("fairness.mask_identity and fairness.decay must be in [0, 1)")

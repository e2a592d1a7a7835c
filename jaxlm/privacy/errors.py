"""What goes wrong with a privacy budget, each with the sentence that a user reads."""

from jaxlm.governance.errors import GovernanceError


class PrivacyError(GovernanceError):
    """The budget, its ledger or what is asked of them is not as it must be."""


class NotPrivate(PrivacyError):
    """What is to be charged is no differentially private mechanism: no epsilon describes it."""


class BudgetSpent(PrivacyError):
    """The charge does not fit into what is left of the budget; nothing was charged."""

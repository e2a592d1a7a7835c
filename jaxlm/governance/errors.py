"""What goes wrong in the audit trail."""


class GovernanceError(Exception):
    """Something in an audit trail is not as it was signed, or cannot be written; the message says what and where."""


class Denied(GovernanceError):
    """A policy refuses a request."""


class Rejected(GovernanceError, ValueError):
    """A proof, note, tile, entry or signature that does not hold."""

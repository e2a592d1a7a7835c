"""An audit trail that a stranger can verify: a transparency log in the C2SP formats, and what a run writes into it."""

"""Differential privacy: mechanisms, what they cost, the ledger of a budget, and how training stays within it."""

"""Rematerialisation: which values each layer stores (z = 1 in the paper's eq. 8) and which it computes once more."""

"""The plans that are possible, which is best, and why the others lost."""

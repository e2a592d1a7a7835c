"""Processes that experiments start beside themselves: no experiments of their own."""

"""Strategies by the name that a user gives."""

from collections.abc import Callable

from planners.remat import dynamic
from planners.remat.policy import Mix, Problem

SOLVERS: dict[str, Callable[[Problem], Mix]] = {"dp": dynamic.solve}

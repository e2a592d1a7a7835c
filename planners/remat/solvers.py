"""Strategies by the name that a user gives."""

from planners.remat import dynamic, greedy, lagrangian, learned, static, threshold, uniform
from planners.remat.policy import Solver

SOLVERS: dict[str, Solver] = {
    "dp": dynamic.solve,
    "greedy": greedy.solve,
    "learned": learned.solve,
    "static": static.solve,
    "threshold": threshold.solve,
    "lagrangian": lagrangian.solve,
    "full": uniform.full,
    "none": uniform.none,
}

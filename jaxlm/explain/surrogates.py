"""What a rule list from attention must beat at equal size: rules from word weights, and a tree.

Axes: N texts, V words, C classes.
"""

from dataclasses import dataclass

import numpy as np

from jaxlm.explain.bags import frequent, incidence, word_weights
from jaxlm.explain.rules import Clause, Judged


def weighted_clauses(data: Judged, *, least: int = 10, most: int = 400) -> list[Clause]:
    """One-word clauses for the words of highest weight in linear classifiers of what the model says, class by class."""
    found = []
    for label in np.unique(data.says):
        weights = word_weights(data.texts, data.says == label)
        found += [(weight, Clause((word,), int(label))) for word, weight in weights.items() if weight > 0]
    common = set(frequent(data.texts, least))
    ranked = sorted((pair for pair in found if pair[1].words[0] in common), key=lambda pair: -pair[0])
    return [clause for _, clause in ranked[:most]]


@dataclass(frozen=True, slots=True)
class Tree:
    """A decision tree of word presence: `word` asked at an inner node, `label` at a leaf."""

    label: int
    word: str | None = None
    yes: "Tree | None" = None
    no: "Tree | None" = None

    def says(self, words: frozenset[str]) -> int:
        node = self
        while node.word is not None:
            assert node.yes is not None
            assert node.no is not None
            node = node.yes if node.word in words else node.no
        return node.label

    def fidelity(self, data: Judged) -> float:
        """How often it says what the model says."""
        return float(np.mean([self.says(s) for s in data.sets()] == data.says))

    def size(self) -> int:
        """Words asked."""
        return 0 if self.yes is None or self.no is None else 1 + self.yes.size() + self.no.size()


def tree(data: Judged, size: int, *, depth: int = 12, least: int = 10) -> Tree:
    """Grown best first by Gini impurity until it asks `size` words; no deeper than `depth`, no leaf under `least`
    texts."""
    words = frequent(data.texts, least)
    held = incidence(data.texts, words).toarray() > 0
    classes = int(data.says.max(initial=0)) + 1
    onehot = np.eye(classes)[data.says]

    def split(rows: np.ndarray) -> tuple[float, int]:
        """The best gain in impurity times texts, and the word that gives it."""
        inside, total = held[rows], onehot[rows].sum(0)
        yes = inside.T.astype(np.float64) @ onehot[rows]
        no, n = total - yes, len(rows)
        impurity = lambda c: c.sum(-1) - (c**2).sum(-1) / np.maximum(c.sum(-1), 1)
        gains = impurity(total) - impurity(yes) - impurity(no)
        gains[(yes.sum(1) < least) | (no.sum(1) < least)] = -1.0
        return (float(gains.max()), int(gains.argmax())) if n and len(words) else (-1.0, 0)

    nodes: list[tuple[np.ndarray, int, int, int]] = [(np.arange(len(data.texts)), -1, -1, -1)]
    level, open_nodes = {0: 0}, {0: split(nodes[0][0])}
    for _ in range(size):
        ready = {at: found for at, found in open_nodes.items() if found[0] > 0 and level[at] < depth}
        if not ready:
            break
        at = max(ready, key=lambda a: ready[a][0])
        rows, word = nodes[at][0], ready[at][1]
        children = [rows[held[rows, word]], rows[~held[rows, word]]]
        nodes[at] = (rows, word, len(nodes), len(nodes) + 1)
        del open_nodes[at]
        for child in children:
            level[len(nodes)] = level[at] + 1
            open_nodes[len(nodes)] = split(child)
            nodes.append((child, -1, -1, -1))

    def build(at: int) -> Tree:
        rows, word, yes, no = nodes[at]
        label = int(onehot[rows].sum(0).argmax()) if len(rows) else 0
        return Tree(label) if word < 0 else Tree(label, words[word], build(yes), build(no))

    return build(0)

"""Word vectors from the training texts alone: which words stand near which, never a label."""

import numpy as np

WINDOW = 5


def learn_vectors(texts: list[np.ndarray], vocab: int, width: int, seed: int = 0) -> np.ndarray:
    """float32 [vocab, width]: the leading singular vectors of the positive pointwise mutual information between words
    that stand within WINDOW words of each other, nearer ones counting more (Levy, Goldberg and Dagan 2015,
    https://aclanthology.org/Q15-1016). Rows have mean square 1; words that were never seen are zero.

    Args:
        texts: token ids of each text.
        vocab: rows.
        width: columns.
        seed: of the start of the iteration.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import svds

    rows, columns, values = [], [], []
    for distance in range(1, WINDOW + 1):
        for ids in texts:
            rows.append(ids[:-distance])
            columns.append(ids[distance:])
        values.append(np.full(sum(max(len(ids) - distance, 0) for ids in texts), 1.0 / distance))
    left, right = np.concatenate(rows), np.concatenate(columns)
    counts = coo_array((np.concatenate(values), (left, right)), shape=(vocab, vocab)).tocsr()
    counts = (counts + counts.T).tocoo()
    each = np.asarray(counts.sum(axis=1)).ravel()
    context = each**0.75  # smoothed, so that rare contexts do not win
    context /= context.sum()
    information = np.log(counts.data / (each[counts.row] * context[counts.col]))
    keep = information > 0
    matrix = coo_array((information[keep], (counts.row[keep], counts.col[keep])), shape=(vocab, vocab)).tocsr()
    width_there = min(width, vocab - 1)
    start = np.random.default_rng(seed).standard_normal(vocab)
    u, s = svds(matrix.astype(np.float64), k=width_there, v0=start)[:2]
    assert u is not None
    order = np.argsort(-s)
    vectors = np.zeros((vocab, width))
    vectors[:, :width_there] = u[:, order] * np.sqrt(s[order])
    size = np.sqrt(np.mean(np.square(vectors), axis=1, keepdims=True))
    return np.where(size > 1e-9, vectors / np.maximum(size, 1e-9), 0.0).astype(np.float32)

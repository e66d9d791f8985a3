"""A client's items from one message that the server sees in clear: a score [I], high where held.

A rotation hides nothing, because the length of a row survives it; neither do a few bits.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import nnls


def rows(table: np.ndarray) -> np.ndarray:
    """Length of each row of an upload [I, D]: FedCIA's `factor`, FedAvg's change, sparse sums.

    Of a factor E_c Q these are the roots of the diagonal of A_c = E_c E_c^T, whatever Q is. Of a
    set-up pass, rows that are not zero are the client's items.
    """
    return np.linalg.norm(table, axis=1)


def sketch(product: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Diagonal of the Nystrom approximation of A_c from A_c V and V, both [I, R].

    Exact where R is at least the rank of A_c: Y (V^T Y)^+ Y^T.
    """
    product, basis = product.astype(np.float64), basis.astype(np.float64)
    form = basis.T @ product
    values, turn = np.linalg.eigh((form + form.T) / 2)
    kept = values > 1e-6 * values[-1]
    return np.sum((product @ turn[:, kept]) ** 2 / values[kept], axis=1)


def gram(matrix: np.ndarray) -> np.ndarray:
    """Diagonal of a client's Gram matrix [I, I]: how many of its users hold each item."""
    return np.diagonal(matrix)


def gradient(table: np.ndarray) -> np.ndarray:
    """Scores from the gradient of an item table [I, D], FedMF's upload, of a one-user client.

    The gradient is residual u^T for a private u [D]: its first left singular vector is the
    residual n softmax(s) - r up to sign. Held items have the few large entries, so the sign is the
    one that makes the third moment positive.
    """
    left, size, _ = np.linalg.svd(table.astype(np.float64), full_matrices=False)
    first = left[:, 0] * size[0]
    return first * np.sign(np.sum(first**3))


def code_inverse(codes: np.ndarray, size: int) -> np.ndarray:
    """A (A^T A)^+ [I, P K] for A the incidence of public codes int [I, P] below `size` K.

    A codebook gradient is A^T Z with Z the gradient of the item table; this times it is the
    shortest such Z.
    """
    incidence = _incidence(codes, size)
    return incidence @ np.linalg.pinv(incidence.T @ incidence, hermitian=True)


def item_gradient(change: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """The least-norm item gradient [I, D] behind a codebook gradient [P, K, D]."""
    return inverse @ change.reshape(-1, change.shape[2]).astype(np.float64)


def codebooks(change: np.ndarray, inverse: np.ndarray) -> np.ndarray:
    """Scores from a one-user client's codebook gradient [P, K, D]: its least-norm item gradient."""
    return gradient(item_gradient(change, inverse))


def code_sums(change: np.ndarray, codes: np.ndarray, *, fit: bool = False) -> np.ndarray:
    """Scores from a codebook gradient [P, K, D] of few bits, such as a sign's.

    Along the user's vector the gradient is the sum h [P, K] of the residuals of each code's items.
    An item's score is the sum of h over its codes; with `fit`, the residual r >= 0 that explains h
    best (non-negative least squares).
    """
    levels, size = change.shape[:2]
    along = gradient(change.reshape(levels * size, -1))
    if fit:
        return nnls(_incidence(codes, size).T, along)[0]
    return along.reshape(levels, size)[np.arange(levels), codes].sum(axis=1)


def _incidence(codes: np.ndarray, size: int) -> np.ndarray:
    """A [I, P K], 1 where an item has a code."""
    items, levels = codes.shape
    incidence = np.zeros((items, levels * size))
    incidence[np.arange(items)[:, None], codes + size * np.arange(levels)] = 1
    return incidence

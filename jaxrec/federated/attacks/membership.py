"""Was this user in training? Scores [B], high for members, from the histories [B, I] of users.

The attacker knows a user's whole history. The sound protocol trains on half of the users and takes
the AUC of members against the other half.
"""

from __future__ import annotations

import numpy as np

from jaxrec.federated.attacks.sums import ROUNDING


def in_range(gram: np.ndarray, histories: np.ndarray) -> np.ndarray:
    """Scores from a sum G [I, I] of x x^T over members.

    A member's history lies in G's range and has x^T G^+ x <= 1; with fewer users than items it is
    1, and no other history lies in the range. The score is minus the squared distance to the range
    where G lacks rank, then minus x^T G^+ x.
    """
    rows = histories.astype(np.float64)
    values, vectors = np.linalg.eigh(gram.astype(np.float64))
    kept = values > ROUNDING * len(gram) * values[-1]
    inside = rows @ vectors[:, kept]
    outside = np.maximum(np.sum(rows**2, axis=1) - np.sum(inside**2, axis=1), 0)
    outside = np.where(outside > 1e-6 * np.sum(rows**2, axis=1), outside, 0)
    return -np.sum(inside**2 / values[kept], axis=1) - 1e6 * outside


def leverage(gram: np.ndarray, histories: np.ndarray, ridge: float) -> np.ndarray:
    """Scores -x^T (G + ridge)^-1 x from a sum that has noise on it."""
    rows = histories.astype(np.float64)
    values, vectors = np.linalg.eigh((gram + gram.T).astype(np.float64) / 2)
    return -np.sum((rows @ vectors) ** 2 / (np.maximum(values, 0) + ridge), axis=1)


def inside(gram: np.ndarray, histories: np.ndarray) -> np.ndarray:
    """Scores x^T G x from a sum that has noise on it: a member's own share of it is (x^T x)^2."""
    rows = histories.astype(np.float64)
    return np.sum((rows @ gram) * rows, axis=1)


def reconstruction(scores: np.ndarray, histories: np.ndarray) -> np.ndarray:
    """Scores from a served model: minus the mean squared error of its scores [B, I] for x."""
    number = np.maximum(histories.sum(axis=1), 1)
    return -np.sum((histories - scores) ** 2, axis=1) / number


def fit(scores: np.ndarray, histories: np.ndarray) -> np.ndarray:
    """Scores from a served model: how far above the other items it puts a user's own, [B].

    In deviations of the user's scores [B, I], so that it works for any scale.
    """
    held = histories > 0
    mean = np.sum(scores * held, axis=1) / np.maximum(held.sum(axis=1), 1)
    other = np.sum(scores * ~held, axis=1) / np.maximum((~held).sum(axis=1), 1)
    return (mean - other) / np.maximum(scores.std(axis=1), 1e-12)

"""The sum behind a served model: what every client that downloads it holds."""

from __future__ import annotations

import numpy as np


def ease_gram(weights: np.ndarray, ridge: float) -> np.ndarray:
    """The Gram matrix G [I, I] behind EASE's weights B [I, I], whose `ridge` is a public setting.

    With P = (G + ridge)^-1 and B = 1 - P / diag(P), (1 - B)^-1 = diag(P) (G + ridge). P is
    symmetric, so B_ij / B_ji = P_ii / P_jj tells diag(P) but for its size, and that follows from
    the entries of G being integers: the smallest that is not zero is 1.
    """
    weights = weights.astype(np.float64)
    live = np.flatnonzero(np.abs(weights).max(axis=1) > 0)
    own = weights[np.ix_(live, live)]
    scaled = np.linalg.inv(np.eye(len(live)) - own) / _diagonal(own)[:, None]  # size (G + ridge)
    scaled = (scaled + scaled.T) / 2
    found = np.zeros_like(weights)
    found[np.ix_(live, live)] = scaled / _unit(scaled) - ridge * np.eye(len(live))
    return found


def _diagonal(weights: np.ndarray) -> np.ndarray:
    """diag(P) [I], but for its size, by least squares on log B_ij - log B_ji = log p_i - log p_j.

    A pair counts as much as its smaller entry is above the rounding of float32.
    """
    product = weights * weights.T
    trust = np.where(product > 0, product, 0)
    safe = np.where(product > 0, np.abs(weights), 1.0)
    ratio = np.log(safe) - np.log(safe.T)
    laplacian, pull = np.diag(trust.sum(1)) - trust, (trust * ratio).sum(1)
    logs = np.zeros(len(weights))  # the size is free, so one of them is 0
    free = np.arange(len(weights)) != trust.sum(1).argmax()
    logs[free] = np.linalg.solve(laplacian[np.ix_(free, free)], pull[free])
    return np.exp(logs)


def _unit(scaled: np.ndarray) -> float:
    """The size of 1 in a multiple of a matrix of integers, from its entries off the diagonal."""
    entries = scaled[~np.eye(len(scaled), dtype=bool)]
    # What is this far below the largest is a zero with the rounding of float32 on it.
    small = np.sort(np.abs(entries[np.abs(entries) > 1e-4 * np.abs(entries).max()]))
    unit = float(np.median(small[small < 1.5 * small[0]]))
    for most in (2, 5, 20, 100, 1e9):  # larger integers make the unit more exact, step by step
        number = np.rint(entries / unit)
        near = (number > 0) & (number <= most)
        unit = float(entries[near] @ number[near] / (number[near] @ number[near]))
    return unit

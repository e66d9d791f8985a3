"""Metrics over the users of all clients, from sums over each client's users.

    each client: number of its lines, sums and sums of squares of their metrics -> totals -> means

A line is a user with held-out items, as in `evaluation.plan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxrec.evaluation.evaluator import Evaluation, names_of_lines

SLACK = 1e-6  # of a variance that rounding could make negative


def shape_of(ks: Sequence[int]) -> tuple[jax.ShapeDtypeStruct, ...]:
    """The shape of a client's part."""
    return (jax.ShapeDtypeStruct((1 + 2 * len(names_of_lines(ks)),), np.dtype("float32")),)


def part_of(found: pd.DataFrame, ks: Sequence[int]) -> np.ndarray:
    """A client's part of the sums, from the metrics of its lines."""
    table = found[names_of_lines(ks)].to_numpy(float)
    return np.concatenate([[len(table)], table.sum(0), (table**2).sum(0)]).astype(np.float32)


def evaluation_of(totals: Any, ks: Sequence[int]) -> Evaluation:
    """Means and standard errors of all lines, as one machine would have them, and no line.

    F1 of averaged precision and recall has no standard error: it would need their products.
    """
    number, *sums = np.asarray(totals, float)
    names = names_of_lines(ks)
    sums, squares = np.split(np.array(sums), 2)
    count = max(number, 1.0)
    variance = (squares - sums**2 / count) / max(number - 1, 1.0)
    errors = np.sqrt(np.where(variance > SLACK, variance, 0) / count)
    means = dict(zip(names, (sums / count).tolist(), strict=True))
    means |= {f"{name}/se": error for name, error in zip(names, errors.tolist(), strict=True)}
    for k in ks:
        p, r = means[f"Precision@{k}"], means[f"Recall@{k}"]
        means[f"F1@{k}"] = 2 * p * r / (p + r) if p + r > 0 else 0.0
    return Evaluation(means, pd.DataFrame(columns=["user", *names]))

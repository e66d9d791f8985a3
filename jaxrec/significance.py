"""Paired differences of users: an interval, a test, how large the effect is.

Where rows are ranked, the bootstrap draws users with all of their rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxrec.types import DataError

DRAWS = 2**24  # of the bootstrap at a time


class Test(NamedTuple):
    """Of paired differences; positive where the second of a pair is higher."""

    __test__ = False

    difference: float
    low: float
    high: float
    p: float
    cohen_d: float
    rank_biserial: float


def paired_test(differences: pd.Series, resamples: int, seed: int = 0) -> Test:
    """Bootstrap, Wilcoxon and effect sizes of differences, whose first index level is the user."""
    from scipy import stats  # a second that `import jaxrec` need not take

    # Values are of float32; what is below is the noise of a mean over seeds and would be no tie.
    by_user = differences.round(9).groupby(level=0)
    total, number = by_user.sum().to_numpy(), by_user.size().to_numpy()
    each = total / number
    if len(each) < 2:
        raise DataError(f"{len(each)} user: a paired test needs at least 2")
    interval = stats.bootstrap(
        (total, number),
        lambda total, number, axis: total.sum(axis) / number.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, DRAWS // len(each)),
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    changed = each[each != 0]
    ranks = stats.rankdata(abs(changed))
    spread = each.std(ddof=1)
    return Test(
        difference=total.sum() / number.sum(),
        low=interval.low,
        high=interval.high,
        p=stats.wilcoxon(changed).pvalue if len(changed) else 1.0,
        cohen_d=each.mean() / spread if spread else (np.nan if len(changed) else 0.0),
        rank_biserial=np.sign(changed) @ ranks / ranks.sum() if len(changed) else 0.0,
    )


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values [N]: the family-wise error stays at the level."""
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected

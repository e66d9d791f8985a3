"""Paired differences of users: an interval, a test, how large the effect is.

Where rows are ranked, the bootstrap draws users with all of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec.types import DataError

DRAWS = 2**24  # of the bootstrap at a time


class Test(NamedTuple):
    """Of paired differences; positive where the second of a pair is higher."""

    __test__ = False  # to pytest

    difference: float  # mean, in units of the metric
    low: float  # end of the 95 % interval of the mean
    high: float
    p: float  # of Wilcoxon's signed rank test, two-sided
    cohen_d: float  # mean over standard deviation of the users' differences
    rank_biserial: float  # from -1 to 1: share of the ranks that favour the second less the rest


def paired_test(differences: pd.Series, resamples: int, seed: int = 0) -> Test:
    """Bootstrap, Wilcoxon's test and effect sizes of paired differences.

    Args:
      differences: the second value of a pair less the first; the first index level is the user. A
        user's several rows are one pair, their mean, and are drawn together.
      resamples: of the percentile bootstrap over users.
      seed: of the bootstrap.

    Raises DataError for fewer than two users.
    """
    from scipy import stats  # a second that `import jaxrec` need not take

    # Values are of float32; what is below is the noise of a mean over seeds and would be no tie.
    by_user = differences.round(9).groupby(level=0)
    total, number = np.asarray(by_user.sum()), np.asarray(by_user.size())
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
        random_state=np.random.default_rng(seed),  # pyright: ignore[reportCallIssue]
    ).confidence_interval
    changed = each[each != 0]
    ranks = stats.rankdata(abs(changed))
    spread = each.std(ddof=1)
    p: Any = stats.wilcoxon(changed)[1] if len(changed) else 1.0
    return Test(
        difference=total.sum() / number.sum(),
        low=interval.low,
        high=interval.high,
        p=p,
        cohen_d=each.mean() / spread if spread else (np.nan if len(changed) else 0.0),
        rank_biserial=np.sign(changed) @ ranks / ranks.sum() if len(changed) else 0.0,
    )


def holm(p: np.ndarray) -> np.ndarray:
    """Holm's step-down correction of p-values [N] (Scandinavian Journal of Statistics, 1979).

    Among the tests whose corrected p is below a level, the chance of any false one is below it too.
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(steps, 1)
    return corrected


def deviation(values: Sequence[float]) -> float:
    """The standard deviation over runs, by n - 1; NaN where there is none to speak of.

    That is where there is one run, or where all have the same value, to rounding: then nothing in
    them is random, or chance has made them equal.
    """
    same = len(values) < 2 or np.ptp(values) < 1e-9
    return float("nan") if same else float(np.std(values, ddof=1))

"""How metrics are named: NDCG@10, NDCG@10/se, NDCG@10(99 negatives)."""

from __future__ import annotations

from collections.abc import Iterable

METRICS = ("NDCG", "Recall", "HR", "MAP", "Precision", "F1", "meanF1")
"""What may be monitored at each of `ks`."""


def measured(monitor: str, names: Iterable[str]) -> str | None:
    """The name in `names` under which the metric `monitor` was measured; None if it was not.

    A sampled metric has its negatives after its name: HR@10 is HR@10(99 negatives).
    """
    return next((name for name in names if name == monitor or name.startswith(f"{monitor}(")), None)


def sampled(name: str, candidates: int) -> str:
    """The name of a metric of the sampled protocol: HR@10/se -> HR@10(99 negatives)/se."""
    metric, slash, suffix = name.partition("/")
    return f"{metric}({candidates} negatives){slash}{suffix}"

"""What a run had sent when it was good: by its best round, and by a quality that all are held to.

What a run has sent in the end depends on when its patience ended, which is counted in evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import NamedTuple

from jaxrec.evaluation.names import measured
from jaxrec.files import Row

ENOUGH = 0.95  # of the highest validation value of all runs that send anything


class Sent(NamedTuple):
    """Bytes of one client, up and down, set-up included; NaN where it is not known or never was."""

    best: float  # until the round that serves
    enough: float  # until validation first reached `ENOUGH`


def sent(runs: Mapping[str, tuple[Row, Sequence[Row]]], monitor: str) -> dict[str, Sent]:
    """What each run, by name its result and its evaluations, had sent when it was good."""
    name = {
        run: measured(f"valid/{monitor}", row) or ""
        for run, (_, rows) in runs.items()
        for row in rows[:1]
    }
    federated = [run for run, (result, _) in runs.items() if result.get("bytes/total")]
    reached = [row.get(name[run], -1.0) for run in federated for row in runs[run][1]]
    enough = ENOUGH * max(reached, default=float("inf"))
    found = {}
    for run, (result, rows) in runs.items():
        total = result.get("bytes/total")
        each = result["bytes/per_client"] / total if total else 0.0
        best = (row["bytes"] for row in rows if row["round"] == result["best_round"])
        good = (row["bytes"] for row in rows if row.get(name[run], -1.0) >= enough)
        found[run] = Sent(each * next(best, nan), each * next(good, nan))
    return found

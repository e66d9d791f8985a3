"""What all runs have in common, side by side: results, bytes, curves, users, time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import comparison, report
from jaxrec.compare import caption, tables
from jaxrec.comparison import Run
from jaxrec.config import RunConfig, unknown
from jaxrec.job import read_record
from jaxrec.report.charts import LIGHT, Chart, Line
from jaxrec.report.markup import Html, of_rich, sentence, table
from jaxrec.types import DataError

SHARES = np.linspace(0, 100, 41)  # of users or clients, where their distribution is drawn
PARTS = "compile", "train", "evaluate"
SAME = (*comparison.PROTOCOL[1:], "data", "split", "valid", "test", "min_user", "min_item")


class Series(NamedTuple):
    """A run, or a baseline of one, as tables and charts show it."""

    run: Run  # without values and users until it has ended
    rows: list[report.Row]
    record: dict[str, Any]
    colour: int
    label: str  # of all runs that differ only in their seed

    @property
    def clients(self) -> float:
        """Members of the federation; those without interactions are none, where that is known."""
        each = self.run.values.get("bytes/per_client")
        return self.run.values["bytes/total"] / each if each else self.record["data"]["clients"]


Field = dict[str, Series]
"""Runs by name that are measured in the same way on the same data, so that curves compare them."""


def read(folders: Sequence[Path]) -> list[Field]:
    """The runs and their baselines; a name is the method, what tells it from others, and the seed.

    Raises CheckpointError where a folder is no run, SettingError where a run occurs twice.
    """
    measured: dict[tuple, list[Run]] = {}
    states: dict[tuple, list[str]] = {}  # of data of one name and seed, if they have changed
    for run in comparison.with_baselines(folders, _as_far_as_it_came):
        key = tuple(repr(run.settings.get(name)) for name in SAME)
        known = states.setdefault((key, run.settings["seed"]), [])
        if run.digest not in known:
            known.append(run.digest)
        measured.setdefault((*key, known.index(run.digest)), []).append(run)
    return [_field(runs) for runs in measured.values()]


def _field(runs: Sequence[Run]) -> Field:
    found: Field = {}
    for number, (label, group) in enumerate(comparison.grouped(runs).items()):
        for run in group:
            name = label if len(group) == 1 else f"{label} seed={run.settings['seed']}"
            name = f"{name} ({run.folder})" if name in found else name
            rows, record = report.read_rows(run.folder / "metrics.jsonl"), read_record(run.folder)
            found[name] = Series(run, rows, record, number % len(LIGHT), label)
    return found


def _as_far_as_it_came(folder: Path) -> Run:
    record, rows = read_record(folder), report.read_rows(folder / "metrics.jsonl")
    if (folder / "result.json").exists():
        run = comparison.read(folder)
        if rows and run.values["rounds"] == rows[-1]["round"]:  # else it went on since
            return run
    known = asdict(RunConfig()) | record["settings"]
    return Run(folder, record["method"], known, record["data"]["digest"], {}, pd.DataFrame())


def metric_of(field: Field, wanted: str | None) -> str:
    """The metric to draw: what is wanted, else what the first run monitors.

    Raises SettingError with the nearest name where no evaluation has measured it.
    """
    metric = wanted or next(iter(field.values())).run.settings["monitor"]
    names = [name for one in field.values() for row in one.rows[:1] for name in row]
    names = [name.removeprefix("valid/") for name in names if name.startswith("valid/")]
    names = [name for name in names if "/" not in name]  # not a standard error or a spread
    if names and not report.measured(metric, names):
        raise unknown(f"metric = {metric!r}: was not measured", metric, names)
    return metric


def results(field: Field) -> list[Html]:
    """Test metrics and bytes, as after training; runs that have not ended are named."""
    keys = {name: one.colour for name, one in field.items()}
    ended = {name: one.run.values for name, one in field.items() if one.run.values}
    told = [one.record.get("protocol", "").rpartition("; seed")[0] for one in field.values()]
    parts = [sentence(protocol) for protocol in dict.fromkeys(told)]
    if ended:
        parts += [of_rich(report.table(ended), keys), of_rich(report.traffic_table(ended), keys)]
    again = "has not ended and has no test result yet; to go on: python -m jaxrec.train --resume"
    going = {name: one for name, one in field.items() if not one.run.values}
    return parts + [sentence(f"{name} {again} {one.run.folder}") for name, one in going.items()]


def differences(field: Field, folders: Sequence[Path], metric: str) -> list[Html]:
    """Whether users fare differently, as `jaxrec.compare` says it."""
    groups = {one.label for one in field.values()}
    if len(groups) == 1:
        raise DataError(f"{groups.pop()} is alone; give more runs to compare it with")
    here = [one.run.folder for one in field.values()]
    found = comparison.compare([path for path in folders if path in here], metric)
    shown = tables(found)[len(groups) == len(field) :]  # of one run each, the means are above
    return [*map(of_rich, shown), sentence(caption(found))]


def curves(field: Field, metric: str) -> list[Html | Chart]:
    """The metric of the validation split over rounds, and over what a client sent and received."""
    over_rounds, over_bytes = [], []
    for name, one in field.items():
        key = report.measured(f"valid/{metric}", (name for row in one.rows[:1] for name in row))
        points = [row for row in one.rows if key and row.get(key) is not None]
        if not points:
            continue
        values = [row[key] for row in points]
        size = [row["bytes"] / one.clients / 1e6 for row in points]
        sent = (size, values) if size[-1] else ([0], [max(values)])
        rounds = [row["round"] for row in points]
        over_rounds.append(Line(name, rounds, values, one.colour, one.label))
        over_bytes.append(Line(name, *sent, one.colour, one.label))
    if not over_rounds:
        raise DataError(f"no evaluation has measured {metric} yet")
    axis = f"{metric}, validation"
    parts: list[Html | Chart] = [Chart("Learning", "round", axis, over_rounds)]
    if any(max(line.x) > 0 for line in over_bytes):
        title = "Accuracy against communication"
        parts += [Chart(title, "MB per client, up and down", axis, over_bytes, log=True)]
    else:
        parts += [sentence("Nothing crosses a network: there is no communication to draw.")]
    return [*parts, sentence("Dashed: evaluated once, at the dot, or nothing sent.")]


def spread(field: Field, metric: str) -> list[Html | Chart]:
    """How the metric is distributed over users and over clients."""
    parts: list[Html | Chart] = []
    for who in ("user", "client"):
        lines = []
        for name, one in field.items():
            values = of_each(one.run, metric, who)
            if len(values) > 1:
                cut = np.percentile(values, SHARES)
                lines.append(Line(name, SHARES, cut, one.colour, one.label))
        if lines:
            title = f"From the worst served {who} to the best"
            share = f"share of {who}s, worst first, %"
            parts += [Chart(title, share, f"{metric}, test", lines)]
    if not parts:
        raise DataError("no run has ended with test values of its users")
    return parts


def of_each(run: Run, metric: str, who: str) -> pd.Series:
    """The test metric's mean of each user or client; empty where it was not measured."""
    column = report.measured(metric, run.users.columns)
    return run.users.groupby(who)[column].mean().dropna() if column else pd.Series(dtype=float)


def times(field: Field) -> list[Html]:
    """Rounds and seconds."""
    head = ["run", "rounds", "best round", *(f"{part}, s" for part in PARTS), "total, s", "device"]

    def line(name: str, one: Series) -> list[Any]:
        values, last = one.run.values, one.rows[-1] if one.rows else {"round": 0, "seconds": 0.0}
        seconds = [values[f"seconds/{part}"] for part in PARTS] if values else []
        told = [f"{second:,.1f}" for second in [*seconds, sum(seconds) or last["seconds"]]]
        told = [""] * (len(PARTS) + 1 - len(told)) + told
        return [
            name,
            last["round"],
            values.get("best_round", ""),
            *told,
            one.record.get("device", ""),
        ]

    keys = {name: one.colour for name, one in field.items()}
    return [table(head, (line(*pair) for pair in field.items()), keys)]

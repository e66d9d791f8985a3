"""What all runs have in common, side by side: results, bytes, curves, users, time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import files
from jaxrec.evaluation.names import measured
from jaxrec.report import bytes_to_quality, comparison, result_tables
from jaxrec.report.charts import LIGHT, Chart, Line, Parts
from jaxrec.report.comparison import Run
from jaxrec.report.comparison_tables import caption, terminal_tables
from jaxrec.report.markup import of_rich, sentence, table
from jaxrec.settings.fields import unknown
from jaxrec.training.run_folder import Unfinished, read_record
from jaxrec.types import DataError

SHARES = np.linspace(0, 100, 41)  # of users or clients, where their distribution is drawn
PARTS = "text", "compile", "train", "evaluate"
SAME = (*comparison.PROTOCOL[1:], "data", "split", "valid", "test", "min_user", "min_item")


class ShownRun(NamedTuple):
    """A run, or a baseline of one, as tables and charts show it."""

    run: Run  # without values and users until it has ended
    rows: list[files.Row]
    record: dict[str, Any]
    colour: int
    label: str  # of all runs that differ only in their seed

    @property
    def clients(self) -> float:
        """Members of the federation; those without interactions are none, where that is known."""
        each = self.run.values.get("bytes/per_client")
        return self.run.values["bytes/total"] / each if each else self.record["data"]["clients"]


Comparable = dict[str, ShownRun]
"""Runs by name that are measured in the same way on the same data, so that curves compare them."""


def read_comparable(folders: Sequence[Path]) -> list[Comparable]:
    """The runs and their baselines; a name is the method, what tells it from others, and the seed.

    Raises CheckpointError where a folder is no run, SettingError where a run occurs twice.
    """
    protocols: dict[tuple, list[Run]] = {}
    states: dict[tuple, list[str]] = {}  # of data of one name and seed, if they have changed
    for run in comparison.with_baselines(folders, _as_far_as_it_came):
        key = tuple(repr(run.settings.get(name)) for name in SAME)
        known = states.setdefault((key, run.settings["seed"]), [])
        if run.digest not in known:
            known.append(run.digest)
        protocols.setdefault((*key, known.index(run.digest)), []).append(run)
    return [_named(runs) for runs in protocols.values()]


def _named(runs: Sequence[Run]) -> Comparable:
    found: Comparable = {}
    for number, (label, group) in enumerate(comparison.by_settings(runs).items()):
        for run in group:
            name = label if len(group) == 1 else f"{label} seed={run.settings['seed']}"
            name = f"{name} ({run.folder})" if name in found else name
            rows, record = files.read_rows(run.folder / "metrics.jsonl"), read_record(run.folder)
            found[name] = ShownRun(run, rows, record, number % len(LIGHT), label)
    return found


def _as_far_as_it_came(folder: Path) -> Run:
    record, rows = read_record(folder), files.read_rows(folder / "metrics.jsonl")
    with suppress(Unfinished):
        run = comparison.read_run(folder)
        if rows and run.values["rounds"] == rows[-1]["round"]:  # else it went on since
            return run
    known = comparison.settings_in(record, folder)
    return Run(folder, record["method"], known, record["data"]["digest"], {}, pd.DataFrame())


def metric_of(runs: Comparable, wanted: str | None) -> str:
    """The metric to draw: what is wanted, else what the first run monitors.

    Raises SettingError with the nearest name where no evaluation has measured it.
    """
    metric = wanted or next(iter(runs.values())).run.settings["monitor"]
    found = [name for one in runs.values() for row in one.rows[:1] for name in row]
    found = [name.removeprefix("valid/") for name in found if name.startswith("valid/")]
    found = [name for name in found if "/" not in name]  # not a standard error or a spread
    if found and not measured(metric, found):
        raise unknown(f"metric = {metric!r}: was not measured", metric, found)
    return metric


def results(runs: Comparable) -> Parts:
    """Test metrics and bytes, as after training; runs that have not ended are named."""
    keys = {name: one.colour for name, one in runs.items()}
    ended = {name: one.run.values for name, one in runs.items() if one.run.values}
    protocols: dict[str, None] = {}
    promises: dict[str, list[str]] = {}
    for name, one in runs.items():
        said = one.record.get("protocol", "").rpartition("; seed")[0]
        protocol, _, promise = said.partition("; privacy: ")
        protocols[protocol] = None
        promises.setdefault(promise or one.run.values.get("privacy", ""), []).append(name)
    parts: Parts = [sentence(protocol) for protocol in protocols]
    for promise, names in promises.items():
        parts += [sentence(f"Privacy of {', '.join(names)}: {promise}.")] if promise else []
    if ended:
        told = {name: (values, runs[name].rows) for name, values in ended.items()}
        monitor = next(iter(runs.values())).run.settings["monitor"]
        sent = bytes_to_quality.sent(told, monitor)
        parts += [
            of_rich(result_tables.metrics_table(ended), keys),
            of_rich(result_tables.traffic_table(ended, sent), keys),
        ]
    again = "has not ended and has no test result yet; to go on: python -m jaxrec.train --resume"
    going = {name: one for name, one in runs.items() if not one.run.values}
    return parts + [sentence(f"{name} {again} {one.run.folder}") for name, one in going.items()]


def differences(runs: Comparable, folders: Sequence[Path], metric: str) -> Parts:
    """Whether users fare differently, as `jaxrec.compare` says it."""
    ended = {one.run.folder: one for one in runs.values() if one.run.values}
    going = [f"{name} has not ended" for name, one in runs.items() if not one.run.values]
    groups = {one.label for one in ended.values()}
    if len(groups) < 2:
        alone = [f"{label} is alone; give more runs to compare it with" for label in groups]
        raise DataError("; ".join(going + alone))
    here = [path for path in folders if path in ended]
    found = comparison.compare(here + [path for path in ended if path not in here], metric)
    shown = terminal_tables(found)
    if len(groups) == len(ended):  # of one run each, all others are above
        shown = shown[-1:]
    return [*map(of_rich, shown), sentence(caption(found)), *map(sentence, going)]


def curves(runs: Comparable, metric: str) -> Parts:
    """The metric of the validation split over rounds, and over what a client sent and received."""
    over_rounds, over_bytes = [], []
    for name, one in runs.items():
        key = measured(f"valid/{metric}", (name for row in one.rows[:1] for name in row))
        if key is None:
            continue
        points = [row for row in one.rows if row.get(key) is not None]
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
    parts: Parts = [Chart("Learning", "round", axis, over_rounds)]
    if any(max(line.x) > 0 for line in over_bytes):
        title = "Accuracy against communication"
        parts += [Chart(title, "MB per client, up and down", axis, over_bytes, log=True)]
    else:
        parts += [sentence("Nothing crosses a network: there is no communication to draw.")]
    return [*parts, sentence("Dashed: evaluated once, at the dot, or nothing sent.")]


def spread(runs: Comparable, metric: str) -> Parts:
    """How the metric is distributed over users and over clients."""
    parts: Parts = []
    for who in ("user", "client"):
        lines = []
        for name, one in runs.items():
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
    column = measured(metric, run.users.columns)
    if column is None:
        return pd.Series(dtype=float)
    return pd.Series(run.users.groupby(who)[column].mean()).dropna()


def times(runs: Comparable) -> Parts:
    """Rounds and seconds."""
    head = ["run", "rounds", "best round", *(f"{part}, s" for part in PARTS), "total, s", "device"]

    def line(name: str, one: ShownRun) -> list[Any]:
        values, last = one.run.values, one.rows[-1] if one.rows else {"round": 0, "seconds": 0.0}
        seconds = [values.get(f"seconds/{part}", 0.0) for part in PARTS] if values else []
        told = [f"{second:,.1f}" for second in [*seconds, sum(seconds) or last["seconds"]]]
        told = [""] * (len(PARTS) + 1 - len(told)) + told
        return [
            name,
            last["round"],
            values.get("best_round", ""),
            *told,
            one.record.get("device", ""),
        ]

    keys = {name: one.colour for name, one in runs.items()}
    return [table(head, (line(*pair) for pair in runs.items()), keys)]

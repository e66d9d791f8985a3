"""Search for settings: one run folder a trial, best by validation, the test split for the winner.

    space -> choices x seeds -> trials, each a run folder -> mean over seeds -> winner -> test

A trial is known by all its settings, also those that the space leaves alone. What ended is a line
of `trials.jsonl` and never trained again; what was cut short goes on from its checkpoint. No trial
looks at the test split: the winner's runs do, once, at the end.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import files
from jaxrec.data.sources import given_data, load, name_of_data
from jaxrec.evaluation.names import measured
from jaxrec.evaluation.significance import deviation
from jaxrec.files import NUMBER, Row
from jaxrec.output import csv_text
from jaxrec.search.trials import Trial, as_named_before, plan_trials, words_of
from jaxrec.training.prepared import split_of
from jaxrec.training.progress import say
from jaxrec.training.result import seconds_of
from jaxrec.training.run import Result, train
from jaxrec.training.run_folder import read_record
from jaxrec.training.settings import RunConfig, build, read_values
from jaxrec.types import REFUSALS, CheckpointError, Dataset, SettingError

NOTHING = type(None)
TOLD: files.Kinds = {  # of a trial that ended
    "trial": str, "settings": dict, "seed": int, "valid": (*NUMBER, NOTHING),
    "rounds": (int, NOTHING), "seconds": (*NUMBER, NOTHING), "error": (str, NOTHING),
}  # fmt: skip
RECORDED: files.Kinds = {
    "method": str, "data": str, "space": dict, "random": int, "seeds": list, "draw_seed": int,
    "settings": dict, "digest": str,
}  # fmt: skip

Given = Dataset | pd.DataFrame | None  # in place of the data that settings name


class Choice(NamedTuple):
    """Settings that the search chose, over their seeds."""

    settings: dict[str, Any]
    seeds: tuple[int, ...]
    mean: float | None  # of the monitored validation metric; None where a seed failed
    sd: float | None  # over seeds; None for one
    seconds: float  # all seeds together
    error: str  # of the first seed that failed, else empty
    folders: tuple[Path, ...]  # of the runs, one a seed


class Sweep(NamedTuple):
    """What a search ends with."""

    choices: list[Choice]  # best first; among equals in the order of the trials; failed ones last
    trials: list[Row]  # as in trials.jsonl
    monitor: str  # the validation metric that the first choice is best by
    runs: list[Result]  # of the best choice, one a seed, tested; none if no choice has finished
    out: Path


def sweep(
    method: str | None = None,
    data: str | Path | pd.DataFrame | Dataset | None = None,
    *,
    space: Mapping[str, Any],
    out: str | Path,
    random: int = 0,
    seeds: Sequence[int] = (),
    draw_seed: int = 0,
    retry: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Sweep:
    """Train a method with each choice of settings and seed, and test the best choice.

    Best is the choice whose mean over seeds of the monitored validation metric is highest; one that
    failed for a seed cannot win. Called again with the same `out` it trains what is missing only,
    so that a search which was stopped goes on and one that is over can be widened: the choices of
    this call compete, so name the old values too. A new winner is one more look at the test split.

    Args:
      method: a name in `METHODS`; "fedcia" without one.
      data: a name, path or DataFrame for `load`, or a Dataset; "synthetic" without one.
      space: settings to vary: lists of values, "log(1e-4, 0.1)" or "uniform(0, 1)" by name.
      out: folder of the search.
      random: choices to draw; 0 is the grid, every combination of the lists.
      seeds: of each choice; without any, the one in `settings`, or 0.
      draw_seed: of what is drawn.
      retry: train again what failed.
      progress: say on stderr how each trial ended.
      **settings: that all trials share.

    Raises:
      SettingError: before any trial, for a setting or value that is refused.
      DataError: before any trial, for data that cannot be read.
      CheckpointError: `out` is of a search on other data, or in use by another process.
      KeyboardInterrupt: Ctrl-C; the trial that was running is saved.
    """
    method, out = method or "fedcia", Path(out)
    given = given_data(data, settings)
    name = "synthetic" if data is None else name_of_data(data)
    space = {n: v if isinstance(v, str) else list(v) for n, v in space.items()}
    drawing = {"random": random, "seeds": tuple(seeds), "draw_seed": draw_seed}
    plan = partial(plan_trials, method, space, **drawing)
    run = build(method, plan(settings | {"data": name})[0].settings)[0]
    digest, settings["split"] = _digest_and_split(run, given, progress)
    trials = plan(settings | {"data": name})  # known by the split that is taken
    record = {
        "method": method, "data": name, "space": space, **drawing, "settings": settings,
        "digest": digest,
    }  # fmt: skip
    monitor = _monitor(method, settings)
    with files.in_use(out):
        _check_folder(out, digest)
        files.write_json(out / "sweep.json", record)
        trials = as_named_before(trials, method, out / "trials")
        rows = _run_missing(method, trials, out, given, monitor, retry=retry, shown=progress)
        _write_table(out / "trials.csv", rows)
        choices = _choices(trials, rows, out)
        runs = _tested(method, choices[0], rows, out, given, monitor)
    return Sweep(choices, rows, monitor, runs, out)


def _digest_and_split(run: RunConfig, given: Given, progress: bool) -> tuple[str, str]:
    """The digest of the data that the trials will read, and how they will split them."""
    data = run.data if given is None else given
    if not isinstance(data, Dataset):
        data = load(data, unread=run.unread, progress=progress, **run.reading())
    return data.digest, split_of(run, data)


def _run_missing(
    method: str,
    trials: Sequence[Trial],
    out: Path,
    given: Given,
    monitor: str,
    *,
    retry: bool,
    shown: bool,
) -> list[Row]:
    """The line of each trial in `trials.jsonl`, which is added when a trial ends."""
    path = out / "trials.jsonl"
    ended = {row["trial"]: row for row in files.read_rows(path, TOLD)}
    files.write_rows(path, ended.values())  # without a last line that was cut short
    rows = []
    for number, trial in enumerate(trials, 1):
        row, again = ended.get(trial.name), ""
        if row is None or (retry and row["error"]):
            row = _run(method, trial, out / "trials" / trial.name, given, monitor)
            files.append_row(path, row)
        else:
            row, again = row | {"settings": trial.choice}, "  (from before)"
        told = row["error"] or f"valid {monitor} {row['valid']:.4f}"
        label = f"{number}/{len(trials)}  {words_of(trial.choice)}  seed {trial.seed}"
        say(f"{label}  {told}{again}", shown=shown)
        rows.append(row)
    return rows


def _write_table(path: Path, rows: Sequence[Row]) -> None:
    """The trials as a CSV with a column for each setting; the columns of a trial come first."""
    flat = ({**row, **row["settings"], **row} for row in rows)
    table = pd.DataFrame(flat).drop(columns="settings")
    files.write_text(path, csv_text(table))


def _tested(
    method: str, best: Choice, rows: Sequence[Row], out: Path, given: Given, monitor: str
) -> list[Result]:
    """The best choice's runs with their test values, and `winner.json`; none if it has failed."""
    (out / "winner.json").unlink(missing_ok=True)
    if best.error:
        return []
    runs = [train(data=given, resume=folder, progress=False) for folder in best.folders]
    _check_untouched(best, runs, rows)
    files.write_json(out / "winner.json", _summary(method, best, monitor, runs, out))
    return runs


def _run(method: str, trial: Trial, folder: Path, given: Given, monitor: str) -> Row:
    """The trial's line of `trials.jsonl`, whatever becomes of it."""
    row = {"trial": trial.name, "settings": trial.choice, "seed": trial.seed, "valid": None}
    ended = {"best_round": None, "rounds": None, "seconds": None}
    try:
        if (folder / "config.json").exists():
            result = train(data=given, resume=folder, hold_test=True, progress=False)
        else:
            data = trial.settings.get("data") if given is None else given
            settings = {name: value for name, value in trial.settings.items() if name != "data"}
            result = train(method, data, out=folder, hold_test=True, progress=False, **settings)
    except OSError:  # a full disk is not the trial's fault: the search stops, and can go on
        raise
    except REFUSALS as error:
        return row | ended | {"error": str(error)}
    except Exception as error:  # of one trial, such as memory that ran out: the others go on
        return row | ended | {"error": f"{type(error).__name__}: {error}"}
    values = result.values
    row["valid"] = values[measured(f"valid/{monitor}", values) or f"valid/{monitor}"]
    seconds = seconds_of(values)
    ended = {"best_round": values["best_round"], "rounds": values["rounds"], "seconds": seconds}
    return row | ended | {"error": None}


def _choices(trials: list[Trial], rows: Sequence[Row], out: Path) -> list[Choice]:
    groups: dict[str, list[tuple[Trial, Row]]] = {}
    for trial, row in zip(trials, rows, strict=True):
        groups.setdefault(json.dumps(trial.choice), []).append((trial, row))
    choices = []
    for members in groups.values():
        own = [row for _, row in members]
        errors = [f"seed {row['seed']}: {row['error']}" for row in own if row["error"]]
        values = [row["valid"] for row in own]
        choices.append(
            Choice(
                members[0][0].choice,
                tuple(row["seed"] for row in own),
                None if errors else float(np.mean(values)),
                None if errors or np.isnan(spread := deviation(values)) else spread,
                sum(row["seconds"] or 0.0 for row in own),
                errors[0] if errors else "",
                tuple(out / "trials" / trial.name for trial, _ in members),
            )
        )
    return sorted(choices, key=lambda choice: (choice.mean is None, -(choice.mean or 0)))


def _summary(
    method: str, best: Choice, monitor: str, runs: list[Result], out: Path
) -> dict[str, Any]:
    """The content of winner.json: means and standard deviations over seeds."""
    values = pd.DataFrame([run.values for run in runs])
    measured = [name for name in values if name.startswith("test/") and not name.endswith("/se")]
    return {
        "method": method,
        "settings": best.settings,
        "seeds": best.seeds,
        "runs": [str(folder.relative_to(out)) for folder in best.folders],
        f"valid/{monitor}": best.mean,
        f"valid/{monitor}/sd": best.sd,
        **{name: values[name].mean() for name in measured},
        **{f"{name}/sd": deviation(values[name]) for name in measured},
    }


def _check_untouched(best: Choice, runs: Sequence[Result], rows: Sequence[Row]) -> None:
    """Refuse a winner whose run has gone on since: its test values are not of what has won."""
    took = {row["trial"]: row["rounds"] for row in rows}
    for folder, run in zip(best.folders, runs, strict=True):
        if run.values["rounds"] != took[folder.name]:
            raise CheckpointError(
                f"{folder}: has taken {run.values['rounds']} rounds, and {took[folder.name]} when "
                "it won; train on in a copy of the folder, and search again in another one"
            )


def _monitor(method: str, settings: Mapping[str, Any]) -> str:
    return build(method, read_values(method, settings))[0].monitor


def _check_folder(out: Path, digest: str) -> None:
    """Refuse a folder of something else."""
    path = out / "sweep.json"
    if (out / "config.json").exists():
        raise SettingError(f"{out}: holds a run; choose another folder for the search")
    if not path.exists():
        return
    if (old := read_sweep(out)["digest"]) != digest:
        raise CheckpointError(
            f"{out}: the data have changed: their digest was {old[:12]} and is {digest[:12]}; "
            "restore them or choose another folder"
        )


def read_sweep(out: Path) -> dict[str, Any]:
    """sweep.json of a search's folder; CheckpointError where there is none or a damaged one."""
    path = out / "sweep.json"
    try:
        record = files.read_json(path, RECORDED)
    except OSError as error:
        raise CheckpointError(f"{path}: no search ({error.strerror})") from error
    if not all(files.is_a(seed, int) for seed in record["seeds"]):
        raise CheckpointError(f"{path}: damaged (seeds = {record['seeds']!r:.40})")
    for trial in (out / "trials").glob("*"):
        if "split" not in record["settings"]:  # an older version did not store how
            with contextlib.suppress(CheckpointError):
                record["settings"]["split"] = read_record(trial)["settings"]["split"]
    return record

"""Search for settings: one run folder a trial, best by validation, the test split for the winner.

    space -> choices x seeds -> trials, each a run folder -> mean over seeds -> winner -> test

A trial is known by all its settings, also those that the space leaves alone. What ended is a line
of `trials.jsonl` and never trained again; what was cut short goes on from its checkpoint. No trial
looks at the test split: the winner's runs do, once, at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import report
from jaxrec.commands import REFUSALS
from jaxrec.config import build, read_values
from jaxrec.data.sources import load
from jaxrec.run import Result, train
from jaxrec.space import draw, grid, read_space
from jaxrec.types import CheckpointError, Dataset, SettingError

NAMED = 60  # letters of a trial's settings in the name of its folder
TOLD = "trial", "settings", "seed", "valid", "rounds", "seconds", "error"  # of a trial that ended
RECORDED = {
    "method": str, "data": str, "space": dict, "random": int, "seeds": list, "draw_seed": int,
    "settings": dict, "digest": str,
}  # fmt: skip


class Trial(NamedTuple):
    """One run of a search."""

    name: str  # of its folder
    choice: dict[str, Any]  # the settings that the search varies
    seed: int
    settings: dict[str, Any]  # all that are not defaults


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
    trials: list[dict[str, Any]]  # as in trials.jsonl
    monitor: str  # the validation metric that the first choice is best by
    runs: list[Result]  # of the best choice, one a seed, tested; none if no choice has finished
    out: Path


def sweep(
    method: str | None = None,
    data: str | Path | Dataset | None = None,
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
    One process at a time may work in a folder.

    Args:
      method: a name in `METHODS`; "fedcia" without one.
      data: a name or path for `load`, or a Dataset; "synthetic" without one.
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
      CheckpointError: `out` is of a search on other data.
      KeyboardInterrupt: Ctrl-C; the trial that was running is saved.
    """
    method, out = method or "fedcia", Path(out)
    given = data if isinstance(data, Dataset) else None
    name = given.name if given else str(data or "synthetic")
    seeds = tuple(seeds)
    space = {n: v if isinstance(v, str) else list(v) for n, v in space.items()}
    drawing = {"random": random, "seeds": seeds, "draw_seed": draw_seed}
    trials = plan(method, space, {**settings, "data": name}, **drawing)
    digest = (given or load(name, progress=progress)).digest
    _check_folder(out, digest)
    record = {
        "method": method, "data": name, "space": space, **drawing, "settings": settings,
        "digest": digest,
    }  # fmt: skip
    report.write_json(out / "sweep.json", record)

    path = out / "trials.jsonl"
    ended = {row["trial"]: row for row in report.read_rows(path, TOLD)}
    report.write_rows(path, ended.values())  # without a last line that was cut short
    trials = _as_named_before(trials, out / "trials")
    monitor = _monitor(method, settings)
    rows = []
    for number, trial in enumerate(trials, 1):
        row, again = ended.get(trial.name), ""
        if row is None or (retry and row["error"]):
            row = _run(method, trial, out / "trials" / trial.name, given, monitor)
            report.append_row(path, row)
        else:
            row, again = row | {"settings": trial.choice}, "  (from before)"
        told = row["error"] or f"valid {monitor} {row['valid']:.4f}"
        label = f"{number}/{len(trials)}  {words_of(trial.choice)}  seed {trial.seed}"
        report.say(f"{label}  {told}{again}", shown=progress)
        rows.append(row)
    flat = ({**row, **row["settings"], **row} for row in rows)  # columns of a trial come first
    table = pd.DataFrame(flat).drop(columns="settings")
    report.write_text(out / "trials.csv", table.to_csv(index=False))
    choices = _choices(trials, rows, out)
    runs = []
    (out / "winner.json").unlink(missing_ok=True)
    if not choices[0].error:
        runs = [train(data=given, resume=folder, progress=False) for folder in choices[0].folders]
        _check_untouched(choices[0], runs, rows)
        report.write_json(out / "winner.json", _summary(method, choices[0], monitor, runs, out))
    return Sweep(choices, rows, monitor, runs, out)


def plan(
    method: str,
    space: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    random: int = 0,
    seeds: Sequence[int] = (),
    draw_seed: int = 0,
) -> list[Trial]:
    """The trials of a search, choice by choice; SettingError where one of them could not run."""
    shared = read_values(method, settings)
    checked = read_space(method, space)
    if both := [name for name in checked if name in shared]:
        raise SettingError(f"{both[0]} = {shared[both[0]]!r}: is searched too; give it once")
    if random < 0:
        raise SettingError(f"random = {random}: must be at least 1, or 0 for the grid")
    if len(set(seeds)) < len(seeds):
        raise SettingError(f"seeds = {list(seeds)}: one of them is there twice; leave it out")
    choices = draw(checked, random, draw_seed) if random else grid(checked)
    return [
        _trial(method, choice, seed, shared)
        for choice in choices
        for seed in seeds or (shared.get("seed", 0),)
    ]


def words_of(choice: Mapping[str, Any]) -> str:
    """A choice of settings in one line: width=32 model=mf."""
    return " ".join(f"{name}={show(value)}" for name, value in choice.items())


def show(value: Any) -> str:
    """A value in a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trial(method: str, choice: dict[str, Any], seed: int, shared: dict[str, Any]) -> Trial:
    settings = shared | choice | {"seed": seed, "baselines": ()}
    settled = {}
    for config in build(method, settings):
        settled |= asdict(config)
    digest = hashlib.sha256(json.dumps([method, settled], sort_keys=True).encode()).hexdigest()
    words = re.sub(r"[^\w.=+-]+", "_", words_of(choice))[:NAMED]
    return Trial(f"{words}_seed={seed}-{digest[:8]}", choice, seed, settings)


def _as_named_before(trials: list[Trial], folder: Path) -> list[Trial]:
    """The trials under the names of their folders, which another space may have spelled."""
    digest = lambda name: name.rpartition("-")[2]
    named = {digest(path.name): path.name for path in folder.glob("*")}
    return [trial._replace(name=named.get(digest(trial.name), trial.name)) for trial in trials]


def _run(
    method: str, trial: Trial, folder: Path, given: Dataset | None, monitor: str
) -> dict[str, Any]:
    """The trial's line of `trials.jsonl`, whatever becomes of it."""
    row = {"trial": trial.name, "settings": trial.choice, "seed": trial.seed, "valid": None}
    ended = {"best_round": None, "rounds": None, "seconds": None}
    quietly = {"hold_test": True, "progress": False}
    try:
        if (folder / "config.json").exists():
            result = train(data=given, resume=folder, **quietly)
        else:
            settings = dict(trial.settings)
            data = settings.pop("data", None)
            result = train(method, given or data, out=folder, **quietly, **settings)
    except REFUSALS as error:
        return row | ended | {"error": str(error)}
    except Exception as error:  # of one trial, such as memory that ran out: the others go on
        return row | ended | {"error": f"{type(error).__name__}: {error}"}
    values = result.values
    row["valid"] = values[report.measured(f"valid/{monitor}", values)]
    parts = ("compile", "train", "evaluate")
    seconds = sum(values[f"seconds/{part}"] for part in parts)
    ended = {"best_round": values["best_round"], "rounds": values["rounds"], "seconds": seconds}
    return row | ended | {"error": None}


def _choices(trials: list[Trial], rows: list[dict[str, Any]], out: Path) -> list[Choice]:
    groups: dict[str, list[tuple[Trial, dict[str, Any]]]] = {}
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
                None if errors or len(own) == 1 else float(np.std(values, ddof=1)),
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
        **{f"{name}/sd": values[name].std(ddof=1) for name in measured},
    }


def _check_untouched(best: Choice, runs: list[Result], rows: list[dict[str, Any]]) -> None:
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
        record = json.loads(path.read_text())
        for name, kind in RECORDED.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} = {record[name]!r}")
    except OSError as error:
        raise CheckpointError(f"{path}: no search ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r})") from error
    return record

"""Is a difference real? Runs that differ only in their seed, set side by side user by user.

With x_u and y_u the values of user u under two settings, each the mean over the seeds, the pairs
(x_u, y_u) are what is tested: seeds are no independent users, and users are no independent seeds.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec import files
from jaxrec.evaluation.names import measured
from jaxrec.evaluation.significance import Test, deviation, holm, paired_test
from jaxrec.federated import privacy_ledger
from jaxrec.methods import METHODS
from jaxrec.report import bytes_to_quality
from jaxrec.report.bytes_to_quality import Sent
from jaxrec.settings.fields import fields, unknown
from jaxrec.training.result import seconds_of
from jaxrec.training.run_folder import Unfinished, read_record, read_result
from jaxrec.training.settings import RunConfig
from jaxrec.types import DataError, SettingError

PROTOCOL = ("monitor", "ranking", "candidates", "listed", "mask_history", "catalogue")
DATA = (
    "data", "split", "valid", "test", "min_user", "min_item", "partition", "clients", "alpha",
    "random_positives", "seed",
)  # fmt: skip
APART = ("seed", "baselines", "mesh")  # settings that runs of one group may differ in


class Run(NamedTuple):
    """What an ended run says in its folder."""

    folder: Path
    method: str
    settings: dict[str, Any]
    digest: str  # of the data
    values: dict[str, Any]  # as in result.json
    users: pd.DataFrame  # user, client and a column for each test metric

    @property
    def ground(self) -> tuple:
        """Runs on the same ground rank the same rivals: same rows, and same negatives if drawn."""
        drawn = self.settings["candidates"] and not self.settings["listed"]
        return self.digest, self.settings["seed"] if drawn else None


class Comparison(NamedTuple):
    """Each group of runs, and how its users' values differ from those of the first group.

    Columns of `table`, a row a group: runs, mean and sd of the metric over its runs (NaN where all
    have the same value, as runs of a deterministic method do), mb_per_client (megabytes, up and
    down), mb_to_best (until the round that serves), mb_to_enough (until 95 % of the highest
    validation value of runs that send anything; NaN: one never came to it), seconds, privacy (of
    the run that spent most); and difference (to the first group, in units of the metric), low and
    high of its 95 % interval, p of Wilcoxon's signed rank test, p_holm (corrected by Holm), cohen_d
    of the paired differences, rank_biserial; NaN for the first group.
    """

    table: pd.DataFrame
    metric: str
    users: int  # that are paired


def compare(
    runs: Iterable[str | Path], metric: str | None = None, *, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare run folders; their baselines count as runs of their own.

    The values of a user are averaged over the runs of a group and paired with those of the same
    user in the first group.

    Args:
      runs: folders of runs; those of the same method and settings but the seed are a group, and
        those that have not ended are left out with a warning.
      metric: a per-user test metric, such as "NDCG@10"; by default the one the runs monitor.
      resamples: of the percentile bootstrap over users.
      seed: of the bootstrap.

    Raises:
      CheckpointError: a folder is no run or a damaged one, or no run has ended.
      DataError: not all groups are of the same data, or their protocols differ; says in what.
      SettingError: the metric was not measured; a run occurs twice; there is nothing to compare.
    """
    found = with_baselines([Path(run) for run in runs], read_run)
    if resamples < 1 or not found:
        raise SettingError(f"resamples = {resamples}, {len(found)} runs: needs 1 or more of each")
    _check_protocol(found)
    groups = by_settings(found)
    _check_ground(groups)
    metric = _metric(found, metric or found[0].settings["monitor"])
    lines = {label: _lines(group, metric) for label, group in groups.items()}
    first, *others = lines
    tests = {}
    for label in others:
        if not lines[label].index.equals(lines[first].index):
            raise DataError(f"{first} and {label} were measured on different users or rows")
        tests[label] = paired_test(lines[label] - lines[first], resamples, seed)
    rows = {str(run.folder): files.read_rows(run.folder / "metrics.jsonl") for run in found}
    evaluated = {str(run.folder): (run.values, rows[str(run.folder)]) for run in found}
    sent = bytes_to_quality.sent(evaluated, found[0].settings["monitor"])
    summaries = {
        label: _summary(group, metric, [sent[str(run.folder)] for run in group])
        for label, group in groups.items()
    }
    table = pd.DataFrame.from_dict(summaries, orient="index")
    tested = pd.DataFrame.from_dict(tests, orient="index", columns=list(Test._fields))
    tested.insert(4, "p_holm", holm(tested["p"].to_numpy(float)))
    return Comparison(table.join(tested), metric, lines[first].index.get_level_values(0).nunique())


def with_baselines(folders: Sequence[Path], open_run: Callable[[Path], Run]) -> list[Run]:
    """The runs, each once, and those of their baselines that are not among them.

    One that `open_run` finds unfinished is left out with a warning. Raises SettingError where the
    same run is given twice, and what `open_run` raises.
    """
    begun = [path.parent for run in folders for path in sorted(run.glob("baselines/*/config.json"))]
    unfinished: list[Unfinished] = []

    def opened(paths: Sequence[Path]) -> Iterator[Run]:
        for path in paths:
            try:
                yield open_run(path)
            except Unfinished as error:
                unfinished.append(error)

    given, beside = list(opened(folders)), list(opened(begun))
    if unfinished and not given + beside:
        raise unfinished[0]
    for error in unfinished:
        warnings.warn(f"left out of the comparison: {error}", stacklevel=3)
    found: dict[tuple, Run] = {}
    for number, run in enumerate(given + beside):
        key = _key(run), run.settings["seed"], run.ground
        if key in found and number < len(given):
            raise SettingError(
                f"{found[key].folder} and {run.folder}: the same run twice, {run.method} with seed "
                f"{run.settings['seed']}; leave one out"
            )
        found.setdefault(key, run)
    return list(found.values())


def read_run(folder: Path) -> Run:
    """An ended run; Unfinished where it goes on, CheckpointError where it is none or damaged."""
    record, (values, users) = read_record(folder), read_result(folder)
    settings = settings_in(record, folder)
    if record["method"] in METHODS:
        otherwise = METHODS[record["method"]].TRAITS.privacy
        values.setdefault("privacy", settings.get("privacy", otherwise))
    return Run(folder, record["method"], settings, record["data"]["digest"], values, users)


def settings_in(record: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings of a stored run, with the defaults of those that its version did not have.

    The split is the one that was taken, also where it was left to the data.

    Raises SettingError for a value that cannot be.
    """
    known = fields(RunConfig)
    if record["method"] in METHODS:
        known = known | fields(METHODS[record["method"]].Config)
    source = f"{folder / 'config.json'}: "
    stored = {
        name: known[name].checked(name, value, source) if name in known else value
        for name, value in record["settings"].items()
    }
    taken = {"split": record["data"]["split"]} if "split" in record["data"] else {}
    return {name: field.default for name, field in known.items()} | stored | taken


def _key(run: Run) -> tuple[str, str]:
    kept = {name: value for name, value in run.settings.items() if name not in APART}
    return run.method, json.dumps(kept, sort_keys=True)


def by_settings(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by a label: the method and, where several groups share it, the settings they vary."""
    groups: dict[tuple, list[Run]] = {}
    for run in runs:
        groups.setdefault(_key(run), []).append(run)
    labelled = {}
    for (method, _), group in groups.items():
        same = [other[0].settings for key, other in groups.items() if key[0] == method]
        own = group[0].settings
        names = dict.fromkeys(name for other in same for name in other if name not in APART)
        varied = [n for n in names if any(other.get(n) != own.get(n) for other in same)]
        told = ", ".join(f"{name}={own.get(name)}" for name in varied)
        labelled[f"{method} {told}".strip()] = group
    return labelled


def _check_protocol(runs: Sequence[Run]) -> None:
    for run in runs:
        if differ := _differing(runs[0], run, PROTOCOL):
            raise DataError(
                f"{runs[0].folder} and {run.folder} have different protocols: {_told(differ)}; "
                f"{_remedy(runs[0], run, differ)}"
            )


def _check_ground(groups: dict[str, list[Run]]) -> None:
    """Every group must have runs on the same grounds as the first."""
    grounds = {label: {run.ground for run in group} for label, group in groups.items()}
    for label, group in groups.items():
        for run in group:
            for other, theirs in grounds.items():
                if run.ground in theirs:
                    continue
                nearest = min(groups[other], key=lambda one: len(_differing(run, one, DATA)))
                differ = _differing(run, nearest, DATA)
                told = "the data have changed between them; train one of them again"
                if differ:
                    told = f"{_told(differ)}; {_remedy(run, nearest, differ)}"
                raise DataError(
                    f"{run.folder} ({label}) has data of digest {run.digest[:12]}, on which there "
                    f"is no run of {other}; {nearest.folder} has {nearest.digest[:12]}: {told}"
                )


def _differing(one: Run, other: Run, names: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """The settings among `names` that two runs differ in, and the values of both."""
    pairs = {name: (one.settings.get(name), other.settings.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _told(differ: Mapping[str, tuple[Any, Any]]) -> str:
    return ", ".join(f"{name} = {one!r} and {other!r}" for name, (one, other) in differ.items())


def _remedy(one: Run, other: Run, differ: Mapping[str, tuple[Any, Any]]) -> str:
    """The words that make the other run comparable with the one."""
    words = [
        f"--{'' if value else 'no-'}{name}" if isinstance(value, bool) else f"--{name} {value}"
        for name, (value, _) in differ.items()
    ]
    return f"train {other.method} again as {one.folder} was, with {' '.join(words)}"


def _metric(runs: Sequence[Run], wanted: str) -> str:
    """The column of the users' values in which all runs have the metric that is wanted."""
    found = wanted
    for run in runs:
        columns = list(run.users.select_dtypes("float").columns)
        column = measured(wanted, columns)
        if column is None:
            message = f"metric = {wanted!r}: {run.folder} has no such value of each user"
            raise unknown(message, wanted, columns)
        found = column
    return found


def _lines(group: Sequence[Run], metric: str) -> pd.Series:
    """The metric of each user (row of a user) and ground, the mean over seeds."""
    names = ["user", *(["item"] if "item" in group[0].users else []), "ground"]
    each = [run.users.assign(ground=str(run.ground)) for run in group]
    return pd.Series(pd.concat(each).groupby(names)[metric].mean())


def _summary(group: Sequence[Run], metric: str, sent: Sequence[Sent]) -> dict[str, Any]:
    name = f"test/{metric}"
    stored = not metric.startswith("meanF1") and all(
        run.values.get(name) is not None for run in group
    )
    values = [run.values[name] if stored else run.users[metric].mean() for run in group]
    return {
        "runs": len(group),
        "mean": float(np.mean(values)),
        "sd": deviation(values),
        "mb_per_client": float(np.mean([r.values["bytes/per_client"] for r in group]) / 1e6),
        "mb_to_best": float(np.mean([had.best for had in sent]) / 1e6),
        "mb_to_enough": float(np.mean([had.enough for had in sent]) / 1e6),
        "seconds": float(np.mean([seconds_of(run.values) for run in group])),
        "privacy": privacy_ledger.short(max((run.values for run in group), key=_spent)),
    }


def _spent(values: dict[str, Any]) -> float:
    return values.get("privacy/epsilon", 0.0)

"""The folder of a run: what it says, what it remembers, whether it can be continued."""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pandas as pd

from jaxrec import files
from jaxrec.data.buckets import POWERS_OF_TWO
from jaxrec.data.sources import located
from jaxrec.federated.byte_ledger import Ledger
from jaxrec.federated.privacy import BEFORE
from jaxrec.methods import METHODS, method_module
from jaxrec.settings.fields import coerce
from jaxrec.training import checkpoint, launch
from jaxrec.training.job import SUMS, Job, Progress, resumable
from jaxrec.training.prepared import Prepared
from jaxrec.training.settings import current_names, read_values, settings_of
from jaxrec.types import CheckpointError, DataError, SettingError

ALWAYS = dict.fromkeys(  # in a result, whatever the method
    ("bytes/per_client", "seconds/compile", "seconds/train", "seconds/evaluate"), files.NUMBER
) | {"rounds": int, "best_round": int}
RECORD = {"method": str, "settings": dict, "data": dict, "versions": dict}  # in config.json
MEASURED = ("test/", "valid/", "bytes/", "seconds/")  # begin the names of numbers in a result
RESULT = ("result.json", "users.parquet")

P = ParamSpec("P")
T = TypeVar("T")


class Unfinished(CheckpointError):
    """The folder of a run that has not ended."""


def in_its_folder(train: Callable[P, T]) -> Callable[P, T]:
    """`train` alone in its folder, `out` or `resume`, which the main process of a launch holds.

    A baseline's folder is that of the run that trained it.
    """

    @functools.wraps(train)
    def alone(*args: P.args, **given: P.kwargs) -> T:
        launch.order_collectives()
        folder = given.get("resume") or given.get("out")
        folder = Path(folder) if isinstance(folder, str | Path) else None
        folder = folder and folder_of_run(folder)
        if folder and given.get("resume") and not folder.is_dir():
            folder = None  # there is nothing to resume, which `train` says
        with contextlib.ExitStack() as held:
            with launch.all_or_none("opening the run's folder"):
                if folder and launch.is_main_process():
                    held.enter_context(files.in_use(folder))
            return train(*args, **given)

    return alone


def folder_of_run(folder: Path) -> Path:
    """The folder of a whole run: the one above RUN/baselines/NAME, or the folder itself."""
    place = folder.absolute().parent
    above = place.parent
    return above if place.name == "baselines" and (above / "config.json").exists() else folder


def save(job: Job, reached: Progress, last: checkpoint.Arrays, best: checkpoint.Arrays) -> None:
    """Write the checkpoint: the states of the last round and of the best one, and the progress."""
    assert job.out is not None
    states = (reached.round, last), (reached.best_round, best)
    remembered = reached._asdict() | {"ledger": reached.ledger._asdict()}
    checkpoint.save(job.out / "checkpoint", *states, remembered, job.identity)


def progress_of(job: Job) -> Progress | None:
    """What the checkpoint of an earlier session remembers; None where none was saved yet."""
    if (out := job.out) is None:
        return None
    remembered = checkpoint.read_progress(out / "checkpoint", job.identity)
    if remembered is not None:
        try:
            ledger = _of_kinds(Ledger, remembered.pop("ledger"))
            return _of_kinds(Progress, remembered | {"ledger": ledger})
        except (KeyError, TypeError) as error:
            path = out / "checkpoint" / "index.json"
            raise CheckpointError(
                f"{path}: of another version of jaxrec, or damaged ({error})"
            ) from error
    # the first evaluation is always saved, so a second one tells of a checkpoint
    if len(files.read_rows(out / "metrics.jsonl")) > 1:
        raise CheckpointError(f"{out / 'checkpoint' / 'index.json'}: missing")
    return None


def _of_kinds(cls: type, values: Any) -> Any:
    """A NamedTuple with these values; TypeError where one is not as it is declared."""
    if not isinstance(values, dict):
        raise TypeError(f"{values!r:.40} in place of {cls.__name__}")
    hints = typing.get_type_hints(cls)
    return cls(**{name: coerce(value, hints[name]) for name, value in values.items()})


def rows_until(out: Path, reached: Progress) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl up to a round; CheckpointError where some are lacking."""
    path = out / "metrics.jsonl"
    rows = [row for row in files.read_rows(path) if row["round"] <= reached.round]
    if not {reached.round, reached.best_round} <= {row["round"] for row in rows}:
        raise CheckpointError(f"{path}: damaged, lacks rounds up to {reached.round}")
    return rows


def stored_result(out: Path, reached: Progress) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """The result a finished run left, whole, unless the run went on since."""
    with contextlib.suppress(CheckpointError):
        values, users = read_result(out)
        if values["rounds"] == reached.round:
            return values, users
    return None


def read_record(out: Path) -> dict[str, Any]:
    """config.json of a run folder, its settings under the names of today.

    Raises CheckpointError where there is none or a damaged one.
    """
    path = out / "config.json"
    try:
        record = files.read_json(path, RECORD)
    except OSError as error:
        raise CheckpointError(f"{path}: no run ({error.strerror})") from error
    if not files.is_a(record["data"].get("digest"), str):
        raise CheckpointError(f"{path}: damaged (data = {record['data']!r:.40})")
    if not _rise(lengths := lengths_of(record)):
        raise CheckpointError(f"{path}: damaged (lengths = {lengths!r:.40})")
    if record["method"] in METHODS:
        record["settings"] = as_it_was(record["method"], record["settings"])
    if "split" not in record["data"] and record["settings"].get("split") == "auto":
        # An older version, for which auto was given or ratio: its protocol says which.
        told = re.findall(r"; (given|ratio) split \d", str(record.get("protocol")))
        record["settings"]["split"] = told[-1] if told else "auto"
    return record


def lengths_of(record: dict[str, Any]) -> Sequence[int]:
    """The lengths of a run's buckets; an older version, which says none, had powers of two."""
    return record["data"].get("lengths", POWERS_OF_TWO)


def _rise(lengths: Any) -> bool:
    """Whether these can be lengths of buckets: whole numbers from 1 up, each above the last."""
    if not isinstance(lengths, Sequence) or not all(files.is_a(each, int) for each in lengths):
        return False
    bounded = itertools.pairwise([0, *lengths, 2**31])
    return len(lengths) > 0 and all(low < high for low, high in bounded)


def as_it_was(method: str, stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings under the names of today, with what was done before there was privacy."""
    known = settings_of(method)
    before = {} if "privacy" in stored else {n: v for n, v in BEFORE.items() if n in known}
    return before | dict(method_module(method).TRAITS.before) | current_names(method, stored)


def write_result(out: Path, values: dict[str, Any], users: pd.DataFrame) -> None:
    """result.json and users.parquet, then their checksums, without which they do not count."""
    (out / SUMS).unlink(missing_ok=True)
    files.write_users(out / "users.parquet", users)
    files.write_json(out / "result.json", values)
    files.write_text(out / SUMS, "".join(f"{files.sha256(out / n)}  {n}\n" for n in RESULT))


def read_result(out: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """result.json and users.parquet.

    Raises Unfinished where the run goes on, CheckpointError where they are damaged.
    """
    # An older version wrote no checksums, and does not say that it did.
    summed = files.read_json(out / "config.json", {}).get("checksums") == SUMS
    for name in (*RESULT, *([SUMS] if summed else [])):
        if not (out / name).exists():
            raise Unfinished(
                f"{out / name}: missing, the run has not ended; "
                f"continue with: python -m jaxrec.train --resume {out}"
            )
    if summed:
        _check_sums(out)
    values = files.read_json(out / "result.json", ALWAYS)
    for name, value in values.items():
        number = value is None or files.is_a(value, files.NUMBER)
        if isinstance(value, list | dict) or (name.startswith(MEASURED) and not number):
            raise CheckpointError(f"{out / 'result.json'}: damaged ({name} = {value!r:.40})")
    try:
        users = pd.read_parquet(out / "users.parquet")
        _ = users["user"], users["client"]
    except Exception as error:  # of pyarrow, whose types are many
        raise CheckpointError(f"{out / 'users.parquet'}: damaged ({error!s:.80})") from error
    return values, users


def _check_sums(out: Path) -> None:
    try:
        sums = [line.split("  ") for line in (out / SUMS).read_text().splitlines()]
    except ValueError:
        sums = []
    for name in RESULT:
        if [files.sha256(out / name), name] not in sums:
            raise CheckpointError(
                f"{out / name}: damaged, it has not the checksum in {SUMS}; remove both, and have "
                f"them again with: python -m jaxrec.train --resume {out}"
            )


def resumed(out: Path, record: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recorded run with the resumable ones that are given anew."""
    old = read_values(record["method"], record["settings"], f"{out / 'config.json'}: ")
    new = read_values(record["method"], given)
    may = resumable(record["method"])
    changed = [name for name in new if name not in may and new[name] != old.get(name)]
    if changed:
        name = changed[0]
        raise SettingError(
            f"{name} = {new[name]!r}: {out} was trained with {old.get(name)!r}; a resumed run may "
            f"change only {' and '.join(may)}"
        )
    return old | new


def data_of(record: dict[str, Any], given: Any) -> str:
    """The name or path of a recorded run's data: `given`, or where they were, or what they were.

    Raises DataError, which says where they were looked for, if they are in none of these places.
    """
    if given is not None:
        return str(given)
    named, path = record["settings"]["data"], record["data"].get("path")
    if path and Path(path).exists():
        return path
    try:
        if named != "synthetic":
            located(named, progress=False)
    except DataError as error:
        was = f", then {path}" if path and path != named else ""
        raise DataError(
            f"the run was trained on '{named}'{was}: {error}. Say with --data where the data are "
            "now"
        ) from error
    return named


def check_record(record: dict[str, Any], prepared: Prepared, out: Path) -> None:
    """CheckpointError if the data or their text vectors have changed since; a warning if the
    libraries have."""
    old, new = record["data"]["digest"], prepared.record["data"]["digest"]
    if old != new:
        raise CheckpointError(
            f"{out}: the data have changed: their digest was {old[:12]} and is {new[:12]}; "
            f"restore them or start a new run"
        )
    for what in ("encoder", "vectors"):
        was, now = (one["data"].get(what) for one in (record, prepared.record))
        if None not in (was, now) and was != now:  # both, where this method reads texts too
            raise CheckpointError(
                f"{out}: the items' texts were read with {what} {was} and now with {now}; restore "
                f"that encoder or start a new run"
            )
    if changed := {
        n: v for n, v in record["versions"].items() if prepared.record["versions"].get(n) != v
    }:
        warnings.warn(
            f"{out} began with {changed}: its numbers may differ in the last bits", stacklevel=3
        )

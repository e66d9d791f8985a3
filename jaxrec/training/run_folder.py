"""The folder of a run: what it says, what it remembers, whether it can be continued."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from jaxrec import files
from jaxrec.federated.byte_ledger import Ledger
from jaxrec.federated.privacy import BEFORE
from jaxrec.methods import METHODS
from jaxrec.training import checkpoint
from jaxrec.training.job import Job, Progress, resumable
from jaxrec.training.prepared import Prepared
from jaxrec.training.settings import current_names, read_values, settings_of
from jaxrec.types import CheckpointError, SettingError

ALWAYS = (  # in a result, whatever the method
    "rounds", "best_round", "bytes/per_client",
    "seconds/compile", "seconds/train", "seconds/evaluate",
)  # fmt: skip


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
    if remembered:
        try:
            ledger = Ledger(**remembered.pop("ledger"))
            return Progress(**remembered, ledger=ledger)
        except (KeyError, TypeError) as error:
            path = out / "checkpoint" / "index.json"
            raise CheckpointError(f"{path}: of another version of jaxrec") from error
    # the first evaluation is always saved, so a second one tells of a checkpoint
    if len(files.read_rows(out / "metrics.jsonl")) > 1:
        raise CheckpointError(f"{out / 'checkpoint' / 'index.json'}: missing")
    return None


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
        record = json.loads(path.read_text())
        _ = record["method"], record["settings"], record["data"]["digest"], record["versions"]
    except OSError as error:
        raise CheckpointError(f"{path}: no run ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error!r})") from error
    if record["method"] in METHODS:
        record["settings"] = as_it_was(record["method"], record["settings"])
    return record


def as_it_was(method: str, stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings under the names of today, with what was done before there was privacy."""
    known = settings_of(method)
    before = {name: value for name, value in BEFORE.items() if name in known}
    return ({} if "privacy" in stored else before) | current_names(method, stored)


def read_result(out: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """result.json and users.parquet; CheckpointError if they are damaged or the run goes on."""
    try:
        values = json.loads((out / "result.json").read_text())
        users = pd.read_parquet(out / "users.parquet")
        _ = users["user"], users["client"], [values[name] for name in ALWAYS]
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or out}: missing, the run has not ended; "
            f"continue with: python -m jaxrec.train --resume {out}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{out}: damaged result ({error!r})") from error
    return values, users


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
        if was is not None and was != now:
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

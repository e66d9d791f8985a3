"""A job: one method to train on prepared data, what it remembers, what its folder says of it."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from jaxrec import checkpoint, report
from jaxrec.config import RunConfig, method_module, read_values
from jaxrec.federated.communication import Ledger
from jaxrec.prepare import Prepared
from jaxrec.types import Method, SettingError

ALWAYS = (  # in a result, whatever the method
    "rounds", "best_round", "bytes/per_client",
    "seconds/compile", "seconds/train", "seconds/evaluate",
)  # fmt: skip

RESUMABLE = ("rounds", "patience", "mesh")
"""The settings that may change when a run is resumed; a method's module may name more."""


class Memory(NamedTuple):
    """What a run remembers from one evaluation to the next, beside its states."""

    round: int = 0
    best: float | None = None
    best_round: int = 0
    stale: int = 0  # evaluations since the best one
    ledger: Ledger = Ledger()
    compile: float = 0.0  # seconds
    train: float = 0.0  # seconds
    evaluate: float = 0.0  # seconds


class Job(NamedTuple):
    """One method to train on prepared data."""

    name: str
    method: Method
    run: RunConfig
    config: Any
    prepared: Prepared
    out: Path | None
    progress: bool
    track: Callable[[str, report.Row], None] | None = None

    @property
    def clients(self) -> int:
        return self.prepared.members

    @property
    def rounds(self) -> int:
        return 1 if self.method.one_shot else self.run.rounds

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must share with the run that continues it."""
        settings = asdict(self.run) | asdict(self.config)
        return identity_of(self.name, settings, self.prepared.record["data"]["digest"])

    def done(self, memory: Memory) -> bool:
        patience = self.run.patience
        return memory.round >= self.rounds or bool(patience and memory.stale >= patience)


def identity_of(method: str, settings: dict[str, Any], data: str) -> dict[str, str]:
    """What a checkpoint of a method with these settings on this data is known by."""
    kept = {name: json.dumps(v) for name, v in settings.items() if name not in resumable(method)}
    return kept | {"method": method, "data": data}


def resumable(method: str) -> tuple[str, ...]:
    """The settings of a method that may change when a run is resumed."""
    return RESUMABLE + getattr(method_module(method), "RESUMABLE", ())


def save(job: Job, memory: Memory, last: checkpoint.Arrays, best: checkpoint.Arrays) -> None:
    """Write the checkpoint: the states of the last round and of the best one, and the memory."""
    states = (memory.round, last), (memory.best_round, best)
    remembered = memory._asdict() | {"ledger": memory.ledger._asdict()}
    checkpoint.save(job.out / "checkpoint", *states, remembered, job.identity)


def memory_of(job: Job) -> Memory | None:
    """What the checkpoint of an earlier session remembers; None where none was saved yet."""
    out = job.out
    remembered = out and checkpoint.read_memory(out / "checkpoint", job.identity)
    if remembered:
        try:
            return Memory(**remembered | {"ledger": Ledger(**remembered["ledger"])})
        except (KeyError, TypeError) as error:
            path = out / "checkpoint" / "index.json"
            raise checkpoint.CheckpointError(f"{path}: of another version of jaxrec") from error
    # the first evaluation is always saved, so a second one tells of a checkpoint
    if out and len(report.read_rows(out / "metrics.jsonl")) > 1:
        raise checkpoint.CheckpointError(f"{out / 'checkpoint' / 'index.json'}: missing")
    return None


def rows_until(out: Path, memory: Memory) -> list[dict[str, Any]]:
    """The rows of metrics.jsonl up to a round; CheckpointError where some are lacking."""
    path = out / "metrics.jsonl"
    rows = [row for row in report.read_rows(path) if row["round"] <= memory.round]
    if not {memory.round, memory.best_round} <= {row["round"] for row in rows}:
        raise checkpoint.CheckpointError(f"{path}: damaged, lacks rounds up to {memory.round}")
    return rows


def stored_result(out: Path, memory: Memory) -> tuple[dict[str, Any], pd.DataFrame] | None:
    """The result a finished run left, whole, unless the run went on since."""
    with contextlib.suppress(checkpoint.CheckpointError):
        values, users = read_result(out)
        if values["rounds"] == memory.round:
            return values, users
    return None


def read_record(out: Path) -> dict[str, Any]:
    """config.json of a run folder; CheckpointError where there is none."""
    path = out / "config.json"
    try:
        record = json.loads(path.read_text())
        record["method"], record["settings"], record["data"]["digest"], record["versions"]
    except OSError as error:
        raise checkpoint.CheckpointError(f"{path}: no run ({error.strerror})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"{path}: damaged ({error!r})") from error
    return record


def read_result(out: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """result.json and users.parquet; CheckpointError if they are damaged or the run goes on."""
    try:
        values = json.loads((out / "result.json").read_text())
        users = pd.read_parquet(out / "users.parquet")
        _ = users["user"], users["client"], [values[name] for name in ALWAYS]
    except OSError as error:
        raise checkpoint.CheckpointError(
            f"{error.filename or out}: missing, the run has not ended; "
            f"continue with: python -m jaxrec.train --resume {out}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise checkpoint.CheckpointError(f"{out}: damaged result ({error!r})") from error
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
        raise checkpoint.CheckpointError(
            f"{out}: the data have changed: their digest was {old[:12]} and is {new[:12]}; "
            f"restore them or start a new run"
        )
    for what in ("encoder", "vectors"):
        was, now = (one["data"].get(what) for one in (record, prepared.record))
        if was is not None and was != now:
            raise checkpoint.CheckpointError(
                f"{out}: the items' texts were read with {what} {was} and now with {now}; restore "
                f"that encoder or start a new run"
            )
    if changed := {
        n: v for n, v in record["versions"].items() if prepared.record["versions"].get(n) != v
    }:
        warnings.warn(
            f"{out} began with {changed}: its numbers may differ in the last bits", stacklevel=3
        )

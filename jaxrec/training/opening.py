"""A run as it lies in its folder: what it was made of, and what it has learned so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from jaxrec import files
from jaxrec.data.sources import given_data
from jaxrec.methods import method_module
from jaxrec.training import budget, checkpoint, kept_data
from jaxrec.training.compiled_rounds import starter
from jaxrec.training.job import Job, Progress, identity_of
from jaxrec.training.prepared import Prepared, prepare
from jaxrec.training.progress import say
from jaxrec.training.result import Result, result_of
from jaxrec.training.run_folder import (
    check_record,
    data_of,
    lengths_of,
    read_record,
    rows_until,
    stored_result,
)
from jaxrec.training.settings import RunConfig, build, read_values, reads
from jaxrec.types import CheckpointError, Dataset


def job_of(
    name: str,
    run: RunConfig,
    config: Any,
    prepared: Prepared,
    out: Path | None,
    *,
    track: Callable[[str, files.Row], None] | None = None,
    progress: bool = True,
) -> Job:
    """The job of a method, with what its config leaves to the data, and the noise that its budget
    asks for.

    Raises SettingError where its settings do not go with the data's sizes, or where no noise keeps
    within the budget.
    """
    make = lambda config: method_module(name).make(config, prepared.sizes)
    config, note = method_module(name).TRAITS.settled(config, prepared.data, prepared.forward)
    say(f"{name}: {note}", shown=bool(note) and progress)
    config = budget.solved(config, run.rounds, make)
    method = make(config)
    init_key, key = jax.random.split(jax.random.key(run.seed))
    start, like = starter(method, init_key, prepared)
    return Job(name, method, run, config, prepared, start, like, key, out, progress, track)


def reopen(
    out: str | Path,
    data: str | Path | pd.DataFrame | Dataset | None = None,
    *,
    progress: bool = True,
) -> Result:
    """The run in a folder at its best round so far, without training and without its baselines.

    A run that has ended has kept its data, unless they were too large, and needs no others; else
    `data` is the Dataset that the run was given, or says where the data are now. A run that has not
    ended has no `values` and no `users` yet. A run on many devices is opened on one.

    Raises CheckpointError if the folder holds no run, a damaged one, or one on other data, and
    DataError if the data are needed and not found.
    """
    return opened(out, data, progress=progress)[1]


def opened(
    out: str | Path,
    data: str | Path | pd.DataFrame | Dataset | None = None,
    *,
    progress: bool = True,
) -> tuple[Job, Result]:
    """What `reopen` returns, and the job that it is of."""
    out = Path(out)
    record = read_record(out)
    name = record["method"]
    run, config = build(name, read_values(name, record["settings"], f"{out / 'config.json'}: "))
    run = replace(run, mesh="")
    divided = kept_data.read(out, record) if data is None else None
    given = given_data(data, {})
    source = run if divided or given is not None else replace(run, data=data_of(record, data))
    layout = {"divided": divided, "lengths": lengths_of(record)}
    prepared = prepare(source, given, reads({name: config}), **layout, progress=progress)
    check_record(record, prepared, out)
    job = job_of(name, run, config, prepared, out, progress=progress)
    identity = identity_of(name, record["settings"], record["data"]["digest"])
    if (remembered := checkpoint.read_progress(out / "checkpoint", identity)) is None:
        raise CheckpointError(f"{out}: nothing is saved yet; wait for an evaluation")
    best = checkpoint.restore(out / "checkpoint", "best", job.like, prepared.buckets)
    reached = Progress(round=remembered["round"], best_round=remembered["best_round"])
    stored = stored_result(out, reached) or ({}, pd.DataFrame())
    return job, result_of(job, *stored, rows_until(out, reached), best)

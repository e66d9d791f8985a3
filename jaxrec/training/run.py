"""A run: one method and its baselines on the same data, from settings to test values.

prepare -> jobs -> (init -> fit -> test) for the method, then for each baseline
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import pandas as pd

from jaxrec import files, mesh
from jaxrec.data.sources import given_data, name_of_data
from jaxrec.federated import byte_ledger
from jaxrec.federated.byte_ledger import Ledger
from jaxrec.methods import method_module
from jaxrec.training import budget, checkpoint, curve, every_method, growth, kept_data, launch
from jaxrec.training.compiled_rounds import check_state
from jaxrec.training.job import Job, Progress
from jaxrec.training.loop import fit
from jaxrec.training.opening import job_of
from jaxrec.training.prepared import Divided, Prepared, divide, prepare
from jaxrec.training.progress import say
from jaxrec.training.result import Result, result_of, result_values, users_with_ids
from jaxrec.training.run_folder import (
    check_record,
    data_of,
    in_its_folder,
    lengths_of,
    progress_of,
    read_record,
    resumed,
    rows_until,
    stored_result,
    write_result,
)
from jaxrec.training.settings import (
    RunConfig,
    baseline_settings,
    read_settings,
    reads,
    refuse_unread,
)
from jaxrec.training.timing import timed
from jaxrec.types import DataError, Dataset, SettingError


@in_its_folder
def train(
    method: str | None = None,
    data: str | Path | pd.DataFrame | Dataset | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    from_run: str | Path | None = None,
    hold_test: bool = False,
    track: Callable[[str, files.Row], None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Train a method, then its baselines on the same data, and measure each on the test split.

    Args:
      method: a name in `METHODS`, or "all" (docs/baselines.md); "fedcia" without one.
      data: a name, path or DataFrame for `load`, or a Dataset; "synthetic" without one.
      out: folder of the run, which must not hold one yet; None writes no files, or to `resume`.
      resume: folder of a run to continue. Its method, data and settings hold; only `rounds`,
        `patience`, `mesh` and `kept_data` may be given anew, and `data` may say where the data are
        now. The end has the same bits as that of an uninterrupted run, if that is evaluated after
        the same rounds: one that ended between two multiples of `evaluate_every` was evaluated
        there too.
      from_run: folder of a run to go on from, with `data` as newer rows (docs/serving.md). Its
        method and settings hold unless they are given anew; baselines are none unless given.
      hold_test: leave the test split alone: no test values, no `users` and no `result.json`, until
        the run is resumed without it.
      track: called at every evaluation with the method's name and its row of `metrics.jsonl`.
      progress: show a live line on stderr.
      **settings: of the run (`RunConfig`) and of the method (its `Config`), by name.

    Raises:
      SettingError, DataError: settings or data that cannot work.
      CheckpointError: `resume` is no run, a damaged one, or one on other data, or its folder is in
        use by another process.
      FloatingPointError: a metric, the state or a score is not finite; the message names the round.
      KeyboardInterrupt: Ctrl-C or SIGTERM, in any process of a launch; the rounds up to the next
        evaluation are finished and saved first.
    """
    method, every = every_method.floor(method, settings, from_run, resume)
    given = given_data(data, settings)
    if data is not None and not resume:
        settings["data"] = name_of_data(data)
    folder, record, origin, learned, new = _folder_of(out, resume), None, None, None, settings
    if from_run is not None:
        earlier = _earlier(path := Path(from_run), method, data, resume)
        method, origin = earlier["method"], growth.origin_of(path, earlier)
        settings = growth.settings_from(earlier, new, read=not isinstance(given, Dataset))
    elif folder and resume is not None:
        record = _recorded(folder, method)
        method, origin = record["method"], growth.recorded_origin(record)
        settings = resumed(folder, record, settings)
        settings |= {"data": str(data)} if data is not None and given is None else {}
    method = method or "fedcia"
    run, config = read_settings(method, None, settings, stored=bool(record or origin))
    if origin and not record:
        refuse_unread(method, config, new)
    run, divided = _with_every_method(run, given, progress) if every else (run, None)
    settled = {method: (run, config)} | _of_baselines(method, run, folder)
    read = reads({name: own for name, (_, own) in settled.items()})
    lengths, source = lengths_of(record) if record else None, run
    if origin:
        learned, divided = _joined(run, given, folder, record, origin, progress)
    else:
        with launch.all_or_none("finding data"):
            source = replace(run, data=data_of(record, data)) if record and given is None else run
    prepared = prepare(source, given, read, divided=divided, lengths=lengths, progress=progress)
    if folder and record:
        check_record(record, prepared, folder)
    jobs = _jobs(settled, prepared, folder, track, progress, origin, learned, lenient=every)
    if origin and folder and launch.is_main_process():  # a resumed run could not join them again
        kept_data.must_keep(folder, prepared, run.kept_data, shown=progress)
    found = _trained(jobs, hold_test, lenient=every)
    if folder and launch.is_main_process():
        rows = {name: one.rows for name, one in found.items()}
        curve.write_curve(folder / "curve.png", rows, run.monitor, prepared.members)
        if not hold_test:
            kept_data.keep(folder, prepared, run.kept_data, shown=progress)
    return found.pop(method)._replace(baselines=found)


def _trained(jobs: list[Job], hold_test: bool, *, lenient: bool) -> dict[str, Result]:
    """The results of jobs by name; where that is `lenient`, without baselines that fail."""
    found = {}
    for job in jobs:
        try:
            found[job.name] = run_job(job, hold_test)
        except (SettingError, FloatingPointError) as error:
            if not (lenient and found):
                raise
            say(f"{job.name} is left out: {error}", shown=job.progress)
    return found


def _jobs(
    settled: dict[str, tuple[RunConfig, Any]],
    prepared: Prepared,
    folder: Path | None,
    track: Callable[[str, files.Row], None] | None,
    progress: bool,
    origin: growth.Origin | None,
    learned: growth.Learned | None,
    *,
    lenient: bool,
) -> list[Job]:
    """The job of the method, the first in `settled`, and those of its baselines.

    All are made before the first hour, so that one that cannot run is told; where that is
    `lenient`, a baseline that cannot is left out.
    """
    method, jobs = next(iter(settled)), []
    for name, configs in settled.items():
        own = folder if name == method else folder and folder / "baselines" / name
        try:
            job = job_of(name, *configs, prepared, own, track=track, progress=progress)
            if origin and name == method:
                job = growth.growing(job, origin, learned)
            _check(job)
            jobs.append(job)
        except (SettingError, DataError) as error:
            if lenient and name != method:
                say(f"{name} is left out: {error}", shown=progress)
                continue
            if name == method or isinstance(error, DataError):
                raise
            raise SettingError(f"{error}; or leave {name} out of baselines") from error
    mesh.check(jobs[0].run.mesh, method, jobs[0].method.axis)
    if lenient:
        left = tuple(job.name for job in jobs[1:])
        jobs[0] = jobs[0]._replace(run=replace(jobs[0].run, baselines=left))
    return jobs


def _with_every_method(
    run: RunConfig, given: pd.DataFrame | Dataset | None, progress: bool
) -> tuple[RunConfig, Divided]:
    """The run with every method that its data allow as a baseline, and its data."""
    divided = divide(run, given, progress=progress)
    names, reasons = every_method.others(divided.dataset)
    for name, reason in reasons.items():
        say(f"{name} is left out: {reason}", shown=progress)
    return replace(run, baselines=names), divided


def _joined(
    run: RunConfig,
    given: pd.DataFrame | Dataset | None,
    folder: Path | None,
    record: dict[str, Any] | None,
    origin: growth.Origin,
    progress: bool,
) -> tuple[growth.Learned | None, Divided | None]:
    """What an earlier run has learned, and its data with newer rows, which a resumed run has."""
    with launch.all_or_none("finding data"):
        if folder and record:
            return None, kept_data.read(folder, record)
    learned = growth.learned_by(origin)
    return learned, growth.divided_with(run, learned, given, progress=progress)


def _earlier(run: Path, method: str | None, data: Any, resume: Any) -> dict[str, Any]:
    """What a run to go on from has recorded; SettingError for what does not go with it."""
    if resume is not None:
        raise SettingError(
            f"from_run = '{run}': {resume} is resumed, and a run goes on from itself or from "
            "another one; give one of them"
        )
    if data is None:
        raise SettingError(f"from_run = '{run}': give the newer rows as data")
    if jax.process_count() > 1:
        raise SettingError(f"from_run = '{run}': a launch of many processes cannot; use one")
    return _recorded(run, method)


def _recorded(run: Path, method: str | None) -> dict[str, Any]:
    """What a run has recorded; SettingError where another method than its own is given."""
    record = read_record(run)
    if method not in (None, record["method"]):
        raise SettingError(f"{run}: is a run of {record['method']}, not of {method}")
    return record


def _folder_of(out: str | Path | None, resume: str | Path | None) -> Path | None:
    """The folder that a run writes to; it must hold a run exactly where one is resumed."""
    if resume is not None and out is not None:
        raise SettingError(f"out = '{out}': {resume} goes on in its own folder; give no out")
    if (given := out if resume is None else resume) is None:
        return None
    folder = Path(given)
    if resume is None and (folder / "config.json").exists():  # no process has written yet
        raise SettingError(f"{folder}: holds a run already; resume it or choose another folder")
    if "[" in str(folder.absolute()):
        raise SettingError(
            f"{folder.absolute()}: orbax cannot save below '['; choose another folder"
        )
    return folder


def _of_baselines(method: str, run: RunConfig, folder: Path | None) -> dict[str, Any]:
    """The settings of a run's baselines by name, of those that have begun as they were."""
    others = [name for name in run.baselines if name != method]
    return {name: baseline_settings(name, run, _begun(folder, name)) for name in others}


def _begun(folder: Path | None, baseline: str) -> dict[str, Any]:
    """The settings of a baseline that has begun in an earlier session."""
    own = folder and folder / "baselines" / baseline
    return read_record(own)["settings"] if own and (own / "config.json").exists() else {}


def _check(job: Job) -> None:
    """Refuse a job that has rounds to go and cannot run on these data, on this device or within
    its budget."""
    reached = progress_of(job)
    if reached is None or not job.done(reached):
        budget.check(job.config, job.method, job.rounds)
        method_module(job.name).TRAITS.check_data(job.config, job.prepared.data)
        check_state(job)


def run_job(job: Job, hold_test: bool) -> Result:
    """One method, from the first round or from its checkpoint, to its test values."""
    out, prepared, like = job.out, job.prepared, job.like
    place = prepared.shardings(like)
    ledger = Ledger() if job.counted else byte_ledger.opened(job.method.traffic, job.clients)
    reached = Progress(ledger=ledger)
    rows, state, best = [], None, None
    if out and (remembered := progress_of(job)):
        reached = remembered
        if reached.round > job.rounds:
            raise SettingError(
                f"rounds = {job.run.rounds}: {out} has already taken {reached.round}"
            )
        rows = rows_until(out, reached)
        saved = partial(
            checkpoint.restore_arrays, out / "checkpoint", like=like, rows=prepared.buckets
        )
        best = saved("best")
        if not hold_test and job.done(reached) and (stored := stored_result(out, reached)):
            return result_of(job, *stored, rows, checkpoint.to_state(best, like, place))
        state = checkpoint.to_state(saved("last"), like, place)
    launch.barrier(f"{job.name} is restored")  # before the first process writes
    if not launch.is_main_process():
        job = job._replace(out=None, progress=False, track=None)
    if job.out:
        files.write_json(job.out / "config.json", job.record)
        files.write_rows(job.out / "metrics.jsonl", rows)

    if job.method.forecast and not job.done(reached):
        say(f"{job.name}: {_forecast(job, reached)}", shown=job.progress)
    if state is None:
        state, took = timed(job.start)
        reached = reached._replace(compile=took.compiling, train=took.running)
    reached, best, last = fit(job, state, best, reached, rows)
    state = checkpoint.to_state(best, like, place)
    if hold_test:
        return result_of(job, result_values(job, reached, rows, {}), pd.DataFrame(), rows, state)
    return _tested(job, reached, rows, state, last)


def _tested(job: Job, reached: Progress, rows: list[files.Row], state: Any, last: Any) -> Result:
    """The result on the test split of the best state, written to the run's folder."""
    method, prepared, out = job.method, job.prepared, job.out
    evaluate = job.evaluator(method, prepared.test, devices=prepared.mesh)
    tested, took = timed(evaluate, state, prepared.known)
    apart, spent = {}, [took]
    for part, plan in prepared.apart.items():
        evaluate = job.evaluator(method, plan, lists=False, devices=prepared.mesh)
        apart[part], took = timed(evaluate, state, prepared.known)
        spent.append(took)
    compiling, running = map(sum, zip(*spent, strict=True))
    reached = reached._replace(
        compile=reached.compile + compiling, evaluate=reached.evaluate + running
    )
    values = result_values(job, reached, rows, tested.means)
    for part, found in apart.items():
        values |= {f"test/{name}/{part}": value for name, value in found.means.items()}
        values[f"test/{job.run.ranking}/{part}"] = len(found.per_user)
    pages = {}
    if method.account:
        counted, pages = method.account(state, last, prepared.data)
        values |= counted
        told = ", ".join(f"{name} {value:,}" for name, value in counted.items())
        say(f"{job.name}: {told}", shown=job.progress)
    users = users_with_ids(tested.per_user, prepared.dataset)
    if out:
        for page, text in pages.items():
            files.write_text(out / page, text)
        curve.write_curve(out / "curve.png", {job.name: rows}, job.run.monitor, job.clients)
        write_result(out, values, users)
    return result_of(job, values, users, rows, state)


def _forecast(job: Job, reached: Progress) -> str:
    """What the rest of a run will take, in the method's words."""
    run, steps = job.run, job.rounds - reached.round
    lists = lambda plan: int((plan.lines["user"] >= 0).sum())
    times = -(-steps // run.evaluate_every)
    ranked = times * lists(job.prepared.valid) + lists(job.prepared.test)
    assert job.method.forecast
    return job.method.forecast(job.prepared.data, steps, ranked, 1 + run.candidates)

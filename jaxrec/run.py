"""The only training loop: chunks of rounds on the device, evaluation, early stop, checkpoint.

    prepare -> init -> (chunk -> evaluate -> save)* -> test -> the same for each baseline

A chunk is all rounds between two evaluations as one compiled `lax.scan` with a donated state.
Round t draws from `fold_in(key, t)`, so a run that is cut into pieces is the same run.
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from jaxrec import checkpoint, mesh, report
from jaxrec.config import (
    RunConfig,
    baseline_settings,
    build,
    check_data,
    method_module,
    read_settings,
    read_values,
    reads,
)
from jaxrec.data.pack import owners
from jaxrec.evaluate import Evaluation, evaluator
from jaxrec.federated import communication
from jaxrec.job import (
    Job,
    Memory,
    check_record,
    identity_of,
    memory_of,
    read_record,
    resumed,
    rows_until,
    save,
    stored_result,
)
from jaxrec.prepare import Prepared, prepare
from jaxrec.rounds import advancer, check_state, starter, timed
from jaxrec.types import Data, Dataset, Method, SettingError, Sizes

SAVING_SHARE = 0.1  # of the time of a run; a save that would take more waits for a later evaluation


class Result(NamedTuple):
    """What a run ends with."""

    values: dict[str, Any]  # flat: "test/NDCG@10", "bytes/total", ... as in result.json
    rows: list[dict[str, Any]]  # one for each evaluation, as in metrics.jsonl
    users: pd.DataFrame  # per-user test values: user, raw_id, client, one column a metric
    state: Any  # of the best round by the monitored validation metric
    method: Method
    run: RunConfig
    config: Any  # the method's
    dataset: Dataset  # split and partitioned
    data: Data
    sizes: Sizes
    protocol: str
    baselines: dict[str, Result]
    out: Path | None


def train(
    method: str | None = None,
    data: str | Path | Dataset | None = None,
    *,
    out: str | Path | None = None,
    resume: str | Path | None = None,
    hold_test: bool = False,
    track: Callable[[str, report.Row], None] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Train a method, then its baselines on the same data, and measure each on the test split.

    Args:
      method: a name in `METHODS`; "fedcia" without one.
      data: a name or path for `load`, or a Dataset; "synthetic" without one.
      out: folder of the run, which must not hold one yet; None writes no files, or to `resume`.
      resume: folder of a run to continue. Its method, data and settings hold; only `rounds`,
        `patience` and `mesh` may be given anew. The end has the same bits as that of an
        uninterrupted run, if that is evaluated after the same rounds: one that ended between two
        multiples of `evaluate_every` was evaluated there too.
      hold_test: leave the test split alone: no test values, no `users` and no `result.json`, until
        the run is resumed without it.
      track: called at every evaluation with the method's name and its row of `metrics.jsonl`.
      progress: show a live line on stderr.
      **settings: of the run (`RunConfig`) and of the method (its `Config`), by name.

    Raises:
      SettingError, DataError: settings or data that cannot work.
      CheckpointError: `resume` is no run, a damaged one, or one on other data.
      FloatingPointError: a metric, the state or a score is not finite; the message names the round.
      KeyboardInterrupt: Ctrl-C or SIGTERM, in any process of a launch; the rounds up to the next
        evaluation are finished and saved first.
    """
    given = data if isinstance(data, Dataset) else None
    if data is not None and not (given and resume):
        settings["data"] = given.name if given else str(data)
    record = None
    if resume is not None:
        if out is not None:
            raise SettingError(f"out = '{out}': {resume} goes on in its own folder; give no out")
        out, record = Path(resume), read_record(Path(resume))
        if method not in (None, record["method"]):
            raise SettingError(f"{resume}: is a run of {record['method']}, not of {method}")
        method = record["method"]
        settings = resumed(out, record, settings)
    elif out is not None:
        out = Path(out)
        if (out / "config.json").exists():  # in every process: none has written yet
            raise SettingError(f"{out}: holds a run already; resume it or choose another folder")
    if out and "[" in str(out.absolute()):
        raise SettingError(f"{out.absolute()}: orbax cannot save below '['; choose another folder")
    method = method or "fedcia"
    run, config = read_settings(method, None, settings)
    settled = {name: baseline_settings(name, run) for name in run.baselines if name != method}
    configs = {method: config} | {name: own for name, (_, own) in settled.items()}
    prepared = prepare(run, given, **reads(configs), progress=progress)
    if record:
        check_record(record, prepared, out)
    for name, own in configs.items():  # a baseline that cannot run is refused before the first hour
        made = method_module(name).make(own, prepared.sizes)
        check_data(name, own, prepared.data)
        if name == method:
            mesh.check(run.mesh, name, made.axis)

    shared = prepared, hold_test, track, progress
    result = _train_one(method, run, config, out, *shared)
    baselines = {}
    for name, configs in settled.items():
        folder = out and out / "baselines" / name
        baselines[name] = _train_one(name, *configs, folder, *shared)
    if out and mesh.first():
        curves = {name: one.rows for name, one in {method: result, **baselines}.items()}
        report.write_curve(out / "curve.png", curves, run.monitor, prepared.members)
    return result._replace(baselines=baselines)


def reopen(out: str | Path, data: Dataset | None = None, *, progress: bool = True) -> Result:
    """The run in a folder at its best round so far, without training and without its baselines.

    `data` is given where the run was given a Dataset. A run that has not ended has no `values` and
    no `users` yet. A run on many devices is opened on one.

    Raises CheckpointError if the folder holds no run, a damaged one, or one on other data.
    """
    out = Path(out)
    record = read_record(out)
    name = record["method"]
    run, config = build(name, read_values(name, record["settings"], f"{out / 'config.json'}: "))
    here = replace(run, mesh="")
    prepared = prepare(here, data, **reads({name: config}), progress=progress)
    check_record(record, prepared, out)
    method = method_module(name).make(config, prepared.sizes)
    identity = identity_of(name, record["settings"], record["data"]["digest"])
    if (remembered := checkpoint.read_memory(out / "checkpoint", identity)) is None:
        raise checkpoint.CheckpointError(f"{out}: nothing is saved yet; wait for an evaluation")
    _, like = starter(method, jax.random.key(run.seed), prepared)
    best = checkpoint.restore(out / "checkpoint", "best", like, prepared.buckets)
    memory = Memory(round=remembered["round"], best_round=remembered["best_round"])
    stored = stored_result(out, memory) or ({}, pd.DataFrame())
    job = Job(name, method, here, config, prepared, out, progress)
    return _result(job, *stored, rows_until(out, memory), best)


def _train_one(
    name: str,
    run: RunConfig,
    config: Any,
    out: Path | None,
    prepared: Prepared,
    hold_test: bool,
    track: Callable[[str, report.Row], None] | None,
    progress: bool,
) -> Result:
    """One method, from the first round or from its checkpoint in `out`, to its test values."""
    method = method_module(name).make(config, prepared.sizes)
    job = Job(name, method, run, config, prepared, out, progress, track)
    init_key, key = jax.random.split(jax.random.key(run.seed))
    start, like = starter(method, init_key, prepared)
    place = prepared.shardings(like)

    memory = Memory(ledger=communication.opened(method.traffic, job.clients))
    rows, state, best = [], None, None
    if remembered := memory_of(job):
        memory = remembered
        if memory.round > job.rounds:
            raise SettingError(f"rounds = {run.rounds}: {out} has already taken {memory.round}")
        rows = rows_until(out, memory)
        saved = partial(checkpoint.read, out / "checkpoint", like=like, rows=prepared.buckets)
        best = saved("best")
        if not hold_test and job.done(memory) and (stored := stored_result(out, memory)):
            return _result(job, *stored, rows, checkpoint.to_state(best, like, place))
        state = checkpoint.to_state(saved("last"), like, place)
    mesh.meet(f"{name} is read")  # before the first process writes
    if not mesh.first():
        progress, out = False, None
        job = job._replace(out=out, progress=progress, track=None)
    if out:
        record = {"method": name, "settings": asdict(run) | asdict(config), **prepared.record}
        report.write_json(out / "config.json", record)
        report.write_rows(out / "metrics.jsonl", rows)

    if method.forecast and not job.done(memory):
        report.say(f"{name}: {_forecast(job, memory)}", shown=progress)
    check_state(job, like)
    last = start() if state is None else state
    memory, best, last = _fit(job, last, best, memory, rows, key)
    state = checkpoint.to_state(best, like, place)
    if hold_test:
        return _result(job, _values(job, memory, rows, {}), pd.DataFrame(), rows, state)
    tested, seconds = timed(
        evaluator(method, prepared.test, devices=prepared.mesh), state, prepared.known
    )
    values = _values(job, memory._replace(evaluate=memory.evaluate + seconds), rows, tested.means)
    for part, plan in prepared.apart.items():
        evaluate = evaluator(method, plan, lists=False, devices=prepared.mesh)
        found = evaluate(state, prepared.known)
        values |= {f"test/{name}/{part}": value for name, value in found.means.items()}
        values[f"test/{run.ranking}/{part}"] = len(found.per_user)
    pages = {}
    if method.account:
        counted, pages = method.account(state, last, prepared.data)
        values |= counted
        told = ", ".join(f"{name} {value:,}" for name, value in counted.items())
        report.say(f"{name}: {told}", shown=progress)
    users = _with_ids(tested.per_user, prepared.dataset)
    if out:
        for page, text in pages.items():
            report.write_text(out / page, text)
        report.write_users(out / "users.parquet", users)
        report.write_curve(out / "curve.png", {name: rows}, run.monitor, job.clients)
        report.write_json(out / "result.json", values)
    return _result(job, values, users, rows, state)


def _fit(
    job: Job,
    state: Any,
    best: checkpoint.Arrays | None,
    memory: Memory,
    rows: list[dict[str, Any]],
    key: jax.Array,
) -> tuple[Memory, checkpoint.Arrays, Any]:
    """Chunk, evaluate and save until rounds or patience run out; appends to `rows`.

    Returns the memory of the last round, the state of the best one and that of the last one.
    """
    run, out, clients, prepared = job.run, job.out, job.clients, job.prepared
    data, advance = prepared.data, advancer(job, key, prepared.shardings(state))
    evaluate = evaluator(job.method, prepared.valid, lists=False, devices=prepared.mesh)
    began, saved, saving = time.perf_counter(), memory.round, 0.0
    with report.Line(job.name, job.rounds, shown=job.progress) as line, _asked_to_stop() as asked:
        while not job.done(memory):
            stop = min(job.rounds, (memory.round // run.evaluate_every + 1) * run.evaluate_every)
            try:
                state, metrics, compiling, training = advance(state, memory.round, stop)
                evaluation, evaluating = timed(evaluate, state, data)
            except FloatingPointError as error:
                kept = f"; round {saved} is saved in {out / 'checkpoint'}" if out and saved else ""
                at = f"{job.name}, rounds {memory.round + 1} to {stop}"
                raise FloatingPointError(f"{at}: {error}{kept}") from None
            name = report.measured(run.monitor, evaluation.means)
            value = evaluation.means[name]
            # what one process decides, all do: they gather together what the first one saves
            better, stops, folder, due = mesh.anywhere(
                memory.best is None or value > memory.best,
                asked.is_set(),
                bool(out),
                bool(out) and saving <= SAVING_SHARE * (time.perf_counter() - began),
            )
            ledger = communication.charged(
                memory.ledger,
                job.method.traffic,
                clients,
                metrics.get("participants", clients),
                metrics.get("refreshed", 0),
                rounds=stop - memory.round,
            )
            memory = Memory(
                round=stop,
                best=value if better else memory.best,
                best_round=stop if better else memory.best_round,
                stale=0 if better else memory.stale + 1,
                ledger=ledger,
                compile=memory.compile + compiling,
                train=memory.train + training,
                evaluate=memory.evaluate + evaluating,
            )
            rows.append(_row(memory, evaluation, metrics))
            if out:
                report.append_row(out / "metrics.jsonl", rows[-1])
            if job.track:
                job.track(job.name, rows[-1])
            line.update(memory, name, value)
            saves = due or (folder and (stops or job.done(memory)))
            arrays = checkpoint.to_arrays(state) if better or saves else None
            best = arrays if better else best
            if saves:
                saved = memory.round
                saving += timed(save, job, memory, arrays, best)[1] if out else 0.0
                mesh.meet(f"round {saved} is saved")
                stops |= mesh.anywhere(asked.is_set())[0]
            if stops:
                raise KeyboardInterrupt(f"{job.name}: stopped after round {memory.round}")
    return memory, best, state


def _forecast(job: Job, memory: Memory) -> str:
    """What the rest of a run will take, in the method's words."""
    run, steps = job.run, job.rounds - memory.round
    lists = lambda plan: int((plan.lines["user"] >= 0).sum())
    times = -(-steps // run.evaluate_every)
    ranked = times * lists(job.prepared.valid) + lists(job.prepared.test)
    return job.method.forecast(job.prepared.data, steps, ranked, 1 + run.candidates)


def _row(memory: Memory, evaluation: Evaluation, metrics: checkpoint.Arrays) -> dict[str, Any]:
    return {
        "round": memory.round,
        **{f"valid/{name}": value for name, value in evaluation.means.items()},
        **{f"train/{name}": values.mean(0).tolist() for name, values in metrics.items()},
        "bytes": memory.ledger.total,
        "bytes/up": memory.ledger.up,
        "bytes/down": memory.ledger.down,
        "seconds": memory.compile + memory.train + memory.evaluate,
    }


def _values(
    job: Job, memory: Memory, rows: list[dict[str, Any]], tested: dict[str, float]
) -> dict[str, Any]:
    """The flat content of result.json."""
    best = next(row for row in rows if row["round"] == memory.best_round)
    return {
        **{name: value for name, value in best.items() if name.startswith("valid/")},
        **{f"test/{name}": value for name, value in tested.items()},
        "best_round": memory.best_round,
        "rounds": memory.round,
        **communication.values(memory.ledger, job.method.traffic, job.clients),
        "seconds/compile": memory.compile,
        "seconds/train": memory.train,
        "seconds/evaluate": memory.evaluate,
    }


def _with_ids(per_user: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    users = per_user.copy()
    users.insert(1, "client", owners(dataset)[users["user"]].astype(np.int32))
    if "raw_id" in dataset.users:
        users.insert(1, "raw_id", users["user"].map(dataset.users.set_index("user")["raw_id"]))
    return users


def _result(
    job: Job, values: dict[str, Any], users: pd.DataFrame, rows: list[dict[str, Any]], state: Any
) -> Result:
    prepared = job.prepared
    return Result(
        values, rows, users, state, job.method, job.run, job.config, prepared.dataset,
        prepared.data, prepared.sizes, prepared.record["protocol"], {}, job.out,
    )  # fmt: skip


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; the second one interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def as_before() -> None:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def ask(*_: object) -> None:
        asked.set()
        as_before()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        as_before()

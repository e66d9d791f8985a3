"""The only training loop: chunks of rounds on the device, evaluation, early stop, checkpoint.

    prepare -> init -> (chunk -> evaluate -> save)* -> test -> the same for each baseline

A chunk is all rounds between two evaluations as one compiled `lax.scan` with a donated state.
Round t draws from `fold_in(key, t)`, so a run that is cut into pieces is the same run.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxrec import checkpoint, mesh, report, room
from jaxrec.config import (
    RunConfig,
    baseline_settings,
    build,
    check_data,
    method_module,
    read_settings,
    read_values,
    reads_text,
    reads_titles,
)
from jaxrec.data.pack import owners
from jaxrec.evaluate import Evaluation, evaluator
from jaxrec.federated import communication
from jaxrec.federated.communication import Ledger
from jaxrec.prepare import Prepared, prepare
from jaxrec.types import Data, Dataset, Method, SettingError, Sizes

ALWAYS = (  # in a result, whatever the method
    "rounds", "best_round", "bytes/per_client",
    "seconds/compile", "seconds/train", "seconds/evaluate",
)  # fmt: skip
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
        return _identity(self.name, settings, self.prepared.record["data"]["digest"])

    def done(self, memory: Memory) -> bool:
        patience = self.run.patience
        return memory.round >= self.rounds or bool(patience and memory.stale >= patience)


RESUMABLE = ("rounds", "patience", "mesh")
"""The settings that may change when a run is resumed; a method's module may name more."""


def _identity(method: str, settings: dict[str, Any], data: str) -> dict[str, str]:
    kept = {name: value for name, value in settings.items() if name not in _resumable(method)}
    digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()
    return {"method": method, "settings": digest, "data": data}


def _resumable(method: str) -> tuple[str, ...]:
    return RESUMABLE + getattr(method_module(method), "RESUMABLE", ())


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
      out: folder of the run, which must not hold one yet; None writes no files.
      resume: folder of a run to continue. Its method, data and settings hold; only `rounds`,
        `patience` and `mesh` may be given anew. The end has the same bits as that of an uninterrupted run.
      hold_test: leave the test split alone: no test values, no `users` and no `result.json`, until
        the run is resumed without it.
      track: called at every evaluation with the method's name and its row of `metrics.jsonl`.
      progress: show a live line on stderr.
      **settings: of the run (`RunConfig`) and of the method (its `Config`), by name.

    Raises:
      SettingError, DataError: settings or data that cannot work.
      CheckpointError: `resume` is no run, a damaged one, or one on other data.
      FloatingPointError: a metric, the state or a score is not finite; the message names the round.
      KeyboardInterrupt: Ctrl-C; the rounds up to the next evaluation are finished and saved first.
    """
    given = data if isinstance(data, Dataset) else None
    if data is not None and not (given and resume):
        settings["data"] = given.name if given else str(data)
    record = None
    if resume is not None:
        out, record = Path(resume), read_record(Path(resume))
        if method not in (None, record["method"]):
            raise SettingError(f"{resume}: is a run of {record['method']}, not of {method}")
        method = record["method"]
        settings = _resumed(out, record, settings)
    elif out is not None:
        out = Path(out)
        if mesh.first() and (out / "config.json").exists():
            raise SettingError(f"{out}: holds a run already; resume it or choose another folder")
    if out and "[" in str(out.absolute()):
        raise SettingError(f"{out.absolute()}: orbax cannot save below '['; choose another folder")
    method = method or "fedcia"
    run, config = read_settings(method, None, settings)
    settled = {name: baseline_settings(name, run) for name in run.baselines if name != method}
    configs = {method: config} | {name: own for name, (_, own) in settled.items()}
    text = any(reads_text(name, own) for name, own in configs.items())
    titles = any(map(reads_titles, configs))
    prepared = prepare(run, given, text=text, titles=titles, progress=progress)
    if record:
        _check_record(record, prepared, out)
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
    text, titles = reads_text(name, config), reads_titles(name)
    here = replace(run, mesh="")
    prepared = prepare(here, data, text=text, titles=titles, progress=progress)
    _check_record(record, prepared, out)
    method = method_module(name).make(config, prepared.sizes)
    # of the settings as they were written: an older version had fewer, today's defaults fill in
    identity = _identity(name, record["settings"], record["data"]["digest"])
    if (remembered := checkpoint.read_memory(out / "checkpoint", identity)) is None:
        raise checkpoint.CheckpointError(f"{out}: nothing is saved yet; wait for an evaluation")
    _, like = _starter(method, jax.random.key(run.seed), prepared)
    best = checkpoint.restore(out / "checkpoint", "best", like, prepared.buckets)
    memory = Memory(round=remembered["round"], best_round=remembered["best_round"])
    stored = _stored(out, memory) or ({}, pd.DataFrame())
    job = Job(name, method, here, config, prepared, out, progress)
    return _result(job, *stored, _rows(out, memory), best)


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
    start, like = _starter(method, init_key, prepared)

    memory = Memory(ledger=communication.opened(method.traffic, job.clients))
    rows, state, best = [], None, None
    if remembered := _remembered(job):
        memory = remembered
        if memory.round > job.rounds:
            raise SettingError(f"rounds = {run.rounds}: {out} has already taken {memory.round}")
        rows = _rows(out, memory)
        restored = partial(checkpoint.restore, out / "checkpoint", like=like, rows=prepared.buckets)
        best, state = restored("best"), restored("last")
        stored = not hold_test and job.done(memory) and _stored(out, memory)
        if stored:
            return _result(job, *stored, rows, best)
        best = checkpoint.to_arrays(best)
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
    _check_state(job, like)
    last = start() if state is None else state
    memory, best, last = _fit(job, last, best, memory, rows, key)
    state = checkpoint.to_state(best, like)
    if hold_test:
        return _result(job, _values(job, memory, rows, {}), pd.DataFrame(), rows, state)
    tested, seconds = _timed(evaluator(method, prepared.test), state, prepared.known)
    values = _values(job, memory._replace(evaluate=memory.evaluate + seconds), rows, tested.means)
    for part, plan in prepared.apart.items():
        found = evaluator(method, plan, lists=False)(state, prepared.known)
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
    run, out, data, clients = job.run, job.out, job.prepared.data, job.clients
    devices = job.prepared.mesh
    place = mesh.shardings(state, data, job.prepared.sizes, devices)
    advance = _advancer(job, key, place)
    evaluate = evaluator(job.method, job.prepared.valid, lists=False)
    state = state if devices is None else jax.block_until_ready(jax.device_put(state, place))
    began, saved, saving = time.perf_counter(), memory.round, 0.0
    with report.Line(job.name, job.rounds, shown=job.progress) as line, _ctrl_c() as asked:
        while not job.done(memory):
            stop = min(job.rounds, (memory.round // run.evaluate_every + 1) * run.evaluate_every)
            try:
                state, metrics, compiling, training = advance(state, memory.round, stop)
                evaluation, evaluating = _timed(evaluate, state, data)
            except FloatingPointError as error:
                kept = f"; round {saved} is saved in {out / 'checkpoint'}" if out and saved else ""
                at = f"{job.name}, rounds {memory.round + 1} to {stop}"
                raise FloatingPointError(f"{at}: {error}{kept}") from None
            name = report.measured(run.monitor, evaluation.means)
            value = evaluation.means[name]
            better = memory.best is None or value > memory.best
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
            # many processes gather together what one of them saves
            arrays = checkpoint.to_arrays(state) if better or jax.process_count() > 1 else None
            best = arrays if better else best
            rows.append(_row(memory, evaluation, metrics))
            if out:
                report.append_row(out / "metrics.jsonl", rows[-1])
            if job.track:
                job.track(job.name, rows[-1])
            elapsed = time.perf_counter() - began
            line.update(memory, name, value)
            if out and (saving <= SAVING_SHARE * elapsed or job.done(memory) or asked.is_set()):
                last = checkpoint.to_arrays(state) if arrays is None else arrays
                saving += _timed(_save, job, memory, last, best)[1]
                saved = memory.round
            if asked.is_set():
                raise KeyboardInterrupt(f"{job.name}: stopped after round {memory.round}")
    return memory, best, state


def _forecast(job: Job, memory: Memory) -> str:
    """What the rest of a run will take, in the method's words."""
    run, steps = job.run, job.rounds - memory.round
    lists = lambda plan: int((plan.lines["user"] >= 0).sum())
    times = -(-steps // run.evaluate_every)
    ranked = times * lists(job.prepared.valid) + lists(job.prepared.test)
    return job.method.forecast(job.prepared.data, steps, ranked, 1 + run.candidates)


def _save(job: Job, memory: Memory, last: checkpoint.Arrays, best: checkpoint.Arrays) -> None:
    states = (memory.round, last), (memory.best_round, best)
    remembered = memory._asdict() | {"ledger": memory.ledger._asdict()}
    checkpoint.save(job.out / "checkpoint", *states, remembered, job.identity)


def _starter(method: Method, key: jax.Array, prepared: Prepared) -> tuple[Callable[[], Any], Any]:
    """What makes the first state, and the state's shapes."""
    if not method.compiled:
        start = lambda: method.init(key, prepared.data)
        return start, start()
    init = jax.jit(method.init)
    return lambda: init(key, prepared.data), jax.eval_shape(method.init, key, prepared.data)


def _check_state(job: Job, like: Any) -> None:
    """Refuse a state that does not fit beside the data; `like` describes it."""
    parts = lambda like: {"data": _data(job), "state": room.held(_placed(job, like))}

    def again(config: Any) -> int:
        made = method_module(job.name).make(config, job.prepared.sizes)
        return sum(parts(_starter(made, jax.random.key(0), job.prepared)[1]).values())

    if job.method.compiled:
        room.check(job.name, parts(like), job.config, job.clients, again)


def _data(job: Job) -> int:
    """Bytes of the data and the plans of a run on one device."""
    prepared = job.prepared
    plans = [plan.buckets for plan in (prepared.valid, prepared.test, *prepared.apart.values())]
    return room.held(prepared.data, prepared.known, plans)


def _placed(job: Job, like: Any) -> Any:
    """What describes a state, with where its arrays lie on a mesh."""
    place = mesh.shardings(like, job.prepared.data, job.prepared.sizes, job.prepared.mesh)
    if place is None:
        return like
    described = lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)
    return jax.tree.map(described, like, place)


def _program(method: Method, devices: Mesh | None, place: Any, *args: Any) -> jax.stages.Compiled:
    """(state, data, key, numbers of rounds) -> (state, metrics, what is finite), compiled."""

    def chunk(state, data, key, numbers):
        step = lambda state, number: method.step(state, data, jax.random.fold_in(key, number))
        state, metrics = jax.lax.scan(step, state, numbers)
        return state, metrics, _finite(state)

    placed = {} if devices is None else {"out_shardings": (place, None, None)}
    on_devices = jax.set_mesh(devices) if devices else contextlib.nullcontext()
    with on_devices, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        return jax.jit(chunk, donate_argnums=0, **placed).lower(*args).compile()


def _advancer(job: Job, key: jax.Array, place: Any) -> Callable:
    """A function (state, start, stop) -> (state, metrics, seconds compiling, seconds training).

    Metrics are [stop - start, ...] by name. `place` is where the state lies on a mesh of devices.
    One program is compiled, and one more where the last chunk is shorter than the others; one that
    does not fit the device is refused.
    """
    method, data, devices, programs = job.method, job.prepared.data, job.prepared.mesh, {}

    def chunk_on_host(state, data, key, numbers):
        history = []
        for number in numbers:
            state, metrics = method.step(state, data, jax.random.fold_in(key, number))
            history.append(metrics)
        return state, jax.tree.map(lambda *each: np.stack(each), *history), _finite(state)

    def compile(state, *args):
        program = _program(method, devices, place, state, *args)
        parts = lambda state, program: {
            "data": _data(job),
            "state": room.held(state),
            "a round's work": room.planned(program),
        }

        def again(config: Any) -> int:
            made = method_module(job.name).make(config, job.prepared.sizes)
            like = _placed(job, _starter(made, key, job.prepared)[1])
            place = mesh.shardings(like, data, job.prepared.sizes, devices)
            return sum(parts(like, _program(made, devices, place, like, *args)).values())

        room.check(job.name, parts(state, program), job.config, job.clients, again)
        return program

    def advance(state, start, stop):
        numbers = jax.device_put(np.arange(start, stop, dtype=np.int32))
        args, seconds = (state, data, key, numbers), 0.0
        if stop - start not in programs:
            program, seconds = _timed(compile, *args) if method.compiled else (chunk_on_host, 0.0)
            programs[stop - start] = program
        (state, metrics, finite), training = _timed(programs[stop - start], *args)
        metrics = checkpoint.to_arrays(metrics)
        _check_finite(metrics, finite, start, stop)
        return state, metrics, seconds, training

    return advance


def _finite(state: Any) -> Any:
    """Whether each floating array of a state is finite, in the state's structure."""
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact)
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all() if floating(leaf) else True, state)


def _check_finite(metrics: checkpoint.Arrays, finite: Any, start: int, stop: int) -> None:
    for name, values in metrics.items():
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            bad = ~np.isfinite(values.reshape(stop - start, -1)).all(1)
            first = int(np.argmax(bad))
            worst = values.reshape(stop - start, -1)[first]
            raise FloatingPointError(
                f"round {start + first + 1}: {name} is {worst[~np.isfinite(worst)][0]}"
            )
    broken = [name for name, fine in checkpoint.to_arrays(finite).items() if not fine]
    if broken:
        raise FloatingPointError(
            f"round {stop} at the latest: {broken[0]} of the state is not finite"
        )


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


def _remembered(job: Job) -> Memory | None:
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


def _rows(out: Path, memory: Memory) -> list[dict[str, Any]]:
    path = out / "metrics.jsonl"
    rows = [row for row in report.read_rows(path) if row["round"] <= memory.round]
    if not {memory.round, memory.best_round} <= {row["round"] for row in rows}:
        raise checkpoint.CheckpointError(f"{path}: damaged, lacks rounds up to {memory.round}")
    return rows


def _stored(out: Path, memory: Memory) -> tuple[dict[str, Any], pd.DataFrame] | None:
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


def _resumed(out: Path, record: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a recorded run with the resumable ones that are given anew."""
    old = read_values(record["method"], record["settings"], f"{out / 'config.json'}: ")
    new = read_values(record["method"], given)
    may = _resumable(record["method"])
    changed = [name for name in new if name not in may and new[name] != old[name]]
    if changed:
        name = changed[0]
        raise SettingError(
            f"{name} = {new[name]!r}: {out} was trained with {old[name]!r}; a resumed run may "
            f"change only {' and '.join(may)}"
        )
    return old | new


def _check_record(record: dict[str, Any], prepared: Prepared, out: Path) -> None:
    old, new = record["data"]["digest"], prepared.record["data"]["digest"]
    if old != new:
        raise checkpoint.CheckpointError(
            f"{out}: the data have changed: their digest was {old[:12]} and is {new[:12]}; "
            f"restore them or start a new run"
        )
    if changed := {
        n: v for n, v in record["versions"].items() if prepared.record["versions"].get(n) != v
    }:
        warnings.warn(
            f"{out} began with {changed}: its numbers may differ in the last bits", stacklevel=3
        )


def _timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """What a function returns once its arrays are ready, and the seconds it took."""
    began = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - began


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)

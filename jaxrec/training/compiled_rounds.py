"""The rounds of a job: the first state, chunks of rounds as one program each, what does not fit.

A chunk is the rounds up to the next evaluation. One that does not fit its device is refused before
it runs, and one that leaves a value that is not finite ends the run.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxrec import mesh
from jaxrec.methods import method_module
from jaxrec.training import checkpoint, device_memory
from jaxrec.training.job import Job
from jaxrec.training.prepared import Prepared
from jaxrec.training.timing import Seconds, timed
from jaxrec.types import Attendance, Method


def starter(method: Method, key: jax.Array, prepared: Prepared) -> tuple[Callable[[], Any], Any]:
    """What makes the first state, where it lies on the mesh, and the state's shapes."""
    if not method.compiled:
        start = lambda: method.init(key, prepared.data)
        return start, start()
    like = jax.eval_shape(method.init, key, prepared.data)
    place = prepared.shardings(like)
    init = jax.jit(method.init, **({} if place is None else {"out_shardings": place}))
    return lambda: jax.block_until_ready(init(key, prepared.data)), like


def check_state(job: Job) -> None:
    """Refuse a state that does not fit a device beside the data."""
    parts = lambda like: {"data": _data(job), "state": device_memory.held(_placed(job, like))}

    def again(config: Any) -> int:
        made = method_module(job.name).make(config, job.prepared.sizes)
        return sum(parts(starter(made, job.key, job.prepared)[1]).values())

    if job.method.compiled:
        device_memory.check(job.name, parts(job.like), job.config, job.clients, again)


class Advanced(NamedTuple):
    """The result of some rounds."""

    state: Any
    metrics: checkpoint.Arrays  # by name, each [rounds, ...]
    attendance: Attendance | None  # of each round, [rounds]; None where the method does not say
    seconds: Seconds


def advancer(job: Job, place: Any) -> Callable[[Any, int, int], Advanced]:
    """A function (state, start, stop) -> Advanced.

    `place` is where the state lies on a mesh of devices. One program is compiled, and one more
    where the last chunk is shorter than the others; one that does not fit the device is refused.
    """
    method, key, programs = job.method, job.key, {}
    data, devices = job.prepared.data, job.prepared.mesh

    def chunk_on_host(state, data, key, numbers):
        each_round = []
        for number in numbers:
            state, metrics = method.step(state, data, jax.random.fold_in(key, number))
            each_round.append(metrics)
        return state, jax.tree.map(lambda *each: np.stack(each), *each_round), _finite(state)

    def compile(state, *args):
        program = _program(method, devices, place, state, *args)
        parts = lambda state, program: {
            "data": _data(job),
            "state": device_memory.held(state),
            "a round's work": device_memory.planned(program),
        }

        def again(config: Any) -> int:
            made = method_module(job.name).make(config, job.prepared.sizes)
            like = _placed(job, starter(made, key, job.prepared)[1])
            place = job.prepared.shardings(like)
            return sum(parts(like, _program(made, devices, place, like, *args)).values())

        device_memory.check(job.name, parts(state, program), job.config, job.clients, again)
        return program

    def advance(state, start, stop):
        numbers = jax.device_put(np.arange(start, stop, dtype=np.int32))
        args, compiling = (state, data, key, numbers), 0.0
        if stop - start not in programs:
            began = time.perf_counter()
            programs[stop - start] = compile(*args) if method.compiled else chunk_on_host
            compiling = time.perf_counter() - began
        (state, metrics, finite), took = timed(programs[stop - start], *args)
        attendance = method.attendance and mesh.on_host(method.attendance(metrics))
        metrics = checkpoint.to_arrays(metrics)
        _check_finite(metrics, finite, start, stop)
        return Advanced(
            state, metrics, attendance, Seconds(compiling + took.compiling, took.running)
        )

    return advance


def _program(method: Method, devices: Mesh | None, place: Any, *args: Any) -> jax.stages.Compiled:
    """(state, data, key, numbers of rounds) -> (state, metrics, what is finite), compiled."""

    def chunk(state, data, key, numbers):
        step = lambda state, number: method.step(state, data, jax.random.fold_in(key, number))
        state, metrics = jax.lax.scan(step, state, numbers)
        return state, metrics, _finite(state)

    placed: dict[str, Any] = {} if devices is None else {"out_shardings": (place, None, None)}
    with mesh.within(devices), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        return jax.jit(chunk, donate_argnums=0, **placed).lower(*args).compile()


def _data(job: Job) -> int:
    """Bytes of the data and the plans of a run on one device."""
    prepared = job.prepared
    plans = [plan.buckets for plan in (prepared.valid, prepared.test, *prepared.apart.values())]
    return device_memory.held(prepared.data, prepared.known, plans)


def _placed(job: Job, like: Any) -> Any:
    """What describes a state, with where its arrays lie on a mesh."""
    place = job.prepared.shardings(like)
    if place is None:
        return like
    described = lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)
    return jax.tree.map(described, like, place)


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

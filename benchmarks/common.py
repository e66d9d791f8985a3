"""What this device can do at most, and how long a function takes on it.

Every benchmark states its work in bytes and flop, so that a time becomes a fraction of a limit that
was measured on the same machine a moment before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Timing(NamedTuple):
    """Seconds. `spread` is half the distance between the quartiles of the runs."""

    compile: float
    median: float
    spread: float


class Work(NamedTuple):
    """The least a computation must do: operations, and bytes that cross the memory bus."""

    flop: float = 0.0
    bytes: float = 0.0


class Limits(NamedTuple):
    """What the device reached on a large copy and a large matrix product."""

    device: str
    bytes: float  # a second, read and written
    flop: float  # a second


def timed(function: Callable, *args: Any, runs: int = 10, host: bool = False) -> tuple[Any, Timing]:
    """The result of `function` and its time over `runs` runs after a first one.

    It is jitted and compiled apart; with `host` it is called as it is, and what the first call
    takes longer than the others counts as compiling.
    """
    if host:
        result, first = _seconds(function, *args)
        timing = _timing([_seconds(function, *args)[1] for _ in range(runs)])
        return result, timing._replace(compile=max(0.0, first - timing.median))
    compiled, compiling = _seconds(lambda: jax.jit(function).lower(*args).compile())
    result, _ = _seconds(compiled, *args)
    return result, _timing([_seconds(compiled, *args)[1] for _ in range(runs)], compiling)


def repeated(advance: Callable, state: Any, inputs: Any) -> tuple[Any, Timing]:
    """The state after `state = advance(state, x)` for every x of `inputs`, and seconds for each.

    `advance` is compiled already; it may consume its state.
    """
    seconds = []
    for x in inputs:
        state, taken = _seconds(advance, state, x)
        seconds.append(taken)
    return state, _timing(seconds)


def _seconds(function: Callable, *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


def _timing(seconds: list[float], compiling: float = 0.0) -> Timing:
    low, middle, high = statistics.quantiles(seconds, n=4)
    return Timing(compiling, middle, (high - low) / 2)


def measure_limits(runs: int = 10, dtype: str = "float32") -> Limits:
    """Measure, print and return how fast the first device copies and multiplies matrices."""
    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    # In place: a fresh 256 MB result for each copy would time the page faults.
    copy = jax.jit(lambda x: 1 - x, donate_argnums=0)
    array, copying = copy(jnp.ones(2**26 if cpu else 2**28)), []
    for _ in range(runs):
        array, seconds = _seconds(copy, array)
        copying.append(seconds)
    side = 2048 if cpu else 8192
    matrix = jnp.ones((side, side), dtype)
    _, multiplying = timed(jnp.matmul, matrix, matrix, runs=runs)
    limits = Limits(
        device=f"{jax.device_count()} x {device.device_kind}",
        bytes=2 * array.nbytes / _timing(copying).median,
        flop=2 * side**3 / multiplying.median,
    )
    print(
        f"{limits.device}: copy {limits.bytes / 1e9:,.1f} GB/s, "
        f"{jnp.dtype(dtype).name} matrix product {limits.flop / 1e12:,.3f} TFLOP/s",
        flush=True,
    )
    return limits


def report(name: str, timing: Timing, work: Work, limits: Limits) -> None:
    """Print time, work, and the speed achieved with its share of the limit."""
    print(
        f"{name}\n    {timing.median * 1e3:,.2f} ms +- {timing.spread * 1e3:.2f}, "
        f"compiled in {timing.compile:.2f} s"
    )
    for amount, unit, limit in ((work.bytes, "B", limits.bytes), (work.flop, "FLOP", limits.flop)):
        if amount:
            speed = amount / timing.median
            print(
                f"    {amount / 1e9:,.3f} G{unit}: {speed / 1e9:,.1f} G{unit}/s, "
                f"{speed / limit:.1%} of the limit",
                flush=True,
            )

"""What this device can do at most, and how long a function takes on it.

Every benchmark states its work in bytes and flop, so that a time becomes a fraction of a limit that
was measured on the same machine a moment before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

RUNS, ENOUGH, PATIENCE = 10, 3, 20.0  # runs; but only `ENOUGH` once they have taken 20 seconds


class Timing(NamedTuple):
    """Seconds. `spread` is half the distance between the quartiles of the runs."""

    compile: float
    median: float
    spread: float
    runs: int
    memory: int = 0  # bytes that XLA plans beside inputs and results; 0 where it was not asked


class Work(NamedTuple):
    """The least a computation must do: operations, and bytes that cross the memory bus."""

    flop: float = 0.0
    bytes: float = 0.0
    dtype: str = "float32"  # of the matrix product that is the limit


class Row(NamedTuple):
    """One line of the report."""

    benchmark: str
    name: str
    timing: Timing
    work: Work


@dataclass
class Bench:
    """What the device reached on a large copy and on large matrix products, and all rows so far."""

    device: str
    copy: float  # bytes a second, read and written
    product: dict[str, float]  # flop a second, by dtype
    out: Path = Path("runs/benchmarks")  # where pictures go
    benchmark: str = ""
    rows: list[Row] = field(default_factory=list)

    def shares(self, row: Row) -> tuple[float, float]:
        """What `row` reached of the two limits, bytes and flop; 0 where it states no such work."""
        flop, moved, dtype = row.work
        seconds = row.timing.median
        return moved / seconds / self.copy, flop / seconds / self.product[dtype]

    def report(self, name: str, timing: Timing, work: Work = Work()) -> None:  # noqa: B008
        """Keep and print a time, and the speed achieved with its share of the limits."""
        row = Row(self.benchmark, name, timing, work)
        self.rows.append(row)
        memory = f", {timing.memory / 1e6:,.0f} MB beside its arrays" if timing.memory else ""
        print(
            f"{name}\n    {timing.median * 1e3:,.2f} ms +- {timing.spread * 1e3:.2f} of "
            f"{timing.runs}, compiled in {timing.compile:.2f} s{memory}"
        )
        amounts = (work.bytes, "B"), (work.flop, "FLOP")
        for (amount, unit), share in zip(amounts, self.shares(row), strict=True):
            if amount:
                print(
                    f"    {amount / 1e9:,.3f} G{unit}: {amount / timing.median / 1e9:,.1f} "
                    f"G{unit}/s, {share:.1%} of the limit"
                )
        print(end="", flush=True)


def measure() -> Bench:
    """Measure and print how fast the first device copies and multiplies matrices."""
    device = jax.devices()[0]
    cpu = device.platform == "cpu"
    # In place: a fresh 256 MB result for each copy would time the page faults.
    copy = jax.jit(lambda x: 1 - x, donate_argnums=0)
    array = copy(jnp.ones(2**26 if cpu else 2**30))
    array, copying = repeated(lambda x, _: copy(x), array, range(RUNS))
    side, product = 2048 if cpu else 8192, {}
    for dtype in ("float32", "bfloat16"):
        # Of zeros or ones a GPU makes more products a second than of anything else.
        matrix = jax.random.normal(jax.random.key(0), (side, side), dtype)
        product[dtype] = 2 * side**3 / timed(jnp.matmul, matrix, matrix)[1].median
    bench = Bench(
        f"{jax.device_count()} x {device.device_kind}", 2 * array.nbytes / copying.median, product
    )
    products = ", ".join(f"{dtype} {flop / 1e12:,.3f}" for dtype, flop in product.items())
    print(
        f"{bench.device}: copy {bench.copy / 1e9:,.1f} GB/s, matrix product in TFLOP/s {products}",
        flush=True,
    )
    return bench


def timed(function: Callable, *args: Any, host: bool = False) -> tuple[Any, Timing]:
    """The result of `function` and its time over some runs after a first one.

    It is jitted and compiled apart; with `host` it is called as it is, and what the first call
    takes longer than the others counts as compiling.
    """
    if host:
        result, first = _seconds(function, *args)
        _, timing = repeated(lambda *_: function(*args), None, range(RUNS))
        return result, timing._replace(compile=max(0.0, first - timing.median))
    compiled, compiling = _seconds(lambda: jax.jit(function).lower(*args).compile())
    result = jax.block_until_ready(compiled(*args))
    _, timing = repeated(lambda *_: compiled(*args), None, range(RUNS))
    memory = compiled.memory_analysis().temp_size_in_bytes
    return result, timing._replace(compile=compiling, memory=memory)


def repeated(advance: Callable, state: Any, inputs: Iterable) -> tuple[Any, Timing]:
    """The state after `state = advance(state, x)` for x of `inputs`, and seconds for each.

    `advance` is compiled already; it may consume its state.
    """
    seconds = []
    for x in inputs:
        state, taken = _seconds(advance, state, x)
        seconds.append(taken)
        if len(seconds) >= ENOUGH and sum(seconds) > PATIENCE:
            break
    low, middle, high = statistics.quantiles(seconds, n=4)
    return state, Timing(0.0, middle, (high - low) / 2, len(seconds))


def _seconds(function: Callable, *args: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start

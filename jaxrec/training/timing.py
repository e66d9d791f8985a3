"""How long work takes, and how much of that is compiling."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

COMPILING = "/jax/core/compile/"  # begins the names of tracing, lowering and compiling


class Seconds(NamedTuple):
    """Seconds that some work took."""

    compiling: float
    running: float


def timed(function: Callable, *args: Any) -> tuple[Any, Seconds]:
    """What a function returns once its arrays are ready, and the seconds it took.

    What other threads of the process compile meanwhile counts too.
    """
    spans, began = [], time.perf_counter()

    def note(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith(COMPILING):
            now = time.perf_counter()
            spans.append((max(now - duration_secs, began), now))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        result = jax.block_until_ready(function(*args))
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
    compiling = _union(spans)
    return result, Seconds(compiling, time.perf_counter() - began - compiling)


def _union(spans: list[tuple[float, float]]) -> float:
    """The seconds that lie in one of the spans: a traced function traces others meanwhile."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total

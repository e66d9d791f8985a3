"""Whether a run fits its device, known before its first round.

A run holds its data, the plans of its evaluations and its state; what a chunk of rounds takes
beside them XLA plans when it compiles it. All of it counts on one device.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from math import prod
from pathlib import Path
from typing import Any

import jax

from jaxrec.methods import method_module
from jaxrec.types import SettingError

SMALLER = ("batch", "negatives", "length", "rank", "width")
"""Settings that a step's memory grows with, those first that change the result least."""
SHARES = (8, 64)  # of a setting, that are tried
CONTAINER = Path("/sys/fs/cgroup/memory.max")


def limit() -> int | None:
    """Bytes for one device: its own, or its part of the host's; None where nobody knows."""
    device = jax.local_devices()[0]
    if found := (device.memory_stats() or {}).get("bytes_limit"):
        return found
    if device.platform != "cpu":
        return None
    try:
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _swap()
        if CONTAINER.exists() and (most := CONTAINER.read_text().strip()).isdigit():
            found = min(found, int(most))
    except (AttributeError, OSError, ValueError):  # not on every system
        return None
    return found // jax.local_device_count()


def _swap() -> int:
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("SwapTotal"))


def held(*trees: Any) -> int:
    """Bytes that arrays, or what describes some, take on one device; each array counts once."""
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(trees)}.values()
    return sum(map(_on_one, leaves))


def _on_one(array: Any) -> int:
    sharding = getattr(array, "sharding", None)
    shape = sharding.shard_shape(array.shape) if sharding else array.shape
    return prod(shape) * array.dtype.itemsize


def planned(program: jax.stages.Compiled) -> int:
    """Bytes that a compiled program takes on one device beside its arguments; 0 if it is silent."""
    plan = program.memory_analysis()
    if plan is None:
        return 0
    return plan.temp_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes


def check(
    method: str, parts: dict[str, int], config: Any, clients: int, again: Callable[[Any], int]
) -> None:
    """Refuse what does not fit, with the first setting found that makes it fit.

    Args:
      method: its name.
      parts: bytes on one device, by what they are for.
      config: the method's.
      clients: that are trained at once where `block` is 0.
      again: the bytes in all with another config; may raise SettingError for one that cannot be.

    Raises SettingError where the parts together are more than `limit`.
    """
    most, needed = limit(), sum(parts.values())
    if most is None or needed <= most:
        return
    listed = ", ".join(f"{name} {_size(part)}" for name, part in parts.items())
    remedy = "No setting of the method alone makes it fit: take fewer rows or a larger device"
    for settings in _candidates(method, config, clients):
        try:
            found = again(replace(config, **settings))
        except ValueError:  # such as a width that the heads do not divide
            continue
        if found <= most:
            told = ", ".join(f"{name} = {value!r}" for name, value in settings.items())
            remedy = f"With {told} it takes {_size(found)}"
            break
    raise SettingError(
        f"{method}: needs {_size(needed)} ({listed}), more than the {_size(most)} of a device. "
        f"{remedy}"
    )


def _candidates(method: str, config: Any, clients: int) -> Iterator[Mapping[str, Any]]:
    """Settings to try: smaller blocks, which change no result; the method's own; smaller numbers.

    A number is tried at an eighth and at a 64th of what it is.
    """
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    shares = lambda value: filter(None, dict.fromkeys(value // share for share in SHARES))
    if "block" in values:
        yield from ({"block": smaller} for smaller in shares(values["block"] or clients))
    yield from method_module(method).TRAITS.smaller
    for name in (name for name in SMALLER if name in values):
        yield from ({name: smaller} for smaller in shares(values[name]))


def _size(number: int) -> str:
    power = min(max(len(str(number)) - 1, 0) // 3, 4)
    return f"{number / 1000**power:,.3g} {('bytes', 'kB', 'MB', 'GB', 'TB')[power]}"

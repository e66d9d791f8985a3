"""What a search tries: lists of values and ranges to draw from, checked before anything runs.

A space maps settings to what they may be, `{"width": [32, 64], "learning_rate": "log(1e-4, 0.1)"}`,
or in words `width=32,64 "learning_rate=log(1e-4, 0.1)"`. Ranges are `uniform(low, high)` and
`log(low, high)`; those of a whole-numbered setting are drawn whole, both ends included.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from jaxrec.settings.fields import unknown
from jaxrec.training.settings import TRAINING_LENGTH, RunConfig, current_names, read_values
from jaxrec.types import SettingError

DIGITS = 6  # of a number that is drawn
TRIES = 100  # draws for each different setting that is asked for

MAY_DIFFER = (*TRAINING_LENGTH, "partition", "clients", "alpha", "text")
"""Settings of a run, beside those of its method, that leave what is measured as it is."""


class Interval(NamedTuple):
    """Numbers from `low` to `high`, uniform or uniform in their logarithm."""

    low: float
    high: float
    log: bool
    whole: bool

    def draw(self, random: np.random.Generator) -> float | int:
        """A number of the interval, to `DIGITS` digits; a whole one where `whole` says so."""
        warp, back = (math.log, math.exp) if self.log else (float, float)
        margin = 0.5 if self.whole else 0.0
        value = back(random.uniform(warp(self.low - margin), warp(self.high + margin)))
        value = round(value) if self.whole else float(f"{value:.{DIGITS}g}")
        return min(max(value, self.low), self.high)


Space = dict[str, tuple | Interval]


def read_space(method: str, given: Mapping[str, Any], source: str = "") -> Space:
    """A space of settings of `method`; SettingError, which `source` begins, for what cannot be."""
    run = set(RunConfig.__dataclass_fields__) - set(MAY_DIFFER)
    space = {}
    for written, values in current_names(method, given, source).items():
        name = written.replace("-", "_")
        check = lambda value, name=name: read_values(method, {name: value}, source)[name]
        if name in run:
            raise SettingError(f"{source}{written}: {_why_not(name)}")
        if name in space:
            raise SettingError(f"{source}{written}: is there twice; write all its values at once")
        interval = _interval(check, written, values, source)
        space[name] = interval or _list(check, written, values, source)
    if not space:
        raise SettingError(f"{source}nothing to try: name settings, such as width=32,64")
    return space


def space_of_words(words: Sequence[str]) -> dict[str, Any]:
    """`NAME=VALUE,VALUE ...` and `NAME=log(LOW,HIGH) ...` -> a space by name, not yet checked."""
    given = {}
    for word in re.findall(r"(?:\([^()]*\)|\[[^][]*\]|[^\s])+", " ".join(words)):
        name, equals, text = word.partition("=")
        if not (name and equals and text):
            raise SettingError(f"{word}: write NAME=VALUE,VALUE or NAME=log(LOW,HIGH)")
        if name in given:
            raise SettingError(f"{word}: {name} is given twice; write all its values at once")
        given[name] = text if text.endswith(")") else _literals(text)
    return given


def grid(space: Space) -> list[dict[str, Any]]:
    """Every combination of the values, the last setting varying fastest."""
    for name, values in space.items():
        if isinstance(values, Interval):
            kind = "log" if values.log else "uniform"
            raise SettingError(
                f"{name} = {kind}({values.low}, {values.high}): a grid needs its values one by "
                "one; list them, or draw with --random N"
            )
    return [dict(zip(space, values, strict=True)) for values in product(*space.values())]


def draw(space: Space, number: int, seed: int) -> list[dict[str, Any]]:
    """`number` different combinations at random; those of a smaller number come first."""
    random = np.random.default_rng(seed)
    found: list[dict[str, Any]] = []
    for _ in range(TRIES * number):
        if len(found) == number:
            break
        one = {
            name: values.draw(random)
            if isinstance(values, Interval)
            else values[random.integers(len(values))]
            for name, values in space.items()
        }
        if one not in found:
            found.append(one)
    if len(found) < number:
        raise SettingError(
            f"random = {number}: the space gave only {len(found)} different settings; ask for "
            "fewer, widen it, or take its grid"
        )
    return found


def _interval(check: Callable, name: str, text: Any, source: str) -> Interval | None:
    called = re.fullmatch(r"\s*([A-Za-z]\w*)\((.*)\)\s*", text) if isinstance(text, str) else None
    if not called:
        return None
    where = f"{source}{name} = {text!r}: "
    if called[1] not in ("log", "uniform"):
        raise unknown(f"{where}no range {called[1]!r}", called[1], ("log", "uniform"))
    ends = _literals(called[2])
    if len(ends) != 2 or not all(_is_number(end) for end in ends):
        raise SettingError(f"{where}must be {called[1]}(LOW, HIGH), two numbers")
    low, high = map(check, ends)
    if not (_is_number(low) and -math.inf < low < high < math.inf):
        raise SettingError(f"{where}must be two finite numbers, the lower one first")
    if called[1] == "log" and low <= 0:
        raise SettingError(f"{where}must begin above 0, where logarithms do")
    return Interval(low, high, called[1] == "log", isinstance(low, int))


def _list(check: Callable, name: str, values: Any, source: str) -> tuple:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise SettingError(
            f"{source}{name} = {values!r}: must be a list of values, log(LOW, HIGH) or "
            "uniform(LOW, HIGH)"
        )
    checked = tuple(map(check, values))
    if twice := [value for n, value in enumerate(checked) if value in checked[:n]]:
        raise SettingError(f"{source}{name}: {twice[0]!r} is listed twice; leave one out")
    return checked


def _literals(text: str) -> list[Any]:
    """Values between commas, as TOML has them; a bare word is a string."""
    with suppress(ValueError):
        return tomllib.loads(f"values = [{text}]")["values"]
    return [_literal(part.strip()) for part in text.split(",")]


def _literal(text: str) -> Any:
    for parse in (lambda text: tomllib.loads(f"value = {text}")["value"], float):
        with suppress(ValueError):
            return parse(text)
    return text


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _why_not(name: str) -> str:
    if name == "seed":
        return "is no setting to choose; name the seeds to average over with --seeds 0 1 2"
    if name == "baselines":
        return "a search trains none; compare its winner with them afterwards"
    if name == "mesh":
        return "is where a run computes, not what; set it once, for all trials"
    return "decides what is measured, so values cannot be compared across it; set it once"

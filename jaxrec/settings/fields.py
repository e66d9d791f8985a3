"""Settings as fields of dataclasses: type, default, range and meaning, and the one check of them.

    @dataclass(frozen=True)
    class Config:
        width: int = setting(64, at_least=1)
        \"\"\"D, the width of user and item vectors (numbers per vector).\"\"\"

        __post_init__ = check

A value of another type or out of its range is refused in the same words wherever it comes from: a
TOML file, the command line or Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from jaxrec.types import SettingError


class Range(NamedTuple):
    """The finite numbers that a setting may be; of a setting that is a list, each of them."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def holds(self, value: Any) -> bool:
        """Whether a number, or each number of a list, is in the range; what is no number is."""
        if value is None or isinstance(value, str):
            return True
        if isinstance(value, tuple):
            return len(value) > 0 and all(map(self.holds, value))
        return (
            -math.inf < value < math.inf
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = ("at least", "above", "at most", "below")
        bounds = zip(words, self, strict=True)
        told = [f"{word} {bound:g}" for word, bound in bounds if bound is not None]
        return " and ".join(told) or "finite"


class Field(NamedTuple):
    """One setting: its type, its default and, of a number, its range."""

    hint: Any
    default: Any
    range: Range | None = None

    def checked(self, name: str, value: Any, source: str = "") -> Any:
        """The value that a config holds: a whole number for a float setting becomes a float.

        Raises SettingError, which `source` begins, for another type or a value out of range.
        """
        try:
            value = coerce(value, self.hint)
        except TypeError as error:
            raise SettingError(f"{source}{name} = {value!r}: expected {error}") from None
        if self.range and not self.range.holds(value):
            each = "one or more numbers, each " if isinstance(value, tuple) else ""
            raise SettingError(f"{source}{name} = {value!r}: must be {each}{self.range}")
        return value


def setting(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with a default and the range that its value must lie in.

    A number without a bound must be finite.
    """
    return dataclasses.field(
        default=default, metadata={"range": Range(at_least, above, at_most, below)}
    )


def check(config: Any) -> None:
    """Refuse the first setting of a dataclass that is of another type or out of its range.

    To be a config's `__post_init__`, or to be called from it before rules that join settings.
    Raises SettingError naming the value and what was expected.
    """
    for name, field in fields(type(config)).items():
        value = getattr(config, name)
        if (right := field.checked(name, value)) is not value:
            object.__setattr__(config, name, right)


@functools.cache
def _declared(cls: type) -> dict[str, Field]:
    hints = typing.get_type_hints(cls)
    return {
        each.name: Field(hints[each.name], each.default, each.metadata.get("range"))
        for each in dataclasses.fields(cls)
    }


def fields(cls: type, defaults: Mapping[str, Any] = types.MappingProxyType({})) -> dict[str, Field]:
    """The settings that a dataclass declares, by name, some with other defaults."""
    declared = _declared(cls)
    if stray := set(defaults) - set(declared):
        raise SettingError(f"defaults for settings that do not exist: {sorted(stray)}")
    return {
        name: field._replace(default=defaults.get(name, field.default))
        for name, field in declared.items()
    }


def require(holds: Any, config: Any, name: str, rule: str) -> None:
    """SettingError, naming the value and the rule, where a rule that joins settings is broken."""
    if not holds:
        raise SettingError(f"{name} = {getattr(config, name)!r}: must be {rule}")


def unknown(message: str, name: str, known: Iterable[str]) -> SettingError:
    """An error that ends with the known name nearest to `name`."""
    nearest = difflib.get_close_matches(name, list(known), 1, cutoff=0)
    return SettingError(f"{message}; the nearest is {nearest[0]!r}" if nearest else message)


def coerce(value: Any, hint: Any) -> Any:
    """`value` of TOML, JSON or Python as type `hint`; TypeError says what was expected."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(value == one and type(value) is type(one) for one in inner):
            return value
    elif origin in (types.UnionType, typing.Union):
        for option in inner:
            with contextlib.suppress(TypeError):
                return coerce(value, option)
    elif inner == (str, ...) and isinstance(value, Mapping):  # a list of NAME=VALUE
        return tuple(f"{name}={one}" for name, one in value.items())
    elif origin is tuple and isinstance(value, list | tuple):
        hints = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        with contextlib.suppress(TypeError, ValueError):
            right = tuple(coerce(one, hint) for one, hint in zip(value, hints, strict=True))
            same = isinstance(value, tuple) and all(map(_is, right, value))
            return value if same else right
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            return value if type(value) is float else float(value)
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value if type(value) is int else int(value)
    elif isinstance(hint, type) and hint not in (int, float) and isinstance(value, hint):
        return value
    elif hint is None and value is None:
        return None
    raise TypeError(spell(hint))


def _is(one: Any, other: Any) -> bool:
    return one is other


def spell(hint: Any) -> str:
    """A type in words: 'int', 'a list of int', "one of 'auto', 'user'"."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(repr(value) for value in inner)}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(spell(option) for option in inner)
    if origin is tuple:
        variadic = inner[-1] is Ellipsis
        return f"a list of {spell(inner[0])}" if variadic else f"{len(inner)} values"
    return "none" if hint in (None, type(None)) else hint.__name__

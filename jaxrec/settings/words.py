"""Command-line words, --name value, into values of typed settings."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import make_dataclass
from typing import Any

from jaxrec.settings.fields import Field, fields, spell, unknown
from jaxrec.types import SettingError


def take_options(options: type, words: Sequence[str]) -> tuple[Any, list[str]]:
    """The words that fill `options`, a dataclass with a default for every field; the others."""
    known = fields(options)
    groups = option_groups(words)
    own = [group for group in groups if _known_as(group, known) in known]
    others = [word for group in groups if group not in own for word in group]
    return options(**_once(own, known)), others


def read_options(options: type, words: Sequence[str]) -> Any:
    """Words that fill `options`, a dataclass with a default for every field."""
    known = fields(options)
    return options(**_once(option_groups(words), known))


def parse_option(group: list[str], known: Mapping[str, Field], owner: str) -> tuple[str, Any]:
    """Name and value of one option with the words after it."""
    import tyro

    option, name = _option(group), _known_as(group, known)
    if name not in known:
        raise unknown(f"{option}: no such setting of {owner}", name, known)
    field = known[name]
    word = make_dataclass("Word", [(name, field.hint, field.default)])
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return name, getattr(tyro.cli(word, args=group), name)
    except SystemExit:
        raise SettingError(f"{' '.join(group)}: expected {spell(field.hint)}") from None


def _known_as(group: list[str], known: Mapping[str, Field]) -> str:
    """The setting that an option names: --no-flag is of flag."""
    name = _option(group)[2:].replace("-", "_")
    negated = known.get(name.removeprefix("no_"))
    flag = name not in known and negated and negated.hint is bool
    return name.removeprefix("no_") if flag else name


def _option(group: list[str]) -> str:
    return group[0].partition("=")[0]


def option_groups(words: Sequence[str]) -> list[list[str]]:
    """Words -> one list for each option: the option and the values after it."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append([word])
        elif groups:
            groups[-1].append(word)
        else:
            raise SettingError(f"{word}: a setting is given as --name value")
    return groups


def _once(groups: list[list[str]], known: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a command's options; SettingError where one is there twice."""
    values: dict[str, Any] = {}
    for group in groups:
        name, value = parse_option(group, known, "this command")
        if name in values:
            raise SettingError(f"{group[0]}: is there twice; write all its values after one")
        values[name] = value
    return values

"""The trials of a search: each choice of settings with each seed, known by all its settings."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from jaxrec.search.space import draw, grid, read_space
from jaxrec.training.run_folder import read_record
from jaxrec.training.settings import build, read_values, refuse_unread
from jaxrec.types import CheckpointError, SettingError

NAMED = 60  # letters of a trial's settings in the name of its folder


class Trial(NamedTuple):
    """One run of a search."""

    name: str  # of its folder
    choice: dict[str, Any]  # the settings that the search varies
    seed: int
    settings: dict[str, Any]  # all that are not defaults


def plan_trials(
    method: str,
    space: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    random: int = 0,
    seeds: Sequence[int] = (),
    draw_seed: int = 0,
) -> list[Trial]:
    """The trials of a search, choice by choice; SettingError where one of them could not run."""
    shared = read_values(method, settings)
    checked = read_space(method, space)
    if both := [name for name in checked if name in shared]:
        raise SettingError(f"{both[0]} = {shared[both[0]]!r}: is searched too; give it once")
    if random < 0:
        raise SettingError(f"random = {random}: must be at least 1, or 0 for the grid")
    if len(set(seeds)) < len(seeds):
        raise SettingError(f"seeds = {list(seeds)}: one of them is there twice; leave it out")
    choices = draw(checked, random, draw_seed) if random else grid(checked)
    return [
        _trial(method, choice, seed, shared)
        for choice in choices
        for seed in seeds or (shared.get("seed", 0),)
    ]


def words_of(choice: Mapping[str, Any]) -> str:
    """A choice of settings in one line: width=32 model=mf."""
    return " ".join(f"{name}={shown_value(value)}" for name, value in choice.items())


def shown_value(value: Any) -> str:
    """A value in a table."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _trial(method: str, choice: dict[str, Any], seed: int, shared: dict[str, Any]) -> Trial:
    settings = shared | choice | {"seed": seed, "baselines": ()}
    refuse_unread(method, build(method, settings)[1], settings)
    words = re.sub(r"[^\w.=+-]+", "_", words_of(choice))[:NAMED]
    return Trial(f"{words}_seed={seed}-{_digest(method, settings)}", choice, seed, settings)


def _digest(method: str, settings: Mapping[str, Any]) -> str:
    """Letters that stand for all settings of a run, defaults included."""
    settled: dict[str, Any] = {}
    for config in build(method, settings):
        settled |= asdict(config)
    return hashlib.sha256(json.dumps([method, settled], sort_keys=True).encode()).hexdigest()[:8]


def as_named_before(trials: list[Trial], method: str, folder: Path) -> list[Trial]:
    """The trials under the names of their folders, which another space may have spelled.

    An older version may have had other settings. Where a trial's folder is not found by its name,
    every folder is also known by what it says of its run.
    """
    digest = lambda name: name.rpartition("-")[2]
    paths = list(folder.glob("*"))
    named = {digest(path.name): path.name for path in paths}
    unnamed = any(digest(trial.name) not in named for trial in trials)
    for path in paths if unnamed else ():
        with contextlib.suppress(CheckpointError, SettingError):
            record = read_record(path)
            known = read_values(method, record["settings"])
            if known.get("epsilon"):  # its noise was solved for; what was asked for had none
                named.setdefault(_digest(method, known | {"noise_multiplier": 0.0}), path.name)
            named.setdefault(_digest(method, known), path.name)
    return [trial._replace(name=named.get(digest(trial.name), trial.name)) for trial in trials]

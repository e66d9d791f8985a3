"""The command: python -m jaxrec.sweep METHOD|FILE.toml [--setting value ...] --grid NAME=A,B ..."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from jaxrec.cli.command import (
    console,
    exit_status,
    folder_for,
    print_options,
    say_how_to_go_on,
    wants_help,
)
from jaxrec.methods import method_module
from jaxrec.report import result_tables
from jaxrec.search.space import space_of_words
from jaxrec.search.sweep import Sweep, read_sweep, sweep
from jaxrec.search.trials import shown_value, words_of
from jaxrec.settings.fields import coerce
from jaxrec.settings.words import take_options
from jaxrec.training.progress import say
from jaxrec.training.settings import current_names, read_sweep_table, read_toml, read_words
from jaxrec.types import SettingError

PROGRAM = "python -m jaxrec.sweep"
ABOUT = f"""{PROGRAM} METHOD|FILE.toml [--setting value ...] --grid NAME=VALUE,VALUE ...
{PROGRAM} METHOD|FILE.toml [--setting value ...] --random N "NAME=log(LOW,HIGH)" ...

Train a method with many settings, best by validation, and measure the best on the test split.
Settings are those of jaxrec.train. A TOML file may hold the search as a table [sweep] of lists and
ranges by name, with `random`, `seeds` and `draw_seed`; words win over it."""
OWN = {"random": int, "seeds": tuple[int, ...], "draw_seed": int}


@dataclass(frozen=True)
class Options:
    """Options of a search."""

    grid: tuple[str, ...] = ()
    """NAME=VALUE,VALUE ...: every combination."""
    random: tuple[str, ...] = ()
    """N NAME=log(LOW,HIGH) NAME=uniform(LOW,HIGH) NAME=VALUE,VALUE ...: N choices at random."""
    seeds: tuple[str, ...] = ()
    """Seeds that each choice is trained with, such as 0 1 2; the mean over them decides."""
    draw_seed: int | None = None
    """Seed of what is drawn at random; by default 0."""
    out: Path | None = None
    """Folder of the search; one that holds trials of it goes on. By default
    runs/sweep-METHOD-DATA-TIME."""
    resume: Path | None = None
    """Folder of a search to go on with, as it was asked for."""
    retry: bool = False
    """Train again what failed."""
    quiet: bool = False
    """No line for each trial."""
    json: bool = False
    """Print the winner as one line of JSON in place of tables."""


def main(words: Sequence[str]) -> int:
    """Search as the words say and print the choices, then the winner's test values."""
    begun: list[Path] = []  # the search's folder, once there is one
    stopped = lambda: say_how_to_go_on(PROGRAM, begun, "sweep.json")
    return exit_status(lambda: _sweep(words, begun), stopped)


def _sweep(words: Sequence[str], begun: list[Path]) -> int:
    if wants_help(words):
        print_options(Options, PROGRAM, ABOUT)
    options, arguments = parse(words)
    stem = f"sweep-{arguments['method']}-{Path(arguments['data']).stem}"
    quietly = {"retry": options.retry, "progress": not options.quiet}
    with folder_for(stem, options.resume or options.out) as out:
        begun.append(out)
        found = sweep(out=out, **quietly, **arguments)
    if options.json:
        print(json.dumps(json.loads((out / "winner.json").read_text()) if found.runs else None))
    else:
        for part in tables(found):
            console().print(part, soft_wrap=isinstance(part, str))
    if not found.runs:
        say("error: no choice finished with every seed, so none is best")
        return 2
    return 0


def parse(words: Sequence[str]) -> tuple[Options, dict[str, Any]]:
    """The options and the arguments of `sweep`: TOML, then words."""
    named = words and not words[0].startswith("-")
    first, words = (words[0], words[1:]) if named else (None, words)
    options, words = take_options(Options, words)
    if options.resume:
        asked = options.grid, options.random, options.seeds, options.out, options.draw_seed
        if first or words or any(part not in ((), None) for part in asked):
            raise SettingError(f"--resume {options.resume}: a search goes on as it was asked for")
        record = read_sweep(options.resume)
        record.pop("digest")
        return options, record | record.pop("settings")
    file = Path(first) if first and first.endswith(".toml") else None
    method, settings = read_toml(file) if file else (first or "fedcia", {})
    method_module(method)
    asked = _asked(options, read_sweep_table(file) if file else {})
    searched = {name.replace("-", "_") for name in current_names(method, asked["space"])}
    settings = {name: value for name, value in settings.items() if name not in searched}
    settings |= read_words(method, words)
    data = settings.pop("data", "synthetic")
    return options, {"method": method, "data": data} | settings | asked


def _asked(options: Options, table: dict[str, Any]) -> dict[str, Any]:
    """Space, number, seeds and seed of the draws, by the words or else the table `[sweep]`."""
    if options.grid and options.random:
        raise SettingError("--grid and --random: choose one of them")
    own = {name: _own(name, table.pop(name)) for name in OWN if name in table}
    if options.random:
        own["random"] = _whole(options.random[:1], "random")[0]
        table = space_of_words(options.random[1:])
    elif options.grid:
        own["random"], table = 0, space_of_words(options.grid)
    if options.seeds:
        own["seeds"] = _whole(",".join(options.seeds).split(","), "seeds")
    if options.draw_seed is not None:
        own["draw_seed"] = options.draw_seed
    return own | {"space": table}


def _own(name: str, value: Any) -> Any:
    try:
        return coerce(value, OWN[name])
    except TypeError as error:
        raise SettingError(f"[sweep] {name} = {value!r}: expected {error}") from None


def _whole(texts: Sequence[str], name: str) -> list[int]:
    if wrong := [text for text in texts if not text.isdecimal()]:
        raise SettingError(f"--{name} {wrong[0]}: expected whole numbers from 0 up")
    return [int(text) for text in texts]


def tables(found: Sweep) -> Iterator[Table | str]:
    """Choices, best first, by validation over seeds; what failed; the best one's test values."""
    shown = Table(box=box.SIMPLE_HEAD)
    for name in found.choices[0].settings:
        shown.add_column(name, overflow="fold")
    for name in (f"valid {found.monitor}", "seeds", "seconds"):
        shown.add_column(name, justify="right")
    finished = [choice for choice in found.choices if not choice.error]
    for number, choice in enumerate(finished):
        spread = "" if choice.sd is None else f" ±{choice.sd:.4f}"
        cells = [*map(shown_value, choice.settings.values()), f"{choice.mean:.4f}{spread}"]
        cells += [f"{len(choice.seeds)}", f"{choice.seconds:.1f}"]
        shown.add_row(*(Text(cell, "" if number else "bold") for cell in cells))
    if finished:
        yield shown
    for choice in found.choices[len(finished) :]:
        yield escape(f"failed: {words_of(choice.settings)}: {choice.error}")
    if found.runs:
        tested = {f"seed {run.run.seed}": run.values for run in found.runs}
        protocol = found.runs[0].protocol.rpartition("; seed")[0]
        yield escape(f"best by validation: {words_of(found.choices[0].settings)}")
        yield result_tables.metrics_table(tested, protocol=protocol)
        yield from (escape(f"run folder: {run.out}") for run in found.runs)

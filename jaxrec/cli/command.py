"""What the commands share: words into options, errors in one line, modules that can be called."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxrec.settings.words import read_options
from jaxrec.training.progress import say
from jaxrec.types import REFUSALS, LLMError, SettingError


def exit_status(act: Callable[[], int | None], stopped: Callable[[], None] | None = None) -> int:
    """Run a command and return its exit status: that of `act`, 0 without one.

    What is wrong is one line on stderr and status 2, and so is every warning a line; status 130
    where it is interrupted. `stopped` is called where the work can go on later: after an interrupt,
    and where a language model could not be asked any more.
    """
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    try:
        status = act()
        sys.stdout.flush()
        return status or 0
    except BrokenPipeError:  # who reads has had enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (*REFUSALS, OSError) as error:
        say(f"error: {error}")
        if stopped and isinstance(error, LLMError):
            stopped()
        return 2
    except KeyboardInterrupt as error:
        say(f"{error or 'stopped'}")
        if stopped:
            stopped()
        return 130


def say_how_to_go_on(program: str, begun: list[Path], record: str) -> None:
    """Say how stopped work goes on, if its folder was begun and holds the file `record`."""
    if begun and (begun[0] / record).exists():
        say(f"continue with: {program} --resume {begun[0]}")


def command(options: type, act: Callable[..., None], words: Sequence[str], about: str) -> int:
    """Run `act(runs, options)` on `RUN ... [--option value ...]`; returns the exit status."""

    def run() -> None:
        if wants_help(words):
            print_options(options, about.partition(" RUN")[0], about)
        number = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
        if not number:
            raise SettingError(f"no run folder given: {about.partition(chr(10))[0]}")
        act([Path(word) for word in words[:number]], read_options(options, words[number:]))

    return exit_status(run)


def wants_help(words: Sequence[str]) -> bool:
    """Whether the words ask for help."""
    return bool({"-h", "--help"} & set(words))


def print_options(options: type, program: str, about: str) -> None:
    """Print what `program` is about and its options, and exit."""
    import tyro

    tyro.cli(options, prog=program, description=about, args=["--help"])


@contextmanager
def folder_for(stem: str, given: Path | None) -> Iterator[Path]:
    """The folder given, or else a new runs/STEM-TIME; gone afterwards if it is new and empty."""
    kept = bool(given and given.exists())
    folder = given or _new_folder(stem)
    try:
        yield folder
    finally:
        if not kept:
            with suppress(OSError):
                folder.rmdir()


def _new_folder(stem: str) -> Path:
    """Made here so that runs of the same second do not share it."""
    name = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    suffix, number = "", 1
    while True:
        with suppress(FileExistsError):
            folder = Path("runs") / (name + suffix)
            folder.mkdir(parents=True)
            return folder
        number += 1
        suffix = f"-{number}"


def callable_module(name: str, function: Callable[..., Any]) -> None:
    """Let the module `name` be called as `function`.

    `import jaxrec.train` binds `jaxrec.train`, the function, to the module of that name.
    """
    kind = type("CommandModule", (ModuleType,), {"__call__": staticmethod(function)})
    sys.modules[name].__class__ = kind

"""What the commands share: words into options, errors in one line, modules that can be called."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxrec import report
from jaxrec.config import read_options
from jaxrec.types import CheckpointError, DataError, SettingError

REFUSALS = (SettingError, DataError, CheckpointError, FloatingPointError)


def command(options: type, act: Callable[..., None], words: Sequence[str], about: str) -> int:
    """Run `act(runs, options)` on `RUN ... [--option value ...]`; returns the exit status.

    What is wrong is one line on stderr and status 2, and so is every warning a line; status 130
    where it is interrupted.
    """
    warnings.showwarning = lambda message, *_: report.say(f"warning: {message}")
    if {"-h", "--help"} & set(words):
        import tyro

        tyro.cli(options, prog=about.partition(" RUN")[0], description=about, args=["--help"])
    number = next((n for n, word in enumerate(words) if word.startswith("-")), len(words))
    try:
        if not number:
            raise SettingError(f"no run folder given: {about.partition(chr(10))[0]}")
        act([Path(word) for word in words[:number]], read_options(options, words[number:]))
        sys.stdout.flush()
    except BrokenPipeError:  # who reads has had enough, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (*REFUSALS, OSError) as error:
        report.say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        report.say("stopped")
        return 130
    return 0


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
    for suffix in itertools.chain([""], (f"-{n}" for n in itertools.count(2))):
        with suppress(FileExistsError):
            folder = Path("runs") / (name + suffix)
            folder.mkdir(parents=True)
            return folder


def callable_module(name: str, function: Callable[..., Any]) -> None:
    """Let the module `name` be called as `function`.

    `import jaxrec.train` binds `jaxrec.train`, the function, to the module of that name.
    """
    kind = type("CommandModule", (ModuleType,), {"__call__": staticmethod(function)})
    sys.modules[name].__class__ = kind

"""What the commands share: words into options, errors in one line, modules that can be called."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console, RenderHook
from rich.segment import Segment

from jaxrec.cli.programs import keep_programs
from jaxrec.output import harmless
from jaxrec.settings.words import read_options
from jaxrec.training.progress import say
from jaxrec.types import REFUSALS, LLMError, SettingError


def exit_status(act: Callable[[], int | None], stopped: Callable[[], None] | None = None) -> int:
    """Run a command and return its exit status: that of `act`, 0 without one.

    What is wrong is one line on stderr and status 2, and so is every warning a line; status 130
    where it is interrupted, by Ctrl-C or SIGTERM. `stopped` is called where the work can go on
    later: after an interrupt, where a disk is full, and where a language model could not be asked
    any more.
    """
    warnings.showwarning = lambda message, *_: say(f"warning: {message}")
    keep_programs()
    try:
        with _terminated():
            status = act()
            sys.stdout.flush()
        return status or 0
    except BrokenPipeError:  # who reads has had enough, such as `head`
        _stop_writing()
        return 0
    except (*REFUSALS, OSError) as error:
        say(f"error: {error}")
        if isinstance(error, OSError):
            _stop_writing()
        if stopped and isinstance(error, LLMError | OSError):
            stopped()
        return 2
    except KeyboardInterrupt as error:
        say(f"{error or 'stopped'}")
        if stopped:
            stopped()
        return 130


def _stop_writing() -> None:
    """Leave what standard output could not take, which Python would try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _terminated() -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, so that no half-written file is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def console(**given: Any) -> Console:
    """A console that shows the control characters of what it prints and obeys none of them."""
    made = Console(**given)
    made.push_render_hook(_Harmless())
    return made


class _Harmless(RenderHook):
    def process_renderables(self, renderables: list[Any]) -> list[Any]:
        return [_Shown(one) for one in renderables]


class _Shown:
    def __init__(self, inner: Any):
        self.inner = inner

    def __rich_console__(self, console: Console, options: Any) -> Iterator[Segment]:
        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else harmless(text), style, control)


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


def one_run(runs: Sequence[Path], done: str) -> Path:
    """The folder that a command was given; SettingError for several, of which one is `done`."""
    if len(runs) != 1:
        raise SettingError(f"{len(runs)} run folders: one is {done} at a time")
    return runs[0]


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

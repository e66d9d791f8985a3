"""The command: python -m jaxrec.serve RUN [--port 8000] [--watch SECONDS]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from jaxrec.cli.command import command, one_run
from jaxrec.service.settings import Settings
from jaxrec.types import SettingError

ABOUT = """python -m jaxrec.serve RUN [--option value ...]

Lists, similar items, scores and reasons over HTTP, JSON in and out. RUN is the folder of a run, or
of one of its baselines, or a link to one: when another run is put in its place, that is served."""


@dataclass(frozen=True)
class Options(Settings):
    """Options of a service."""

    data: str | None = None
    """Where the data are now, for a run that has not kept them in its folder."""


def act(runs: Sequence[Path], options: Options) -> None:
    """Serve until SIGTERM."""
    folder = one_run(runs, "served")
    try:
        from jaxrec.service.server import serve
    except ModuleNotFoundError as error:
        raise SettingError(
            f"serve: needs the package {error.name}, which is not installed: "
            "pip install 'jaxrec[serve]'"
        ) from error
    own = {field.name: getattr(options, field.name) for field in fields(Settings)}
    serve(folder, Settings(**own), options.data)


def main(words: Sequence[str]) -> int:
    """Do as the words say; returns the exit status."""
    return command(Options, act, words, ABOUT)

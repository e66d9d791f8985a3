"""The command: python -m jaxrec.report RUN RUN ... [--out FILE] [--figures pdf]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from jaxrec import files
from jaxrec.cli.command import command
from jaxrec.report import charts
from jaxrec.report.page import page

ABOUT = """python -m jaxrec.report RUN [RUN ...] [--option value ...]

Write one HTML page about runs, which needs neither network nor server: curves, bytes, users, what
only a method can show, sample lists, settings. RUN is the folder of a run, ended or not."""


@dataclass(frozen=True)
class Options:
    """Options of a report."""

    out: Path | None = None
    """HTML file to write; by default report.html in the first run's folder."""
    metric: str | None = None
    """Metric that is drawn; by default the one the first run monitors."""
    users: int = 3
    """Users whose lists are shown, from the worst served to the best."""
    k: int = 10
    """Items of a list."""
    data: str | None = None
    """Where the data are now, for runs that have not kept them in their folders."""
    figures: Literal["png", "pdf"] | None = None
    """Also write every chart as a figure for a paper, beside the page."""


def act(runs: Sequence[Path], options: Options) -> None:
    """Write the page, and the figures that are asked for."""
    out = options.out or runs[0] / "report.html"
    made = page(runs, options.metric, users=options.users, k=options.k, data=options.data)
    files.write_text(out, made.html)
    print(f"report: {out}")
    for name, chart in made.charts.items() if options.figures else ():
        path = out.with_name(f"{out.stem}-{name}.{options.figures}")
        save = partial(charts.figure(chart).savefig, format=options.figures, dpi=200)
        with files.writing(path):
            files.write_atomic(path, save)
        print(f"figure: {path}")


def main(words: Sequence[str]) -> int:
    """Do as the words say; returns the exit status."""
    return command(Options, act, words, ABOUT)

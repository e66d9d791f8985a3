"""The command: python -m jaxrec.compare RUN RUN ... [--metric NDCG@10] [--format table]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxrec.cli.command import command, console
from jaxrec.output import to_stdout
from jaxrec.report.comparison import compare
from jaxrec.report.comparison_tables import caption, csv, latex, markdown, terminal_tables

ABOUT = """python -m jaxrec.compare RUN [RUN ...] [--option value ...]

Compare runs and their baselines: mean and spread over seeds, and whether users fare differently
than under the first of them. Runs that differ only in their seed count as one."""


@dataclass(frozen=True)
class Options:
    """Options of a comparison."""

    metric: str | None = None
    """Test metric that is compared; by default the one the runs monitor."""
    format: Literal["table", "markdown", "latex", "csv"] = "table"
    """What is printed; csv has every number in full."""
    resamples: int = 2000
    """Of the bootstrap over users."""
    seed: int = 0
    """Of the bootstrap."""


def act(runs: Sequence[Path], options: Options) -> None:
    """Print the comparison."""
    found = compare(runs, options.metric, resamples=options.resamples, seed=options.seed)
    if options.format == "table":
        console().print(*terminal_tables(found), caption(found))
    else:
        made = {"markdown": markdown, "latex": latex, "csv": csv}[options.format](found)
        to_stdout()(f"{made}\n")


def main(words: Sequence[str]) -> int:
    """Do as the words say; returns the exit status."""
    return command(Options, act, words, ABOUT)

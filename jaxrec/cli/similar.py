"""The command: python -m jaxrec.similar RUN --items ids.txt [--k 20] [--out FILE]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxrec.cli.command import command, one_run
from jaxrec.cli.recommend import LISTS, Choice, deliver, read_ids
from jaxrec.serving.model import open_run

ABOUT = """python -m jaxrec.similar RUN --items ids.txt [--option value ...]

The items most like others, by the run's best state: raw ids and titles, best first. RUN is the
folder of a run, or of one of its baselines (RUN/baselines/NAME)."""


@dataclass(frozen=True)
class Options(Choice):
    """Options of a search for similar items."""

    items: Path | None = None
    """File of raw item ids, one a line; without it, all items."""


def act(runs: Sequence[Path], options: Options) -> None:
    """Write a list for each item."""
    folder = one_run(runs, "served")
    asked = None if options.items is None else read_ids(options.items)
    chosen = options.listed()
    model = open_run(folder, options.data)
    asked = model.items.raw if asked is None else np.array(asked, object)
    parts = np.split(asked, range(LISTS, len(asked), LISTS))
    tables = (model.similar_items(part, options.k, **chosen) for part in parts)
    columns = model.columns(options.unknown).rename(columns={"user": "to"})
    kind = object if options.unknown == "popularity" else model.items.raw.dtype
    deliver(tables, len(parts), columns.astype({"to": kind}), options)


def main(words: Sequence[str]) -> int:
    """Do as the words say; returns the exit status."""
    return command(Options, act, words, ABOUT)

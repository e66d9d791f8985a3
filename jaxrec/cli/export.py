"""The command: python -m jaxrec.export RUN --to npz|safetensors|faiss [--index hnsw]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxrec.cli.command import command, one_run
from jaxrec.serving.export import export
from jaxrec.serving.model import Until
from jaxrec.training.opening import reopen

ABOUT = """python -m jaxrec.export RUN [--option value ...]

Write the vectors whose inner products are a run's scores, and an index of them. RUN is the folder
of a run, or of one of its baselines (RUN/baselines/NAME)."""


@dataclass(frozen=True)
class Options:
    """Options of an export."""

    to: Literal["npz", "safetensors", "faiss"] = "npz"
    """Of the vectors; faiss: an index of the items, beside the vectors as npz."""
    index: Literal["flat", "hnsw", "ivfpq"] = "flat"
    """Of faiss: flat is exact, hnsw fast, ivfpq small."""
    out: Path | None = None
    """Folder to write; by default RUN/export."""
    until: Until = "test"
    """The last split whose rows users are fitted on. A test value is computed again with train, and
    for methods that read a history with valid."""
    data: str | None = None
    """Where the data are now, for a run that has not kept them in its folder."""


def act(runs: Sequence[Path], options: Options) -> None:
    """Export and say what was written."""
    folder = one_run(runs, "exported")
    out = options.out or folder / "export"
    told = export(reopen(folder, options.data), out, options.to, options.index, until=options.until)
    print(", ".join(f"{name} {value}" for name, value in told.items()))
    print(f"export folder: {out}")


def main(words: Sequence[str]) -> int:
    """Do as the words say; returns the exit status."""
    return command(Options, act, words, ABOUT)

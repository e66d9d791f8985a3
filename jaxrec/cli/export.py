"""The command: python -m jaxrec.export RUN --to npz|safetensors|faiss [--index hnsw]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jaxrec.cli.command import command
from jaxrec.serving.export import export
from jaxrec.training.run import reopen
from jaxrec.types import SettingError

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
    data: str | None = None
    """Where the data are now, for a run that has not kept them in its folder."""


def act(runs: Sequence[Path], options: Options) -> None:
    """Export and say what was written."""
    if len(runs) != 1:
        raise SettingError(f"{len(runs)} run folders: one is exported at a time")
    out = options.out or runs[0] / "export"
    told = export(reopen(runs[0], options.data), out, options.to, options.index)
    print(", ".join(f"{name} {value}" for name, value in told.items()))
    print(f"export folder: {out}")


def main(words: Sequence[str]) -> int:
    """Do as the words say; returns the exit status."""
    return command(Options, act, words, ABOUT)

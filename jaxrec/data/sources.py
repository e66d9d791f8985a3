"""Where a name leads: synthetic data, a folder under JAXREC_DATA, a path, or a download."""

from __future__ import annotations

import os
from difflib import get_close_matches
from pathlib import Path

from jaxrec.data.download import fetch
from jaxrec.data.formats import read_dataset
from jaxrec.data.synthetic import synthetic
from jaxrec.types import DataError, Dataset

_GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
BUILT_IN = {
    "ml-100k": (
        _GROUPLENS + "ml-100k.zip",
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    ),
    "ml-1m": (
        _GROUPLENS + "ml-1m.zip",
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
    ),
}


def load(name_or_path: str | Path, *, progress: bool = True) -> Dataset:
    """Read a dataset by name or path.

    In this order: `synthetic`; a folder or file under the folder that JAXREC_DATA names; a path
    (dataset folder, .parquet, .csv, .tsv, RecBole .inter, MovieLens ml-100k.zip or ml-1m.zip);
    `ml-100k` or `ml-1m`, fetched from GroupLens into the cache once.

    Raises DataError, with the nearest names and the places looked at, if there is no such thing;
    for bad content, with file, column and row; for a failed download.
    """
    if str(name_or_path) == "synthetic":
        return synthetic()
    return read_dataset(*located(name_or_path, progress=progress))


def located(name_or_path: str | Path, *, progress: bool = True) -> tuple[Path, str]:
    """The folder or file that `load` reads for a name or path, and the dataset's name."""
    wanted = str(name_or_path)
    root = os.environ.get("JAXREC_DATA")
    for place in (*([Path(root)] if root and wanted else []), Path()):
        path = place / Path(wanted).expanduser()
        if wanted and path.exists():
            return path, path.resolve().stem if path.is_file() else path.resolve().name
    if wanted in BUILT_IN:
        return fetch(*BUILT_IN[wanted], progress=progress), wanted
    known = Path(root).iterdir() if root and Path(root).is_dir() else ()
    folders = [folder.name for folder in known if folder.is_dir()]
    names = sorted({"synthetic", *BUILT_IN, *folders})
    near = get_close_matches(Path(wanted).name, names, cutoff=0.4)
    raise DataError(
        f"no dataset '{wanted}'"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
        + f" Known names: {', '.join(names)}. Looked in {Path.cwd()} and "
        + (f"JAXREC_DATA={root}" if root else "not in JAXREC_DATA, which is not set")
    )

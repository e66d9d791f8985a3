"""The command: python -m jaxrec.export RUN --to npz|safetensors|faiss [--index hnsw] [--out DIR].

A score that is an inner product of one vector of the user and one of the item can be served by
whatever finds inner products: this writes the vectors, and an index with its measured recall.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pandas as pd

from jaxrec import report
from jaxrec.commands import callable_module, command
from jaxrec.run import Result, reopen
from jaxrec.serve import ids, whole
from jaxrec.types import Dataset, SettingError

ABOUT = """python -m jaxrec.export RUN [--option value ...]

Write the vectors whose inner products are a run's scores, and an index of them. RUN is the folder
of a run, or of one of its baselines (RUN/baselines/NAME)."""
RECALL_AT, QUERIES = 20, 1000  # neighbours of a user, and users, that recall is measured on
PQ_ITEMS = 256  # the codes of a product quantiser, which it learns from the items


@dataclass(frozen=True)
class Options:
    """Options of an export."""

    to: Literal["npz", "safetensors", "faiss"] = "npz"
    """Of the vectors; faiss: an index of the items, beside the vectors as npz."""
    index: Literal["flat", "hnsw", "ivfpq"] = "flat"
    """Of faiss: flat is exact, hnsw fast, ivfpq small."""
    out: Path | None = None
    """Folder to write; by default RUN/export."""


def act(runs: Sequence[Path], options: Options) -> None:
    """Export and say what was written."""
    if len(runs) != 1:
        raise SettingError(f"{len(runs)} run folders: one is exported at a time")
    out = options.out or runs[0] / "export"
    told = export(reopen(runs[0]), out, options.to, options.index)
    print(", ".join(f"{name} {value}" for name, value in told.items()))
    print(f"export folder: {out}")


def export(
    run: str | Path | Result,
    out: str | Path,
    to: str = "npz",
    index: str = "flat",
    *,
    data: Dataset | None = None,
) -> dict[str, Any]:
    """Write a run's vectors to a folder; returns what `export.json` there says of them.

    `vectors.npz` (or `.safetensors`) holds f32 `user` [U, D] and `item` [I, D]; row n is that of
    line n of `users.parquet` (raw id) and `items.parquet` (raw id, title), and is made as
    `recommend` serves. `items.faiss` numbers items the same way; its recall is the mean share of a
    user's 20 best items that it finds, seen ones among them.

    Raises SettingError for a method whose score is no inner product, and where faiss is missing or
    cannot make the index; CheckpointError as `reopen` does.
    """
    run = run if isinstance(run, Result) else reopen(run, data, progress=False)
    user, item = vectors(run)
    told = {"users": len(user), "items": len(item), "width": user.shape[1]}
    made = None
    if to == "faiss":
        made = faiss_index(item, index)
        told |= {"index": index, f"recall@{RECALL_AT}": recall(made, user, item)}
    elif to not in ("npz", "safetensors") or index != "flat":
        raise SettingError(
            f"to = {to!r}, index = {index!r}: npz and safetensors have no index, faiss has"
        )
    out, tables = Path(out), run.dataset
    arrays = {"user": user, "item": item}
    if to == "safetensors":
        from safetensors.numpy import save_file

        report.write_atomic(out / "vectors.safetensors", lambda path: save_file(arrays, path))
    else:
        report.write_atomic(out / "vectors.npz", lambda path: _save(path, arrays))
    report.write_users(out / "users.parquet", pd.DataFrame({"user": ids(tables.users, "user")}))
    items = pd.DataFrame({"item": ids(tables.items, "item")})
    if "title" in tables.items:
        items["title"] = tables.items["title"].to_numpy()
    report.write_users(out / "items.parquet", items)
    if made:
        import faiss

        report.write_atomic(out / "items.faiss", lambda path: faiss.write_index(made, str(path)))
    report.write_json(out / "export.json", told)
    return told


def vectors(run: Result) -> tuple[np.ndarray, np.ndarray]:
    """User vectors f32 [U, D] and item vectors [I, D] whose inner products are the run's scores.

    Raises SettingError where no such vectors exist.
    """
    factors = run.method.vectors
    if isinstance(factors, str):
        raise SettingError(
            f"there is nothing to export: {factors}; jaxrec.recommend serves every method that "
            "scores all items"
        )
    served = jax.jit(run.method.prepare)(run.state, whole(run))
    return tuple(np.ascontiguousarray(array, np.float32) for array in factors(served))


def faiss_index(item: np.ndarray, kind: str) -> Any:
    """A faiss index of inner products with the items [I, D]."""
    try:
        import faiss
    except ImportError as error:
        raise SettingError("to = 'faiss': needs faiss, pip install 'jaxrec[faiss]'") from error
    number, width = item.shape
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(width, 32, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
    elif kind == "ivfpq":
        if number < PQ_ITEMS:
            raise SettingError(
                f"index = 'ivfpq': {number} items are fewer than its {PQ_ITEMS} codes; use flat"
            )
        lists = max(1, int(number**0.5))
        pieces = next(m for m in range(-(-width // 4), width + 1) if width % m == 0)
        index = faiss.index_factory(width, f"IVF{lists},PQ{pieces}", faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
        index.nprobe = -(-lists // 8)
        index.train(item)
    else:
        raise SettingError(f"index = {kind!r}: must be flat, hnsw or ivfpq")
    index.add(item)
    return index


def recall(index: Any, user: np.ndarray, item: np.ndarray) -> float:
    """Mean share of a user's best items by exact search that the index finds, over 1,000 users."""
    k = min(RECALL_AT, len(item))
    asked = np.unique(np.linspace(0, len(user) - 1, QUERIES).astype(int))
    _, exact = jax.lax.top_k(user[asked] @ item.T, k)
    _, found = index.search(user[asked], k)
    hits = [len(np.intersect1d(*pair)) for pair in zip(np.asarray(exact), found, strict=True)]
    return float(np.mean(hits) / k)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # a path without .npz would be given one
        np.savez(file, **arrays)


callable_module(__name__, export)

if __name__ == "__main__":
    sys.exit(command(Options, act, sys.argv[1:], ABOUT))

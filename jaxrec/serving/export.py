"""Vectors and indices for other servers.

A score that is an inner product of one vector of the user and one of the item can be served by
whatever finds inner products: this writes the vectors, and an index with its measured recall.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import numpy as np
import pandas as pd

from jaxrec import files
from jaxrec.data.ids import raw_ids
from jaxrec.serving.model import Until, all_rows, rows_until
from jaxrec.training.opening import reopen
from jaxrec.training.result import Result
from jaxrec.types import Dataset, SettingError, Unavailable

RECALL_AT, QUERIES = 20, 1000  # neighbours of a user, and users, that recall is measured on
PQ_ITEMS = 256  # the codes of a product quantiser, which it learns from the items

Format = Literal["npz", "safetensors", "faiss"]
IndexKind = Literal["flat", "hnsw", "ivfpq"]


def export(
    run: str | Path | Result,
    out: str | Path,
    to: Format = "npz",
    index: IndexKind = "flat",
    *,
    data: Dataset | str | Path | None = None,
    until: Until = "test",
) -> dict[str, Any]:
    """Write a run's vectors to a folder; returns what `export.json` there says of them.

    `vectors.npz` (or `.safetensors`) holds f32 `user` [U, D] and `item` [I, D]; row n is that of
    line n of `users.parquet` (raw id) and `items.parquet` (raw id, title), and is made as
    `recommend` serves. `items.faiss` numbers items the same way; its recall is the mean share of a
    user's 20 best items that it finds, seen ones among them.

    Args:
      run: folder of a run, or of one of its baselines, or what `train` or `reopen` returned.
      out: folder to write.
      to: file of the vectors; "faiss" is "npz" and an index of the items beside it.
      index: kind of the faiss index: flat is exact, hnsw fast, ivfpq small.
      data: where a run in a folder has not kept its data: the Dataset, or where they are now.
      until: the last split whose rows users are fitted on; see `jaxrec.serving.model.rows_until`.

    Raises SettingError for a method whose score is no inner product, and where faiss is missing or
    cannot make the index; CheckpointError as `reopen` does.
    """
    run = run if isinstance(run, Result) else reopen(run, data, progress=False)
    if to not in get_args(Format) or (to != "faiss" and index != "flat"):
        raise SettingError(
            f"to = {to!r}, index = {index!r}: npz and safetensors have no index, faiss has"
        )
    user, item = vectors(rows_until(run, until))
    told = {"users": len(user), "items": len(item), "width": user.shape[1], "until": until}
    made = None
    if to == "faiss":
        made = faiss_index(item, index)
        told |= {"index": index, f"recall@{RECALL_AT}": recall(made, user, item)}
    out = Path(out)
    _write_vectors(out, {"user": user, "item": item}, to)
    _write_names(out, run.dataset)
    if made is not None:
        import faiss

        with files.writing(path := out / "items.faiss"):
            # faiss itself says nothing where the last bytes find no room
            whole = faiss.serialize_index(made).tobytes()
            files.write_atomic(path, lambda part: part.write_bytes(whole))
    files.write_json(out / "export.json", told)
    return told


def _write_vectors(out: Path, arrays: dict[str, np.ndarray], to: Format) -> None:
    if to == "safetensors":
        from safetensors.numpy import save_file

        with files.writing(path := out / "vectors.safetensors"):
            files.write_atomic(path, lambda part: save_file(arrays, part))
    else:
        save = partial(np.savez, user=arrays["user"], item=arrays["item"])
        files.write_atomic(out / "vectors.npz", save)


def _write_names(out: Path, dataset: Dataset) -> None:
    """The raw ids, and the titles, that the rows of the vectors are of."""
    users = pd.DataFrame({"user": raw_ids(dataset.users, "user")})
    items = pd.DataFrame({"item": raw_ids(dataset.items, "item")})
    if "title" in dataset.items:
        items["title"] = dataset.items["title"].to_numpy()
    files.write_users(out / "users.parquet", users)
    files.write_users(out / "items.parquet", items)


def vectors(run: Result) -> tuple[np.ndarray, np.ndarray]:
    """User vectors f32 [U, D] and item vectors [I, D] whose inner products are the run's scores.

    Raises SettingError where no such vectors exist.
    """
    factors = run.method.vectors
    if isinstance(factors, Unavailable):
        raise SettingError(
            f"there is nothing to export: {factors.reason}; jaxrec.recommend serves every method "
            "that scores all items"
        )
    served = jax.jit(run.method.prepare)(run.state, all_rows(run))
    user, item = (np.ascontiguousarray(array, np.float32) for array in factors(served))
    return user, item


def faiss_index(item: np.ndarray, kind: IndexKind) -> Any:
    """A faiss index of inner products with the items f32 [I, D].

    Raises SettingError where faiss is missing, the kind is unknown, or ivfpq has too few items.
    """
    try:
        import faiss  # noqa: F401
    except ImportError as error:
        raise SettingError("to = 'faiss': needs faiss, pip install 'jaxrec[faiss]'") from error
    kinds = {"flat": _flat_index, "hnsw": _hnsw_index, "ivfpq": _ivfpq_index}
    if kind not in kinds:
        raise SettingError(f"index = {kind!r}: must be flat, hnsw or ivfpq")
    index = kinds[kind](item)
    index.add(item)
    return index


def _flat_index(item: np.ndarray) -> Any:
    """Exact search, for any number of items."""
    import faiss

    return faiss.IndexFlatIP(item.shape[1])


def _hnsw_index(item: np.ndarray) -> Any:
    """A navigable small-world graph: fast, and approximate."""
    import faiss

    index = faiss.IndexHNSWFlat(item.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = 200, 128
    return index


def _ivfpq_index(item: np.ndarray) -> Any:
    """An inverted file of sqrt(I) lists whose vectors are product-quantised, a byte for about four
    numbers: small, and approximate. A search reads an eighth of the lists."""
    import faiss

    number, width = item.shape
    if number < PQ_ITEMS:
        raise SettingError(
            f"index = 'ivfpq': {number} items are fewer than its {PQ_ITEMS} codes; use flat"
        )
    lists = max(1, int(number**0.5))
    pieces = next(m for m in range(-(-width // 4), width + 1) if width % m == 0)
    index: Any = faiss.index_factory(width, f"IVF{lists},PQ{pieces}", faiss.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    index.nprobe = -(-lists // 8)
    index.train(item)
    return index


def recall(index: Any, user: np.ndarray, item: np.ndarray) -> float:
    """Mean share, over 1,000 users, of a user's 20 best items that a search of the index finds.

    `user` [U, D] and `item` [I, D] are the vectors whose inner products are the exact scores.
    """
    k = min(RECALL_AT, len(item))
    asked = np.unique(np.linspace(0, len(user) - 1, QUERIES).astype(int))
    _, exact = jax.lax.top_k(user[asked] @ item.T, k)
    _, found = index.search(user[asked], k)
    hits = [len(np.intersect1d(*pair)) for pair in zip(np.asarray(exact), found, strict=True)]
    return float(np.mean(hits) / k)

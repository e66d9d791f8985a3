"""From rows to arrays: clients sorted by size, in buckets padded to powers of two."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec.types import TRAIN, VALID, Clients, Data, DataError, Dataset, History, Sizes


def pack(dataset: Dataset, *, multiple: int = 1, before: int = VALID) -> tuple[Data, Sizes]:
    """The train rows as buckets of Clients, smallest first, and the static sizes.

    A bucket holds the clients whose number of train rows has the same next power of two, N, in
    order of (size, id); its U is its largest number of users. The rows of a client are in order of
    (user, item). `multiple` pads each bucket's client axis to a multiple of the number of devices
    with clients of weight 0, ids from the number of clients on. A client without train rows has
    weight 0 and keeps its users. Beside them lie the same rows by time, and the items' domains.

    With another `before` than VALID the buckets hold the same clients, with all their rows of the
    splits before it, and are as wide as that takes.

    Raises DataError if `split` or `client` is missing or a user has no client.
    """
    num_users, num_items = dataset.num_users, dataset.num_items
    ids, client = np.unique(_owners(dataset), return_inverse=True)  # client [U]
    part = dataset.interactions["split"]
    train, held = (dataset.interactions[rows] for rows in (part == TRAIN, part < before))
    sizes, counts = (np.bincount(client[r["user"]], minlength=len(ids)) for r in (train, held))
    by_size = np.lexsort((ids, sizes))
    place = np.argsort(by_size)[client]  # [U] of each user's client among the sorted ones
    users = np.argsort(place, kind="stable")
    ids, sizes, counts = ids[by_size], sizes[by_size], counts[by_size]
    owned = np.bincount(place, minlength=len(ids))
    local = np.arange(num_users) - np.repeat(np.cumsum(owned) - owned, owned)

    # One sort of one key puts the rows in order of (client, user, item).
    key = np.argsort(users)[held["user"]] * num_items + held["item"].to_numpy()
    order = np.argsort(key)
    rank, item = np.divmod(key[order], num_items)
    age = _ages(held)[order] if "timestamp" in held else None

    width = 2 ** np.frexp(np.maximum(sizes, 1) - 0.5)[1]  # the next power of two, exactly
    buckets = []
    for n in np.unique(width):
        lo, hi = np.searchsorted(width, [n, n + 1])
        rows, own = (slice(x[:lo].sum(), x[:hi].sum()) for x in (counts, owned))
        shape = (-(-(hi - lo) // multiple) * multiple, max(n, counts[lo:hi].max()))
        padding = shape[0] - (hi - lo)
        bucket = Clients(
            user=_padded(local[rank[rows]], counts[lo:hi], shape, 0),
            item=_padded(item[rows], counts[lo:hi], shape, 0),
            mask=_padded(np.ones_like(item[rows]), counts[lo:hi], shape, 0).astype(bool),
            users=_padded(users[own], owned[lo:hi], (shape[0], owned[lo:hi].max()), num_users),
            client=np.append(ids[lo:hi], len(ids) + np.arange(padding)).astype(np.int32),
            weight=np.append(sizes[lo:hi], np.zeros(padding)).astype(np.float32),
            age=None if age is None else _padded(age[rows], counts[lo:hi], shape, 0),
        )
        buckets.append(jax.tree.map(jnp.asarray, bucket))
    data = Data(tuple(buckets), history(dataset, before))
    sizes = Sizes(num_users, num_items, len(ids))
    if "domain" in dataset.items:
        domain = dataset.items["domain"].to_numpy()
        if (below := np.flatnonzero(domain < 0)).size:
            raise DataError(
                f"{dataset.name}, column 'domain': item {below[0]} is of domain "
                f"{domain[below[0]]}; domains count from 0"
            )
        data = data._replace(domain=jnp.asarray(domain, jnp.int32))
        sizes = sizes._replace(domains=int(domain.max()) + 1)
    return data, sizes


def history(dataset: Dataset, before: int = VALID) -> History | None:
    """The rows of the splits before `before`: VALID for training, TEST for the final ranking.

    None where the data has no timestamps or positions.
    """
    rows = dataset.interactions
    if "timestamp" not in rows:
        return None
    rows = rows[rows["split"] < before]
    rows = rows.iloc[np.lexsort((rows["timestamp"], rows["user"]))]
    start = np.searchsorted(rows["user"], np.arange(dataset.num_users + 1))
    order = np.argsort(rows["timestamp"], kind="stable")
    arrays = History(rows["user"], rows["item"], start, order)
    return History(*(jnp.asarray(array, jnp.int32) for array in arrays))


def history_of(data: Data) -> History:
    """The data's history; DataError, with the remedy, where nobody knows the order."""
    if data.history is None:
        raise DataError(
            "the interactions have no column 'timestamp' or 'position', so that nobody knows the "
            "order of a user's items; add one, a position for the order alone"
        )
    return data.history


def _owners(dataset: Dataset) -> np.ndarray:
    """The client of each user, [U]."""
    rows = dataset.interactions
    for column, step in (("split", "split"), ("client", "partition")):
        if column not in rows:
            raise DataError(f"{dataset.name}: no column '{column}'; call {step}(dataset) first")
    owner = np.full(dataset.num_users, -1)
    owner[rows["user"]] = rows["client"]
    if (alone := np.flatnonzero(owner < 0)).size:
        raise DataError(
            f"{dataset.name}, column 'user': user {alone[0]} has no interaction and so no client "
            f"({alone.size} such users in all); a core of 1 row per user drops them"
        )
    return owner


def _ages(rows: pd.DataFrame) -> np.ndarray:
    """How many later rows each row's user has; of equal times the last in the file is newest."""
    order = np.lexsort((rows["timestamp"], rows["user"]))
    counts = np.unique(rows["user"], return_counts=True)[1]
    ages = np.empty(len(rows), np.int32)
    ages[order] = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(rows))
    return ages


def _padded(values: np.ndarray, counts: np.ndarray, shape: tuple, fill: int) -> np.ndarray:
    """Runs of `counts` values laid end to end -> one padded line each, int32 `shape`."""
    lines = np.full(shape, fill, np.int32)
    lines[: len(counts)][np.arange(shape[1]) < counts[:, None]] = values
    return lines

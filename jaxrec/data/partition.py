"""Which client holds which users: the federation, as a `client` column."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
import pandas as pd

from jaxrec.data.blocks import gather
from jaxrec.types import TRAIN, DataError, Dataset, SettingError

How = Literal["given", "user", "blocks", "random", "dirichlet"]


def partition(
    dataset: Dataset,
    how: How = "given",
    clients: int | None = None,
    alpha: float = 0.5,
    seed: int = 0,
) -> Dataset:
    """The dataset with an int32 `client` column, contiguous from 0; a user has one client.

    - "given": the column the data came with; `clients` is not used.
    - "user": one client for each user; `clients` is not used.
    - "blocks": contiguous user ids, floor(U/C) for each client and the remainder for the last.
    - "random": C random blocks whose sizes differ by at most one user.
    - "dirichlet": users who favour one genre go to clients in proportions drawn from
      Dirichlet(alpha): small alpha, skewed tastes. A user's genre is the most frequent first
      category of the user's train items. An empty client takes a user from the fullest.

    Raises DataError for a missing column; SettingError for more clients than users.
    """
    users = dataset.num_users
    if how == "given":
        if "client" not in dataset.interactions:
            raise DataError(
                f"{dataset.name}: partition 'given' needs a column 'client'; the interactions have "
                f"{list(dataset.interactions)}. Choose user, blocks, random or dirichlet"
            )
        return dataset
    if how == "user":
        return _with_client(dataset, np.arange(users))
    if how not in ("blocks", "random", "dirichlet"):
        raise SettingError(f"unknown partition '{how}': given, user, blocks, random or dirichlet")
    if clients is None or not 1 <= clients <= users:
        raise SettingError(
            f"clients={clients}: {dataset.name} has {users} users, choose 1 to {users}"
        )
    rng = np.random.default_rng(seed)
    if how == "blocks":
        block = np.arange(users) // (users // clients)
        return _with_client(dataset, np.minimum(block, clients - 1))
    if how == "random":
        return _with_client(dataset, rng.permutation(np.arange(users) * clients // users))
    if alpha <= 0:
        raise SettingError(f"alpha={alpha} must be above 0")
    return _with_client(dataset, _skewed(_genres(dataset), clients, alpha, rng))


def partition_again(dataset: Dataset, how: How, seed: int = 0) -> Dataset:
    """The dataset, some of whose users have a client, with a client for all.

    A new user is a client of its own with "user" and "given", and joins a random one otherwise.
    """
    rows = dataset.interactions
    client = np.full(dataset.num_users, -1)
    shared = rows[rows["client"] >= 0]
    client[shared["user"]] = shared["client"]
    new, number = np.flatnonzero(client < 0), client.max() + 1
    if how in ("user", "given"):
        client[new] = number + np.arange(len(new))
    else:
        rng = np.random.default_rng([seed, dataset.num_users])
        client[new] = rng.integers(0, number, len(new))
    return _with_client(dataset, client)


def _skewed(genre: np.ndarray, clients: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Client of each user, [U], by Dirichlet shares of each genre; no client is empty."""
    client = np.empty(len(genre), int)
    for users in (np.flatnonzero(genre == g) for g in np.unique(genre)):
        shares = np.cumsum(rng.dirichlet(np.full(clients, alpha)))[:-1]
        cuts = np.rint(shares * len(users)).astype(int)
        client[rng.permutation(users)] = np.searchsorted(cuts, np.arange(len(users)), side="right")
    counts = np.bincount(client, minlength=clients)
    for empty in np.flatnonzero(counts == 0):
        fullest = counts.argmax()
        client[np.flatnonzero(client == fullest)[0]] = empty
        counts[fullest] -= 1
        counts[empty] += 1
    return client


def _genres(dataset: Dataset) -> np.ndarray:
    """Number of each user's favourite genre, [U]; the first in the alphabet among equals."""
    if "category" not in dataset.items:
        raise DataError(
            f"{dataset.name}: partition 'dirichlet' needs a column 'category' of the items; they "
            f"have {list(dataset.items)}. Choose blocks or random"
        )
    rows = dataset.interactions
    if "split" in rows:
        rows = rows.loc[rows["split"] == TRAIN]
    first = dataset.items["category"].str.split("|").str[0]
    genre, names = pd.factorize(first, sort=True)
    counts = np.zeros((dataset.num_users, len(names)), int)
    np.add.at(counts, (rows["user"].to_numpy(), genre[rows["item"]]), 1)
    return counts.argmax(axis=1)


def _with_client(dataset: Dataset, client: np.ndarray) -> Dataset:
    rows = dataset.interactions
    column = gather(client.astype("int32"), rows["user"].to_numpy())
    return replace(dataset, interactions=rows.assign(client=column))

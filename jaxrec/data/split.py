"""Which interactions are for training, which for choosing settings, which for the final result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal
from warnings import warn

import numpy as np
import pandas as pd

from jaxrec.data.blocks import count, gather, sorted_blocks
from jaxrec.types import TEST, TRAIN, VALID, DataError, Dataset, SettingError

How = Literal["auto", "given", "leave-one-out", "ratio", "time"]
NEW = -1  # the split or the client of a row that has none yet


def core(dataset: Dataset, min_user: int, min_item: int) -> Dataset:
    """The largest part where each user has `min_user` rows and each item `min_item`, re-indexed.

    A bound of 0 leaves even the users or items without any row. Raw ids are kept.

    Raises DataError if nothing is left.
    """
    rows = dataset.interactions
    while True:
        users, items = _counts(rows, dataset)
        keep = gather(users >= min_user, rows["user"].to_numpy())
        keep &= gather(items >= min_item, rows["item"].to_numpy())
        if keep.all():
            break
        rows = rows.loc[keep]
    if rows.empty:
        raise DataError(
            f"{dataset.name}: no interaction is left in the core of {min_user} per user and "
            f"{min_item} per item; lower them"
        )
    return _restrict(dataset, rows, users >= min_user, items >= min_item)


def settled(how: How, dataset: Dataset) -> How:
    """`auto` is the split that the data come with, else leave-one-out by time, else by ratio."""
    if how != "auto":
        return how
    rows = dataset.interactions
    return "given" if "split" in rows else "leave-one-out" if "timestamp" in rows else "ratio"


def split(
    dataset: Dataset,
    how: How = "auto",
    valid: float = 0.1,
    test: float = 0.2,
    seed: int = 0,
) -> Dataset:
    """The dataset with an int8 `split` column: 0 train, 1 valid, 2 test.

    - "auto": given where there is a column `split`, else leave-one-out where there is a
      `timestamp`, else ratio.
    - "given": the column the data came with; where it has no valid row, the fraction `valid` of
      each user's train rows at random, rounded, with a warning.
    - "leave-one-out": each user's last row in time is test, the one before valid; ties in file
      order; users with fewer than 3 rows train only.
    - "ratio": the fractions `valid` and `test` of each user's rows at random, rounded; a user keeps
      at least one row to train on.
    - "time": the last fraction `test` of all rows in time is test, the fraction `valid` before it
      valid. Users first seen after the training period are dropped, with a warning.

    Raises DataError for a missing column, an empty split and a user with nothing to train on;
    SettingError for fractions that leave no training data.
    """
    rows, how = dataset.interactions, settled(how, dataset)
    if how in ("ratio", "time") and not (valid > 0 and test > 0 and valid + test < 1):
        raise SettingError(
            f"valid={valid} and test={test} must be above 0 and leave training data: sum below 1"
        )
    if how == "given":
        _needs(dataset, "split", how)
        dataset = _with_valid(dataset, valid, seed)
    elif how == "leave-one-out":
        _needs(dataset, "timestamp", how)
        dataset = _with_split(dataset, _last_two(rows))
    elif how == "ratio":
        dataset = _with_split(dataset, _fractions(rows, valid, test, seed))
    elif how == "time":
        _needs(dataset, "timestamp", how)
        dataset = _known_users(_with_split(dataset, _periods(rows, valid, test)))
    else:
        raise SettingError(f"unknown split '{how}': given, leave-one-out, ratio or time")
    _check(dataset, how)
    return dataset


def forward(dataset: Dataset) -> bool:
    """Whether most rows that are held out are no older than any train row of their user."""
    rows = dataset.interactions
    if "timestamp" not in rows:
        return False
    train = (rows["split"] == TRAIN).to_numpy()
    newest = rows[train].groupby("user")["timestamp"].max()
    held = rows[~train]
    later = held["timestamp"].to_numpy() >= held["user"].map(newest).to_numpy()
    return bool(later.mean() > 0.9)


def split_again(
    dataset: Dataset, how: How, valid: float = 0.1, test: float = 0.2, seed: int = 0
) -> Dataset:
    """The dataset, some of whose rows are NEW to the split, with all split.

    - "given": NEW rows are for training.
    - "ratio": the NEW rows of each user are drawn from as `split` does; the others stay.
    - "leave-one-out", "time": all rows are looked at, as in `split`, but rows in train stay there,
      and users who would have none in train have all of theirs there.
    """
    rows = dataset.interactions
    before = rows["split"].to_numpy()
    new = before == NEW
    if how == "given":
        parts = np.where(new, TRAIN, before)
    elif how == "ratio":
        parts = before.copy()
        parts[new] = _fractions(rows[new], valid, test, [seed, len(rows)])
    else:
        parts = _last_two(rows) if how == "leave-one-out" else _periods(rows, valid, test)
        parts = np.where(before == TRAIN, TRAIN, parts)
        late = _trained(_with_split(dataset, parts)) == 0
        parts[late[rows["user"]]] = TRAIN
    dataset = _with_split(dataset, parts.astype("int8"))
    _check(dataset, how)
    return dataset


def with_random_positives(dataset: Dataset, share: float, seed: int = 0) -> Dataset:
    """The split dataset with noise: `share` times each user's train rows, rounded, added to them.

    The added items are drawn at random from those the user has in no split (fewer where fewer are
    left); their times, ratings and domains are those of random train rows of the same user.
    """
    rows = dataset.interactions
    if share == 0:
        return dataset
    rng = np.random.default_rng([seed, 1])
    train = rows[rows["split"] == TRAIN]
    held = rows.groupby("user")["item"].agg(np.asarray)
    added = []
    for user, own in train.groupby("user"):
        free = np.setdiff1d(np.arange(dataset.num_items), held[user])
        number = min(round(share * len(own)), len(free))
        like = own.iloc[rng.integers(0, len(own), number)]
        added.append(like.assign(item=rng.choice(free, number, replace=False).astype("int32")))
    return replace(dataset, interactions=pd.concat([rows, *added], ignore_index=True))


def _last_two(rows: pd.DataFrame) -> np.ndarray:
    def part(place: np.ndarray, total: np.ndarray) -> np.ndarray:
        from_end = total - place
        return np.where((total < 3) | (from_end > 2), TRAIN, np.where(from_end == 1, TEST, VALID))

    return _by_place(rows, rows["timestamp"].to_numpy(), part)


def _fractions(rows: pd.DataFrame, valid: float, test: float, seed: int | list[int]) -> np.ndarray:
    def part(place: np.ndarray, total: np.ndarray) -> np.ndarray:
        tests = np.minimum(np.rint(total * test), total - 1)
        valids = np.minimum(np.rint(total * valid), total - 1 - tests)
        return np.where(place < tests, TEST, np.where(place < tests + valids, VALID, TRAIN))

    return _by_place(rows, np.random.default_rng(seed).random(len(rows)), part)


def _with_valid(dataset: Dataset, valid: float, seed: int) -> Dataset:
    """The dataset, with valid rows drawn from each user's train rows where its split has none."""
    parts = dataset.interactions["split"].to_numpy()
    train = parts == TRAIN
    if (parts == VALID).any() or not train.any():
        return dataset
    parts = parts.copy()
    parts[train] = _fractions(dataset.interactions.loc[train], valid, 0.0, seed)
    if (parts == VALID).any():
        warn(
            f"{dataset.name}: no row is valid in the split that the data come with; a fraction "
            f"{valid:g} of each user's train rows, drawn at random, is",
            stacklevel=3,
        )
    return _with_split(dataset, parts)


def _periods(rows: pd.DataFrame, valid: float, test: float) -> np.ndarray:
    time = rows["timestamp"].to_numpy()
    first, second = np.quantile(time, [1 - valid - test, 1 - test], method="lower")
    return np.add(time > first, time > second, dtype="int8")  # TRAIN 0, VALID 1, TEST 2


def _by_place(rows: pd.DataFrame, by: np.ndarray, part: Callable) -> np.ndarray:
    """The split of each row, int8 [R].

    `part` makes it of the row's place among its user's when sorted by `by`, and of their number.
    """
    user = rows["user"].to_numpy()
    number = int(user.max()) + 1
    counts = count(user, number)
    starts = np.cumsum(counts) - counts
    parts, done = np.empty(len(user), "int8"), 0
    for order in sorted_blocks(user, number, by):
        place = np.arange(done, done + len(order)) - starts[user[order]]
        parts[order] = part(place, counts[user[order]])
        done += len(order)
    return parts


def _known_users(dataset: Dataset) -> Dataset:
    """Without the users who have no training row: a model of ids has nothing to know them by."""
    rows = dataset.interactions
    known = _trained(dataset) > 0
    if not known.all():
        warn(
            f"{dataset.name}: {(~known).sum()} of {len(known)} users first appear after the "
            "training period and are dropped",
            stacklevel=3,
        )
    rows = rows.loc[gather(known, rows["user"].to_numpy())]
    return _restrict(dataset, rows, known, np.ones(dataset.num_items, bool))


def _restrict(
    dataset: Dataset, rows: pd.DataFrame, users: np.ndarray, items: np.ndarray
) -> Dataset:
    """`rows`, the kept users and items (bool masks), numbered afresh from 0."""
    if users.all() and items.all():
        return replace(dataset, interactions=rows)
    new_user, new_item = (np.cumsum(keep).astype("int32") - 1 for keep in (users, items))
    rows = rows.assign(
        user=gather(new_user, rows["user"].to_numpy()),
        item=gather(new_item, rows["item"].to_numpy()),
    )
    if "client" in rows:
        rows["client"] = np.unique(rows["client"], return_inverse=True)[1].astype("int32")
    lists = dataset.candidates
    if lists is not None:
        lists = lists[users[lists["user"]] & items[lists["item"]]].reset_index(drop=True)
        lists = lists.assign(user=new_user[lists["user"]], item=new_item[lists["item"]])
    return replace(
        dataset,
        interactions=rows.reset_index(drop=True),
        candidates=lists,
        users=dataset.users[users].assign(user=new_user[users]).reset_index(drop=True),
        items=dataset.items[items].assign(item=new_item[items]).reset_index(drop=True),
    )


def _counts(rows: pd.DataFrame, dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    return (
        count(rows["user"].to_numpy(), dataset.num_users),
        count(rows["item"].to_numpy(), dataset.num_items),
    )


def _trained(dataset: Dataset) -> np.ndarray:
    """Train rows of each user, [U]."""
    rows = dataset.interactions
    train = (rows["split"] == TRAIN).to_numpy()
    return count(rows["user"].to_numpy(), dataset.num_users, train)


def _with_split(dataset: Dataset, values: np.ndarray) -> Dataset:
    rows = dataset.interactions.assign(split=values)
    return replace(dataset, interactions=rows)


def _needs(dataset: Dataset, column: str, how: str) -> None:
    if column not in dataset.interactions:
        raise DataError(
            f"{dataset.name}: split '{how}' needs a column '{column}'; the interactions have "
            f"{list(dataset.interactions)}. Choose another split"
        )


def _check(dataset: Dataset, how: str) -> None:
    rows = dataset.interactions
    for part, name in ((TRAIN, "train"), (VALID, "valid"), (TEST, "test")):
        if not (rows["split"].to_numpy() == part).any():
            raise DataError(
                f"{dataset.name}, column 'split': no row is {name} ({part}) with split '{how}'; "
                "choose another split or other fractions"
            )
    if len(without := np.flatnonzero(_trained(dataset) == 0)):
        user = without[0]
        own = np.flatnonzero(rows["user"] == user)
        where = f", first in row {own[0]} of the interactions" if len(own) else ""
        raise DataError(
            f"{dataset.name}, column 'user': user {user} (raw id "
            f"{dataset.users['raw_id'].iloc[user]}){where} has no train row "
            f"({len(without)} such users in all); drop them or set a core of 1 row per user"
        )

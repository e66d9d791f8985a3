"""The items that a target competes with: all but those left out, or a few negatives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxrec.data.blocks import count, sorted_blocks
from jaxrec.types import DataError, Dataset, SettingError


class Lists(NamedTuple):
    """A list of items for each line: those from `first` on, `number` of them."""

    first: np.ndarray  # int64 [lines]
    number: np.ndarray  # int64 [lines]
    item: np.ndarray  # int32 [entries]

    @classmethod
    def of(cls, number: np.ndarray, item: np.ndarray) -> Lists:
        """Lists that lie one after another in `item`."""
        return cls(np.cumsum(number) - number, number, item)

    def cut(self, lines: slice) -> Lists:
        """The lists of some of the lines."""
        return self._replace(first=self.first[lines], number=self.number[lines])

    def joined(self) -> np.ndarray:
        """The items of all lists, one list after another."""
        shift = self.first - (np.cumsum(self.number) - self.number)
        return self.item[np.repeat(shift, self.number) + np.arange(self.number.sum())]


def items_before(dataset: Dataset, users: np.ndarray, before: int) -> Lists:
    """The items that each of `users` [lines] has in the splits before `before`, in row order."""
    rows = dataset.interactions
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    earlier = (rows["split"] < before).to_numpy()
    lists = Lists.of(count(user, dataset.num_users, earlier), np.empty(earlier.sum(), np.int32))
    done = 0
    for order in sorted_blocks(user, dataset.num_users, where=earlier):
        lists.item[done : done + len(order)] = item[order]
        done += len(order)
    return lists._replace(first=lists.first[users], number=lists.number[users])


def draw_negatives(
    dataset: Dataset, lines: pd.DataFrame, number: int, seed: int, domain: np.ndarray | None
) -> Lists:
    """`number` distinct items for each line, none of which its user has in any split.

    With `domain` [I] they are of the domain of the line's item. `seed` and the line's number alone
    decide the draw. Raises SettingError where a user has too few unseen items.
    """
    own = dataset.interactions.groupby("user")["item"].unique()
    domain = np.zeros(dataset.num_items, int) if domain is None else domain
    pools = [np.flatnonzero(domain == d) for d in range(domain.max() + 1)]
    drawn = []
    for line, user, d in zip(lines.index, lines["user"], _of(lines, domain), strict=True):
        seen = np.searchsorted(pools[d], np.sort(own[user][domain[own[user]] == d]))
        unseen = len(pools[d]) - len(seen)
        if unseen < number:
            within = f" of domain {d}" if len(pools) > 1 else ""
            raise SettingError(
                f"candidates = {number}: user {user} has only {unseen} items{within} never "
                f"interacted with; ask for at most that many, or for 0, the full ranking"
            )
        draw = np.random.default_rng([seed, line]).choice(unseen, number, replace=False)
        # The p-th unseen item comes after those seen ones that have at most p unseen before them.
        skipped = np.searchsorted(seen - np.arange(len(seen)), draw, side="right")
        drawn.append(pools[d][draw + skipped])
    return Lists.of(np.full(len(lines), number), np.concatenate(drawn))


def listed_candidates(
    dataset: Dataset,
    lines: pd.DataFrame,
    targets: pd.DataFrame,
    number: int,
    domain: np.ndarray | None,
) -> Lists:
    """The first `number` items of each line's list that are not what the line has to find.

    With `domain` [I] they are of the domain of the line's item. Raises DataError where the dataset
    has no lists, SettingError where one is too short.
    """
    if dataset.candidates is None:
        raise DataError(
            f"{dataset.name}: listed = True needs lists of candidates, a file candidates.parquet "
            "with columns user and candidates beside the interactions; or set listed = False"
        )
    pairs = lines[["user"]].rename_axis("line").reset_index().merge(dataset.candidates, on="user")
    if domain is not None:
        of = pd.Series(_of(lines, domain), lines.index).loc[pairs["line"]].to_numpy()
        pairs = pairs.loc[domain[pairs["item"]] == of]
    found = pairs[["line", "item"]].merge(targets[["line", "item"]], how="left", indicator=True)
    pairs = found.loc[found["_merge"] == "left_only", ["line", "item"]]
    counts = pairs["line"].value_counts().reindex(lines.index, fill_value=0)
    if (counts < number).any():
        short = counts.idxmin()
        raise SettingError(
            f"candidates = {number}: the list of user {lines.loc[short, 'user']} has only "
            f"{counts[short]} candidates beside what is to be found; ask for at most that many"
        )
    item = pairs.groupby("line").head(number)["item"].to_numpy()
    return Lists.of(np.full(len(lines), number), item)


def _of(lines: pd.DataFrame, domain: np.ndarray) -> np.ndarray:
    """The domain of each line's item; 0 where lines are users."""
    return domain[lines["item"]] if "item" in lines else np.zeros(len(lines), int)

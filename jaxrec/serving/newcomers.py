"""Users who came after the training, from the items they chose: nothing is trained for them.

Where all that a method learns is of items, a user is whatever the user has; where users have
vectors, a new one's is fitted while all else stands still. `Method.fold_in` says how, or why not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxrec.data.pack import pack
from jaxrec.serving.recommendation import indices_of, recommend
from jaxrec.training.run import Result, reopen
from jaxrec.types import TRAIN, DataError, Dataset, SettingError, Unavailable


def newcomers(run: Result, histories: Mapping[Any, Sequence[Any]]) -> Result:
    """The run as if its users were new ones, whom it knows by the items they chose alone.

    Args:
      run: what `train` or `reopen` returned; its state stays as it is.
      histories: the raw ids of each new user's items, oldest first, by any name of the user. An
        item that a history repeats counts where it stands last.

    Returns:
      A run that `recommend` takes.

    Raises:
      SettingError: the method cannot serve users it was not trained with; the message says why.
      DataError: items that the run does not know, or a history without any.
    """
    fold_in = run.method.fold_in
    if isinstance(fold_in, Unavailable):
        raise SettingError(
            f"this method cannot take in new users: {fold_in.reason}; train it again with their "
            "rows"
        )
    if not histories:
        raise DataError("no histories given")
    rows = pd.DataFrame(
        [(user, str(item)) for user, own in histories.items() for item in own],
        columns=["name", "raw"],
    ).drop_duplicates(keep="last")
    if empty := [str(user) for user, own in histories.items() if not len(own)]:
        raise DataError(f"histories: {', '.join(empty[:5])} has no item to go by")
    item = indices_of(run.dataset.items, "item", rows["raw"].to_numpy())
    user, names = pd.factorize(rows["name"])
    dataset = _federation(run, user, item, np.asarray(names))
    data, sizes = pack(dataset, by_time=run.data.history is not None)
    return run._replace(
        dataset=dataset,
        data=run.data._replace(clients=data.clients, history=data.history),
        sizes=sizes._replace(domains=run.sizes.domains),
        method=run.method._replace(prepare=fold_in),
        run=replace(run.run, mesh=""),
    )


def recommend_from_items(
    run: str | Path | Result,
    items: Sequence[Any],
    k: int = 20,
    *,
    exclude_seen: bool = True,
    data: Dataset | None = None,
) -> pd.DataFrame:
    """The `k` best items for one new user, who is called "new".

    `items` are the raw ids of what the user chose, oldest first. The other arguments, the table and
    the errors are those of `recommend` and `newcomers`.
    """
    run = run if isinstance(run, Result) else reopen(run, data, progress=False)
    return recommend(newcomers(run, {"new": items}), k=k, exclude_seen=exclude_seen)


def _federation(run: Result, user: np.ndarray, item: np.ndarray, names: np.ndarray) -> Dataset:
    """The run's dataset with these train rows, in the order of time; each user is a client.

    `user` and `item` are indices [rows], `names` the raw ids of the users [U].
    """
    columns = {"user": user, "item": item, "client": user}
    rows = pd.DataFrame(columns, dtype=np.int32)
    rows = rows.assign(split=np.int8(TRAIN), timestamp=np.arange(len(rows)))
    users = pd.DataFrame({"user": np.arange(len(names), dtype=np.int32), "raw_id": names})
    return replace(run.dataset, interactions=rows, users=users, candidates=None)

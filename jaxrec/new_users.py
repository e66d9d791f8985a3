"""Users who came after the training, from the items they chose: no step is taken for them.

It is possible where all that a method learns is of items (EASE, GF-CF, SASRec, GRU4Rec,
popularity): a user is then whatever the user has, and the state fits a federation of any users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pandas as pd

from jaxrec.data.pack import pack
from jaxrec.methods import METHODS
from jaxrec.run import Result
from jaxrec.serve import places
from jaxrec.types import TRAIN, DataError, Dataset, SettingError


def newcomers(run: Result, histories: Mapping[Any, Sequence[Any]]) -> Result:
    """The run as if `histories` were all the users it has: raw item ids by user, oldest first.

    `recommend` and `lists` take it. An item that a history repeats counts where it stands last.

    Raises:
      SettingError: the method learns something of each user: it has to be trained with them.
      DataError: items that the run does not know, or a history without any.
    """
    if not histories:
        raise DataError("no histories given")
    rows = pd.DataFrame(
        [(user, str(item)) for user, own in histories.items() for item in own],
        columns=["name", "raw"],
    ).drop_duplicates(keep="last")
    if empty := [str(user) for user, own in histories.items() if not len(own)]:
        raise DataError(f"histories: {', '.join(empty[:5])} has no item to go by")
    item = places(run.dataset.items, "item", rows["raw"].to_numpy())
    user, known = pd.factorize(rows["name"])
    module = next(module for module in METHODS.values() if module.Config is type(run.config))
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    # with one user more too: a table of users may happen to have the right number of rows
    for more in (1, 0):
        dataset = _federation(
            run, np.append(user, [len(known)] * more), np.append(item, [0] * more)
        )
        data, sizes = pack(dataset)
        data = data._replace(text=run.data.text, written=run.data.written)
        sizes = sizes._replace(domains=run.sizes.domains)
        try:
            method = module.make(run.config, sizes)
            fits = shapes(jax.eval_shape(method.init, jax.random.key(0), data)) == shapes(run.state)
        except SettingError:  # such as more groups of users than there are users
            fits = False
        if run.method.rank or not fits:
            raise SettingError(
                "this method learns something of each user, which new ones lack: train it again "
                "with their rows, or serve them by a run of sequential, popularity or fedcia with "
                "model ease"
            )
    dataset = replace(dataset, users=dataset.users.assign(raw_id=known))
    here = replace(run.run, mesh="")
    return run._replace(dataset=dataset, data=data, sizes=sizes, method=method, run=here)


def _federation(run: Result, user: np.ndarray, item: np.ndarray) -> Dataset:
    """Train rows in the order of time; each user is a client."""
    columns = {"user": user, "item": item, "client": user}
    rows = pd.DataFrame(columns, dtype=np.int32)
    rows = rows.assign(split=np.int8(TRAIN), timestamp=np.arange(len(rows)))
    users = pd.DataFrame({"user": np.arange(user.max() + 1, dtype=np.int32)})
    return replace(run.dataset, interactions=rows, users=users, candidates=None)

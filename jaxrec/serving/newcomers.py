"""Users who came after the training, from the items they chose: nothing is trained for them.

Where all that a method learns is of items, a user is whatever the user has; where users have
vectors, a new one's is fitted while all else stands still. `Method.fold_in` says how, or why not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import Clients, Data, History

SHORTEST = 8  # places of a history


def newcomers(data: Data, histories: Sequence[np.ndarray]) -> Data:
    """The data of new users, one a client, who chose the items of `histories`, oldest first.

    User n is the n-th history; the arrays are padded to powers of two, so that few programs serve
    histories of any number and length. An item that a history repeats counts where it stands last.
    What `data` say of the items stays.
    """
    own = [_newest_of_each(history) for history in histories]
    length = np.array([len(each) for each in own])
    total = int(length.sum())
    users = power_of_two(len(own) + 1)  # the last one is nobody, who has the padding of the history
    places = power_of_two(max(SHORTEST, length.max(initial=0)))
    mask = np.zeros((users, places), bool)
    mask[: len(own)] = np.arange(places) < length[:, None]
    laid = np.concatenate([*own, np.zeros(0, int)]).astype(np.int32)
    item, age = np.zeros((2, users, places), np.int32)
    item[mask] = laid
    age[mask] = np.concatenate([np.arange(n)[::-1] for n in length])
    order = np.where(mask, item, np.iinfo(np.int32).max).argsort(axis=1, kind="stable")
    of_user = np.pad(length, (0, users - len(own)))
    place = lambda values: np.take_along_axis(values, order, 1)  # as packed: in order of item
    has_age = bool(data.clients) and data.clients[0].age is not None
    clients: dict[str, Any] = {
        "user": np.zeros_like(item),
        "item": place(item),
        "mask": mask,
        "users": np.arange(users, dtype=np.int32)[:, None],
        "client": np.arange(users, dtype=np.int32),
        "weight": of_user.astype(np.float32),
        "age": place(age) if has_age else None,
    }
    rows = power_of_two(max(SHORTEST, total))
    of_user[-1] = rows - total
    history: dict[str, Any] = {
        "user": np.repeat(np.arange(users, dtype=np.int32), of_user),
        "item": np.pad(laid, (0, rows - total)),
        "start": np.append(0, np.cumsum(of_user)).astype(np.int32),
        "order": np.arange(rows, dtype=np.int32),
    }
    new = data._replace(clients=(Clients(**clients),), history=data.history and History(**history))
    return new._replace(
        **jax.tree.map(jnp.asarray, {"clients": new.clients, "history": new.history})
    )


def power_of_two(number: int) -> int:
    """The first power of two from `number` up."""
    return 1 << int(max(number - 1, 0)).bit_length()


def _newest_of_each(items: np.ndarray) -> np.ndarray:
    """The items of a history [N], each where it stands last."""
    _, last = np.unique(items[::-1], return_index=True)
    return items[np.sort(len(items) - 1 - last)]

"""Scores by inner products: users' vectors laid out once per evaluation, and those of new users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.federated.local import LocalConfig, dense_rows
from jaxrec.models.collaborative import Tables, encode
from jaxrec.ops import linalg
from jaxrec.types import Clients, Data, SettingError, Unavailable

FITS = 4  # times that a new user is fitted anew, from where the last time ended


def encode_bucket(tables: Tables, clients: Clients, layers: int) -> Tables:
    """`encode` for every client of a bucket; tables [C, U, D] and [C, I, D]."""
    if layers == 0:
        return tables
    items = tables.item.shape[1]
    return jax.vmap(lambda t, c: encode(t, dense_rows(c, items), layers=layers))(tables, clients)


class Served(NamedTuple):
    """Vectors laid out for scoring, made once per evaluation."""

    user: jax.Array  # f32 [rows, D]  all buckets' user vectors end to end
    item: jax.Array  # f32 [I, D], or [C, I, D] where each client has its own
    client: jax.Array  # int32 [rows]  place of the row's client in `item`
    slot: jax.Array  # int32 [U]  a user's row


def serve(data: Data, tables: tuple[Tables, ...], users: int) -> Served:
    """Lay out per-client tables, [C, U, D] and [C, I, D] (or one [I, D]) a bucket, for `score`.

    Widths may differ between buckets: narrow vectors are padded with zeros, which leaves every
    inner product as it is.
    """
    width = max(table.user.shape[-1] for table in tables)

    def widen(array):
        return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])

    user = jnp.concatenate([widen(t.user).reshape(-1, width) for t in tables])
    own = tables[0].item.ndim == 3
    item = jnp.concatenate([widen(t.item) for t in tables]) if own else widen(tables[0].item)
    owners = [clients.users.shape for clients in data.clients]  # [C, U] a bucket
    client = jnp.repeat(
        jnp.arange(sum(c for c, _ in owners), dtype=jnp.int32),
        jnp.concatenate([jnp.full(c, u) for c, u in owners]),
        total_repeat_length=len(user),
    )
    return Served(user, item, client, user_slots(data, users))


def vectors(served: Served) -> tuple[np.ndarray, np.ndarray]:
    """User [U, D] and item vectors [I, D] whose inner products are the scores, on the host.

    Where each client has its own item table, the first client's stands for all if the others' are
    that table times a D x D matrix, as FedCIA's are when every client has just aligned its own to
    the same similarity. SettingError if they are not.
    """
    user, item, client, slot = map(np.asarray, served)
    if item.ndim == 2:
        return user[slot], item
    common, user = item[0].astype(np.float64), user.copy()
    inverse = np.linalg.pinv(common)
    for number, own in enumerate(item):
        turn = inverse @ own
        apart = np.linalg.norm(common @ turn - own) / max(np.linalg.norm(own), 1e-30)
        if apart > 1e-3:
            raise SettingError(
                f"every client has an item table of its own, and no common one stands for them: "
                f"that of client {number} differs by {apart:.0%} of its length from the first one's"
            )
        user[client == number] @= turn.T.astype(user.dtype)
    return user[slot], item[0]


def folding(
    config: LocalConfig, layers: int, table: Callable[[Any], jax.Array]
) -> Callable[[Any, Data], Served] | Unavailable:
    """How a method takes in new users: `fold_in` with the items of `table(state)`, or why not."""
    if layers:
        return Unavailable("LightGCN needs the new users' graph in training")
    if config.loss != "square":
        return Unavailable(
            f"loss = {config.loss!r}: only the square loss gives a new user's vector at once"
        )

    def fold_in_users(state: Any, data: Data) -> Served:
        item = table(state)
        tables = tuple(Tables(fold_in(item, each, config), item) for each in data.clients)
        return serve(data, tables, user_places(data))

    return fold_in_users


def fit_new_users(
    refit: Callable[[tuple[jax.Array, ...]], tuple[jax.Array, ...]],
    served: Callable[[tuple[jax.Array, ...]], tuple[Tables, ...]],
    start: jax.Array,
    data: Data,
) -> Served:
    """The users of `data` as they serve, each fitted from `start` [D].

    `refit` makes users [C, U, D] of those before it, `served` does so the last time.
    """
    users = new_users(start, data)
    for _ in range(FITS - 1):
        users = refit(users)
    return serve(data, served(users), user_places(data))


def new_users(start: jax.Array, data: Data) -> tuple[jax.Array, ...]:
    """The users of all buckets [C, U, D] before their first fit, at `start` [D]."""
    return tuple(jnp.broadcast_to(start, (*c.users.shape, len(start))) for c in data.clients)


def fold_in(item: jax.Array, clients: Clients, config: LocalConfig) -> jax.Array:
    """User tables [C, U, D] that minimise the square loss, the item table E [I, D] standing still.

    With w the weight of an unobserved entry and J the user's items,

        x = (w E^T E + (1 - w) sum_{j in J} e_j e_j^T + l2 I)^-1 sum_{j in J} e_j.
    """
    width = item.shape[1]
    common = config.negative_weight * item.T @ item + (config.l2_user + 1e-6) * jnp.eye(width)

    def fit(clients: Clients) -> jax.Array:
        rows = dense_rows(clients, len(item))  # [U, I]
        gram = jax.vmap(lambda own: (own[:, None] * item).T @ item)(rows)
        gram = common + (1 - config.negative_weight) * gram
        return jax.vmap(linalg.solve)(gram, rows @ item)

    return jax.lax.map(fit, clients)


def user_places(data: Data) -> int:
    """How many places for users there are, padding included."""
    return sum(clients.users.size for clients in data.clients)


def user_slots(data: Data, users: int) -> jax.Array:
    """Row of each user [U] when the buckets' user tables are laid end to end, client by client."""
    owner = jnp.concatenate([clients.users.reshape(-1) for clients in data.clients])
    rows = jnp.arange(len(owner), dtype=jnp.int32)
    return jnp.zeros(users, jnp.int32).at[owner].set(rows, mode="drop")


def score(served: Served, users: jax.Array) -> jax.Array:
    """Inner-product scores f32 [B, I] of global user ids [B]."""
    row = served.slot[users]
    vectors = served.user[row]
    if served.item.ndim == 2:
        return vectors @ served.item.T
    return jax.lax.map(lambda pair: served.item[pair[0]] @ pair[1], (served.client[row], vectors))

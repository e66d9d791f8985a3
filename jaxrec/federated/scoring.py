"""Scores by inner products: users' vectors laid out once per evaluation, and those of new users."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.federated.local import LocalConfig, dense_rows
from jaxrec.models.clients import ClientModel
from jaxrec.models.collaborative import Tables
from jaxrec.ops import least_squares
from jaxrec.types import Clients, Data, Method, SettingError, Unavailable

GROWS_NOT = Unavailable("nothing says how its clients' Flax modules grow")
FOLDS_NOT = Unavailable("the users of its clients' Flax modules are learned in training")
NO_VECTORS = Unavailable("its clients' models score by more than an inner product")
FITS = 4  # times that a new user is fitted anew, from where the last time ended


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


class ServedModels(NamedTuple):
    """Encoded vectors of clients whose models score by more than an inner product."""

    encoded: tuple[tuple[Tables, ...], ...]  # a model, a bucket: [C, U, F], [C, I, F], network
    place: jax.Array  # int32 [rows, 3]  bucket, client and row of each user vector, end to end
    slot: jax.Array  # int32 [U]  a user's row


def serve_models(
    models: tuple[ClientModel, ...],
    own: tuple[ClientModel, ...],
    tables: tuple[Tables, ...],
    data: Data,
    users: int,
) -> Served | ServedModels:
    """Encode each bucket's tables [C, ...] by its `own` of the models; lay them out for scoring."""

    def encoded(model: ClientModel, tables: Tables, clients: Clients) -> Tables:
        def one(tables: Tables, clients: Clients) -> Tables:
            item = model.items(tables.item, data.text)
            return model.encode(tables, item, dense_rows(clients, len(item)))

        if model.plain and model.table and not model.layers:
            return tables
        return jax.vmap(one)(tables, clients)

    found = tuple(map(encoded, own, tables, data.clients))
    if not any(model.head for model in models):
        return serve(data, found, users)
    kinds = [models.index(model) for model in own]
    order = sorted(range(len(own)), key=kinds.__getitem__)
    grouped = tuple(
        tuple(found[number] for number in order if kinds[number] == kind)
        for kind in range(len(models))
    )
    data = data._replace(clients=tuple(data.clients[number] for number in order))
    return ServedModels(grouped, user_grid(data), user_slots(data, users))


def user_grid(data: Data) -> jax.Array:
    """Bucket, client and row of each user's place, int32 [rows, 3], all buckets end to end."""
    places = []
    for number, clients in enumerate(data.clients):
        client, row = jnp.indices(clients.users.shape, jnp.int32).reshape(2, -1)
        places.append(jnp.stack([jnp.full_like(row, number), client, row], axis=1))
    return jnp.concatenate(places)


def score_models(
    models: tuple[ClientModel, ...], served: ServedModels, users: jax.Array
) -> jax.Array:
    """Scores f32 [B, I] of global user ids [B], each by its client's model."""

    def branch(model: ClientModel, encoded: Tables) -> Callable[[jax.Array], jax.Array]:
        def one(place: jax.Array) -> jax.Array:
            own = jax.tree.map(lambda leaf: leaf[place[1]], encoded)
            chosen = own._replace(user=own.user[place[2]][None])
            return model.scores(chosen, encoded.user.shape[1])[0]

        return one

    grouped = zip(models, served.encoded, strict=True)
    branches = [branch(model, encoded) for model, part in grouped for encoded in part]
    score_one = lambda place: jax.lax.switch(place[0], branches, place)
    return jax.lax.map(score_one, served.place[served.slot[users]])


def with_models(method: Method, models: tuple[ClientModel, ...]) -> Method:
    """The method of plain tables, or what is left of it where its clients train Flax modules."""
    if all(model.plain and model.table for model in models):
        return method
    method = method._replace(grow=GROWS_NOT, fold_in=FOLDS_NOT)
    if not any(model.head for model in models):
        return method
    return method._replace(score=partial(score_models, models), vectors=NO_VECTORS)


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
    """User tables [C, U, D] that minimise the square loss; the item table E [I, D] stands still."""
    gram = item.T @ item

    def fit(clients: Clients) -> jax.Array:
        return least_squares.users(
            item,
            clients,
            gram,
            negative_weight=config.negative_weight,
            l2=config.l2_user + 1e-6,
        )

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

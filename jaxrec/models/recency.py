"""How much more a user's newest rows say than its older ones, found on the train rows.

A row with n newer ones of its user counts 1 / (1 + n fade). Which `fade` is right depends on the
data: moods last for some songs, and tastes in films for years. So some are tried: each user's
newest train row is to be found from the ones before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.ops import ranking
from jaxrec.ops.edges import Edges, Owned, dense, edges, of_users
from jaxrec.types import Clients, Data, SettingError

AUTO = "auto"
FADES = (0.0, 0.05, 0.2, 1.0)  # that are tried: recency of none, 20, 5 and 1
SAMPLE = 1000  # users, about
SCORES = 2**26  # of these users at most, which bounds memory
LENGTH = 10  # of their lists


def edges_by_age(data: Data, fade: jax.Array | float) -> Edges:
    """The rows, each counting by how many newer ones its user has."""
    return edges(data.clients, [row_weights(each, fade) for each in data.clients])


def row_weights(clients: Clients, fade: jax.Array | float) -> jax.Array:
    """How much each train row counts, [..., N]; 0 for padding."""
    return clients.mask / (1 + fade * (0 if clients.age is None else clients.age))


def settled(config: Any, data: Data, forward: bool) -> tuple[Any, str]:
    """The config without a recency where newer rows are no likelier to be held out."""
    if config.recency != AUTO or forward:
        return config, ""
    return replace(config, recency=0.0), ""


def fade_of(
    recency: Any,
    data: Data,
    users: int,
    items: int,
    fitted: Callable[[Data], Score],
) -> jax.Array:
    """The fade, f32 []: 1 / `recency` where that is a number above 0, else the best of `FADES`.

    Args:
      recency: rows after which a row counts half; 0: all count alike; "auto": as the data say.
      fitted: data -> what scores users by a model of them. It gets the rows without each user's
        newest one, for a model that prefers that all rows count alike once it has seen what is to
        be found, as weights I x I do. A model of few numbers may pass them over, as ALS does.

    Raises SettingError for a `recency` where the order of rows is unknown.
    """
    ordered = all(clients.age is not None for clients in data.clients)
    if recency == AUTO:
        return _best(data, users, items, fitted) if ordered else jnp.float32(0)
    if recency and not ordered:
        raise SettingError(
            f"recency = {recency}: the data have no timestamps, so the order of a user's rows is "
            "unknown; set recency = 0"
        )
    return jnp.float32(1 / recency if recency else 0)


Score = Callable[[Owned], jax.Array]  # rows of some users -> f32 [S, I]


class Asked(NamedTuple):
    """Some users without their newest rows, which are to be found."""

    rows: Callable[[jax.Array], Owned]  # fade -> their older rows
    target: jax.Array  # int32 [S, 1]
    known: jax.Array  # bool [S]  whether a user has both
    own: jax.Array  # bool [S, I]  its older rows


def _best(data: Data, users: int, items: int, fitted: Callable[[Data], Score]) -> jax.Array:
    before = data._replace(clients=tuple(map(_without_newest, data.clients)))
    score, asked = fitted(before), _asked(data, before, users, items)

    def quality(fade: jax.Array) -> jax.Array:
        found = score(asked.rows(fade))
        ranks = ranking.ranks(found, asked.target, asked.known[:, None], asked.own)
        return ranking.metrics(ranking.places(ranks, LENGTH), (LENGTH,))[f"NDCG@{LENGTH}"].sum()

    fades = jnp.asarray(FADES)
    return fades[jnp.argmax(jax.lax.map(quality, fades))]


def _without_newest(clients: Clients) -> Clients:
    assert clients.age is not None
    mask = clients.mask & (clients.age > 0)
    return clients._replace(mask=mask, age=jnp.maximum(clients.age - 1, 0))


def sample(users: int, items: int) -> int:
    """How many users are asked for: every so many-th."""
    most = min(SAMPLE, max(1, SCORES // items))
    return -(-users // -(-users // most))


def _asked(data: Data, before: Data, users: int, items: int) -> Asked:
    size, every = sample(users, items), -(-users // sample(users, items))
    user = jnp.arange(users + 1)  # and padding, which is in no sample
    place = jnp.where((user % every == 0) & (user < users), user // every, size)

    def sampled(weights: list[jax.Array]) -> Edges:
        rows = edges(data.clients, weights)
        own = place[jnp.minimum(rows.user, users)]
        return rows._replace(user=own, weight=jnp.where(own < size, rows.weight, 0))

    def older(fade: jax.Array | float) -> Owned:
        return of_users(sampled([row_weights(each, fade) for each in before.clients]), size)

    newest = sampled([(each.age == 0) * 1.0 for each in data.clients])
    line = jnp.where(newest.weight > 0, newest.user, size)
    target = jnp.full(size, items, jnp.int32).at[line].set(newest.item, mode="drop")
    own = dense(older(0.0), jnp.arange(size), items) > 0
    return Asked(older, target[:, None], (target < items) & own.any(1), own)

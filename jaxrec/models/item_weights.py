"""Models that are weights between items: a user's score of an item is a sum over the user's rows.

    score[u, i] = sum_{j in u} r_uj W[j, i]

W is whole, [I, I], or holds each item's nearest ones alone. ItemKNN and EASE differ in W.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.models.recency import edges_by_age, fade_of, sample
from jaxrec.ops.edges import Owned, dense, of_users, over_edges
from jaxrec.ops.linalg import MOST_ITEMS
from jaxrec.types import Data, Method, Sizes, Unavailable

SUM = 5000  # a sum over weights apart takes as long as a product with so many
Weights = jax.Array | Owned  # f32 [I, I], or what each item that a user has adds to some others


class State(NamedTuple):
    weights: Weights
    fade: jax.Array  # f32 []  a user's row with n newer ones counts 1 / (1 + n fade)


class Served(NamedTuple):
    rows: Owned  # what each user has, and what it counts
    weights: Weights


def method(recency: float | str, sizes: Sizes, start: Callable, weigh: Callable) -> Method:
    """The method whose one step makes the weights.

    Args:
      recency: see `recency.fade_of`.
      start: () -> weights that say nothing.
      weigh: data -> weights.
    """

    def init(key: jax.Array, data: Data) -> State:
        return State(start(), jnp.float32(0))

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        def fitted(before: Data) -> Callable[[Owned], jax.Array]:
            size = sample(sizes.users, sizes.items)
            number = sum(clients.item.size for clients in before.clients)
            laid = quickest(weigh(before), size, number * size // sizes.users)
            return lambda rows: score(Served(rows, laid), jnp.arange(size))

        fade = fade_of(recency, data, sizes.users, sizes.items, fitted)
        return State(weigh(data), fade), Metrics()

    return Method(
        init,
        step,
        partial(prepare, sizes.users),
        score,
        one_shot=True,
        vectors=Unavailable(
            "what it knows of a user is the whole row of interactions, as long as the catalogue"
        ),
        fold_in=fold_in,
        axis="",
    )


class Metrics(NamedTuple):
    """Nothing varies in one step."""


def prepare(users: int, state: State, data: Data) -> Served:
    """The users' rows, as much as each counts, and the weights."""
    rows = edges_by_age(data, state.fade)
    return Served(of_users(rows, users), quickest(state.weights, users, len(rows.user)))


def quickest(weights: Weights, users: int, rows: int) -> Weights:
    """The weights in the form that scores so many users, with so many `rows`, soonest."""
    if not isinstance(weights, Owned):
        return weights
    items = len(weights.start) - 1
    sums = rows * (len(weights.other) // items)  # a user's rows times K
    if items > MOST_ITEMS or users * items**2 > SUM * sums:
        return weights
    return dense(weights, jnp.arange(items), items)


def fold_in(state: State, data: Data) -> Served:
    """`prepare` for the users of `data`, whoever they are."""
    return prepare(sum(clients.users.size for clients in data.clients), state, data)


def score(served: Served, users: jax.Array) -> jax.Array:
    """Scores f32 [B, I] of every item for `users` int32 [B]."""
    rows, weights = served
    if not isinstance(weights, Owned):
        return dense(rows, users, len(weights)) @ weights

    def of_rows(scores: jax.Array, line: jax.Array, item: jax.Array, counts: jax.Array):
        def of_weights(scores: jax.Array, row: jax.Array, other: jax.Array, weight: jax.Array):
            return scores.at[line[row], other].add(counts[row] * weight)

        item = jnp.where(counts > 0, item, len(weights.start) - 1)  # what is no row has no edges
        return over_edges(weights, item, scores, of_weights)

    nothing = jnp.zeros((len(users), len(weights.start) - 1))
    return over_edges(rows, users, nothing, of_rows)

"""All train rows as the edges of one graph between users and items, and each owner's own edges.

Centralised methods read the clients' rows so: end to end, whoever holds them. `of_users` and
`of_items` sort them; `piece` and `over_edges` read those of some owners as arrays of one shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.types import Clients

PIECE = 32  # edges of one owner that are read together
TOGETHER = 2**15  # edges of any owners


class Edges(NamedTuple):
    """Train rows, one after another; padding has weight 0."""

    user: jax.Array  # int32 [R]  global ids; of padding, any
    item: jax.Array  # int32 [R]
    weight: jax.Array  # f32 [R]  what each row counts


class Owned(NamedTuple):
    """Edges sorted by their owner, a user or an item: owner n's are `start[n] .. start[n + 1]`."""

    start: jax.Array  # int32 [owners + 1]
    other: jax.Array  # int32 [R]  the edge's other end
    weight: jax.Array  # f32 [R]


def edges(clients: Sequence[Clients], weights: Sequence[jax.Array] | None = None) -> Edges:
    """The rows of all buckets, each counting its `weights` [C, N] of a bucket, or 1."""
    flat = lambda arrays: jnp.concatenate([array.reshape(-1) for array in arrays])
    user = flat([jnp.take_along_axis(each.users, each.user, axis=1) for each in clients])
    counts = [1.0] * len(clients) if weights is None else weights
    weight = flat([each.mask * count for each, count in zip(clients, counts, strict=True)])
    return Edges(user, flat([each.item for each in clients]), weight)


def of_users(rows: Edges, users: int) -> Owned:
    """Each user's items, in the order of the rows."""
    return _owned(rows.user, rows.item, rows.weight, users)


def of_items(rows: Edges, items: int) -> Owned:
    """Each item's users, in the order of the rows."""
    return _owned(rows.item, rows.user, rows.weight, items)


def _owned(owner: jax.Array, other: jax.Array, weight: jax.Array, number: int) -> Owned:
    owner = jnp.where(weight > 0, owner, number)  # padding comes last
    order = jnp.argsort(owner)
    start = jnp.searchsorted(owner[order], jnp.arange(number + 1)).astype(jnp.int32)
    return Owned(start, jnp.where(weight > 0, other, 0)[order], weight[order])


def counts(owned: Owned) -> jax.Array:
    """How many edges each owner has, int32 [owners]."""
    return jnp.diff(owned.start)


def owner_of_each(owned: Owned) -> jax.Array:
    """The owner of each edge, int32 [R]; behind the last edge, one too many."""
    place = jnp.arange(len(owned.other))
    return (jnp.searchsorted(owned.start, place, side="right") - 1).astype(jnp.int32)


def has(owned: Owned, owner: jax.Array, other: jax.Array) -> jax.Array:
    """Whether each owner [B] has an edge to `other` [B], where edges are in order of their ends."""
    most = len(owned.other) - 1

    def halve(_: jax.Array, between: tuple[jax.Array, jax.Array]):
        low, high = between
        middle = (low + high) // 2
        below = (low < high) & (owned.other[jnp.minimum(middle, most)] < other)
        return jnp.where(below, middle + 1, low), jnp.where(below, high, middle)

    between = owned.start[owner], owned.start[owner + 1]
    low, _ = jax.lax.fori_loop(0, len(owned.other).bit_length(), halve, between)
    found = owned.other[jnp.minimum(low, most)] == other
    return (low < owned.start[owner + 1]) & found


def piece(
    owned: Owned, owner: jax.Array, number: jax.Array, length: int = PIECE
) -> tuple[jax.Array, jax.Array]:
    """The `number`-th [P] `length` edges of each owner [P]: other ends [P, L] and weights [P, L].

    Weights are 0 behind an owner's last edge.
    """
    place = (owned.start[owner] + number * length)[:, None] + jnp.arange(length)
    real = place < owned.start[owner + 1][:, None]
    place = jnp.minimum(place, len(owned.other) - 1)
    return owned.other[place], jnp.where(real, owned.weight[place], 0)


def over_edges(owned: Owned, owner: jax.Array, carry: Any, add: Callable[..., Any]) -> Any:
    """`carry` after all edges of the owners [B], `TOGETHER` at a time, whoever they are of.

    `add(carry, line [E], other [E], weight [E])` says of each edge at which place of `owner` its
    owner stands; what is no edge has weight 0.
    """
    ends = jnp.cumsum(owned.start[owner + 1] - owned.start[owner])
    size = min(TOGETHER, len(owned.other))

    def step(number: jax.Array, carry: Any) -> Any:
        at = number * size + jnp.arange(size)
        line = jnp.minimum(jnp.searchsorted(ends, at, side="right"), len(owner) - 1)
        place = owned.start[owner[line] + 1] - ends[line] + at
        place = jnp.clip(place, 0, len(owned.other) - 1)
        return add(
            carry, line, owned.other[place], jnp.where(at < ends[-1], owned.weight[place], 0)
        )

    return jax.lax.fori_loop(0, -(-ends[-1] // size), step, carry)


def dense(owned: Owned, owner: jax.Array, width: int) -> jax.Array:
    """Each owner's row [B, `width`]: what its edges to each other end count, 0 without one."""
    add = lambda rows, line, other, weight: rows.at[line, other].add(weight)
    return over_edges(owned, owner, jnp.zeros((len(owner), width)), add)

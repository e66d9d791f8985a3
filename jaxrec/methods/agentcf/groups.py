"""Interest groups: users of like memories, and what their members did lately.

A user has a memory for each domain, each memory belongs to the nearest group, so a user may be in
several groups, or in none. A group remembers how often its members took each item, the newest rows
counting most, and the last items they took in each domain.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrec.methods.agentcf.world import unit


class Groups(NamedTuple):
    """Who belongs together and what they did."""

    slot: jax.Array  # int32 [U, M]  the group of each of a user's memories; G: none, or named twice
    count: jax.Array  # f32 [G, I]  members' rows of each item, decayed by age  # pyright: ignore
    recent: jax.Array  # int32 [G, M, R]  items of the members' newest rows by domain; I: none


def spherical_k_means(
    vectors: jax.Array, weights: jax.Array, key: jax.Array, groups: int, steps: int = 20
) -> jax.Array:
    """Unit centres [G, D] of unit `vectors` [N, D]; those of weight 0 [N] have no part in it.

    A centre that loses all its vectors stays where it was.
    """
    chex.assert_shape(weights, vectors.shape[:1])
    start = jax.random.choice(key, len(vectors), (groups,), replace=False, p=weights + 1e-9)

    def improve(centres, _):
        nearest = jnp.argmax(vectors @ centres.T, axis=1)
        sums = jax.ops.segment_sum(weights[:, None] * vectors, nearest, groups)
        empty = jnp.sum(sums**2, axis=1, keepdims=True) == 0
        return jnp.where(empty, centres, unit(sums)), None

    return jax.lax.scan(improve, vectors[start], length=steps)[0]


def assign(memories: jax.Array, active: jax.Array, centres: jax.Array) -> jax.Array:
    """The nearest group of each memory [U, M, D], int32 [U, M]; G if inactive or named before."""
    chex.assert_shape(active, memories.shape[:2])
    groups, slots = len(centres), memories.shape[1]
    slot = jnp.argmax(memories @ centres.T, axis=-1).astype(jnp.int32)
    earlier = jnp.tril(jnp.ones((slots, slots), bool), -1)
    same = (slot[:, :, None] == slot[:, None, :]) & active[:, None, :] & earlier
    return jnp.where(active & ~same.any(-1), slot, groups)


def remember(
    slot: jax.Array,
    user: jax.Array,
    item: jax.Array,
    domain: jax.Array,
    groups: int,
    domains: int,
    *,
    half_life: float,
    last: int,
) -> Groups:
    """What the groups' members did, from rows in the order of time.

    Args:
      slot: int32 [U, M], of `assign`.
      user, item: int32 [E], the rows.
      domain: int32 [I].
      groups, domains: G, M.
      half_life: rows after which a row counts half; 0: all count alike.
      last: R, rows of a group and domain that are kept.
    """
    chex.assert_equal_shape([user, item])
    items, (_, slots), number = len(domain), slot.shape, len(user)
    age = number - 1 - jnp.arange(number)
    weight = jnp.exp2(-age / half_life) if half_life else jnp.ones(number)
    group = slot[user].T.ravel()  # [M E], the rows once for each of their user's groups
    repeated = lambda rows: jnp.tile(rows, slots)
    place = jnp.where(group < groups, group * items + repeated(item), groups * items)
    count = jax.ops.segment_sum(repeated(weight), place, groups * items + 1)[:-1]

    key = jnp.where(group < groups, group * domains + repeated(domain[item]), groups * domains)
    order = jnp.lexsort((repeated(jnp.arange(number)), key))
    end = jnp.searchsorted(key[order], key[order], side="right")
    newer = end - 1 - jnp.arange(len(order))  # rows after it of the same group and domain
    where = jnp.where(newer < last, key[order], groups * domains), newer
    recent = jnp.full((groups * domains, last), items, jnp.int32)
    recent = recent.at[where].set(repeated(item)[order], mode="drop")  # none of two share a place
    return Groups(slot, count.reshape(groups, items), recent.reshape(groups, domains, last))


def counts_of(groups: Groups, users: jax.Array, items: jax.Array | None = None) -> jax.Array:
    """How often the groups of `users` [B] took `items` [B, S], f32 [B, S]; all items without."""
    padded = jnp.pad(groups.count, ((0, 1), (0, 0)))
    slot = groups.slot[users]  # [B, M]
    if items is None:
        return padded[slot].sum(1)
    return padded[slot[:, :, None], items[:, None, :]].sum(1)


def vectors_of(groups: Groups, items: jax.Array) -> jax.Array:
    """What each user's groups took lately, by domain: unit means of vectors `items` [I, D].

    f32 [U, M, D]; zero where there is nothing.
    """
    padded = jnp.pad(items, ((0, 1), (0, 0)))
    mean = unit(padded[groups.recent].sum(2))  # [G, M, D]
    return unit(jnp.pad(mean, ((0, 1), (0, 0), (0, 0)))[groups.slot].sum(1))

"""A state made for more users and items, with what was learned of those it knew before.

Users, items and clients keep their ids as data grow, and new ones come after them. A client of a
federation may change its bucket.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.types import Data, Earlier

Buckets = tuple[jax.Array, ...]


def over(fresh: Any, old: Any) -> Any:
    """The arrays of `fresh`, with those of `old`, as long or shorter on each axis, in front."""
    place = lambda new, known: new.at[tuple(map(slice, known.shape))].set(known)
    return jax.tree.map(place, fresh, old)


def users_over(fresh: Buckets, data: Data, old: Buckets, was: Earlier) -> Buckets:
    """The users' rows in `fresh`, a bucket of `data` each [C, U, D], with those of `old`."""
    ids, were = ([bucket.users for bucket in each.clients] for each in (data, was.data))
    return _rows_over(fresh, ids, old, were, was.sizes.users)


def clients_over(fresh: Buckets, data: Data, old: Buckets, was: Earlier) -> Buckets:
    """The clients' arrays in `fresh`, a bucket of `data` each [C, I, D], with those of `old`."""
    ids, were = ([bucket.client for bucket in each.clients] for each in (data, was.data))
    return _rows_over(fresh, ids, old, were, was.sizes.clients)


def _rows_over(
    fresh: Buckets, ids: list[jax.Array], old: Buckets, were: list[jax.Array], number: int
) -> Buckets:
    """What `fresh` has for each of `ids`, with what `old` has for it; padding is `number` or more.

    Behind its ids' axes an array of `old` may be shorter than those of `fresh`.
    """
    axes = ids[0].ndim
    kept = jnp.zeros((number, *old[0].shape[axes:]))
    for table, own in zip(old, were, strict=True):
        kept = kept.at[own].set(table, mode="drop")
    front = (slice(None),) * axes + tuple(map(slice, kept.shape[1:]))

    def bucket(new: jax.Array, own: jax.Array) -> jax.Array:
        known = jnp.expand_dims(own < number, tuple(range(axes, new.ndim)))
        rows = kept.at[own].get(mode="clip")
        return new.at[front].set(jnp.where(known, rows, new[front]))

    return tuple(map(bucket, fresh, ids))

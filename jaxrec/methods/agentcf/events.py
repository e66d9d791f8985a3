"""The log as events: each row in the order of time, with an item that its user did not choose."""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import DataError, History

DRAWS = 16  # of a rejected item, until the user has none of them


class Events(NamedTuple):
    """User, chosen item and rejected item of each event, in the order of time."""

    user: jax.Array  # int32 [E]
    item: jax.Array  # int32 [E]
    negative: jax.Array  # int32 [E]  of the item's domain, and another one


def draw_events(key: jax.Array, history: History, domain: jax.Array) -> Events:
    """The rows of a history in the order of time, each with a rejected item.

    Args:
      key: of all draws.
      history: R rows.
      domain: int32 [I], of each item.
    """
    user, item = history.user[history.order], history.item[history.order]
    return Events(user, item, draw_negatives(key, user, item, domain, history))


def draw_negatives(
    key: jax.Array, user: jax.Array, item: jax.Array, domain: jax.Array, history: History
) -> jax.Array:
    """An item for each event that was not chosen: of the same domain and, where 16 draws find one,
    none that the user has in `history`. int32 [E].

    Event e draws from `fold_in(key, e)`, so that it does not depend on what else is drawn. The
    only item of a domain has no other and is drawn itself: `check_domains` refuses such items.

    Args:
      key: of all draws.
      user, item: int32 [E], who chose what.
      domain: int32 [I], of each item.
      history: what users are known to have. Held-out rows are not among it, and so may be drawn.
    """
    chex.assert_equal_shape([user, item])
    listed = jnp.argsort(domain, stable=True)
    place = jnp.zeros_like(listed).at[listed].set(jnp.arange(len(listed)))
    bound = lambda side: jnp.searchsorted(domain[listed], domain[item], side=side)
    begin, end = bound("left"), bound("right")
    others = jnp.maximum(end - begin - 1, 1)
    draw = lambda key, number, most: jax.random.randint(
        jax.random.fold_in(key, number), (DRAWS,), 0, most
    )
    drawn = jax.vmap(draw, (None, 0, 0))(key, jnp.arange(len(item)), others)  # [E, DRAWS]
    drawn = begin[:, None] + drawn
    drawn += drawn >= place[item][:, None]
    found = listed[jnp.where((end - begin > 1)[:, None], drawn, place[item][:, None])]
    known = has_taken(history, user[:, None], found)
    return jnp.take_along_axis(found, jnp.argmin(known, axis=1)[:, None], 1)[:, 0].astype(jnp.int32)


def has_taken(history: History, user: jax.Array, item: jax.Array) -> jax.Array:
    """Whether users have items: bool, of the shape that `user` and `item` broadcast to."""
    held = history.item[jnp.lexsort((history.item, history.user))]
    low, high = jnp.broadcast_arrays(history.start[user], history.start[user + 1], item)[:2]
    end = high

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) // 2
        below = held.at[middle].get(mode="clip") < item
        open = low < high
        return jnp.where(open & below, middle + 1, low), jnp.where(open & ~below, middle, high)

    most = jnp.max(jnp.diff(history.start))  # rows of a user, which halve to none in so many bits
    low, _ = jax.lax.fori_loop(0, 32 - jax.lax.clz(most), halve, (low, high))
    return (low < end) & (held.at[low].get(mode="clip") == item)


def check_domains(domain: jax.Array | np.ndarray) -> None:
    """Refuse domains [I] of one item; raises DataError naming the first such item."""
    domain = np.asarray(domain)
    alone = np.flatnonzero(np.bincount(domain)[domain] == 1)
    if alone.size:
        raise DataError(
            f"items, column 'domain': item {alone[0]} is the only one of domain "
            f"{int(domain[alone[0]])}, so no other can be rejected for it; drop the domain or join "
            "it to another"
        )

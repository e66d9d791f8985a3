"""Events that share no user and no item may run at once: exact batching of a sequential log.

An event reads and writes the memories of one user and of two items, the chosen one and a rejected
one. Its level is one more than that of the latest earlier event that touches one of the three:

    level(e) = 1 + max(level(e') : e' < e touches u, i or j of e)

Every pair of events in conflict keeps its order between levels, and within a level there is none,
so running level by level is bit for bit the same as running one event after another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.types import DataError, History


class Events(NamedTuple):
    """User, chosen item and rejected item of each event, in the order of time."""

    user: jax.Array  # int32 [E]
    item: jax.Array  # int32 [E]
    negative: jax.Array  # int32 [E]  of the item's domain, and another one


class Memories(NamedTuple):
    """What events read and write: any arrays with users, or items, on their leading axis."""

    user: Any  # [U, ...]
    item: Any  # [I, ...]


DRAWS = 16
Rule = Callable[..., tuple[Any, Any, Any, Any]]
"""(user, item, negative, event) -> (user, item, negative, what to report), for one event."""


def negatives(
    key: jax.Array, user: jax.Array, item: jax.Array, domain: jax.Array, history: History
) -> jax.Array:
    """An item for each event that was not chosen: of the same domain and, where 16 draws find one,
    none that the user has in `history`. int32 [E].

    Event e draws from `fold_in(key, e)`, so that it does not depend on what else is drawn. The
    only item of a domain has no other and is drawn itself: `lonely` finds such items beforehand.

    Args:
      key: of all draws.
      user, item: int32 [E], who chose what.
      domain: int32 [I], of each item.
      history: what users are known to have. Held-out rows are not among it, and so may be drawn.
    """
    listed = jnp.argsort(domain, stable=True)
    place = jnp.zeros_like(listed).at[listed].set(jnp.arange(len(listed)))
    where = lambda side: jnp.searchsorted(domain[listed], domain[item], side=side)
    first, last = where("left"), where("right")
    others = jnp.maximum(last - first - 1, 1)
    draw = lambda key, number, most: jax.random.randint(
        jax.random.fold_in(key, number), (DRAWS,), 0, most
    )
    drawn = jax.vmap(draw, (None, 0, 0))(key, jnp.arange(len(item)), others)  # [E, DRAWS]
    drawn = first[:, None] + drawn
    drawn += drawn >= place[item][:, None]
    found = listed[jnp.where((last - first > 1)[:, None], drawn, place[item][:, None])]
    known = has(history, user[:, None], found)
    return jnp.take_along_axis(found, jnp.argmin(known, axis=1)[:, None], 1)[:, 0].astype(jnp.int32)


def has(history: History, user: jax.Array, item: jax.Array) -> jax.Array:
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


def log(key: jax.Array, history: History, domain: jax.Array) -> Events:
    """The rows of a history in the order of time, each with an item that was not chosen."""
    user, item = history.user[history.order], history.item[history.order]
    return Events(user, item, negatives(key, user, item, domain, history))


def check_domains(domain: jax.Array) -> None:
    """Refuse domains [I] of one item; raises DataError naming the first such item."""
    if (alone := lonely(domain)).size:
        raise DataError(
            f"items, column 'domain': item {alone[0]} is the only one of domain "
            f"{int(domain[alone[0]])}, so no other can be rejected for it; drop the domain or join "
            "it to another"
        )


def lonely(domain: jax.Array) -> np.ndarray:
    """The items that are the only one of their domain [I]."""
    domain = np.asarray(domain)
    return np.flatnonzero(np.bincount(domain)[domain] == 1)


def levels(events: Events, users: int, items: int) -> jax.Array:
    """The level of each event, from 0 on: int32 [E]. O(E), one event after another."""
    touched = jnp.stack([events.user, users + events.item, users + events.negative], axis=1)

    def next_level(reached, event):
        level = jnp.max(reached[event])
        # one array, read once and written once, or XLA copies all of it at every event
        return reached.at[event].set(level + 1), level

    return jax.lax.scan(next_level, jnp.zeros(users + items, jnp.int32), touched)[1]


def at_once() -> int:
    """Events that `replay` had best run at once: a lane without an event costs a CPU as much as one
    with, and an accelerator nothing."""
    return 16 if jax.default_backend() == "cpu" else 512


def replay(
    rule: Rule,
    memories: Memories,
    events: Events,
    level: jax.Array,
    width: int,
    shared: Any = None,
    *,
    add: bool = False,
) -> tuple[Memories, Any]:
    """Run the events level by level, `width` at a time: gather, vmap(rule), scatter.

    Args:
      rule: (user, item, negative, event, shared) -> the first three anew and a report, where
        `event` is an `Events` of scalars.
      memories: read and written.
      events: all of them.
      level: int32 [E], when each runs; those of one level in any order.
      width: events at once, such as `at_once` says.
      shared: handed to every event.
      add: memories take the sum of what the events at once would change in them, which lets events
        in conflict share a level: an approximation. Needs floating memories.

    Returns:
      The memories after all events, and the reports, [E, ...].
    """
    users, items = (jax.tree.leaves(part)[0].shape[0] for part in memories)
    number, lane = len(level), jnp.arange(width)
    order = jnp.argsort(level, stable=True)
    due = jnp.concatenate([level[order], jnp.full(width, -1, level.dtype)])
    order = jnp.concatenate([order, jnp.full(width, number, order.dtype)])

    def run(carry):
        memories, reports, at = carry
        line = jax.lax.dynamic_slice(order, (at,), (width,))
        now = jax.lax.dynamic_slice(due, (at,), (width,))
        here = now == now[0]
        event = jax.tree.map(lambda part: part.at[line].get(mode="clip"), events)
        before = tuple(
            jax.tree.map(lambda leaf, at=at: leaf[at], of)
            for of, at in (
                (memories.user, event.user),
                (memories.item, event.item),
                (memories.item, event.negative),
            )
        )
        *after, report = jax.vmap(rule, (0, 0, 0, 0, None))(*before, event, shared)
        if add:
            after = jax.tree.map(jnp.subtract, tuple(after), before)
        # Who is not here writes outside, each to its own row: the indices stay unique.
        to_user = jnp.where(here, event.user, users + lane)
        to_item = jnp.where(here, event.item, items + lane)
        to_negative = jnp.where(here, event.negative, items + width + lane)
        to_items = jnp.concatenate([to_item, to_negative])
        both = jax.tree.map(lambda *pair: jnp.concatenate(pair), after[1], after[2])

        def write(at):
            if add:
                return lambda leaf, new: leaf.at[at].add(new, mode="drop")
            return lambda leaf, new: leaf.at[at].set(new, mode="drop", unique_indices=True)

        memories = Memories(
            jax.tree.map(write(to_user), memories.user, after[0]),
            jax.tree.map(write(to_items), memories.item, both),
        )
        written = jnp.where(here, line, number + lane)
        reports = jax.tree.map(write_report(written), reports, report)
        return memories, reports, at + here.sum(dtype=jnp.int32)

    def write_report(at):
        return lambda leaf, new: leaf.at[at].set(new, mode="drop", unique_indices=True)

    one = jax.tree.map(lambda leaf: leaf[0], (memories.user, memories.item, memories.item, events))
    shapes = jax.eval_shape(rule, *one, shared)[3]
    reports = jax.tree.map(lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), shapes)
    start = memories, reports, jnp.int32(0)
    return jax.lax.while_loop(lambda carry: carry[2] < number, run, start)[:2]

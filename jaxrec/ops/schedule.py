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


class Events(NamedTuple):
    """User, chosen item and rejected item of each event, in the order of time."""

    user: jax.Array  # int32 [E]
    item: jax.Array  # int32 [E]
    negative: jax.Array  # int32 [E]  of the item's domain, and another one


class Memories(NamedTuple):
    """What events read and write: any arrays with users, or items, on their leading axis."""

    user: Any  # [U, ...]
    item: Any  # [I, ...]


Rule = Callable[..., tuple[Any, Any, Any, Any]]
"""(user, item, negative, event) -> (user, item, negative, what to report), for one event."""


def negatives(key: jax.Array, item: jax.Array, domain: jax.Array) -> jax.Array:
    """An item for each event that was not chosen: any other of its domain. int32 [E].

    Event e draws from `fold_in(key, e)`, so that it does not depend on what else is drawn. The
    only item of a domain has no other and is drawn itself: `lonely` finds such items beforehand.

    Args:
      key: of all draws.
      item: int32 [E], the chosen items.
      domain: int32 [I], of each item.
    """
    listed = jnp.argsort(domain, stable=True)
    place = jnp.zeros_like(listed).at[listed].set(jnp.arange(len(listed)))
    first, last = (
        jnp.searchsorted(domain[listed], domain[item], side=s) for s in ("left", "right")
    )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(item)))
    others = jnp.maximum(last - first - 1, 1)
    drawn = jax.vmap(lambda key, n: jax.random.randint(key, (), 0, n))(keys, others)
    drawn = first + drawn + (first + drawn >= place[item])
    return listed[jnp.where(last - first > 1, drawn, place[item])].astype(jnp.int32)


def lonely(domain: jax.Array) -> np.ndarray:
    """The items that are the only one of their domain [I]."""
    domain = np.asarray(domain)
    return np.flatnonzero(np.bincount(domain)[domain] == 1)


def levels(events: Events, users: int, items: int) -> jax.Array:
    """The level of each event, from 0 on: int32 [E]. O(E), one event after another."""

    def next_level(reached, event):
        user, item = reached
        touched = jnp.stack([user[event.user], item[event.item], item[event.negative]])
        level = jnp.max(touched)
        pair = jnp.stack([event.item, event.negative])
        return (user.at[event.user].set(level + 1), item.at[pair].set(level + 1)), level

    nobody = jnp.zeros(users, jnp.int32), jnp.zeros(items, jnp.int32)
    return jax.lax.scan(next_level, nobody, events)[1]


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
      width: events at once; the mean size of a level is about the best.
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

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

import chex
import jax
import jax.numpy as jnp

from jaxrec.methods.agentcf.events import Events


class Memories(NamedTuple):
    """What events read and write: any arrays with users, or items, on their leading axis."""

    user: Any  # [U, ...]
    item: Any  # [I, ...]


Rule = Callable[..., tuple[Any, Any, Any, Any]]
"""Of one event: (user, item, negative, event, shared) -> (user, item, negative, a report)."""


def levels(events: Events, users: int, items: int) -> jax.Array:
    """The level of each event, from 0 on: int32 [E]. O(E), one event after another."""
    touched = jnp.stack([events.user, users + events.item, users + events.negative], axis=1)

    def next_level(reached, event):
        level = jnp.max(reached[event])
        # one array, read once and written once, or XLA copies all of it at every event
        return reached.at[event].set(level + 1), level

    return jax.lax.scan(next_level, jnp.zeros(users + items, jnp.int32), touched)[1]


def default_lanes() -> int:
    """Events that `replay` had best run at once: a lane without an event costs a CPU as much as one
    with, and an accelerator nothing."""
    return 16 if jax.default_backend() == "cpu" else 512


def replay(
    rule: Rule,
    memories: Memories,
    events: Events,
    level: jax.Array,
    lanes: int,
    shared: Any = None,
    *,
    add: bool = False,
) -> tuple[Memories, Any]:
    """Run the events level by level, `lanes` at a time: gather, vmap(rule), scatter.

    Args:
      rule: (user, item, negative, event, shared) -> the first three anew and a report, where
        `event` is an `Events` of scalars.
      memories: read and written.
      events: all of them, [E].
      level: int32 [E], when each runs; those of one level in any order.
      lanes: events at once, such as `default_lanes` says.
      shared: handed to every event.
      add: memories take the sum of what the events at once would change in them, which lets events
        in conflict share a level: an approximation. Needs floating memories.

    Returns:
      The memories after all events, and the reports, [E, ...].
    """
    chex.assert_equal_shape([level, *events])
    number, lane = len(level), jnp.arange(lanes)
    order = jnp.argsort(level, stable=True)
    due = jnp.concatenate([level[order], jnp.full(lanes, -1, level.dtype)])
    order = jnp.concatenate([order, jnp.full(lanes, number, order.dtype)])

    def run(carry):
        memories, reports, done = carry
        line = jax.lax.dynamic_slice(order, (done,), (lanes,))
        now = jax.lax.dynamic_slice(due, (done,), (lanes,))
        here = now == now[0]
        event = jax.tree.map(lambda part: part.at[line].get(mode="clip"), events)
        before = _gather(memories, event)
        *after, report = jax.vmap(rule, (0, 0, 0, 0, None))(*before, event, shared)
        if add:
            after = jax.tree.map(jnp.subtract, tuple(after), before)
        memories = _scatter(memories, event, tuple(after), here, add)
        written = jnp.where(here, line, number + lane)
        reports = jax.tree.map(_write(written, add=False), reports, report)
        return memories, reports, done + here.sum(dtype=jnp.int32)

    start = memories, _blank_reports(rule, memories, events, shared), jnp.int32(0)
    return jax.lax.while_loop(lambda carry: carry[2] < number, run, start)[:2]


def _gather(memories: Memories, event: Events) -> tuple[Any, Any, Any]:
    """The memories of the user and of both items of each event at once."""
    places = (
        (memories.user, event.user),
        (memories.item, event.item),
        (memories.item, event.negative),
    )
    return tuple(jax.tree.map(lambda leaf, at=at: leaf[at], of) for of, at in places)


def _scatter(
    memories: Memories, event: Events, after: tuple[Any, Any, Any], here: jax.Array, add: bool
) -> Memories:
    """The memories with what the events at once leave.

    A lane that is not `here` writes outside, each to a row of its own: the indices stay unique.
    """
    users, items = (jax.tree.leaves(part)[0].shape[0] for part in memories)
    lanes, lane = len(here), jnp.arange(len(here))
    to_user = jnp.where(here, event.user, users + lane)
    to_item = jnp.where(here, event.item, items + lane)
    to_negative = jnp.where(here, event.negative, items + lanes + lane)
    to_items = jnp.concatenate([to_item, to_negative])
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair), after[1], after[2])
    return Memories(
        jax.tree.map(_write(to_user, add), memories.user, after[0]),
        jax.tree.map(_write(to_items, add), memories.item, both),
    )


def _write(at: jax.Array, add: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """A function of a leaf and its new rows, which go to rows `at`; rows outside are dropped."""
    if add:
        return lambda leaf, new: leaf.at[at].add(new, mode="drop")
    return lambda leaf, new: leaf.at[at].set(new, mode="drop", unique_indices=True)


def _blank_reports(rule: Rule, memories: Memories, events: Events, shared: Any) -> Any:
    one = jax.tree.map(lambda leaf: leaf[0], (memories.user, memories.item, memories.item, events))
    shapes = jax.eval_shape(rule, *one, shared)[3]
    number = len(events.user)
    return jax.tree.map(lambda leaf: jnp.zeros((number, *leaf.shape), leaf.dtype), shapes)

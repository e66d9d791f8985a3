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

from jaxrec.types import DataError


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

    Event e draws from `fold_in(key, e)`, so that it does not depend on what else is drawn.

    Args:
      key: of all draws.
      item: int32 [E], the chosen items.
      domain: int32 [I], of each item.

    Raises:
      DataError: a domain has a single item, so that nothing can be rejected.
    """
    domain = np.asarray(domain)
    listed = np.argsort(domain, kind="stable")
    start = np.searchsorted(domain[listed], np.arange(domain.max() + 2))
    place = np.empty_like(listed)
    place[listed] = np.arange(len(listed))
    first, number = start[domain[item]], np.diff(start)[domain[item]]
    if (alone := np.flatnonzero(number < 2)).size:
        lonely = int(np.asarray(item)[alone[0]])
        raise DataError(
            f"column 'domain': item {lonely} is the only one of domain {domain[lonely]}, so no "
            "other can be rejected for it; drop the domain or join it to another"
        )
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(number)))
    drawn = np.asarray(jax.vmap(lambda k, n: jax.random.randint(k, (), 0, n))(keys, number - 1))
    drawn = drawn + (first + drawn >= place[np.asarray(item)])
    return jnp.asarray(listed[first + drawn], jnp.int32)


def dependencies(events: Events) -> np.ndarray:
    """The latest earlier event that touches each event's user, item and negative: int32 [E, 3].

    -1 where there is none. An event may run as soon as these three have.
    """
    user, item, negative = (np.asarray(part) for part in events)
    number = np.arange(len(user))
    touched = np.stack([item, negative], axis=1).ravel()
    by_item = _previous(touched, np.repeat(number, 2)).reshape(-1, 2)
    return np.column_stack([_previous(user, number), by_item]).astype(np.int32)


def levels(events: Events) -> np.ndarray:
    """The level of each event, from 0 on: int32 [E]. O(E), on the host."""
    found: list[int] = []
    for before in dependencies(events).tolist():
        found.append(1 + max((found[e] for e in before if e >= 0), default=-1))
    return np.array(found, np.int32)


def waves(level: np.ndarray, width: int) -> np.ndarray:
    """Events of one level side by side, `width` at most: int32 [W, width], padded with E.

    A level larger than `width` takes several lines. Any order of lines that keeps the levels' and
    any order within a line gives the same result.
    """
    order = np.argsort(level, kind="stable")
    size = np.bincount(level)
    line = np.concatenate([[0], np.cumsum(-(-size // width))])
    place = np.arange(len(level)) - np.repeat(np.cumsum(size) - size, size)
    lines = np.full((line[-1], width), len(level), np.int32)
    lines[line[level[order]] + place // width, place % width] = order
    return lines


def replay(
    rule: Rule, memories: Memories, events: Events, lines: jax.Array, shared: Any = None
) -> tuple[Memories, Any]:
    """Run the events line by line: gather, vmap(rule), scatter.

    Args:
      rule: (user, item, negative, event, shared) -> the first three anew and a report, where
        `event` is an `Events` of scalars.
      memories: read and written.
      events: all of them.
      lines: int32 [W, width] from `waves`, padded with E.
      shared: handed to every event.

    Returns:
      The memories after all lines, and the reports, [W, width, ...]; those of padding mean nothing.
    """
    users, items = (jax.tree.leaves(part)[0].shape[0] for part in memories)
    lane = jnp.arange(lines.shape[1])

    def run(memories: Memories, line):
        padding = line >= len(events.user)
        event = jax.tree.map(lambda part: part.at[line].get(mode="clip"), events)
        user, item, negative = (
            jax.tree.map(lambda leaf, at=at: leaf[at], of)
            for of, at in (
                (memories.user, event.user),
                (memories.item, event.item),
                (memories.item, event.negative),
            )
        )
        user, item, negative, report = jax.vmap(rule, (0, 0, 0, 0, None))(
            user, item, negative, event, shared
        )
        # Padding writes outside, each lane to its own row: the indices stay unique.
        to_user = jnp.where(padding, users + lane, event.user)
        to_item = jnp.where(padding, items + lane, event.item)
        to_negative = jnp.where(padding, items + len(lane) + lane, event.negative)
        to_items = jnp.concatenate([to_item, to_negative])
        write = lambda at: lambda leaf, new: leaf.at[at].set(new, mode="drop", unique_indices=True)
        both = jax.tree.map(lambda *pair: jnp.concatenate(pair), item, negative)
        return Memories(
            jax.tree.map(write(to_user), memories.user, user),
            jax.tree.map(write(to_items), memories.item, both),
        ), report

    return jax.lax.scan(run, memories, lines)


def _previous(entity: np.ndarray, event: np.ndarray) -> np.ndarray:
    """The event of the previous occurrence of the same entity, -1 for its first."""
    order = np.argsort(entity, kind="stable")
    same = np.diff(entity[order], prepend=-1) == 0
    before = np.where(same, np.roll(event[order], 1), -1)
    result = np.empty_like(before)
    result[order] = before
    return result

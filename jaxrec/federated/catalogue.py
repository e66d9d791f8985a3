"""What a client compares its choices with: the whole catalogue, or a sample of it.

Either way it is J items described by their codes. A sampled rival stands for (I - n) / S items, n
being what the client holds itself, so its score is raised by the log of that. Rivals are drawn from
everything that is not in the client's own train rows: held-out items are rivals like all others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.ops import quantize
from jaxrec.types import Clients, Data

SCORES = 2**25  # scores [users, I] made at once when every client fits its users
NO_RIVAL = -1e9  # added to a score, it leaves the softmax; finite, so that nothing becomes NaN


class Catalogue(NamedTuple):
    """J items as codes, and what the codes mean at the moment."""

    codes: jax.Array  # int32 [J, P]
    popularity: jax.Array  # f32 [J]
    features: jax.Array  # f32 [J, D + T + 1]  sum of code vectors, text, popularity
    incidence: jax.Array | None = None  # f32 [J, P K]  1 where an item has a code


class View(NamedTuple):
    """A client's choices among the items of a catalogue."""

    items: Catalogue
    slot: jax.Array  # int32 [N]  the place in the catalogue of each of the client's rows
    offset: jax.Array  # f32 [] or [U, J]  added to the scores
    chosen: jax.Array  # f32 [U, J]  how much each choice of a user counts


def describe(
    codebooks: jax.Array, codes: jax.Array, text: jax.Array, popularity: jax.Array
) -> Catalogue:
    """The items with `codes` [J, P], `text` [J, T] and `popularity` [J] under codebooks
    [P, K, D]."""
    vectors = quantize.decode(codes, codebooks)
    features = jnp.concatenate([vectors, text, popularity[:, None]], axis=1)
    return Catalogue(codes, popularity, features)


def whole(items: Catalogue, clients: Clients, weights: jax.Array) -> View:
    """One client's choices among all items; `weights` [N] say how much each row counts."""
    chosen = _chosen(clients, clients.item, weights, len(items.codes))
    return View(items, clients.item, jnp.zeros(()), chosen)


def sampled(
    codebooks: jax.Array,
    codes: jax.Array,
    text: jax.Array,
    popularity: jax.Array,
    clients: Clients,
    weights: jax.Array,
    number: int,
    key: jax.Array,
) -> View:
    """One client's choices among its own rows and `number` random rivals: J = N + `number`."""
    held = jnp.sort(jnp.where(clients.mask, clients.item, len(codes)))
    rivals = jax.random.randint(key, (number,), 0, len(codes))
    own = held[jnp.clip(jnp.searchsorted(held, rivals), 0, len(held) - 1)] == rivals
    repeated = jnp.append(held[1:] == held[:-1], False)  # users of a client may share items
    distinct = jnp.sum((held < len(codes)) & ~repeated)
    stands_for = (len(codes) - distinct) / jnp.maximum(number - own.sum(), 1)
    users = jnp.arange(clients.users.shape[-1])[:, None]
    mine = (clients.user == users) & clients.mask  # [U, N]
    others = jnp.where(own, NO_RIVAL, jnp.log(jnp.maximum(stands_for, 1e-9)))
    offset = jnp.concatenate(
        [jnp.where(mine, 0, NO_RIVAL), jnp.broadcast_to(others, (len(users), number))], axis=1
    )
    item = jnp.concatenate([clients.item, rivals])
    items = describe(codebooks, codes[item], text[item], popularity[item])
    slot = jnp.arange(clients.item.shape[-1])
    return View(items, slot, offset, _chosen(clients, slot, weights, len(item)))


def choose(view: View, clients: Clients, weights: jax.Array) -> View:
    """The view in which the client's rows count `weights` [N]."""
    return view._replace(chosen=_chosen(clients, view.slot, weights, len(view.items.codes)))


def _chosen(clients: Clients, slot: jax.Array, weights: jax.Array, number: int) -> jax.Array:
    """How much each choice of a user among `number` items counts, [U, J]."""
    nothing = jnp.zeros((clients.users.shape[-1], number))
    return nothing.at[clients.user, slot].add(weights)


def with_incidence(items: Catalogue, size: int) -> Catalogue:
    """The catalogue with its 0/1 matrix: one product serves all clients that share it."""
    flags = jax.nn.one_hot(items.codes, size, dtype=items.features.dtype)
    return items._replace(incidence=flags.reshape(len(flags), -1))


def look_up(table: jax.Array, items: Catalogue) -> jax.Array:
    """sum_p table[u, p, codes[j, p]]: [U, P, K] -> [U, J].

    Scores by table: u . C is made once for the P K codes, then an item costs P additions.
    """
    if items.incidence is not None:
        return table.reshape(len(table), -1) @ items.incidence.T
    return jnp.sum(table[:, jnp.arange(items.codes.shape[1]), items.codes], axis=-1)


def by_code(values: jax.Array, items: Catalogue, size: int) -> jax.Array:
    """Sums over the items of each code, [U, J] -> [U, P, K]: the transpose of `look_up`."""
    users, levels = len(values), items.codes.shape[1]
    if items.incidence is not None:
        return (values @ items.incidence).reshape(users, levels, size)
    places = items.codes + size * jnp.arange(levels)  # of [P K]
    nothing = jnp.zeros((users, levels * size), values.dtype)
    return nothing.at[:, places].add(values[..., None]).reshape(users, levels, size)


def each_client(
    fit: Callable[[tuple[jax.Array, Clients]], jax.Array],
    users: tuple[jax.Array, ...],
    data: Data,
    items: int,
) -> tuple[jax.Array, ...]:
    """`fit((user [U, D], clients))` for every client of all buckets, some clients at a time."""
    return tuple(
        jax.lax.map(
            fit,
            (user, clients),
            batch_size=min(len(user), max(1, SCORES // (user.shape[1] * items))),
        )
        for user, clients in zip(users, data.clients, strict=True)
    )

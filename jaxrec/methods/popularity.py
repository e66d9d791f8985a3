"""Popularity: every user is shown the items most users chose. The floor under every result.

Item counts are a sum over clients, so one secure summation is all it costs:
score[u, i] = sum_c sum_{u' in c} R[u', i].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated.cooccurrence import item_counts
from jaxrec.types import Data, Method, Sizes, Traffic, Traits, Unavailable

TRAITS = Traits()


@dataclass(frozen=True)
class Config:
    """Popularity has no settings."""


class State(NamedTuple):
    counts: jax.Array  # f32 [I]


class Metrics(NamedTuple):
    """Nothing varies while counting."""


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; one step counts."""
    return Method(
        partial(init, sizes),
        partial(step, sizes),
        prepare,
        score,
        one_shot=True,
        traffic=Traffic(up=4.0 * sizes.items, down=4.0 * sizes.items),
        vectors=Unavailable("every user has the same scores"),
        fold_in=prepare,
    )


def init(sizes: Sizes, key: jax.Array, data: Data) -> State:
    """No item was counted yet."""
    return State(jnp.zeros(sizes.items))


def step(sizes: Sizes, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """Count the train rows of each item."""
    return State(item_counts(data, sizes.items)), Metrics()


def prepare(state: State, data: Data) -> State:
    """The counts, whoever the users are."""
    return state


def score(served: State, users: jax.Array) -> jax.Array:
    """The counts [B, I] for users [B]."""
    return jnp.broadcast_to(served.counts, (len(users), len(served.counts)))

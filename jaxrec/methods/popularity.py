"""Popularity: every user is shown the items most users chose. The floor under every result.

Item counts are a sum over clients, so one secure summation is all it costs:
score[u, i] = sum_c sum_{u' in c} R[u', i].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated.cooccurrence import item_counts
from jaxrec.types import Data, Method, Sizes, Traffic


@dataclass(frozen=True)
class Config:
    """Popularity has no settings."""


class State(NamedTuple):
    counts: jax.Array  # f32 [I]


class Metrics(NamedTuple):
    """Nothing varies while counting."""


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; one step counts."""
    del config

    def init(key: jax.Array, data: Data) -> State:
        del key, data
        return State(jnp.zeros(sizes.items))

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        del state, key
        return State(item_counts(data, sizes.items)), Metrics()

    def prepare(state: State, data: Data) -> State:
        del data
        return state

    def score(served: State, users: jax.Array) -> jax.Array:
        return jnp.broadcast_to(served.counts, (len(users), sizes.items))

    traffic = Traffic(up=4.0 * sizes.items, down=4.0 * sizes.items)
    same = "every user has the same scores"
    return Method(
        init, step, prepare, score, one_shot=True, traffic=traffic, vectors=same, fold_in=prepare
    )

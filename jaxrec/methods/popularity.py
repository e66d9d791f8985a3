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

from jaxrec.federated.privacy import PrivacyConfig, check_sum, check_user_sums
from jaxrec.federated.sum_bytes import with_protocol
from jaxrec.federated.support import supported_counts
from jaxrec.federated.user_sums import UserSums, popularity
from jaxrec.types import Data, Method, Release, Sizes, Traffic, Traits, Unavailable

TRAITS = Traits(run={"baselines": ()})


@dataclass(frozen=True)
class Config(PrivacyConfig):
    """Popularity has the settings of privacy alone."""


class State(NamedTuple):
    counts: jax.Array  # f32 [I]


class Metrics(NamedTuple):
    """Nothing varies while counting."""


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; one step counts."""
    check_sum(config, sizes.clients)
    check_user_sums(config, sizes)
    return Method(
        partial(init, sizes),
        partial(step, config, sizes),
        prepare,
        score,
        one_shot=True,
        traffic=with_protocol(
            config, Traffic(up=4.0 * sizes.items, down=4.0 * sizes.items), sizes.clients
        ),
        releases=partial(releases, config) if config.noised else None,
        vectors=Unavailable("every user has the same scores"),
        fold_in=prepare,
    )


def releases(config: Config, rounds: int) -> tuple[Release, ...]:
    """The counts, once."""
    return (Release("item counts", config.noise_multiplier),)


def init(sizes: Sizes, key: jax.Array, data: Data) -> State:
    """No item was counted yet."""
    return State(jnp.zeros(sizes.items))


def step(
    config: Config, sizes: Sizes, state: State, data: Data, key: jax.Array
) -> tuple[State, Metrics]:
    """Count the train rows of each item; under a budget a user's rows count 1 / sqrt(their number).

    Then one user changes the counts by a vector of length 1 at most, and noise covers it.
    """
    if not config.noised:
        return State(supported_counts(config, data, sizes.items)), Metrics()
    sums = UserSums(config, sizes.users, sizes.items, (config.noise_multiplier, 0.0))
    return State(popularity(sums, data, key)), Metrics()


def prepare(state: State, data: Data) -> State:
    """The counts, whoever the users are."""
    return state


def score(served: State, users: jax.Array) -> jax.Array:
    """The counts [B, I] for users [B]."""
    return jnp.broadcast_to(served.counts, (len(users), len(served.counts)))

"""Who takes part in a round, whose upload arrives, and who sends noise in its place."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.settings.fields import check, setting
from jaxrec.types import Clients


@dataclass(frozen=True)
class CohortConfig:
    """Settings of the clients that take part in a round; a federated method's Config inherits them.

    The engine takes the method's whole config as its cohort.
    """

    participation: float = setting(1.0, above=0, at_most=1)
    """Chance of a client to be in a round, 0 to 1."""
    dropped: float = setting(0.0, at_least=0, at_most=1)
    """Chance of a chosen client to fail before its upload arrives, 0 to 1."""
    block: int = setting(0, at_least=0)
    """Clients computed at once, a bound on memory; 0 = a whole bucket."""
    noisy: float = setting(0.0, at_least=0, below=1)
    """Share of clients that send noise instead of an upload, to test robustness, 0 to 1. They are
    the same in every round."""
    noise_scale: float = setting(10.0, above=0)
    """Size of that noise, in root mean squares of the upload that it replaces."""

    __post_init__ = check


EVERYONE = CohortConfig()


def draw(cohort: CohortConfig, clients: Clients, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which clients of a bucket a round computes, and which of their uploads arrive.

    Returns rows of the bucket, int32 [ceil(participation C)], and bool of the same shape. Who is
    drawn depends on the clients' ids, not on their order nor on padding.
    """
    count = len(clients.client)
    key_choice, key_last, key_drop = jax.random.split(key, 3)
    size = math.ceil(cohort.participation * count)
    chosen, present = jnp.arange(count), jnp.ones(size, bool)
    if cohort.participation < 1:
        real = clients.weight > 0
        chosen = jnp.argsort(jnp.where(real, _uniform(key_choice, clients.client), 2.0))[:size]
        # One place more is filled so often that each client's chance is exactly `participation`.
        expected = cohort.participation * real.sum()
        rest = jax.random.bernoulli(key_last, expected - jnp.floor(expected))
        present = jnp.arange(size) < jnp.floor(expected) + rest
    if cohort.dropped > 0:
        present &= _uniform(key_drop, clients.client[chosen]) >= cohort.dropped
    return chosen, present


def noise_key(key: jax.Array) -> jax.Array:
    """The key of the noise in a bucket that `draw` was given `key` for."""
    return jax.random.fold_in(jax.random.split(key, 3)[2], 1)


def with_noise(cohort: CohortConfig, uploads: Any, client: jax.Array, key: jax.Array) -> Any:
    """The uploads [C, ...] with normal noise in place of those of the noisy clients."""
    who = jax.vmap(lambda c: jax.random.fold_in(jax.random.key(0), c))(client)
    noisy = jax.vmap(lambda key: jax.random.bernoulli(key, cohort.noisy))(who)

    def replace(number, leaf):
        keys = jax.vmap(lambda c: jax.random.fold_in(jax.random.fold_in(key, c), number))(client)
        noise = jax.vmap(lambda key: jax.random.normal(key, leaf.shape[1:]))(keys)
        size = jnp.sqrt(jnp.mean(leaf**2, axis=tuple(range(1, leaf.ndim)), keepdims=True))
        return jnp.where(beside(noisy, leaf), cohort.noise_scale * size * noise, leaf)

    leaves, structure = jax.tree.flatten(uploads)
    return structure.unflatten([replace(number, leaf) for number, leaf in enumerate(leaves)])


def beside(flags: jax.Array, leaf: jax.Array) -> jax.Array:
    """Flags [C] in a shape that broadcasts against a leaf [C, ...]."""
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - 1))


def _uniform(key: jax.Array, client: jax.Array) -> jax.Array:
    """A number in [0, 1) for each client id [C]."""
    return jax.vmap(lambda c: jax.random.uniform(jax.random.fold_in(key, c)))(client)

"""One federated round: a cohort of clients on a vmapped axis, then one aggregation.

A method gives two plain functions. `local(shared, private, clients, key)` is one client's
work; it returns (upload, private, metrics). `aggregate(shared, uploads, weights, key)` is the
server's; weight 0 means the upload never came. The engine knows nothing else about either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.mesh import divide
from jaxrec.types import Clients, SettingError


class Cohort(NamedTuple):
    """Who takes part, how surely, and how much runs at once."""

    participation: float = 1.0  # a client's chance of being in a round
    dropout: float = 0.0  # a chosen client's chance of failing before its upload arrives
    block: int = 0  # clients computed at once, a bound on memory; 0 = a whole bucket
    noisy: float = 0.0  # the share of clients that send noise, the same ones every round
    noise_scale: float = 10.0  # its size, in root mean squares of the upload that it replaces

    @classmethod
    def checked(
        cls,
        participation: float,
        dropout: float,
        block: int,
        noisy: float = 0.0,
        noise_scale: float = 10.0,
    ) -> Cohort:
        """The cohort of these settings; raises SettingError naming one that is out of range."""
        if not 0 < participation <= 1:
            raise SettingError(f"participation = {participation}: must lie in (0, 1]")
        if not 0 <= dropout <= 1:
            raise SettingError(f"dropout = {dropout}: must lie in [0, 1]")
        if block < 0:
            raise SettingError(
                f"block = {block}: must be 0 (a whole bucket) or a number of clients"
            )
        if not 0 <= noisy < 1:
            raise SettingError(f"noisy = {noisy}: must lie in [0, 1)")
        if not noise_scale > 0:
            raise SettingError(f"noise_scale = {noise_scale}: must be positive")
        return cls(participation, dropout, block, noisy, noise_scale)


EVERYONE = Cohort()


def federated_round(
    local: tuple[Callable, ...],
    aggregate: Callable,
    shared: Any,
    private: tuple[Any, ...],
    buckets: tuple[Clients, ...],
    key: jax.Array,
    *,
    cohort: Cohort = EVERYONE,
    additive: bool = False,
    receive: Callable[[Any], Any] = lambda uploads: uploads,
) -> tuple[Any, tuple[Any, ...], Any, jax.Array]:
    """Run one round over all buckets.

    Args:
        local: one function a bucket.
        aggregate: sees tuples, an entry a bucket, of uploads [C, ...] and weights [C].
        private: per-client state, leading axis C, an entry a bucket.
        key: the round's key. What a client draws depends on its id alone, so neither the order
            of clients nor padding nor the block size changes a random number.
        additive: the aggregate is a weighted mean of uploads. Blocks are then reduced to their
            mean as they are computed and enter as one upload with the block's total weight, so
            that memory does not grow with the number of clients.
        receive: what the server does to the uploads [C, ...] of a block as they arrive.

    Returns:
        shared, private, the clients' metrics averaged by weight, and the number of participants.
    """
    key_cohort, key_local, key_aggregate = jax.random.split(key, 3)
    results = [
        _bucket_round(
            bucket_local,
            shared,
            bucket_private,
            clients,
            jax.random.fold_in(key_cohort, number),
            key_local,
            cohort,
            additive,
            receive,
        )
        for number, (bucket_local, bucket_private, clients) in enumerate(
            zip(local, private, buckets, strict=True)
        )
    ]
    uploads, weights, private, sums = zip(*results, strict=True)
    metrics, total, participants = jax.tree.map(lambda *leaves: sum(leaves), *sums)
    new = aggregate(shared, uploads, weights, key_aggregate)
    # With nobody left there is nothing to learn from: the round leaves no trace.
    shared = jax.tree.map(lambda fresh, old: jnp.where(total > 0, fresh, old), new, shared)
    metrics = jax.tree.map(lambda leaf: leaf / jnp.maximum(total, 1e-30), metrics)
    return shared, private, metrics, participants


def _bucket_round(
    local, shared, private, clients, key_cohort, key_local, cohort, additive, receive
):
    """One bucket's uploads, weights, private states, and (metrics, weight, participants) sums."""
    count = len(clients.client)
    key_choice, key_last, key_drop = jax.random.split(key_cohort, 3)
    key_noise = jax.random.fold_in(key_drop, 1)
    size = math.ceil(cohort.participation * count)
    chosen, place = jnp.arange(count), jnp.arange(size)
    present = jnp.ones(size, bool)
    if cohort.participation < 1:
        real = clients.weight > 0
        chosen = jnp.argsort(jnp.where(real, _uniform(key_choice, clients.client), 2.0))[:size]
        # One place more is filled so often that each client's chance is exactly `participation`.
        expected = cohort.participation * real.sum()
        rest = jax.random.bernoulli(key_last, expected - jnp.floor(expected))
        present = place < jnp.floor(expected) + rest
    if cohort.dropout > 0:
        present &= _uniform(key_drop, clients.client[chosen]) >= cohort.dropout
    block = min(cohort.block or size, size)
    everyone = cohort.participation == 1 and block == count

    def pick(tree, index):
        if everyone:
            return tree
        return divide(jax.tree.map(lambda leaf: leaf[index], tree), "clients")

    def put(tree, index, new):
        if everyone:
            return new
        return jax.tree.map(lambda leaf, fresh: leaf.at[index].set(fresh), tree, new)

    def run(private, places):
        index = chosen[places]
        members, before = pick(clients, index), pick(private, index)
        keys = jax.vmap(lambda client: jax.random.fold_in(key_local, client))(members.client)
        uploads, after, metrics = jax.vmap(local, (None, 0, 0, 0))(shared, before, members, keys)
        if cohort.noisy > 0:
            uploads = _with_noise(uploads, members.client, key_noise, cohort)
        uploads = receive(uploads)
        weights = members.weight * present[places]
        kept = jax.tree.map(
            lambda new, old: jnp.where(_like(weights > 0, new), new, old), after, before
        )
        private = put(private, index, kept)
        total = weights.sum()
        sums = (
            jax.tree.map(lambda leaf: jnp.vdot(weights, leaf), metrics),
            total,
            jnp.sum(weights > 0),
        )
        if additive:
            uploads = jax.tree.map(
                lambda leaf: jnp.tensordot(weights / jnp.maximum(total, 1e-30), leaf, 1)[None],
                uploads,
            )
            weights = total[None]
        return private, (uploads, weights, sums)

    whole = size // block * block
    private, stacked = jax.lax.scan(run, private, jnp.arange(whole).reshape(-1, block))
    uploads, weights = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked[:2])
    sums = jax.tree.map(lambda leaf: leaf.sum(0), stacked[2])
    if whole < size:
        private, (rest, rest_weights, rest_sums) = run(private, jnp.arange(whole, size))
        uploads = jax.tree.map(lambda *parts: jnp.concatenate(parts), uploads, rest)
        weights = jnp.concatenate([weights, rest_weights])
        sums = jax.tree.map(jnp.add, sums, rest_sums)
    return uploads, weights, private, sums


def _with_noise(uploads: Any, client: jax.Array, key: jax.Array, cohort: Cohort) -> Any:
    """The uploads [C, ...] with normal noise in place of those of the noisy clients."""
    who = jax.vmap(lambda c: jax.random.fold_in(jax.random.key(0), c))(client)
    noisy = jax.vmap(lambda key: jax.random.bernoulli(key, cohort.noisy))(who)

    def replace(number, leaf):
        keys = jax.vmap(lambda c: jax.random.fold_in(jax.random.fold_in(key, c), number))(client)
        noise = jax.vmap(lambda key: jax.random.normal(key, leaf.shape[1:]))(keys)
        size = jnp.sqrt(jnp.mean(leaf**2, axis=tuple(range(1, leaf.ndim)), keepdims=True))
        return jnp.where(_like(noisy, leaf), cohort.noise_scale * size * noise, leaf)

    leaves, structure = jax.tree.flatten(uploads)
    return structure.unflatten([replace(number, leaf) for number, leaf in enumerate(leaves)])


def _uniform(key: jax.Array, client: jax.Array) -> jax.Array:
    """A number in [0, 1) for each client id [C]."""
    return jax.vmap(lambda c: jax.random.uniform(jax.random.fold_in(key, c)))(client)


def _like(flags: jax.Array, leaf: jax.Array) -> jax.Array:
    return flags.reshape(flags.shape + (1,) * (leaf.ndim - 1))


def weighted_mean(uploads: tuple[Any, ...], weights: tuple[jax.Array, ...]) -> Any:
    """sum_c w_c upload_c / sum_c w_c over all buckets; zero when every weight is zero.

    Leaves [C, ...] become [...]. A sum over clients is all it needs, so it can run inside a
    secure aggregator.
    """
    total = sum(weight.sum() for weight in weights)
    sums = [
        jax.tree.map(lambda leaf, weight=weight: jnp.tensordot(weight, leaf, 1), upload)
        for upload, weight in zip(uploads, weights, strict=True)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves) / jnp.maximum(total, 1e-30), *sums)


def dense_rows(clients: Clients, items: int) -> jax.Array:
    """One client's 0/1 interaction matrix R [U, I] (vmap it for a bucket)."""
    users = clients.users.shape[-1]
    return jnp.zeros((users, items)).at[clients.user, clients.item].max(clients.mask)

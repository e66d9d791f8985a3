"""One federated round: a cohort of clients on a vmapped axis, then one aggregation.

    draw a cohort -> local work, a block of clients at a time -> uploads -> aggregate

A method gives two plain functions. `local(shared, private, clients, key)` is one client's
work; it returns (upload, private, metrics). `aggregate(shared, uploads, weights, key)` is the
server's; weight 0 means the upload never came. The engine knows nothing else about either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrec.federated import cohort as cohorts
from jaxrec.federated.aggregate import Factored, multiply
from jaxrec.federated.cohort import EVERYONE, CohortConfig
from jaxrec.mesh import divide
from jaxrec.types import Clients

Local = Callable[[Any, Any, Clients, jax.Array], tuple[Any, Any, Any]]
Aggregate = Callable[[Any, tuple[Any, ...], tuple[jax.Array, ...], jax.Array], Any]


class _Rules(NamedTuple):
    """The parts of a round that all its buckets share."""

    shared: Any
    key: jax.Array  # of local work
    cohort: CohortConfig
    additive: bool
    product: Callable[[Factored], Any]
    receive: Callable[[Any], Any] | None


def federated_round(
    local: tuple[Local, ...],
    aggregate: Aggregate,
    shared: Any,
    private: tuple[Any, ...],
    buckets: tuple[Clients, ...],
    key: jax.Array,
    *,
    cohort: CohortConfig = EVERYONE,
    additive: bool = False,
    product: Callable[[Factored], Any] = multiply,
    receive: Callable[[Any], Any] | None = None,
) -> tuple[Any, tuple[Any, ...], Any, jax.Array]:
    """Run one round over all buckets.

    Args:
        local: one function a bucket.
        aggregate: sees tuples, an entry a bucket, of uploads [C, ...] and weights [C].
        private: per-client state, leading axis C, an entry a bucket.
        key: the round's key. What a client draws depends on its id alone, so neither the order
            of clients nor padding nor the block size changes a random number.
        cohort: who takes part, and how many are computed at once.
        additive: the aggregate is a weighted mean of uploads. Blocks are then reduced to their
            mean as they are computed and enter as one upload with the block's total weight, so
            that memory does not grow with the number of clients. Factors enter as they are.
        product: what one client sends where its upload is `Factored`; linear in left^T right. The
            factors are multiplied out unless the aggregate is additive, nobody sends noise and the
            server takes uploads as they come.
        receive: what the server does to the uploads [C, ...] of a block as they arrive.

    Returns:
        shared, private, the clients' metrics averaged by weight, and the number of participants.

    Raises AssertionError where buckets or leading axes do not agree.
    """
    chex.assert_equal(len(local), len(buckets))
    chex.assert_equal(len(private), len(buckets))
    key_cohort, key_local, key_aggregate = jax.random.split(key, 3)
    rules = _Rules(shared, key_local, cohort, additive, product, receive)
    results = [
        _bucket_round(rules, *bucket, jax.random.fold_in(key_cohort, number))
        for number, bucket in enumerate(zip(local, private, buckets, strict=True))
    ]
    uploads, weights, private, sums = zip(*results, strict=True)
    for upload, weight in zip(uploads, weights, strict=True):
        chex.assert_tree_shape_prefix(upload, weight.shape)
    metrics, total, participants = jax.tree.map(lambda *leaves: sum(leaves), *sums)
    new = aggregate(shared, uploads, weights, key_aggregate)
    # With nobody left there is nothing to learn from: the round leaves no trace.
    shared = jax.tree.map(lambda fresh, old: jnp.where(total > 0, fresh, old), new, shared)
    metrics = jax.tree.map(lambda leaf: leaf / jnp.maximum(total, 1e-30), metrics)
    return shared, private, metrics, participants


def _bucket_round(rules: _Rules, local: Local, private: Any, clients: Clients, key: jax.Array):
    """One bucket's uploads, weights, private states, and (metrics, weight, participants) sums."""
    chex.assert_tree_shape_prefix((private, clients), clients.weight.shape)
    chosen, present = cohorts.draw(rules.cohort, clients, key)
    key_noise = cohorts.noise_key(key)
    size = len(chosen)
    block = min(rules.cohort.block or size, size)
    everyone = rules.cohort.participation == 1 and block == len(clients.client)

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
        keys = jax.vmap(lambda client: jax.random.fold_in(rules.key, client))(members.client)
        work = jax.vmap(local, (None, 0, 0, 0))
        uploads, after, metrics = work(rules.shared, before, members, keys)
        uploads = _received(rules, uploads, members.client, key_noise)
        weights = members.weight * present[places]
        kept = jax.tree.map(
            lambda new, old: jnp.where(cohorts.beside(weights > 0, new), new, old), after, before
        )
        sums = jax.tree.map(lambda leaf: jnp.vdot(weights, leaf), metrics)
        sums = sums, weights.sum(), jnp.sum(weights > 0)
        if rules.additive and not isinstance(uploads, Factored):
            uploads, weights = _block_mean(uploads, weights)
        return put(private, index, kept), (uploads, weights, sums)

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


def _received(rules: _Rules, uploads: Any, client: jax.Array, key: jax.Array) -> Any:
    """The uploads [C, ...] of a block as the server has them; factors where it needs no product."""
    as_sent = rules.additive and rules.cohort.noisy == 0 and rules.receive is None
    if isinstance(uploads, Factored) and not as_sent:
        uploads = jax.vmap(rules.product)(uploads)
    if rules.cohort.noisy > 0:
        uploads = cohorts.with_noise(rules.cohort, uploads, client, key)
    return rules.receive(uploads) if rules.receive else uploads


def _block_mean(uploads: Any, weights: jax.Array) -> tuple[Any, jax.Array]:
    """The uploads' weighted mean [1, ...] and their total weight [1]."""
    total = weights.sum()
    share = weights / jnp.maximum(total, 1e-30)
    return jax.tree.map(lambda leaf: jnp.tensordot(share, leaf, 1)[None], uploads), total[None]

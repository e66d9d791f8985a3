"""One federated round: a cohort of clients on a vmapped axis, then one aggregation.

    draw a cohort -> local work, a block of clients at a time -> uploads -> aggregate

A method gives two plain functions. `local(shared, private, clients, key)` is one client's
work; it returns (upload, private, metrics). `aggregate(shared, uploads, weights, key)` is the
server's; weight 0 means the upload never came. The engine knows nothing else about either.

Where the aggregate is a mean, uploads reach the server as the settings of privacy want it: in
clear, in a secure sum, or with noise (`private_mean.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrec.federated import cohort as cohorts
from jaxrec.federated import private_mean
from jaxrec.federated.cohort import EVERYONE, CohortConfig
from jaxrec.federated.divided import is_divided, number_of_clients, sum_over_clients
from jaxrec.federated.malicious import falsify, lies_about_uploads
from jaxrec.federated.private_mean import Bounds, Total
from jaxrec.federated.uploads import Factored, Touched, beside, clipped, finite, keep, multiply
from jaxrec.mesh import divide
from jaxrec.types import Clients, SettingError

Local = Callable[[Any, Any, Clients, jax.Array], tuple[Any, Any, Any]]
Aggregate = Callable[[Any, tuple[Any, ...], tuple[jax.Array, ...], jax.Array], Any]


class Round(NamedTuple):
    """What a round leaves behind."""

    shared: Any
    private: tuple[Any, ...]  # of each bucket
    metrics: Any  # the clients' own, averaged by weight
    participants: jax.Array  # clients whose upload arrived
    non_finite: jax.Array  # those among them that the server dropped: some number was not finite
    bounds: Bounds | None  # for the next round


class _Rules(NamedTuple):
    """The parts of a round that all its buckets share."""

    shared: Any
    key: jax.Array  # of local work
    key_rounding: jax.Array  # of integers
    cohort: CohortConfig
    bounds: Bounds | None
    addends: int  # clients that the round computes at most
    additive: bool
    bits: int
    product: Callable[[Any], Any]


def federated_round(
    local: tuple[Local, ...],
    aggregate: Aggregate,
    shared: Any,
    private: tuple[Any, ...],
    buckets: tuple[Clients, ...],
    key: jax.Array,
    *,
    cohort: CohortConfig = EVERYONE,
    bounds: Bounds | None = None,
    additive: bool = False,
    bits: int = 32,
    product: Callable[[Any], Any] = multiply,
) -> Round:
    """Run one round over all buckets.

    Args:
        local: one function a bucket.
        aggregate: sees tuples, an entry a bucket, of uploads [C, ...] and weights [C].
        private: per-client state, leading axis C, an entry a bucket.
        key: the round's key. What a client draws depends on its id alone, so neither the order
            of clients nor padding nor the block size changes a random number.
        cohort: who takes part, and how many are computed at once.
        bounds: what uploads are measured with: `private_mean.first_bounds`, then those of the
            round before.
        additive: the aggregate is a weighted mean of uploads. Blocks are then summed as they are
            computed and enter as one upload [1, ...], their mean, so that memory does not grow
            with the number of clients. Factors enter as they are where the server sees them.
        bits: of a client's integer in a secure sum.
        product: what one client sends where its upload is `Factored`, linear in left^T right, or
            `Touched`, linear in its table. It is made where anybody looks at an upload by itself.

    Raises AssertionError where buckets or leading axes do not agree.
    """
    chex.assert_equal(len(local), len(buckets))
    chex.assert_equal(len(private), len(buckets))
    _check_sums(cohort, additive, bounds)
    key_cohort, key_local, key_aggregate = jax.random.split(key, 3)
    key_rounding, key_noise, key_count = jax.random.split(jax.random.fold_in(key, 3), 3)
    addends = sum(
        cohorts.places(cohort, number_of_clients(len(clients.client))) for clients in buckets
    )
    rules = _Rules(
        shared, key_local, key_rounding, cohort, bounds, addends, additive, bits, product
    )
    results = [
        _bucket_round(rules, *bucket, jax.random.fold_in(key_cohort, number))
        for number, bucket in enumerate(zip(local, private, buckets, strict=True))
    ]
    uploads, weights, private, sums = zip(*results, strict=True)
    metrics, counts = sum_over_clients(jax.tree.map(lambda *leaves: sum(leaves), *sums))
    if isinstance(uploads[0], Total):
        found = sum_over_clients(jax.tree.map(lambda *leaves: sum(leaves), *uploads))
        members = [jnp.sum(clients.weight > 0) for clients in buckets]
        expected = cohort.participation * sum_over_clients(jnp.stack(members).sum())
        mean = private_mean.mean(
            cohort, bounds, found, key_noise, expected=expected, addends=addends, bits=bits
        )
        bounds = private_mean.next_bounds(cohort, bounds, found, key_count, expected)
        uploads, weights = (jax.tree.map(lambda leaf: leaf[None], mean),), (found.weight[None],)
    for upload, weight in zip(uploads, weights, strict=True):
        chex.assert_tree_shape_prefix(upload, weight.shape)
    new = aggregate(shared, uploads, weights, key_aggregate)
    # With nobody left there is nothing to learn from: the round leaves no trace.
    enough = counts.weight > 0
    if cohort.privacy == "secure_sum":
        enough &= counts.participants >= cohort.min_cohort
    shared = jax.tree.map(lambda fresh, old: jnp.where(enough, fresh, old), new, shared)
    # Where nobody's upload is finite, training has diverged; that is no client's lie.
    scale = jnp.where(counts.participants > counts.non_finite, 1, jnp.nan)
    scale = jnp.where(counts.non_finite > 0, scale, 1) / jnp.maximum(counts.weight, 1e-30)
    metrics = jax.tree.map(lambda leaf: leaf * scale, metrics)
    return Round(shared, private, metrics, counts.participants, counts.non_finite, bounds)


def _check_sums(cohort: CohortConfig, additive: bool, bounds: Bounds | None) -> None:
    """Raises SettingError where sums are all that there is, and a round needs each upload."""
    if cohort.privacy != "plain" and not (additive and bounds is not None):
        raise SettingError(
            f"privacy = {cohort.privacy!r}: the server is to see sums alone, and this method looks "
            "at uploads one by one; set privacy = 'plain'"
        )
    if is_divided() and not additive:
        raise SettingError(
            f"aggregate = {cohort.rule!r}: this round needs to see each upload, and clients on "
            "machines of their own send parts of sums; set aggregate = 'mean', and for fedcia "
            "upload = 'sketch'"
        )


class _Counts(NamedTuple):
    weight: jax.Array  # f32 []
    participants: jax.Array  # int32 []
    non_finite: jax.Array  # int32 []


def _bucket_round(rules: _Rules, local: Local, private: Any, clients: Clients, key: jax.Array):
    """One bucket's uploads and weights, or their `Total`; private states; sums of the metrics."""
    chex.assert_tree_shape_prefix((private, clients), clients.weight.shape)
    chosen, present = cohorts.draw(rules.cohort, clients, key)
    key_noise = cohorts.noise_key(key)
    size = len(chosen)
    block = cohorts.block(rules.cohort, len(clients.client))
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
        uploads = _sent(rules, uploads, members.client, key_noise)
        chex.assert_tree_shape_prefix(uploads, index.shape)
        arrived = (members.weight > 0) & present[places]
        fine = finite(uploads, len(index))
        weights = (1.0 if rules.cohort.noised else members.weight) * (arrived & fine)
        uploads = keep(uploads, fine)
        kept = jax.tree.map(
            lambda new, old: jnp.where(beside(weights > 0, new), new, old), after, before
        )
        metrics = keep(metrics, weights > 0)
        sums = jax.tree.map(lambda leaf: jnp.vdot(weights, leaf), metrics)
        counts = _Counts(weights.sum(), jnp.sum(arrived), jnp.sum(arrived & ~fine))
        if rules.additive:
            rounding = jax.vmap(lambda c: jax.random.fold_in(rules.key_rounding, c))(members.client)
            uploads = private_mean.total(
                rules.cohort, rules.bounds, uploads, weights, rounding,
                addends=rules.addends, bits=rules.bits,
            )  # fmt: skip
        elif rules.bounds is not None and rules.cohort.clip:
            uploads, _ = clipped(uploads, rules.bounds.clip)
        return put(private, index, kept), (uploads, weights, (sums, counts))

    whole = size // block * block
    parts, rest = jnp.arange(whole).reshape(-1, block), jnp.arange(whole, size)
    if not rules.additive:
        return _side_by_side(run, private, parts, rest)
    _, (total, _, sums) = jax.eval_shape(run, private, parts[0])
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (total, sums))

    def add(carry, places):
        private, so_far = carry
        private, (total, _, sums) = run(private, places)
        return private, jax.tree.map(jnp.add, so_far, (total, sums))

    carry = private, nothing
    if rules.cohort.sampled:  # the sample comes first
        blocks = (jnp.max(jnp.where(present, jnp.arange(size), -1)) + block) // block
        carry = jax.lax.fori_loop(0, blocks, lambda n, carry: add(carry, parts[n]), carry)
    else:
        carry, _ = jax.lax.scan(lambda carry, places: (add(carry, places), None), carry, parts)
    if len(rest):
        carry = add(carry, rest)
    private, (total, sums) = carry
    return total, total.weight, private, sums


def _side_by_side(run: Callable, private: Any, parts: jax.Array, rest: jax.Array):
    """The uploads [C, ...] of all blocks, for a server that looks at each."""
    private, stacked = jax.lax.scan(run, private, parts)
    uploads, weights = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), stacked[:2])
    sums = jax.tree.map(lambda leaf: leaf.sum(0), stacked[2])
    if len(rest):
        private, (more, more_weights, more_sums) = run(private, rest)
        uploads = jax.tree.map(lambda *both: jnp.concatenate(both), uploads, more)
        weights = jnp.concatenate([weights, more_weights])
        sums = jax.tree.map(jnp.add, sums, more_sums)
    return uploads, weights, private, sums


def _sent(rules: _Rules, uploads: Any, client: jax.Array, key: jax.Array) -> Any:
    """The uploads [C, ...] of a block as they leave; factors where nobody needs the product."""
    cohort = rules.cohort
    measured = cohort.clip and rules.product is not multiply  # its norm is not that of the factors
    as_factors = rules.additive and not lies_about_uploads(cohort) and not measured
    kept = cohort.privacy != "distributed_dp"
    if isinstance(uploads, Touched):
        kept = cohort.privacy == "plain"
    if isinstance(uploads, Factored | Touched) and not (as_factors and kept):
        uploads = jax.vmap(rules.product)(uploads)
    return falsify(cohort, uploads, client, key)

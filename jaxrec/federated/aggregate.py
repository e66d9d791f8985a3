"""What a server makes of the uploads: their mean, or a rule that withstands clients that lie.

Functions take a tuple with an entry a bucket, uploads whose leaves are [C, ...] and weights [C]; a
client of weight 0 sent nothing, and what stands in its place has no effect.

    mean          believes everybody
    norm_bound    the mean of uploads that are no longer than the median one
    trimmed_mean  of each number, without its extremes (Yin et al., ICML 2018)
    median        of each number (Yin et al., ICML 2018)
    multi_krum    the mean of the uploads that lie closest together (Blanchard et al., NIPS 2017)

The mean and norm_bound weigh clients. By the others clients count alike: a weight is a claim that a
bad client would inflate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.federated.uploads import beside, clipped, norms

Uploads = tuple[Any, ...]  # an entry a bucket, leaves [C, ...]
Weights = tuple[jax.Array, ...]  # an entry a bucket, f32 [C]


def weighted_mean(uploads: Uploads, weights: Weights) -> Any:
    """sum_c w_c upload_c / sum_c w_c over all buckets; zero when every weight is zero.

    Leaves [C, ...] become [...].
    """
    total = sum(weight.sum() for weight in weights)
    sums = [weighted_sum(*bucket) for bucket in zip(uploads, weights, strict=True)]
    return jax.tree.map(lambda *leaves: sum(leaves) / jnp.maximum(total, 1e-30), *sums)


def weighted_sum(uploads: Any, weights: jax.Array) -> Any:
    """sum_c w_c upload_c over one bucket: leaves [C, ...] become [...].

    What a client of weight 0 holds, NaN included, has no effect.
    """
    quick = jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), uploads)

    def add(total, client):
        weight, upload = client
        one = lambda sum_, leaf: sum_ + jnp.where(weight > 0, weight * leaf, 0)
        return jax.tree.map(one, total, upload), None

    def careful():
        zero = jax.tree.map(jnp.zeros_like, quick)
        return jax.lax.scan(add, zero, (weights, uploads))[0]

    # 0 x NaN is NaN. To mask all uploads first would copy them; only now and then is it needed.
    sound = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(quick)]).all()
    return jax.lax.cond(sound, lambda: quick, careful)


def descending(gradients: Uploads, weights: Weights, table: jax.Array) -> Weights:
    """The weights, 0 for a gradient g [C, ...] with <g, table> > 0: fitted users have none such.

    Scores E x_u are linear in the table E, so with residuals r_u, <g, E> = sum_u r_u . E x_u. At
    the fit with an L2 penalty that is -l2 sum_u |x_u|^2, so a flipped sign shows.
    """
    along = [jnp.tensordot(each, table, table.ndim) for each in gradients]
    return tuple(jnp.where(a > 0, 0, w) for a, w in zip(along, weights, strict=True))


def norm_bound(uploads: Uploads, weights: Weights) -> Any:
    """The weighted mean of uploads, each no longer than the median of their norms.

    No scale has to be known: it follows the uploads from round to round.
    """
    lengths, present = jnp.concatenate([norms(each) for each in uploads]), _present(weights)
    most = _median(lengths, present)
    return weighted_mean(tuple(clipped(each, most)[0] for each in uploads), weights)


def trimmed_mean(uploads: Uploads, weights: Weights, trim: float) -> Any:
    """Mean of each number over clients, without its extremes.

    Of n clients with weight, the floor(trim n) largest and smallest values of every number are left
    out. Leaves [C, ...] a bucket become [...]; zero without any weight.
    """
    present = _present(weights)
    cut = jnp.floor(trim * present.sum() + 1e-4).astype(jnp.int32)  # 0.29 * 100 is 28.999998
    return jax.tree.map(lambda leaf: _middle(leaf, present, cut), _joined(uploads))


def coordinate_median(uploads: Uploads, weights: Weights) -> Any:
    """Median of each number over clients with weight; of an even number the middle two's mean."""
    present = _present(weights)
    return jax.tree.map(lambda leaf: _median(leaf, present), _joined(uploads))


def multi_krum(uploads: Uploads, weights: Weights, malicious: float) -> Any:
    """Mean of the n - f uploads that lie closest to their n - f - 2 nearest others.

    n clients have weight and f = floor(malicious n) of them may lie. How close, is the sum of
    squared distances over the whole upload. Memory is [C, C] beside the uploads.
    """
    present, joined = _present(weights), _joined(uploads)
    number = present.sum()
    bad = jnp.floor(malicious * number + 1e-4).astype(jnp.int32)
    distance = _square_distances(joined, present)
    near = jnp.clip(number - bad - 2, jnp.minimum(1, number - 1), None)
    nearest = jnp.arange(len(present)) < near
    score = jnp.sum(jnp.where(nearest, jnp.sort(distance, axis=1), 0), axis=1)
    place = jnp.argsort(jnp.argsort(jnp.where(present, score, jnp.inf)))
    chosen = present & (place < number - bad)
    return weighted_mean((joined,), (chosen.astype(jnp.float32),))


def _present(weights: Weights) -> jax.Array:
    """Which clients of all buckets have weight, bool [C]."""
    return jnp.concatenate(weights) > 0


def _joined(uploads: Uploads) -> Any:
    """The uploads of all buckets as one."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *uploads)


def _middle(values: jax.Array, present: jax.Array, cut: jax.Array) -> jax.Array:
    """Mean over present clients without the `cut` least and largest: [C, ...] becomes [...]."""
    number, flags = present.sum(), beside(present, values)
    ordered = jnp.sort(jnp.where(flags, values, jnp.inf), axis=0)  # who is absent comes last
    place = beside(jnp.arange(len(values)), values)
    kept = (place >= cut) & (place < number - cut)
    return jnp.sum(jnp.where(kept, ordered, 0), axis=0) / jnp.maximum(number - 2 * cut, 1)


def _median(values: jax.Array, present: jax.Array) -> jax.Array:
    """Median over present clients: [C, ...] becomes [...]; zero without any."""
    return _middle(values, present, jnp.maximum(present.sum() - 1, 0) // 2)


FAR = 1e30  # of uploads whose distance float32 cannot hold; a sum of many such is finite


def _square_distances(uploads: Any, present: jax.Array) -> jax.Array:
    """||upload_a - upload_b||^2 over all numbers, [C, C]; infinite to the absent and to oneself."""
    count = len(present)
    gram = jnp.zeros((count, count))
    for leaf in jax.tree.leaves(uploads):
        flat = jnp.where(beside(present, leaf), leaf, 0).reshape(count, -1)
        gram += jnp.matmul(flat, flat.T, precision=jax.lax.Precision.HIGHEST)
    square = jnp.diagonal(gram)
    distance = jnp.nan_to_num(square[:, None] + square - 2 * gram, nan=FAR, posinf=FAR)
    others = present & ~jnp.eye(count, dtype=bool)
    return jnp.where(others, jnp.clip(distance, 0, FAR), jnp.inf)


RULES: dict[str, Callable[[Uploads, Weights, float], Any]] = {
    "mean": lambda uploads, weights, malicious: weighted_mean(uploads, weights),
    "norm_bound": lambda uploads, weights, malicious: norm_bound(uploads, weights),
    "median": lambda uploads, weights, malicious: coordinate_median(uploads, weights),
    "trimmed_mean": trimmed_mean,
    "multi_krum": multi_krum,
}
"""Rules by name, from uploads, weights and the share of clients that may lie."""


def combine(rule: str, uploads: Uploads, weights: Weights, malicious: float) -> Any:
    """What the rule of this name makes of the uploads; leaves [C, ...] a bucket become [...]."""
    return RULES[rule](uploads, weights, malicious)

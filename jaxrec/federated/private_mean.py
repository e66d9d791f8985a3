"""The mean of a cohort's uploads as the settings of privacy want it made.

    clip -> add (floats, or integers on a public unit) -> noise -> mean

`Bounds` are the public numbers that uploads are measured with. They follow what came: each client
says, inside the sum, whether it was clipped and whether a number of its own passed the largest
integer. Noise under `distributed_dp` is the clients': each adds a share, and the simulation adds
what the shares sum up to.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated import secure_sum
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.federated.uploads import Factored, Touched, beside, clipped, norms, scaled, summed

REACH = 1024.0  # the largest number that integers of 32 bits express in the first round
COARSE_REACH = 1.0  # and those of fewer bits
FACTOR_BITS = 8
FINENESS = 16.0  # a clip is this many units times the root of its numbers: rounding adds little
CLIP_RATE = 0.2  # of the adaptive clip
COUNT_NOISE = 1 / 20  # deviation of the noise on its count, in expected participants


class Bounds(NamedTuple):
    """Public numbers that a round's uploads are measured with."""

    clip: jax.Array  # f32 []  the longest upload
    reach: tuple[jax.Array, ...]  # of each leaf, f32 [] or [rows]: what the largest integer is


class Product(NamedTuple):
    """An integer sum of products of factors, each with a unit of its own."""

    table: jax.Array  # int32 [I, D]


class Total(NamedTuple):
    """What the server learns of a block of clients."""

    sum: Any  # leaves [...]: floats, or integers int32
    weight: jax.Array  # f32 []
    clients: jax.Array  # f32 []  those whose upload arrived
    whole: jax.Array  # f32 []  those of them whose upload was not clipped
    over: tuple[jax.Array, ...]  # clients with a number beyond a leaf's reach, in its shape
    near: tuple[jax.Array, ...]  # clients with a number beyond a quarter of it


def first_bounds(config: PrivacyConfig, *shapes: tuple[int, ...], bits: int = 32) -> Bounds | None:
    """Bounds of the first round, with reaches of some `shapes`; None where nobody needs any."""
    if not (in_integers(config) or config.clip):
        return None
    start = REACH if bits == 32 else COARSE_REACH
    return Bounds(jnp.float32(config.clip), tuple(jnp.full(shape, start) for shape in shapes))


def in_integers(config: PrivacyConfig) -> bool:
    """Whether uploads are summed as integers."""
    return config.privacy in ("secure_sum", "distributed_dp")


def total(
    config: PrivacyConfig,
    bounds: Bounds | None,
    uploads: Any,
    weights: jax.Array,
    keys: jax.Array,
    *,
    addends: int,
    bits: int = 32,
) -> Total:
    """The weighted sum of a block's uploads [C, ...], as the server gets it.

    Args:
      weights: [C]; 0 for an upload that never came.
      keys: of the clients' rounding, [C].
      addends: clients that a round computes at most, over all blocks.
      bits: of a client's integer, sign included; 32: as many as the sum leaves room for.
    """
    there = (weights > 0).astype(jnp.float32)
    whole = there
    if bounds is not None and config.clip:
        uploads, short = clipped(uploads, bounds.clip)
        whole = there * short
    over = near = ()
    if bounds is None or not in_integers(config):
        sums = _added(uploads, weights)
    elif config.privacy == "distributed_dp":
        sums = _bounded_sum(bounds.clip, scaled(uploads, there), keys)
    else:
        uploads = scaled(uploads, weights)
        most = largest(uploads, addends, bits)
        sums = _integer_sum(uploads, bounds, most, keys)
        over, near = _beyond(uploads, bounds, 1.0), _beyond(uploads, bounds, 0.25)
    return Total(sums, weights.sum(), there.sum(), whole.sum(), over, near)


def mean(
    config: PrivacyConfig,
    bounds: Bounds | None,
    found: Total,
    key: jax.Array,
    *,
    expected: jax.Array,
    addends: int,
    bits: int = 32,
) -> Any:
    """The uploads' mean [...] from their total, with the noise of a budget.

    Args:
      expected: participants of a round on average, public; what a noisy sum is divided by.
      addends, bits: as in `total`.
    """
    count = jnp.maximum(found.weight, 1e-30)
    if bounds is None or config.privacy == "plain":
        return jax.tree.map(lambda leaf: leaf / count, found.sum)
    if config.privacy == "secure_sum":
        units = [reach / largest(found.sum, addends, bits) for reach in bounds.reach]
        if isinstance(found.sum, Product):
            return found.sum.table * (units[0] * units[1] / count)
        leaves, structure = jax.tree.flatten(found.sum)
        unpacked = lambda leaf, unit: leaf * _trailing(unit, leaf) / count
        return structure.unflatten(list(map(unpacked, leaves, units)))
    noisy = _noisy(config, bounds, found.sum, key, expected)
    return jax.tree.map(lambda leaf: leaf / jnp.maximum(expected, 1), noisy)


def next_bounds(
    config: PrivacyConfig, bounds: Bounds | None, found: Total, key: jax.Array, expected: jax.Array
) -> Bounds | None:
    """The bounds of the next round.

    The clip C moves towards a quantile of the norms, C exp(-rate (share whole - quantile)), by a
    count that is noised where the run has a budget (Andrew et al., NeurIPS 2021). A reach that
    somebody passed grows fourfold; one that nobody came near halves.
    """
    if bounds is None:
        return None
    clip = bounds.clip
    if config.clip_quantile:
        count, among = found.whole, found.clients
        if config.noised:
            count += COUNT_NOISE * expected * jax.random.normal(key)
            among = expected
        share = jnp.where(among > 0, count / jnp.maximum(among, 1), config.clip_quantile)
        clip = clip * jnp.exp(-CLIP_RATE * (share - config.clip_quantile))
    if not found.over:
        return bounds._replace(clip=clip)
    nobody = jnp.where(found.clients > 0, 0.5, 1.0)
    growth = lambda over, near: jnp.where(over > 0, 4.0, jnp.where(near > 0, 1.0, nobody))
    moved = [r * growth(*n) for r, *n in zip(bounds.reach, found.over, found.near, strict=True)]
    return Bounds(clip, tuple(moved))


def largest(sums: Any, addends: int, bits: int) -> int:
    """The largest integer of a client in a sum of so many."""
    factored = isinstance(sums, Factored | Product)
    return secure_sum.headroom(addends, FACTOR_BITS if factored else bits)


def sum_noise(config: PrivacyConfig, expected: Any) -> Any:
    """The multiplier of the noise on a sum of uploads: more, where a noisy count is sent as well.

    Two Gaussian releases of one sample count as one: z^-2 = sum^-2 + (2 count)^-2.
    """
    z = config.noise_multiplier
    if not config.clip_quantile:
        return z
    return (z**-2 - (2 * COUNT_NOISE * expected) ** -2) ** -0.5


def _added(uploads: Any, weights: jax.Array) -> Any:
    """sum_c weight_c upload_c in floats."""
    if isinstance(uploads, Factored):
        return jnp.einsum("c,cui,cud->id", weights, *uploads)
    if isinstance(uploads, Touched):
        return summed(uploads, weights)
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, leaf, 1), uploads)


def _integer_sum(uploads: Any, bounds: Bounds, most: int, keys: jax.Array) -> Any:
    """sum_c upload_c in integers of the bounds' units."""
    units = [reach / most for reach in bounds.reach]
    leaves, structure = jax.tree.flatten(uploads)
    integers = _integers(leaves, units, most, keys, secure_sum.spread_dither)
    if isinstance(uploads, Factored):
        left, right = (leaf.reshape(-1, leaf.shape[-1]) for leaf in integers)
        return Product(secure_sum.product_sum(left, right, most))
    return structure.unflatten([leaf.sum(0, dtype=jnp.int32) for leaf in integers])


def _bounded_sum(clip: jax.Array, uploads: Any, keys: jax.Array) -> Any:
    """sum_c upload_c in integers, each upload of a bounded norm once rounded: noise covers any."""
    leaves, structure = jax.tree.flatten(uploads)
    unit, bound = _noise_grid(clip, uploads, axes=1)
    units, dither = [unit] * len(leaves), secure_sum.independent_dither  # as the bound wants it
    rounded = _integers(leaves, units, secure_sum.LARGEST, keys, dither)
    long = norms([leaf.astype(jnp.float32) for leaf in rounded]) > bound
    # Towards zero no number grows.
    safe = [jnp.trunc(leaf / jnp.maximum(unit, 1e-30)).astype(jnp.int32) for leaf in leaves]
    kept = [jnp.where(beside(long, one), two, one) for one, two in zip(rounded, safe, strict=True)]
    return structure.unflatten([leaf.sum(0, dtype=jnp.int32) for leaf in kept])


def _noise_grid(clip: jax.Array, tree: Any, axes: int) -> tuple[jax.Array, float]:
    """The unit of uploads that noise covers and their largest norm in units, once rounded."""
    numbers = sum(math.prod(leaf.shape[axes:]) for leaf in jax.tree.leaves(tree))
    norm = FINENESS * math.sqrt(numbers)
    return clip / norm, secure_sum.rounded_norm(norm, numbers)


def _noisy(config: PrivacyConfig, bounds: Bounds, sums: Any, key: jax.Array, expected: Any) -> Any:
    """The sums with the noise that the accountant counts on, in floats."""
    multiplier = sum_noise(config, expected)
    leaves, structure = jax.tree.flatten(sums)
    if config.privacy == "central_dp":
        deviation = multiplier * bounds.clip
        covered = lambda key, leaf: leaf + deviation * jax.random.normal(key, leaf.shape)
    else:
        unit, bound = _noise_grid(bounds.clip, sums, axes=0)
        variance = secure_sum.skellam_variance(multiplier, bound)
        covered = lambda key, leaf: unit * (leaf + secure_sum.skellam(key, leaf.shape, variance))
    return structure.unflatten(list(map(covered, jax.random.split(key, len(leaves)), leaves)))


def _integers(
    leaves: list[jax.Array],
    units: list[jax.Array],
    most: int,
    keys: jax.Array,
    dither: Callable[[jax.Array, tuple[int, ...]], jax.Array],
) -> list[jax.Array]:
    """Leaves [C, ...] as integers; a client's rounding depends on its key [C] alone."""

    def one(number: int, leaf: jax.Array, unit: jax.Array) -> jax.Array:
        def client(own, key):
            drawn = dither(jax.random.fold_in(key, number), own.shape)
            return secure_sum.to_integers(own, _trailing(unit, own), most, drawn)

        return jax.vmap(client)(leaf, keys)

    return list(map(one, range(len(leaves)), leaves, units))


def _beyond(uploads: Any, bounds: Bounds, part: float) -> tuple[jax.Array, ...]:
    """How many clients have a number beyond a part of each reach."""

    def count(leaf: jax.Array, reach: jax.Array) -> jax.Array:
        size = jnp.abs(leaf).max(axis=tuple(range(1 + reach.ndim, leaf.ndim)))
        return jnp.sum(size > part * reach, axis=0, dtype=jnp.float32)

    return tuple(map(count, jax.tree.leaves(uploads), bounds.reach))


def _trailing(unit: jax.Array, leaf: jax.Array) -> jax.Array:
    """A unit, or one of each row, in a shape that broadcasts against a leaf of rows."""
    return unit.reshape(unit.shape + (1,) * (leaf.ndim - unit.ndim))

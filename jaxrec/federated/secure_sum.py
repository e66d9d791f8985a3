"""Sums that hide their addends: integers modulo 2^32, just as a secure aggregator returns them.

    x -> round(x / unit) -> masked sum modulo 2^32 -> unit * sum

Everybody knows the unit, a public number of the round, so integers of different clients add up. A
value is rounded at random, up with the chance that keeps its expectation. Masks cancel in the sum,
so a simulation adds the integers alone: int32 wraps around as arithmetic modulo 2^32 does, and the
result has the bits that the protocol (`secure_aggregation`) returns.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

LARGEST = 2**31 - 1
EXACT = 2**24  # integers up to here are exact in float32, and so are sums that stay below
GOLDEN = 0x9E3779B9  # the golden ratio's fraction phi, in units of 2^-32
NORMAL = 2.0**20  # a Skellam variable of a larger variance is a rounded normal one to float32


def headroom(addends: int, bits: int = 32) -> int:
    """The largest integer that each of so many addends may be: none of `bits`, no sum overflows."""
    return min(2 ** max(bits - 1, 1) - 1, LARGEST // max(addends, 1))


def sum_bits(addends: int, most: int) -> int:
    """Bits of a sum of so many integers in [-most, most]: what travels for each, once masked."""
    return math.ceil(math.log2(2 * most * max(addends, 1) + 1))


def to_integers(values: jax.Array, unit: jax.Array, most: int, dither: jax.Array) -> jax.Array:
    """Values f32 [...] as int32 numbers of units, rounded at random and at most `most` in size.

    Args:
      dither: uniform numbers in [0, 1) of the values' shape, from a function below.
    """
    steps = values / jnp.maximum(unit, 1e-30)
    return jnp.clip(jnp.floor(steps + dither).astype(jnp.int32), -most, most)


def spread_dither(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Uniform numbers (k + 1/2) / 2^16 of a shape from one draw: number n is frac(draw + n phi).

    Each is uniform by itself, which is all that the expectation of a sum over clients needs. The
    factors of one product need keys of their own.
    """
    places = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
    words = jax.random.bits(key, (), jnp.uint32) + places * jnp.uint32(GOLDEN)
    return ((words >> 16).astype(jnp.float32) + 0.5) / 2**16


def independent_dither(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Independent uniform numbers (k + 1/2) / 2^16 of a shape: two of each word that is drawn."""
    number = math.prod(shape)
    words = jax.random.bits(key, (-(-number // 2),), jnp.uint32)
    halves = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(-1)[:number]
    return (halves.reshape(shape).astype(jnp.float32) + 0.5) / 2**16


def product_sum(left: jax.Array, right: jax.Array, most: int) -> jax.Array:
    """sum_r left_r right_r^T, int32 [I, D], of integers [R, I] and [R, D] that are at most `most`.

    Products of floats are fast and, in pieces whose sums stay below 2^24, exact.
    """
    rows = max(1, EXACT // most**2)
    total = jnp.zeros((left.shape[1], right.shape[1]), jnp.int32)
    for at in range(0, len(left), rows):
        part = slice(at, at + rows)
        piece = jnp.matmul(
            left[part].T.astype(jnp.float32),
            right[part].astype(jnp.float32),
            precision=jax.lax.Precision.HIGHEST,
        )
        total += piece.astype(jnp.int32)
    return total


def rounded_norm(norm: float, numbers: int) -> float:
    """A bound, in units, on the norm of so many numbers of norm `norm` once rounded at random.

    It fails with a chance of 1e-9 (Kairouz, Liu and Steinke, ICML 2021, proposition 26); who is
    above it then rounds towards zero.
    """
    slack = math.sqrt(2 * math.log(1e9))
    likely = norm**2 + numbers / 4 + slack * (norm + math.sqrt(numbers) / 2)
    return min(math.sqrt(likely), norm + math.sqrt(numbers))


def skellam_variance(multiplier: float | jax.Array, sensitivity: float) -> jax.Array:
    """The variance of Skellam noise that costs no more than a Gaussian's of `multiplier`.

    With variance v, the noise on integers of L2 sensitivity d costs at most 1 + 4 / v times the
    Renyi divergence of a Gaussian of variance v (Agarwal et al., 2021, theorem 3.5, d_1 <= d_2^2).
    """
    return jnp.asarray((multiplier * sensitivity) ** 2 + 4, jnp.float32)


def skellam(key: jax.Array, shape: tuple[int, ...], variance: jax.Array) -> jax.Array:
    """Integers int32 of a shape, each the difference of two Poisson variables.

    Sums of independent ones are Skellam again, so one stands for the shares of all clients
    (Agarwal, Kairouz and Liu, NeurIPS 2021).
    """

    def exact(key):
        plus, minus = jax.random.split(key)
        half = jnp.minimum(variance, NORMAL) / 2
        draw = lambda key: jax.random.poisson(key, half, shape, jnp.int32)
        return draw(plus) - draw(minus)

    def normal(key):
        return jnp.round(jnp.sqrt(variance) * jax.random.normal(key, shape)).astype(jnp.int32)

    return jax.lax.cond(variance < NORMAL, exact, normal, key)

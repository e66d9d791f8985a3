"""Residual k-means: an item is a list of Q codes, and its vector the sum of their code vectors.

Level q clusters what the levels before it leave of the vectors. The residuals stay raw: a norm per
level would have to travel with the codes. Nothing is centred either: subtract the mean first, or
the first level spends its codes on it (and float32 distances lose the digits that it takes). The
vectors must be finite; on the device nothing checks it.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrec.types import SettingError

# Points per code that k-means learns from (as faiss does): 65,536 of 100,000 items cost 1 % of
# distortion. First centres are drawn from fewer; there more changed nothing.
POINTS, CANDIDATES = 256, 16
# Draws per first centre: 8 lower the final distortion by 2 to 9 % against 1.
TRIES = 8
# The distances of a block stay in the cache: on CPU half the time of 16,384 rows.
BLOCK = 4096


class Quantizer(NamedTuple):
    """Q codebooks of K code vectors, and the codes of the items they were fitted to."""

    codebooks: jax.Array  # f32 [Q, K, D]
    codes: jax.Array  # int32 [I, Q]


class Diagnostics(NamedTuple):
    """How well codes tell items apart and rebuild their vectors."""

    coverage: jax.Array  # share of the Q K codes that some item uses
    entropy: jax.Array  # f32 [Q]  bits
    hub: jax.Array  # share of the items that use the most used code of any level
    shared: jax.Array  # share of the items whose whole list another item has too
    unexplained: jax.Array  # residual sum of squares over that about the mean


def fit(
    vectors: jax.Array,
    key: jax.Array,
    *,
    levels: int,
    size: int,
    iterations: int = 25,
    seeds: int = 1,
    weights: jax.Array | None = None,
    block: int = BLOCK,
) -> Quantizer:
    """`levels` codebooks of `size` codes for `vectors` [I, D], the best of `seeds` whole fits.

    `weights` [I] >= 0 weigh the items; one of weight 0 has no say and is encoded all the same.
    Above 256 items a code, k-means learns from that many, drawn by weight; all are encoded.
    A code that lost its points restarts at the point farthest from its centre. Where there are
    fewer distinct vectors than codes, codes remain that no item uses: finite copies of others.
    Distances exist for `block` rows at a time.
    """
    items = vectors.shape[0]
    _check(levels, size, items)
    if seeds < 1:
        raise SettingError(f"seeds = {seeds}: set it to 1 or more, the best of them is kept")
    vectors = jnp.asarray(vectors, jnp.float32)
    weights = jnp.ones(items) if weights is None else jnp.asarray(weights, jnp.float32)
    sampling, fitting = jax.random.split(key)
    points, weights = _sample(vectors, weights, POINTS * size, sampling)

    def fit_once(key):
        def level(residual, key):
            centres = _lloyd(
                residual, weights, _seed(residual, weights, size, key), iterations, block
            )
            codes, _ = _assign(residual, centres, block)
            return residual - centres[codes], centres

        residual, codebooks = jax.lax.scan(level, points, jax.random.split(key, levels))
        return codebooks, jnp.vdot(weights, jnp.sum(residual**2, axis=1))

    codebooks, distortions = jax.vmap(fit_once)(jax.random.split(fitting, seeds))
    best = codebooks[jnp.argmin(distortions)]
    return Quantizer(best, encode(vectors, best, block=block))


def encode(vectors: jax.Array, codebooks: jax.Array, *, block: int = BLOCK) -> jax.Array:
    """Codes int32 [N, Q] of `vectors` [N, D]: level by level the nearest code to what is left."""

    chex.assert_equal_shape_suffix([vectors, codebooks], 1)

    def one(vector):
        def level(residual, centres):
            code, _ = _nearest(residual, centres)
            return residual - centres[code], code

        return jax.lax.scan(level, vector, codebooks)[1]

    return jax.lax.map(one, jnp.asarray(vectors, jnp.float32), batch_size=block)


def decode(codes: jax.Array, codebooks: jax.Array) -> jax.Array:
    """Vectors f32 [N, D]: the sum of the code vectors [Q, K, D] that `codes` [N, Q] name."""

    chex.assert_axis_dimension(codes, 1, len(codebooks))

    def level(total, choice):
        centres, code = choice
        return total + centres[code], None

    start = jnp.zeros((codes.shape[0], codebooks.shape[2]), codebooks.dtype)
    # Unrolled, XLA makes one pass of all look-ups and their sum (10 times as fast on CPU).
    return jax.lax.scan(level, start, (codebooks, codes.T), unroll=True)[0]


def refine(
    vectors: jax.Array,
    codes: jax.Array,
    size: int,
    *,
    ridge: float = 1e-3,
    weights: jax.Array | None = None,
) -> jax.Array:
    """The codebooks [Q, K, D] that rebuild `vectors` [I, D] best from `codes` [I, Q], all at once.

    Minimises sum_i w_i |x_i - sum_q C[q, codes_iq]|^2 + ridge |C|^2, `weights` w scaled to a mean
    of 1. The code vector of a code without weight is 0.
    """
    chex.assert_equal_shape_prefix([vectors, codes], 1)
    items, levels = codes.shape
    weights = jnp.ones(items) if weights is None else jnp.asarray(weights, jnp.float32)
    weights = weights * (items / jnp.maximum(jnp.sum(weights), 1e-30))
    vectors = jnp.asarray(vectors, jnp.float32) * weights[:, None]
    places = codes + size * jnp.arange(levels, dtype=codes.dtype)  # rows of [Q K, D]

    def level(_, code):
        counts = jnp.zeros((size, levels * size)).at[code[:, None], places].add(weights[:, None])
        return None, (counts, jax.ops.segment_sum(vectors, code, size))

    _, (gram, sums) = jax.lax.scan(level, None, codes.T)
    gram = gram.reshape(levels * size, -1) + ridge * jnp.eye(levels * size)
    # The levels share a constant, so a factorisation in float32 meets pivots that are rounding;
    # conjugate gradients never leave the range of the equations. With a unit diagonal most
    # eigenvalues are near 1 and some tens of products suffice.
    scale = jax.lax.rsqrt(jnp.maximum(jnp.diagonal(gram), 1e-30))[:, None]

    def product(right):
        return scale * jnp.matmul(gram, scale * right, precision="highest")

    right = scale * sums.reshape(levels * size, -1)
    found, _ = jax.scipy.sparse.linalg.cg(product, right, tol=1e-6, maxiter=200)
    return (scale * found).reshape(sums.shape)


def reexpress(
    codebooks: jax.Array,
    codes: jax.Array,
    new_codes: jax.Array,
    size: int,
    *,
    ridge: float = 1e-3,
    weights: jax.Array | None = None,
) -> jax.Array:
    """Codebooks [Q', size, D] that say in `new_codes` [I, Q'] what `codebooks` said in `codes`."""
    return refine(decode(codes, codebooks), new_codes, size, ridge=ridge, weights=weights)


def diagnostics(vectors: jax.Array, quantizer: Quantizer) -> Diagnostics:
    """What the codes [I, Q] of `quantizer` do for its `vectors` [I, D]."""
    codebooks, codes = quantizer
    items = codes.shape[0]
    counts = jax.vmap(lambda code: jnp.bincount(code, length=codebooks.shape[1]))(codes.T)
    ordered = codes[jnp.lexsort(codes.T)]
    same = jnp.all(ordered[1:] == ordered[:-1], axis=1)
    residual = vectors - decode(codes, codebooks)
    total = jnp.sum((vectors - jnp.mean(vectors, axis=0)) ** 2)
    return Diagnostics(
        coverage=jnp.mean(counts > 0),
        entropy=jnp.sum(jax.scipy.special.entr(counts / items), axis=1) / jnp.log(2),
        hub=jnp.max(counts) / items,
        shared=jnp.mean(jnp.pad(same, (0, 1)) | jnp.pad(same, (1, 0))),
        unexplained=jnp.sum(residual**2) / jnp.maximum(total, 1e-30),
    )


def _check(levels: int, size: int, items: int) -> None:
    if levels < 1:
        raise SettingError(f"levels = {levels}: an item needs at least one code, set 1 or more")
    if size < 1:
        raise SettingError(f"size = {size}: a level needs at least one code, set 1 or more")
    if size > items:
        raise SettingError(
            f"size = {size}: a code count larger than the catalogue of {items} items, "
            f"set {items} or fewer"
        )


def _sample(
    points: jax.Array, weights: jax.Array, number: int, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """`number` of `points` [N, D] and their weights, or all when there are no more than that.

    One point from each of `number` equal shares of the total weight, so that each then weighs 1.
    """
    if len(points) <= number:
        return points, weights
    rows = _pick(weights, (jnp.arange(number) + jax.random.uniform(key, (number,))) / number)
    return points[rows], jnp.sign(weights[rows])


def _pick(weights: jax.Array, shares: jax.Array) -> jax.Array:
    """For each of `shares` in [0, 1) the index at which the running sum of `weights` passes it.

    Rounding of the sum may now and then pick an index of weight 0.
    """
    mass = jnp.cumsum(weights)
    rows = jnp.searchsorted(mass, shares * mass[-1], side="right")
    return jnp.minimum(rows, len(weights) - 1)


def _seed(points: jax.Array, weights: jax.Array, size: int, key: jax.Array) -> jax.Array:
    """First centres [K, D] by greedy k-means++ (Arthur and Vassilvitskii, 2007).

    Of `TRIES` points drawn by weight times squared distance to the centres so far, the one that
    leaves the least of that sum becomes a centre.
    """
    sampling, drawing = jax.random.split(key)
    points, weights = _sample(points, weights, CANDIDATES * size, sampling)
    squares = jnp.sum(points**2, axis=1)

    def draw(distances, key):
        # The floor draws by weight alone when every point is a centre already.
        odds = weights * jnp.maximum(distances, 1e-30)
        rows = _pick(odds, jax.random.uniform(key, (TRIES,)))
        products = jnp.matmul(points[rows], points.T, precision="highest")
        apart = jnp.maximum(squares[rows, None] + squares - 2 * products, 0)
        left = jnp.minimum(distances, apart)
        best = jnp.argmin(jnp.where(weights[rows] > 0, left @ weights, jnp.inf))
        return left[best], points[rows[best]]

    far = jnp.full(len(points), 1e20)
    return jax.lax.scan(draw, far, jax.random.split(drawing, size))[1]


def _lloyd(
    points: jax.Array, weights: jax.Array, centres: jax.Array, iterations: int, block: int
) -> jax.Array:
    """`centres` [K, D] after `iterations` of Lloyd's algorithm on `points` [N, D]."""
    size = len(centres)

    def step(_, centres):
        codes, distances = _assign(points, centres, block)
        mass = jax.ops.segment_sum(weights, codes, size)
        sums = jax.ops.segment_sum(weights[:, None] * points, codes, size)
        kept = jnp.where(mass[:, None] > 0, sums / jnp.where(mass > 0, mass, 1)[:, None], centres)
        return _refill(kept, mass == 0, points, jnp.where(weights > 0, distances, 0))

    return jax.lax.fori_loop(0, iterations, step, centres)


def _refill(
    centres: jax.Array, empty: jax.Array, points: jax.Array, distances: jax.Array
) -> jax.Array:
    """`centres` [K, D], the r-th `empty` one moved to the r-th farthest point if any is far."""
    far, rows = jax.lax.top_k(distances, len(centres))
    rank = jnp.cumsum(empty) - 1
    moved = empty & (far[rank] > 0)
    return jnp.where(moved[:, None], points[rows[rank]], centres)


def _assign(points: jax.Array, centres: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
    """The nearest centre of each of `points` [N, D], int32 [N], and its squared distance [N]."""
    return jax.lax.map(lambda point: _nearest(point, centres), points, batch_size=block)


def _nearest(point: jax.Array, centres: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first of the nearest `centres` [K, D] to `point` [D], and its squared distance."""
    # The barrier keeps XLA from moving the factor behind the product, where a fused multiply-add
    # could round differently in the two passes over `distances`.
    doubled = jax.lax.optimization_barrier(-2 * centres)
    # TF32 would decide an argmin by rounding: highest precision.
    products = jnp.matmul(point, doubled.T, precision="highest")
    distances = jnp.sum(centres**2, axis=1) + products
    least = jnp.min(distances)
    # XLA's argmin is not vectorised on CPU: a second minimum takes a fifth of its time.
    numbers = jnp.arange(len(centres), dtype=jnp.int32)
    code = jnp.min(jnp.where(distances == least, numbers, len(centres) - 1))
    return code, jnp.maximum(least + jnp.sum(point**2), 0)

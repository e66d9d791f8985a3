"""Item similarity as factors: S = V diag(values) V^T, never an I x I matrix per client.

A client's similarity A_c = E_c E_c^T has rank D, so its factor says everything (and any rotation
E_c Q says the same). The server's S = sum_c w_c A_c is known through products with stacked
factors; a client aligns its table to S inside the eigenbasis of S, where a step costs
O(R^2 D + D^3) whatever I is. FedCIA (arXiv 2504.14208), section 3; the factored forms are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated import divided
from jaxrec.ops import linalg


class Similarity(NamedTuple):
    """S = vectors diag(values) vectors^T, positive semi-definite, of rank R at most."""

    vectors: jax.Array  # f32 [I, R]  orthonormal columns
    values: jax.Array  # f32 [R]     descending, >= 0


class Operator(NamedTuple):
    """A symmetric I x I matrix that is known only by what it does to thin matrices."""

    apply: Callable[[jax.Array], tuple[jax.Array, jax.Array]]  # X [I, R] -> S X, X^T S X
    trace: jax.Array
    summed: bool = False  # apply adds up over clients, who may be on other machines


def rotate(table: jax.Array, key: jax.Array) -> jax.Array:
    """E Q [I, D] for a random orthogonal Q [D, D], uniform by Haar's measure.

    (E Q)(E Q)^T = E E^T: the upload carries the similarity and hides the embedding space.
    """
    width = table.shape[1]
    normals = jnp.triu(jax.random.normal(key, (width, width), table.dtype))
    signs = jnp.where(jnp.diagonal(normals) < 0, -1.0, 1.0)

    def reflect(rotated, row):
        normal, place, sign = row
        mirror = normal + sign * jnp.linalg.norm(normal) * place
        unit = mirror / jnp.linalg.norm(mirror)
        return rotated - 2 * jnp.outer(rotated @ unit, unit), None

    # Householder reflections of shrinking dimension (Stewart, 1980) vmap as plain arithmetic.
    identity = jnp.eye(width, dtype=table.dtype)
    rotated, _ = jax.lax.scan(reflect, identity, (normals, identity, signs))
    return table @ (rotated * -signs)


def stacked(factors: Sequence[jax.Array], weights: Sequence[jax.Array]) -> Operator:
    """S = sum_c w_c X_c X_c^T as an operator; `factors` are stacks [C, I, D], `weights` [C] each.

    A client at a time, so one pass over the factors and nothing of their size is copied.
    """

    def apply(right: jax.Array) -> tuple[jax.Array, jax.Array]:
        def add(total, client):
            factor, weight = client
            inner = factor.T @ right  # [D, R]
            product, form = total
            return (product + weight * (factor @ inner), form + weight * (inner.T @ inner)), None

        rank = right.shape[1]
        total = (jnp.zeros_like(right), jnp.zeros((rank, rank), right.dtype))
        for stack, weight in zip(factors, weights, strict=True):
            total, _ = jax.lax.scan(add, total, (stack, weight))
        return total

    trace = sum(
        jnp.vdot(weight, jnp.sum(stack**2, axis=(1, 2)))
        for stack, weight in zip(factors, weights, strict=True)
    )
    return Operator(apply, jnp.asarray(trace))


def dense(matrix: jax.Array) -> Operator:
    """A symmetric matrix [I, I] as an operator."""

    def apply(right: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = matrix @ right
        return product, right.T @ product

    return Operator(apply, jnp.trace(matrix))


def add(left: Operator, right: Operator) -> Operator:
    """The sum of two operators."""

    def apply(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.tree.map(jnp.add, left.apply(vectors), right.apply(vectors))

    return Operator(apply, left.trace + right.trace)


def top_eigenpairs(
    operator: Operator, start: jax.Array, iterations: int
) -> tuple[Similarity, jax.Array]:
    """The leading R eigenpairs of a positive semi-definite operator by subspace iteration.

    `start` [I, R] is any matrix of full rank, best the last round's eigenvectors. Ends with a
    Rayleigh-Ritz step. Returns the pairs and the share of the trace (the sum of all
    eigenvalues) that they hold.
    """

    def iterate(_, basis):
        return linalg.orthonormal(operator.apply(basis)[0])

    repeat = divided.repeat if operator.summed else jax.lax.fori_loop
    basis = repeat(0, iterations, iterate, linalg.orthonormal(start))
    values, turn = linalg.eigh(operator.apply(basis)[1])
    values, turn = jnp.maximum(values[::-1], 0), turn[:, ::-1]
    return Similarity(basis @ turn, values), jnp.sum(values) / jnp.maximum(operator.trace, 1e-30)


def sketch(table: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A_c V [I, R] and the trace of A_c = E E^T, from E [I, D] and V [I, R]: both add up."""
    return table @ (table.T @ basis), jnp.sum(table**2)


def possible(sketch: jax.Array, trace: jax.Array, basis: jax.Array) -> jax.Array:
    """Which sketches [C, I, R] and traces [C] some tables may have, bool [C]; `basis` V [I, R].

    v^T A_c v is a square, ||E_c^T v||^2, and orthonormal v share a trace. A sign flip breaks both.
    """
    squares = jnp.einsum("cir,ir->cr", sketch, basis)
    slack = 1e-4 * jnp.abs(trace)
    return (squares >= -slack[:, None]).all(1) & (squares.sum(1) <= trace + slack)


def nystrom(sketch: jax.Array, basis: jax.Array) -> Similarity:
    """Eigenpairs of the Nystrom approximation Y (V^T Y)^+ Y^T of S from one sketch Y = S V.

    `sketch` Y and `basis` V are [I, R], V orthonormal. Y is a sum over clients of
    E_c (E_c^T V), so a secure sum is all the server needs (Halko, Martinsson, Tropp, 2011, 5.5).
    """
    form = basis.T @ sketch
    values, turn = linalg.eigh((form + form.T) / 2)
    floor = 1e-6 * jnp.maximum(values[-1], 0)
    inverse_root = jnp.where(values > floor, jax.lax.rsqrt(jnp.maximum(values, floor)), 0.0)
    vectors, root, _ = linalg.svd(sketch @ (turn * inverse_root))
    return Similarity(vectors, root**2)


def distance(table: jax.Array, similarity: Similarity) -> jax.Array:
    """||E E^T - S||_F for a table E [I, D], by Gram matrices: sums of squares, no cancellation."""
    inside, outside = _split(table, similarity)
    return _distance(inside, outside, similarity.values)


def _split(table: jax.Array, similarity: Similarity) -> tuple[jax.Array, jax.Array]:
    """Y = V^T E [R, D] and N = E_out^T E_out [D, D] of E = V Y + E_out.

    E^T E - Y^T Y equals N, but only to rounding of E^T E: a negative N would grow without bound.
    """
    inside = similarity.vectors.T @ table
    rest = table - similarity.vectors @ inside
    return inside, rest.T @ rest


def _distance(inside: jax.Array, outside: jax.Array, values: jax.Array) -> jax.Array:
    gap = inside @ inside.T - jnp.diag(values)
    cross = jnp.vdot(inside.T @ inside, outside)
    return jnp.sqrt(jnp.sum(gap**2) + 2 * jnp.maximum(cross, 0) + jnp.sum(outside**2))


def align(
    table: jax.Array,
    similarity: Similarity,
    *,
    steps: int,
    learning_rate: float,
    weight_decay: float = 0.0,
) -> jax.Array:
    """E [I, D] after `steps` of gradient descent on ||E E^T - S||_F + weight_decay/2 ||E||^2.

    The gradient is 2 (E E^T E - S E) / ||E E^T - S||_F. Split E = V Y + E_out: what S sees,
    Y [R, D], and the rest, which every step multiplies on the right by the same D x D matrix,
    E_out = E_out(0) A. So only Y, A and N = E_out^T E_out are iterated, independent of I.
    """
    inside, outside = _split(table, similarity)
    identity = jnp.eye(table.shape[1], dtype=table.dtype)
    # Closer than this the gradient's direction is rounding.
    floor = 1e-5 * jnp.linalg.norm(similarity.values) + 1e-30

    def step(_, carry):
        inside_now, outside_now, turn = carry
        distance = _distance(inside_now, outside_now, similarity.values)
        rate = 2 * learning_rate / jnp.maximum(distance, floor)
        gram = inside_now.T @ inside_now + outside_now
        shrink = (1 - learning_rate * weight_decay) * identity - rate * gram
        pulled = rate * similarity.values[:, None] * inside_now
        return (
            inside_now @ shrink + pulled,
            shrink @ outside_now @ shrink,
            turn @ shrink,
        )

    aligned, _, turn = jax.lax.fori_loop(0, steps, step, (inside, outside, identity))
    return table @ turn + similarity.vectors @ (aligned - inside @ turn)


def procrustes(table: jax.Array, similarity: Similarity, step: float) -> jax.Array:
    """E [I, D] moved by `step` in [0, 1] towards the minimiser of ||E E^T - S||_F nearest to it.

    The minimisers are V_D diag(values_D)^(1/2) Q for orthogonal Q [D, D] and the D leading pairs;
    Q is the orthogonal Procrustes solution, of a table of full column rank; what a column lacks
    stays lacking. Needs R >= D, else the missing columns are zero.
    """
    width = table.shape[1]
    root = similarity.vectors[:, :width] * jnp.sqrt(similarity.values[:width])  # [I, min(R, D)]
    return (1 - step) * table + step * (root @ linalg.polar(root.T @ table))

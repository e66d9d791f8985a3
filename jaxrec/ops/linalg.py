"""Decompositions that are safe under `vmap` on CPU.

XLA's CPU runtime can wait for ever when several LAPACK calls run at once on few cores (seen with
qr, svd, eigh, cholesky and lu, jax 0.10 and 0.12). Here a batch runs one matrix after another on
CPU, and `after` keeps independent batches apart; on GPU and TPU a batch stays a batch. `polar`
needs none of them: it is products alone, and a GPU takes a hundred of those in the time of one SVD.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def _one_at_a_time(decompose: Callable) -> Callable:
    def call(*arrays: jax.Array):
        if jax.default_backend() != "cpu":
            return decompose(*arrays)
        return jax.custom_batching.sequential_vmap(decompose)(*arrays)

    return call


def after(done: jax.Array, inputs: Any) -> Any:
    """`inputs` unchanged, but not to be used before `done` has been computed."""
    return jax.lax.optimization_barrier((inputs, done))[0]


def polar(matrix: jax.Array) -> jax.Array:
    """U V^T of the singular value decomposition U s V^T of `matrix` [N, R].

    Newton-Schulz iterations X <- X (3 - X^T X) / 2 with X scaled before each, as much as lets
    small singular values grow fast and no large one get small (Chen and Chow, 2014). Values below
    1e-8 of the Frobenius norm, whose directions a float32 does not know, may end below 1; a zero
    stays 0.
    """
    dot = partial(jnp.matmul, precision="highest")  # TF32 would leave three digits
    found = matrix
    for size in (lambda x: jnp.max(jnp.abs(x)), jnp.linalg.norm):  # squares alone may overflow
        found /= jnp.where(size(found) > 0, size(found), 1)
    least = 1e-8
    while least < 1 - 1e-7:
        scale = min(1.6977, math.sqrt(3 / (1 + least + least**2)))
        found *= scale
        found = 1.5 * found - 0.5 * dot(found, dot(found.T, found))
        least = min(1.0, scale * least * (3 - (scale * least) ** 2) / 2)
    return found


def _orthonormal(matrix: jax.Array) -> jax.Array:
    return jnp.linalg.qr(matrix)[0]


def _eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tuple(jnp.linalg.eigh(matrix))


def _svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return tuple(jnp.linalg.svd(matrix, full_matrices=False))


orthonormal = _one_at_a_time(_orthonormal)  # [N, R] -> Q [N, R] of its QR decomposition
eigh = _one_at_a_time(_eigh)  # symmetric [N, N] -> ascending values [N], vectors [N, N]
svd = _one_at_a_time(_svd)  # [N, R] -> thin U, s, V^T
solve = _one_at_a_time(jnp.linalg.solve)  # [N, N], [N] -> x [N] with matrix @ x = right


MOST_ITEMS = 30_000  # of a catalogue whose I x I numbers, 3.6 GB in float32, are held


def ease(gram: jax.Array, ridge: float) -> jax.Array:
    """The weights W [I, I] of zero diagonal that minimise ||R - R W||^2 + ridge ||W||^2.

    `gram` is R^T R [I, I]. In closed form (Steck, WWW 2019, eq. 8).
    """
    identity = jnp.eye(len(gram))
    factor = jax.scipy.linalg.cho_factor(gram + ridge * identity)
    inverse = jax.scipy.linalg.cho_solve(factor, identity)
    return -inverse / jnp.diagonal(inverse) * (1 - identity)

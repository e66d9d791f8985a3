"""Decompositions that are safe under `vmap` on CPU.

XLA's CPU runtime can wait for ever when several LAPACK calls run at once on few cores (seen with
qr, svd, eigh and cholesky, jax 0.10 and 0.12). Here a batch runs one matrix after another on
CPU, and `after` keeps independent batches apart; on GPU and TPU a batch stays a batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def _one_at_a_time(decompose: Callable) -> Callable:
    def call(matrix: jax.Array):
        if jax.default_backend() != "cpu":
            return decompose(matrix)
        return jax.custom_batching.sequential_vmap(decompose)(matrix)

    return call


def after(done: jax.Array, inputs: Any) -> Any:
    """`inputs` unchanged, but not to be used before `done` has been computed."""
    return jax.lax.optimization_barrier((inputs, done))[0]


def _orthonormal(matrix: jax.Array) -> jax.Array:
    return jnp.linalg.qr(matrix)[0]


def _eigh(matrix: jax.Array) -> tuple[jax.Array, jax.Array]:
    return tuple(jnp.linalg.eigh(matrix))


def _svd(matrix: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    return tuple(jnp.linalg.svd(matrix, full_matrices=False))


orthonormal = _one_at_a_time(_orthonormal)  # [N, R] -> Q [N, R] of its QR decomposition
eigh = _one_at_a_time(_eigh)  # symmetric [N, N] -> ascending values [N], vectors [N, N]
svd = _one_at_a_time(_svd)  # [N, R] -> thin U, s, V^T

"""Fold-in: a user's vector from the user's own history, the items being given.

The user's loss on J items with features F [J, D] and weights r [J] of what the user chose is

    l(x) = sum_j r_j (logsumexp(x F^T) - x f_j) + l2 / 2 ||x - prior||^2,

a softmax over all items (or a sample of them). Its Hessian is n (F^T diag(p) F - m m^T) + l2 with
n = sum r, p the user's softmax and m = F^T p. With the popularity distribution q in place of p,
the bracket is the same for everybody: one eigendecomposition serves every user, and a damped
Newton step costs two thin products. A client so needs no optimiser state and no learning rate.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrec.ops import linalg


class Curvature(NamedTuple):
    """Eigenpairs of F^T diag(q) F - m m^T, common to all users."""

    values: jax.Array  # f32 [D]
    vectors: jax.Array  # f32 [D, D]


def curvature(features: jax.Array, shares: jax.Array) -> Curvature:
    """The curvature of items with `features` F [J, D] that users meet in `shares` q [J]."""
    mean = shares @ features
    values, vectors = linalg.eigh((features.T * shares) @ features - jnp.outer(mean, mean))
    return Curvature(jnp.maximum(values, 0), vectors)


def fold_in(
    start: jax.Array,
    features: jax.Array,
    chosen: jax.Array,
    offset: jax.Array,
    prior: jax.Array,
    curvature: Curvature,
    *,
    l2: float,
    damping: float,
    steps: int,
) -> jax.Array:
    """User vectors x [U, D] after `steps` damped Newton steps from `start` [U, D].

    The loss of a user is the one at the top of this module; see there for the letters.

    Args:
      start: x to begin with, [U, D].
      features: F [J, D].
      chosen: r [U, J], how much each choice of a user counts; 0 elsewhere.
      offset: added to the scores, [J] or [U, J]: 0 over a whole catalogue, the correction of a
        sampled one, -inf for what is no rival.
      prior: [D], what x is drawn to.
      curvature: of the items, for all users.
      l2: how strongly x is drawn to `prior`.
      damping: the part of a Newton step that is taken, in (0, 1].
      steps: number of steps.
    """
    chex.assert_equal_shape_prefix([start, chosen], 1)
    chex.assert_equal_shape_suffix([start, features, prior], 1)
    weight = chosen.sum(1, keepdims=True)
    scale = 1 / (weight * curvature.values + l2)  # [U, D]

    def step(x, _):
        gradient = residual(x @ features.T + offset, chosen) @ features + l2 * (x - prior)
        return x - damping * (gradient @ curvature.vectors * scale) @ curvature.vectors.T, None

    return jax.lax.scan(step, start, length=steps)[0]


def residual(scores: jax.Array, chosen: jax.Array) -> jax.Array:
    """The gradient of a user's loss with respect to the scores: n softmax(s) - r, [U, J]."""
    return chosen.sum(1, keepdims=True) * jax.nn.softmax(scores, axis=1) - chosen


def loss(scores: jax.Array, chosen: jax.Array) -> jax.Array:
    """sum_j r_j (logsumexp(s) - s_j) of each user, [U]; a score of -inf is no rival."""
    # log_softmax shares its exponentials with the softmax of `residual`.
    weighed = chosen * jax.nn.log_softmax(scores, axis=1)
    return -jnp.sum(jnp.where(chosen > 0, weighed, 0), axis=1)

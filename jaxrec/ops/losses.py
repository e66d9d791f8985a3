"""Losses of implicit feedback, summed over interactions. All take raw scores, never probabilities.

`rows` is the 0/1 interaction matrix [U, I]; a loss over the full catalogue needs no sampled
negatives and so cannot leak which items were held out.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def softmax(scores: jax.Array, rows: jax.Array) -> jax.Array:
    """-sum_ui R_ui log softmax(s_u)_i over the full catalogue; scores and rows [U, I]."""
    log_total = jax.nn.logsumexp(scores, axis=1)
    return jnp.vdot(rows.sum(1), log_total) - jnp.vdot(rows, scores)


def weighted_square(scores: jax.Array, rows: jax.Array, *, negative_weight: float) -> jax.Array:
    """sum_ui c_ui (s_ui - R_ui)^2, c = 1 on interactions, `negative_weight` elsewhere.

    The implicit-feedback objective of Hu, Koren and Volinsky (ICDM 2008), their alpha being
    1 / negative_weight - 1 up to scale. Users without any interaction are left out.
    """
    confidence = jnp.where(rows > 0, 1.0, negative_weight) * (rows.sum(1, keepdims=True) > 0)
    return jnp.vdot(confidence, (scores - rows) ** 2)


def bpr(positive: jax.Array, negative: jax.Array, *, where: jax.Array) -> jax.Array:
    """-sum_n log sigmoid(s_n+ - s_n-) over sampled pairs [N] (Rendle et al., UAI 2009)."""
    return jnp.sum(jax.nn.softplus(negative - positive), where=where)


def elementwise_square(product: jax.Array, label: float, *, where: jax.Array) -> jax.Array:
    """sum_n mean_d (u_nd e_nd - label)^2 for products u * e [N, D].

    FedCIA's published loss for matrix factorisation: it fits every coordinate of the product,
    not the inner product. Kept for parity only.
    """
    return jnp.sum(jnp.mean((product - label) ** 2, axis=1), where=where)

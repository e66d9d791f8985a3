"""Losses of implicit feedback, summed over interactions. All take raw scores, never probabilities.

`rows` is the 0/1 interaction matrix [U, I]; a loss over the full catalogue needs no sampled
negatives and so cannot leak which items were held out.
"""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp


def softmax(scores: jax.Array, rows: jax.Array) -> jax.Array:
    """-sum_ui R_ui log softmax(s_u)_i over the full catalogue; scores and rows [U, I]."""
    chex.assert_equal_shape([scores, rows])
    log_total = jax.nn.logsumexp(scores, axis=1)
    return jnp.vdot(rows.sum(1), log_total) - jnp.vdot(rows, scores)


def weighted_square(scores: jax.Array, rows: jax.Array, *, negative_weight: float) -> jax.Array:
    """sum_ui c_ui (s_ui - R_ui)^2, c = 1 on interactions, `negative_weight` elsewhere.

    The implicit-feedback objective of Hu, Koren and Volinsky (ICDM 2008), their alpha being
    1 / negative_weight - 1 up to scale. Users without any interaction are left out.
    """
    chex.assert_equal_shape([scores, rows])
    confidence = jnp.where(rows > 0, 1.0, negative_weight) * (rows.sum(1, keepdims=True) > 0)
    return jnp.vdot(confidence, (scores - rows) ** 2)


def bpr(positive: jax.Array, negative: jax.Array, *, where: jax.Array) -> jax.Array:
    """-sum_n log sigmoid(s_n+ - s_n-) over sampled pairs [N] (Rendle et al., UAI 2009)."""
    chex.assert_equal_shape([positive, negative])
    return jnp.sum(jax.nn.softplus(negative - positive), where=where)


def elementwise_square(product: jax.Array, label: float, *, where: jax.Array) -> jax.Array:
    """sum_n mean_d (u_nd e_nd - label)^2 for products u * e [N, D].

    FedCIA's published loss for matrix factorisation: it fits every coordinate of the product,
    not the inner product. Kept for parity only.
    """
    return jnp.sum(jnp.mean((product - label) ** 2, axis=1), where=where)


def binary(positive: jax.Array, negative: jax.Array, *, where: jax.Array) -> jax.Array:
    """-sum_n log sigmoid(s_n+) + log sigmoid(-s_n-): is this the next item? Scores [N].

    SASRec's published loss, with one sampled negative for each position.
    """
    chex.assert_equal_shape([positive, negative])
    return jnp.sum(jax.nn.softplus(-positive) + jax.nn.softplus(negative), where=where)


def next_item(
    hidden: jax.Array,
    table: jax.Array,
    target: jax.Array,
    *,
    where: jax.Array,
    chunk: int | None = None,
) -> jax.Array:
    """-sum_n log softmax(h_n E^T)_{y_n} over the full catalogue, without [N, I] in memory.

    Rows go through the catalogue `chunk` at a time, and only those where `where` is True: padding
    costs nothing. The gradient of a softmax needs its own row alone, so it is taken while the
    row's scores are at hand, and nothing is computed twice: 6 N I D operations in all. It has no
    second derivative.

    Args:
      hidden: f32 [N, D].
      table: f32 [I, D].
      target: int32 [N]; any value where `where` is False.
      where: bool [N].
      chunk: rows at a time; without it, `rows_at_once`.
    """
    chex.assert_equal_shape_prefix([hidden, target, where], 1)
    chex.assert_equal_shape_suffix([hidden, table], 1)
    chunk = rows_at_once(len(table)) if chunk is None else chunk
    arrays = map(jnp.asarray, (hidden, table, target, where))
    return _next_item(*arrays, min(chunk, len(hidden)))


def rows_at_once(scores: int) -> int:
    """How many rows of so many scores a CPU's cache holds, or fill a GPU; a power of two.

    At least 32, even so: a product of fewer reads its table for longer than it computes.
    """
    room = 2**21 if jax.default_backend() == "cpu" else 2**27
    return max(32, 1 << max(room // scores, 1).bit_length() - 1)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _next_item(hidden, table, target, where, chunk):
    return _by_rows(hidden, table, target, where, chunk, gradients=False)[0]


def _next_item_forward(hidden, table, target, where, chunk):
    loss, *gradients = _by_rows(hidden, table, target, where, chunk, gradients=True)
    return loss, gradients


def _next_item_backward(chunk, gradients, scale):
    del chunk
    to_hidden, to_table = gradients
    return scale * to_hidden, scale * to_table, None, None


_next_item.defvjp(_next_item_forward, _next_item_backward)


def _by_rows(hidden, table, target, where, chunk, *, gradients):
    """The loss, and its gradients [N, D] and [I, D] if they are wanted (else zeros)."""
    size = -(-len(hidden) // chunk) * chunk
    order = jnp.nonzero(where, size=size, fill_value=len(hidden))[0]  # those that count come first
    rows = hidden.at[order].get(mode="fill", fill_value=0)
    own = target.at[order].get(mode="fill", fill_value=0)
    number = jnp.sum(where)

    def add(k, sums):
        loss, to_rows, to_table = sums
        h = jax.lax.dynamic_slice_in_dim(rows, k * chunk, chunk)
        y = jax.lax.dynamic_slice_in_dim(own, k * chunk, chunk)
        real = k * chunk + jnp.arange(chunk) < number
        scores = h @ table.T  # [chunk, I]
        top = scores.max(1)
        part = jnp.exp(scores - top[:, None])
        total = part.sum(1)
        ahead = jnp.log(total) + top - jnp.take_along_axis(scores, y[:, None], 1)[:, 0]
        loss += jnp.sum(ahead, where=real)
        if gradients:
            share = (real / total)[:, None]  # of the narrow factors: one pass less over the scores
            to_h = share * (part @ table) - real[:, None] * table[y]
            to_rows = jax.lax.dynamic_update_slice_in_dim(to_rows, to_h, k * chunk, 0)
            to_table += (share * h).T @ part  # [D, I]: no turning of the scores
        return loss, to_rows, to_table

    zeros = jnp.zeros((), hidden.dtype), jnp.zeros_like(rows), jnp.zeros_like(table.T)
    loss, to_rows, to_table = jax.lax.fori_loop(0, -(-number // chunk), add, zeros)
    if not gradients:
        return loss, None, None
    to_table = to_table.T.at[own].add(-rows)  # a row of padding is 0
    to_hidden = jnp.zeros_like(hidden).at[order].set(to_rows, mode="drop")
    return loss, to_hidden, to_table

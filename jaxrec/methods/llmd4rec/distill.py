"""Distillation between two recommenders over one catalogue: each learns the other's softmax.

    z = h E^T, t = the teacher's [I] scores of a place,  r = 1 + #{i : score_i > score_target}
    KD = w T^2 KL(softmax(t / T) || softmax(z / T))

with a weight w in [0, 2] that grows with how much better the teacher ranks the place's target
(LLMD4Rec, arXiv 2505.18120). A teacher is known by its vectors [N, D], never by its scores: those
are made again, some rows at a time, beside the student's. Nothing here has a gradient to the
teacher, the ranks or the weights.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrec.ops.losses import rows_at_once


class Learnt(NamedTuple):
    """What `learn` finds; sums are over the places that count, and the others hold 0."""

    loss: jax.Array  # f32 []  cross * sum CE + share * sum KD: all that has a gradient
    cross: jax.Array  # f32 []  sum CE
    distilled: jax.Array  # f32 []  sum KD, weighted
    student: jax.Array  # int32 [N]  rank of the target
    teacher: jax.Array  # int32 [N]
    weight: jax.Array  # f32 [N]


def ranks(scores: jax.Array, target: jax.Array) -> jax.Array:
    """1 + how many of scores f32 [..., I] are strictly above that of `target` int32 [...]."""
    own = jnp.take_along_axis(scores, target[..., None], axis=-1)
    return 1 + jnp.sum(scores > own, axis=-1, dtype=jnp.int32)


def weights(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """How much a student minds its teacher, f32 [...] from 0 to 2, by ranks int32 [...] from 1.

    With s and t the two ranks: clip(1 + (s - t) / t, 0, 2) where s > t, else
    clip(1 - (t - s) / s, 0, 2). Exchanged, they add up to 2; a tie gives 1; once one rank is
    twice the other, the weight is 0 or 2.
    """
    excess = (student - teacher) / jnp.maximum(jnp.minimum(student, teacher), 1)
    return jnp.clip(1 + excess, 0, 2).astype(jnp.float32)


def learn(
    hidden: jax.Array,
    table: jax.Array,
    teacher: jax.Array,
    teacher_table: jax.Array,
    target: jax.Array,
    *,
    where: jax.Array,
    weight: jax.Array | None = None,
    cross: float = 1.0,
    share: float = 1.0,
    temperature: float = 1.0,
    chunk: int | None = None,
) -> Learnt:
    """cross * CE + share * KD over the full catalogue, summed, with the ranks that weigh KD.

    As in `losses.next_item`, the gradient is taken while a row's scores are at hand: three
    products with the student's table and one with the teacher's in all. No second derivative.

    Args:
      hidden: f32 [N, D] of the student, `table` f32 [I, D].
      teacher: f32 [N, D'], `teacher_table` f32 [I, D'].
      target: int32 [N]; any value where `where` is False.
      where: bool [N], the places that count.
      weight: f32 [N] of KD; without it, `weights` of the ranks of this pass.
      cross, share: factors of the two losses.
      temperature: T of both softmaxes of KD.
      chunk: rows at a time; without it, `rows_at_once`.
    """
    chunk = rows_at_once(2 * len(table)) if chunk is None else chunk
    arrays = tuple(map(jnp.asarray, (hidden, table, teacher, teacher_table, target, where)))
    chex.assert_rank(arrays, [2, 2, 2, 2, 1, 1])
    chex.assert_equal_shape_prefix([arrays[k] for k in (0, 2, 4, 5)], 1)  # N places
    chex.assert_equal_shape_prefix([arrays[k] for k in (1, 3)], 1)  # I items
    weight = None if weight is None else jnp.asarray(weight)
    settings = float(cross), float(share), float(temperature), min(chunk, len(hidden))
    return _learn(*arrays, weight, settings)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _learn(hidden, table, teacher, teacher_table, target, where, weight, settings):
    arrays = hidden, table, teacher, teacher_table, target, where, weight
    return _by_rows(*arrays, settings, gradients=False)[0]


def _learn_forward(hidden, table, teacher, teacher_table, target, where, weight, settings):
    arrays = hidden, table, teacher, teacher_table, target, where, weight
    learnt, *gradients = _by_rows(*arrays, settings, gradients=True)
    return learnt, gradients


def _learn_backward(settings, gradients, scale):
    del settings
    to_hidden, to_table = gradients
    return scale.loss * to_hidden, scale.loss * to_table, *(None,) * 5


_learn.defvjp(_learn_forward, _learn_backward)


def _by_rows(hidden, table, teacher, teacher_table, target, where, weight, settings, *, gradients):
    """What is learnt, and the loss's gradients [N, D] and [I, D] if they are wanted."""
    cross, share, heat, chunk = settings
    places = len(hidden)
    size = -(-places // chunk) * chunk
    order = jnp.nonzero(where, size=size, fill_value=places)[0]  # those that count come first
    pick = lambda array: array.at[order].get(mode="fill", fill_value=0)
    rows, taught, own = map(pick, (hidden, teacher, target))
    given = None if weight is None else pick(weight)
    number = jnp.sum(where)

    def add(k, sums):
        crossed, distilled, notes, to_rows, to_table = sums
        cut = lambda array: jax.lax.dynamic_slice_in_dim(array, k * chunk, chunk)
        h, y = cut(rows), cut(own)
        real = k * chunk + jnp.arange(chunk) < number
        scores, theirs = h @ table.T, cut(taught) @ teacher_table.T  # [chunk, I]
        rank, better = ranks(scores, y), ranks(theirs, y)
        w = weights(rank, better) if given is None else cut(given)
        w = jnp.where(real, w, 0)
        log = jax.nn.log_softmax(scores)
        soft, goal = jax.nn.log_softmax(scores / heat), jax.nn.log_softmax(theirs / heat)
        crossed -= jnp.sum(jnp.take_along_axis(log, y[:, None], 1)[:, 0], where=real)
        distilled += heat**2 * jnp.vdot(w, jnp.sum(jnp.exp(goal) * (goal - soft), axis=1))
        put = lambda array, part: jax.lax.dynamic_update_slice_in_dim(array, part, k * chunk, 0)
        notes = tuple(map(put, notes, (rank, better, w)))
        if gradients:
            part = (share * heat * w)[:, None] * (jnp.exp(soft) - jnp.exp(goal))
            part += (cross * real)[:, None] * jnp.exp(log)  # but for the target, below
            to_rows = put(to_rows, part @ table - (cross * real)[:, None] * table[y])
            to_table += h.T @ part  # [D, I]: no turning of the scores
        return crossed, distilled, notes, to_rows, to_table

    zero = jnp.zeros((), hidden.dtype)
    notes = (jnp.zeros(size, jnp.int32),) * 2 + (jnp.zeros(size, jnp.float32),)
    sums = zero, zero, notes, jnp.zeros_like(rows), jnp.zeros_like(table.T)
    sums = jax.lax.fori_loop(0, -(-number // chunk), add, sums)
    crossed, distilled, notes, to_rows, to_table = sums
    kept = jnp.arange(size) < number
    back = lambda note: (
        jnp.zeros(places, note.dtype).at[order].set(jnp.where(kept, note, 0), mode="drop")
    )
    loss = cross * crossed + share * distilled
    learnt = Learnt(loss, crossed, distilled, *map(back, notes))
    if not gradients:
        return learnt, None, None
    to_table = to_table.T.at[own].add(-cross * rows)  # a row of padding is 0
    to_hidden = jnp.zeros_like(hidden).at[order].set(to_rows, mode="drop")
    return learnt, to_hidden, to_table

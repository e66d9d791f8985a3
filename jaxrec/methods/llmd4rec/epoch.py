"""One epoch of a model, alone or beside a teacher that does not change meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.data.rows import Rows, fill_rows, newest_spans
from jaxrec.methods.llmd4rec import distill
from jaxrec.ops import losses
from jaxrec.types import History


class Metrics(NamedTuple):
    """Means over the places of the epoch; 0 but for `phase` and `loss` where nobody teaches."""

    phase: jax.Array  # int32 []  0: C alone, 1: L learns, 2: C learns, 3: neither
    loss: jax.Array  # cross-entropy of the model that learns
    distilled: jax.Array  # KD, weighted
    rank_student: jax.Array
    rank_teacher: jax.Array
    weights: jax.Array  # f32 [5]  share of the weights 0, below 1, 1, above 1, 2


class Recommender(NamedTuple):
    """One of the two models, as functions of its parameters."""

    hidden: Callable  # (params, rows, key | None) -> f32 [B, L, D]
    table: Callable  # params -> f32 [I, D]
    width: int  # D
    optimizer: optax.GradientTransformation


class Teacher(NamedTuple):
    """What a student learns from, the same for a whole phase."""

    vectors: jax.Array  # f32 [R, at least D']  after each row of the history; 0 behind D'
    table: jax.Array  # f32 [I, D']
    weight: jax.Array | None  # f32 [R] of KD; None: by the ranks of the pass that trains
    share: float  # factor of KD
    temperature: float


class Layout(NamedTuple):
    """How histories are laid into the rows of batches."""

    users: int
    items: int
    length: int
    rows: int  # of a batch

    def fill(self, past: History, order: jax.Array) -> tuple[Rows, jax.Array]:
        """Rows of all places that are trained on, the users in `order`; how many rows are used."""
        return fill_rows(
            past, order, items=self.items, length=self.length, ahead=1, multiple=self.rows
        )  # fmt: skip


def train_epoch(
    layout: Layout,
    student: Recommender,
    params: Any,
    moments: Any,
    teacher: Teacher | None,
    past: History,
    phase: int,
    key: jax.Array,
) -> tuple[Any, Any, Metrics]:
    """The student's parameters and moments after an epoch, beside nobody where `teacher` is None.

    Users come in random order; every batch is one step of the student's optimizer.
    """
    order_key, key = jax.random.split(key)
    laid, used = layout.fill(past, jax.random.permutation(order_key, layout.users))
    gradient_of = jax.grad(partial(_loss, layout, student, teacher, past), has_aux=True)

    def advance(number, carry):
        params, moments, sums, count = carry
        batch, batch_key = laid.batch(number, layout.rows), jax.random.fold_in(key, number)
        gradient, part = gradient_of(params, batch, batch_key)
        updates, moments = student.optimizer.update(gradient, moments, params)
        count += jnp.sum(batch.item < layout.items)
        return optax.apply_updates(params, updates), moments, sums + part, count

    start = params, moments, jnp.zeros(9), jnp.int32(0)
    params, moments, sums, count = jax.lax.fori_loop(0, -(-used // layout.rows), advance, start)
    means = sums / jnp.maximum(count, 1)
    return (
        params,
        moments,
        Metrics(jnp.int32(phase), means[0], means[1], means[2], means[3], means[4:]),
    )


def _loss(layout, student, teacher, past, params, batch: Rows, key):
    """A batch's loss, a mean over its places, and the sums f32 [9] that `Metrics` are means of."""
    drop_key, _ = jax.random.split(key)  # as `sequential` draws
    hidden = student.hidden(params, batch, drop_key).reshape(-1, student.width)
    target, where = batch.target.ravel(), batch.item.ravel() < layout.items
    number = jnp.maximum(jnp.sum(where), 1)
    if teacher is None:
        total = losses.next_item(hidden, student.table(params), target, where=where)
        return total / number, jnp.append(total, jnp.zeros(8))
    slot = history_rows(batch, past, layout.length).ravel()
    pick = lambda array: array.at[slot].get(mode="fill", fill_value=0)
    learnt = distill.learn(
        hidden,
        student.table(params),
        pick(teacher.vectors)[:, : teacher.table.shape[1]],
        teacher.table,
        target,
        where=where,
        weight=None if teacher.weight is None else pick(teacher.weight),
        share=teacher.share,
        temperature=teacher.temperature,
    )
    return learnt.loss / number, _sums(learnt, where)


def _sums(learnt: distill.Learnt, where: jax.Array) -> jax.Array:
    """Cross-entropy, KD, both ranks and the five kinds of weights, f32 [9], summed over `where`."""
    w = learnt.weight[:, None]
    inner = (w > 0) & (w < 2)
    kinds = [w <= 0, inner & (w < 1), w == 1, inner & (w > 1), w >= 2]
    sums = (
        learnt.cross, learnt.distilled, learnt.student.sum(), learnt.teacher.sum(),
        *jnp.sum(jnp.concatenate(kinds, 1) & where[:, None], axis=0),
    )  # fmt: skip
    return jnp.stack([jnp.float32(each) for each in sums])


def vectors_of_rows(layout: Layout, model: Recommender, params: Any, past: History) -> jax.Array:
    """A model's vectors f32 [R, D] after each row of the history that is trained on; else 0."""
    laid, used = layout.fill(past, jnp.arange(layout.users))

    def note(number, kept):
        batch = laid.batch(number, layout.rows)
        slot = history_rows(batch, past, layout.length)
        return kept.at[slot].set(model.hidden(params, batch, None), mode="drop")

    start = jnp.zeros((len(past.item), model.width))
    return jax.lax.fori_loop(0, -(-used // layout.rows), note, start)


def weights_of_rows(
    student: tuple[jax.Array, jax.Array],
    teacher: tuple[jax.Array, jax.Array],
    past: History,
    length: int,
) -> jax.Array:
    """KD's weights f32 [R] by the ranks of two models, each as vectors [R, D] and table [I, D]."""
    target = jnp.append(past.item[1:], 0)
    where = jnp.zeros(len(target), bool).at[_trained_rows(past, length)].set(True, mode="drop")
    return distill.learn(*student, *teacher, target, where=where).weight


def history_rows(rows: Rows, past: History, length: int) -> jax.Array:
    """int32 [B, L], the row of the history that a place is; R for padding."""
    first, _ = newest_spans(past, length, ahead=1)
    return first.at[rows.user].get(mode="fill", fill_value=len(past.item)) + rows.position


def _trained_rows(past: History, length: int) -> jax.Array:
    """The rows of the history that are trained on, int32 [R]; R for the others."""
    at = jnp.arange(len(past.item))
    first, _ = newest_spans(past, length, ahead=1)
    within = at - first[past.user]
    final = past.start[1:][past.user] - 1  # the user's newest, which has no next one
    return jnp.where((within >= 0) & (at < final), at, len(past.item))

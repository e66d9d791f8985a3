"""Rank by counting: a target's rank is one more than the number of scores at least as high.

No sort and no array of shape [B, T, I]. A tie never helps: every rival that scores as
high as a target stands before it. All functions are pure and, but for `exposure`, take any leading
batch axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

NEVER = np.iinfo(np.int32).max  # the rank of a padding target: beyond every cut-off
AT_K = ("NDCG", "Recall", "HR", "Precision", "F1", "MAP")  # the metrics that have a cut-off


def ranks(
    scores: jax.Array, targets: jax.Array, target_mask: jax.Array, excluded: jax.Array
) -> jax.Array:
    """Rank of each target among the items that are not excluded; the best is 1.

    Rivals with an equal score stand before a target; targets with an equal score stand in the
    order of `targets`. A target takes part even where `excluded` says otherwise.

    Args:
      scores: f32 [..., I], without NaN.
      targets: int32 [..., T], distinct where the mask is True.
      target_mask: bool [..., T].
      excluded: bool [..., I], items that take no part.

    Returns:
      int32 [..., T], `NEVER` where the mask is False.
    """
    chex.assert_equal_shape([scores, excluded])
    chex.assert_equal_shape([targets, target_mask])
    chex.assert_equal_shape_prefix([scores, targets], scores.ndim - 1)
    slot = jnp.where(target_mask, targets, scores.shape[-1])
    own = jnp.take_along_axis(scores, slot, axis=-1, mode="fill", fill_value=jnp.nan)
    part = jnp.where(excluded, jnp.nan, scores)  # NaN is at least as high as nothing
    part = jnp.put_along_axis(part, slot, own, axis=-1, inplace=False, mode="drop")
    level = _count(_slices(part, jnp.nan) >= own[..., None, None])  # targets that tie share it
    place = jnp.arange(targets.shape[-1])
    ties = _slices(level, 0) == level[..., None, None]
    later = _slices(place, 0) > place[:, None, None]
    return jnp.where(target_mask, level - _count(ties & later), NEVER)


def _slices(values: jax.Array, fill: float) -> jax.Array:
    """[..., N] padded with `fill` and cut into sixteen: [..., 1, 16, N/16]."""
    padding = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % 16)]
    padded = jnp.pad(values, padding, constant_values=fill)
    return padded.reshape(*values.shape[:-1], 1, 16, -1)


def _count(true: jax.Array) -> jax.Array:
    """How many of bool [..., 16, N/16] are True: int32 [...]."""
    # Into bytes, lane by lane, before the lanes are summed: of this form, not of one plain sum, XLA
    # makes vector code on CPU (10 to 20 times as fast).
    return jnp.sum(jnp.sum(true, axis=-2, dtype=jnp.uint8), axis=-1, dtype=jnp.int32)


def mark(index: jax.Array, size: int) -> jax.Array:
    """bool [..., size], True at `index` int32 [..., N]; indices from `size` up are ignored."""
    marks = jnp.zeros((*index.shape[:-1], size), bool)
    return jnp.put_along_axis(marks, index, True, axis=-1, inplace=False, mode="drop")


class Places(NamedTuple):
    """What metrics need of a user's ranks; its shapes do not depend on the number of targets."""

    hit: jax.Array  # bool [..., k]: does a target stand in this place?
    number: jax.Array  # int32 [...]: of targets
    first: jax.Array  # int32 [...]: the best rank, `NEVER` without targets


def places(ranks: jax.Array, k: int) -> Places:
    """The first k places by ranks int32 [..., T], distinct but for `NEVER`, which is padding."""
    number = jnp.sum(ranks < NEVER, axis=-1, dtype=jnp.int32)
    return Places(mark(ranks - 1, k), number, jnp.min(ranks, axis=-1))


def metrics(places: Places, ks: Sequence[int]) -> dict[str, jax.Array]:
    """The metrics of each user.

    With n targets, h of them in the first k places, and ranks r_1 < r_2 < ...:
      Recall = h / n,  Precision = h / k,  F1 = 2 h / (n + k),  HR = [h > 0],
      NDCG = sum_{j <= h} 1 / log2(1 + r_j)  /  sum_{j <= min(n, k)} 1 / log2(1 + j),
      MAP = sum_{j <= h} (j / r_j) / min(n, k),  MRR = 1 / r_1, without a cut-off.

    Args:
      places: from `places` with a k of at least the largest cut-off.
      ks: cut-offs.

    Returns:
      f32 [...] for each of `AT_K` at each k ("NDCG@10") and "MRR"; all 0 without targets.
    """
    cuts = np.asarray(ks)
    place = np.arange(1, cuts.max() + 1)
    gain = (1 / np.log2(1 + place)).astype(np.float32)
    ideal = jnp.asarray(np.cumsum(gain))
    within = (place[:, None] <= cuts).astype(np.float32)  # [k, K]
    before = (place[:, None] <= place).astype(np.float32)  # [k, k]

    hit = places.hit[..., : len(place)].astype(jnp.float32)
    hits = _dot(hit, within)  # [..., K]
    number = places.number[..., None]
    full = jnp.clip(number, 1, cuts)
    table = {
        "NDCG": _dot(hit * gain, within) / ideal[full - 1],
        "Recall": hits / jnp.maximum(number, 1),
        "HR": (hits > 0).astype(jnp.float32),
        "Precision": hits / cuts,
        "F1": 2 * hits / (number + cuts),
        "MAP": _dot(hit * _dot(hit, before) / place, within) / full,
    }
    values = {f"{name}@{k}": table[name][..., i] for name in AT_K for i, k in enumerate(ks)}
    return values | {"MRR": jnp.where(places.number > 0, 1 / places.first, 0)}


def _dot(a: jax.Array, b: np.ndarray) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")  # TF32 would cost NDCG its last digits


def top(scores: jax.Array, excluded: jax.Array, k: int) -> jax.Array:
    """The best items of each user, from scores f32 [..., I] and excluded bool [..., I].

    int32 [..., min(k, I)], best first, of equal ones the lowest id first; I once all are excluded.
    """
    chex.assert_equal_shape([scores, excluded])
    items, least = scores.shape[-1], jnp.finfo(scores.dtype).min  # of those that are not excluded
    _, best = jax.lax.top_k(
        jnp.where(excluded, -jnp.inf, jnp.maximum(scores, least)), min(k, items)
    )
    return jnp.where(jnp.take_along_axis(excluded, best, axis=-1), items, best)


def exposure(lists: jax.Array, items: int, ks: Sequence[int]) -> jax.Array:
    """How many users see each item in the first k of their list: int32 [K, I].

    `lists` int32 [U, k] is from `top`; an id from `items` up is nothing shown.
    """
    count = lambda k: jnp.zeros(items, jnp.int32).at[lists[:, :k]].add(1, mode="drop")
    return jnp.stack([count(k) for k in ks])


def coverage(counts: jax.Array) -> jax.Array:
    """Share of the items that anybody sees, f32 [...], from `exposure` counts int32 [..., I]."""
    return jnp.mean(counts > 0, axis=-1)


def gini(counts: jax.Array) -> jax.Array:
    """Gini index f32 [...] of `exposure` counts int32 [..., I].

    With x_1 <= ... <= x_I: G = sum_i (2 i - I - 1) x_i / (I sum_i x_i). It is 0 when every item is
    seen equally often and 1 - 1/I when only one is.
    """
    items = counts.shape[-1]
    slope = 2 * jnp.arange(1, items + 1, dtype=jnp.float32) - items - 1
    total = jnp.maximum(jnp.sum(counts, axis=-1, keepdims=True), 1)
    return jnp.sum(slope * (jnp.sort(counts, axis=-1) / total), axis=-1) / items

"""Collaborative item vectors without collaborative data: subspace iteration by secure sums.

With Z_u [n, I] the rows of user u in order of time and K_u[a, b] = exp(-|a - b| / window) between
the a-th and the b-th, each row and column of K_u divided by the root of its sum, the operator is

    A = D^-1/2 (sum_u Z_u^T K_u Z_u) D^-1/2,       D = diag(item counts) + shrinkage x their mean.

With window = 0 all pairs of a user's rows count alike: A = N^T N with N = D_u^-1/2 R D_i^-1/2.
Without shrinkage the leading eigenvectors are spent on a few rare items of a few users (Amini et
al., Pseudo-likelihood methods for community detection, 2013, add to D for the same reason). A pass
sends a basis [I, R] down; every client applies its own part of A to it; the server sees the sum
alone. Item vectors are the leading eigenvectors but for the first, which is popularity, times the
root of their eigenvalues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.federated import codecs
from jaxrec.federated.divided import repeat, sum_over_clients
from jaxrec.federated.local import row_weights
from jaxrec.models.collaborative import inverse_root
from jaxrec.ops import linalg
from jaxrec.types import Clients, Data, SettingError


class Upload(NamedTuple):
    """One array [I, ...] a client, by its rows that are not zero; equal ids add up."""

    item: jax.Array  # int32 [C, N]
    rows: jax.Array  # f32 [C, N, ...]


STEPS = 128  # of a row's weight
DEVIATIONS = {8: 4.0, 32: 64.0}  # that the largest integer of so many bits is

SecureSum = Callable[[Sequence[Upload], int], jax.Array]


def plain_sum(uploads: Sequence[Upload], items: int) -> jax.Array:
    """sum_c upload_c, [I, ...]: all that a secure aggregator lets the server see."""
    rows = uploads[0].rows
    total = jnp.zeros((items, *rows.shape[2:]), rows.dtype)
    for item, rows in uploads:
        total = total.at[item].add(rows)
    return sum_over_clients(total)


def item_counts(data: Data, items: int, secure_sum: SecureSum = plain_sum) -> jax.Array:
    """Train rows of each item, [I]."""
    uploads = [Upload(c.item, c.mask.astype(jnp.float32)) for c in data.clients]
    return secure_sum(uploads, items)


def recent_counts(
    data: Data, counts: jax.Array, recency: float, secure_sum: SecureSum = plain_sum
) -> jax.Array:
    """How often each item was chosen, [I], where a row with n newer ones of its user counts
    1 / (1 + n / recency); as `counts` [I] where recency is 0.

    What users chose last tells what they choose next: an item that was popular once counts less.
    A row is sent in steps of 1 / `STEPS`, so that uploads are integers that add up.
    """
    if not recency:
        return counts
    steps = lambda clients: jnp.round(STEPS * row_weights(clients, recency))
    uploads = [Upload(clients.item, steps(clients)) for clients in data.clients]
    return secure_sum(uploads, len(counts)) / STEPS


def item_vectors(
    data: Data,
    counts: jax.Array,
    key: jax.Array,
    *,
    width: int,
    window: float = 0.0,
    shrinkage: float = 0.0,
    passes: int = 3,
    participation: float = 1.0,
    bits: int = 32,
    start: jax.Array | None = None,
    largest: int | None = None,
    secure_sum: SecureSum = plain_sum,
) -> jax.Array:
    """Item vectors f32 [I, `width`], of variance 1; zero for items without train rows.

    Args:
      counts: [I], public, from `item_counts`.
      window: how many rows apart two rows of a user still belong together; 0: any.
      shrinkage: what is added to the counts in D, as a multiple of the mean count.
      passes: secure sums of an array [I, `width` + 1].
      participation: a client's chance to be in a pass.
      bits: of a number: 32, or 8 (up: each user's rows on a public scale, rounded at random, so
        that uploads are integers that add up; down: on a scale for each item).
      start: [I, `width`], vectors to start from, such as those learned so far.
      largest: the largest integer that a user sends; None: 127 of 8 bits, and floats of 32.

    Raises SettingError for a `window` where the order of a user's rows is unknown.
    """
    items = len(counts)
    most = 127 if bits == 8 else largest
    known = counts > 0
    mean = counts.sum() / jnp.maximum(known.sum(), 1)
    scaling = inverse_root(jnp.where(known, counts + shrinkage * mean, 0))[:, None]
    key_start, key = jax.random.split(key)
    basis = jax.random.normal(key_start, (items, width + 1))
    if start is not None:  # the first eigenvector is near D^1/2, whatever the data
        basis = jnp.concatenate([jnp.ones((items, 1)), start], axis=1) * jnp.sqrt(counts)[:, None]
    basis = jnp.where(known[:, None], basis, 0)
    own = [jax.vmap(_own_rows, (0, None))(clients, window) for clients in data.clients]
    members = [clients.client for clients in data.clients]
    ends = np.cumsum([len(client) for client in members])[:-1]

    def multiply(basis: jax.Array, number: jax.Array) -> jax.Array:
        right = codecs.round_trip(scaling * basis, "int8" if bits == 8 else "float32")
        # Every client knows this unit: the largest integer is some deviations of what they meet.
        reach = DEVIATIONS[bits] * jnp.sqrt(counts @ right**2 / jnp.maximum(counts.sum(), 1))
        unit = jnp.maximum(reach / (most or 1), 1e-30)
        # Drawn bucket by bucket, each draw would be one more to compile.
        fold = jax.vmap(jax.random.fold_in, (None, 0))
        keys = fold(jax.random.fold_in(key, number), jnp.concatenate(members))
        of_choice, of_rounding = jax.vmap(jax.random.split, out_axes=1)(keys)
        chosen = jax.vmap(partial(jax.random.bernoulli, p=participation))(of_choice)

        def upload(users: int, own: OwnRows, chosen: jax.Array, key: jax.Array) -> Upload:
            rows = _smoothed(own, right[own.item], users)
            if most is not None:
                noise = jax.random.uniform(key, rows.shape)
                steps = jnp.floor(rows / unit + noise).astype(jnp.int32)
                rows = jnp.clip(steps, -most, most)
            return Upload(own.item, jnp.where(chosen & own.mask[:, None], rows, 0))

        drawn = zip(jnp.split(chosen, ends), jnp.split(of_rounding, ends), strict=True)
        uploads = [
            jax.vmap(partial(upload, clients.users.shape[-1]))(rows, *each)
            for clients, rows, each in zip(data.clients, own, drawn, strict=True)
        ]
        return scaling * (secure_sum(uploads, items) * (1.0 if most is None else unit))

    def iterate(number, pair):
        basis = linalg.orthonormal(pair[1])
        return basis, multiply(basis, number)

    basis, product = repeat(0, passes, iterate, (basis, basis))
    form = basis.T @ product
    values, turn = linalg.eigh((form + form.T) / 2)
    vectors = basis @ (turn * jnp.sqrt(jnp.maximum(values, 0)))[:, ::-1][:, 1:]
    return of_variance_one(vectors, counts)


def of_variance_one(vectors: jax.Array, counts: jax.Array) -> jax.Array:
    """`vectors` [I, D] scaled so that over train rows their squared distance to the mean is 1.

    The curvature of a user's loss in these vectors then has a trace near 1 a row, whatever the
    data, so one penalty fits.
    """
    shares = counts / jnp.maximum(counts.sum(), 1e-30)
    apart = vectors - shares @ vectors
    return vectors * jax.lax.rsqrt(jnp.maximum(shares @ jnp.sum(apart**2, axis=1), 1e-30))


class OwnRows(NamedTuple):
    """One client's rows; with a window user by user, in order of time."""

    item: jax.Array  # int32 [N]
    user: jax.Array  # int32 [N]
    mask: jax.Array  # bool [N]
    root: jax.Array  # f32 [N]  (row sum of K)^-1/2
    decay: jax.Array | None = None  # f32 [N]  K between a row and the one before; 0 at the first


def _own_rows(clients: Clients, window: float) -> OwnRows:
    if window and clients.age is None:
        raise SettingError(
            f"window = {window}: the data have no timestamps, so the order of a user's rows is "
            "unknown; set window = 0"
        )
    user, item, mask, decay = clients.user, clients.item, clients.mask, None
    if window:
        assert clients.age is not None
        order = jnp.lexsort((-clients.age, user, ~mask))
        user, item, mask = user[order], item[order], mask[order]
        same = jnp.concatenate([jnp.zeros(1, bool), (user[1:] == user[:-1]) & mask[1:]])
        decay = jnp.where(same, jnp.exp(-1 / window), 0.0)
    own = OwnRows(item, user, mask, jnp.ones(len(user)), decay)
    ones = jnp.ones((len(user), 1))
    return own._replace(root=inverse_root(_smoothed(own, ones, len(clients.users))[:, 0]))


def _smoothed(own: OwnRows, rows: jax.Array, users: int) -> jax.Array:
    """K rows for rows [N, R] of so many users, in O(N R).

    Without a window it is a user's sum; exp(-|a - b| / window) is a recurrence either way.
    """
    rows = own.root[:, None] * jnp.where(own.mask[:, None], rows, 0)
    if own.decay is None:
        sums = jnp.zeros((users, rows.shape[1])).at[own.user].add(rows)
        return own.root[:, None] * sums[own.user]

    def follow(reached, step):
        row, decay = step
        return (reached := row + decay * reached), reached

    nothing = jnp.zeros_like(rows[0])
    later = jnp.append(own.decay[1:], 0)
    _, before = jax.lax.scan(follow, nothing, (rows, own.decay))
    _, after = jax.lax.scan(follow, nothing, (rows, later), reverse=True)
    return own.root[:, None] * (before + after - rows)

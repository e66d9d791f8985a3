"""Noisy sums over users, each of whom is a unit vector: what is popular, and what goes together.

    c = sum_u x_u / sqrt(n_u)                                  [I]
    M = sum_u y_u y_u^T,    y_u = W Q^T x_u / |W Q^T x_u|      [r, r]

x_u is user u's row of zeros and n_u ones, Q [I, r] are orthonormal directions and W halves the
first of them, which everybody shares. One user more or less changes c by a vector of length at most
1, and M by one of Frobenius norm at most 1, so Gaussian noise of a known size covers both; of M's
symmetric noise the diagonal has twice the variance. Noise of M is in r (r + 1) / 2 numbers in place
of I (I + 1) / 2. Q is made of c and of the public texts of the items:

    sqrt(c), the left singular vectors of diag(sqrt(c)) V with V [I, T] the texts' centred vectors,
    and the unit vectors of the items with the largest c, each orthogonal to those before it.

A client adds up its own users, so the guarantee is each user's, whoever the clients are.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated import secure_sum
from jaxrec.federated.divided import sum_over_clients
from jaxrec.federated.local import dense_rows
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.federated.private_mean import in_integers
from jaxrec.ops import linalg
from jaxrec.types import Clients, Data, DataError

NUMBERS = 2**25  # of clients' rows that are dense at a time
HALVED = 0.5  # W of the first direction
FINE, COARSE = 2**12, 2**9  # most units in 1
FLOOR = 0.3  # of c, for items that nobody has or noise puts below 0
PER_ROOT, MOST_DIRECTIONS = 7.0, 2000


class UserSums(NamedTuple):
    """How the sums are made."""

    privacy: PrivacyConfig
    users: int
    items: int
    noises: tuple[float, float]  # standard deviations of the noise of c and of M

    @property
    def units(self) -> tuple[int, int]:
        """Units in 1, of a user's part of c and of its y: no sum over the users overflows."""
        room = 2**30 // max(self.users, 1)
        return max(1, min(FINE, room)), max(1, min(COARSE, math.isqrt(room)))


def useful_directions(users: int, items: int, noise: float) -> int:
    """r beside the first: as many as the noise leaves useful. Signal grows with users, noise with
    the root of r."""
    clear = users / noise if noise else math.inf
    number = int(min(MOST_DIRECTIONS, PER_ROOT * math.sqrt(clear)))
    return max(min(number, items - 1), 0)


def popularity(sums: UserSums, data: Data, key: jax.Array) -> jax.Array:
    """c f32 [I] with its noise, which may take it below 0; see `FLOOR`."""
    sigma, units = sums.noises[0], sums.units[0]

    def part(clients: Clients) -> jax.Array:
        rows = dense_rows(clients, sums.items)
        each = jax.lax.rsqrt(jnp.maximum(rows.sum(1), 1))
        if not in_integers(sums.privacy):
            return each @ rows
        each = jnp.floor(units * each).astype(jnp.int32)  # rounded down: no row grows longer
        return each @ rows.astype(jnp.int32)

    parts = [over_clients(part, c, sums.items).sum(0) for c in data.clients]
    total = sum_over_clients(jnp.sum(jnp.stack(parts), axis=0))
    if not in_integers(sums.privacy):
        return total + sigma * jax.random.normal(key, total.shape) if sigma else total
    variance = secure_sum.skellam_variance(sigma, units)
    noise = secure_sum.skellam(key, total.shape, variance) if sigma else 0
    return (total + noise) / units


def basis_of(kind: str, number: int, c: jax.Array, text: jax.Array | None) -> jax.Array:
    """Q f32 [I, 1 + r] of a popularity [I] that is already released and texts [I, T]."""
    root = jnp.sqrt(c)
    columns = [root[:, None]]
    if kind != "items":
        if text is None:
            raise DataError(f"basis = {kind!r}: the items have no texts; set basis = 'items'")
        centred = text - text.mean(0)
        length = jnp.linalg.norm(centred, axis=1, keepdims=True)
        told = root[:, None] * centred / jnp.maximum(length, 1e-9)
        unit = root / jnp.linalg.norm(root)
        told -= unit[:, None] * (unit @ told)
        _, turn = linalg.eigh(told.T @ told)
        told = told @ turn[:, ::-1]  # left singular vectors times their values
        columns.append(told[:, : number // 3 if kind == "both" else number])
    if rest := 1 + number - sum(part.shape[1] for part in columns):
        columns.append(jax.nn.one_hot(jax.lax.top_k(c, rest)[1], len(c), axis=0))
    return linalg.orthonormal(jnp.concatenate(columns, axis=1))


def similarity(sums: UserSums, data: Data, basis: jax.Array, key: jax.Array) -> jax.Array:
    """M f32 [r, r] with its noise."""
    sigma, units = sums.noises[1], sums.units[1]
    number = basis.shape[1]
    told = lambda clients: directed(dense_rows(clients, sums.items), basis)
    parts = [over_clients(told, c, sums.items).reshape(-1, number) for c in data.clients]
    if not in_integers(sums.privacy):
        total = sum_over_clients(jnp.sum(jnp.stack([rows.T @ rows for rows in parts]), axis=0))
        return total + sigma * _symmetric_normal(key, number) if sigma else total
    # Rounded towards zero, a vector grows no longer, and neither does its outer product.
    parts = [jnp.trunc(units * rows).astype(jnp.int32) for rows in parts]
    total = sum_over_clients(jnp.sum(jnp.stack([_squares(rows) for rows in parts]), axis=0))
    variance = secure_sum.skellam_variance(sigma, units**2) + 4  # off the diagonal it is half
    noise = _symmetric_skellam(key, number, variance) if sigma else 0
    return (total + noise) / units**2


def directed(rows: jax.Array, basis: jax.Array) -> jax.Array:
    """What users with `rows` [U, I] of 0 and 1 say in M: y f32 [U, r], no longer than 1."""
    along = (rows @ basis).at[:, 0].multiply(HALVED)
    length = jnp.linalg.norm(along, axis=1, keepdims=True) * (1 + 1e-6)
    return jnp.where(length > 1e-4, along / jnp.maximum(length, 1e-4), 0)


def over_clients(function, clients: Clients, items: int) -> jax.Array:
    """`function` of each client of a bucket, as many at a time as memory allows for dense rows."""
    each = max(clients.users.shape[1] * items, 1)
    return jax.lax.map(function, clients, batch_size=max(1, NUMBERS // each))


def _squares(rows: jax.Array) -> jax.Array:
    """rows^T rows int32 [r, r], exact for integers below 2^10 in size: by digits of five bits."""
    high, low = jnp.trunc(rows / 32).astype(jnp.int32), jnp.fmod(rows, 32)
    mixed = secure_sum.product_sum(high, low, 32)
    square = partial(secure_sum.product_sum, most=32)
    return 1024 * square(high, high) + 32 * (mixed + mixed.T) + square(low, low)


def _symmetric_normal(key: jax.Array, number: int) -> jax.Array:
    """Symmetric [r, r]: variance 1 on the diagonal, 1/2 off it, one number for each pair."""
    noise = jax.random.normal(key, (number, number))
    return (noise + noise.T) / 2


def _symmetric_skellam(key: jax.Array, number: int, variance: jax.Array) -> jax.Array:
    """The same of integers: `variance` on the diagonal and half of it off it."""
    off, diagonal = jax.random.split(key)
    upper = jnp.triu(secure_sum.skellam(off, (number, number), variance / 2), 1)
    middle = secure_sum.skellam(diagonal, (number,), variance)
    return upper + upper.T + jnp.diag(middle)

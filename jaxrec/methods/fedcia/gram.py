"""FedCIA in one shot under a budget: a Gram matrix in directions that are public or paid for.

The server sees two sums over users (`federated/user_sums.py`): c [I], how popular items are, and
M [r, r], how tastes go together in r orthonormal directions Q [I, r] made of c and of the items'
public texts (`basis`). What follows is free post-processing. With M = E w E^T, edge = sqrt(2 r)
times the noise's deviation, where eigenvalues of noise alone end, and usual = trace(M) sum(c^2) /
sum(c)^2, about what a row of M owes to items being themselves:

    L = Q E over w > edge,  f = w / (w + edge + RIDGE usual),  score = x D^-1/4 L f L^T D^1/4

with D = diag(c). r grows with the root of users over noise. So every choice is made of public
numbers and of c and M, which the budget covers, and none on validation rows; the number of users
counts as public. The four constants were set on the validation rows of `fedcia-ml100k` and
`fedcia-ml1m`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.federated import scoring
from jaxrec.federated.local import dense_rows
from jaxrec.federated.privacy import check_sum, check_user_sums
from jaxrec.federated.sum_bytes import with_protocol
from jaxrec.federated.support import supported, supported_items
from jaxrec.federated.user_sums import (
    FLOOR,
    UserSums,
    basis_of,
    over_clients,
    popularity,
    similarity,
    useful_directions,
)  # fmt: skip
from jaxrec.methods.fedcia.config import LinearConfig, check_gram
from jaxrec.ops import linalg
from jaxrec.types import Clients, Data, Method, Release, Sizes, Traffic

RIDGE = 4.0  # in users who have the usual item


class Model(NamedTuple):
    """Item-to-item weights `left @ right.T`, never multiplied out."""

    left: jax.Array  # f32 [I, r]
    right: jax.Array  # f32 [I, r]


class Metrics(NamedTuple):
    kept: jax.Array  # eigenvalues above the noise


class Gram(NamedTuple):
    """The fixed parts of the method."""

    config: LinearConfig
    sizes: Sizes
    directions: int  # r, beside sqrt(c)

    @property
    def noises(self) -> tuple[float, float]:
        """Standard deviations of the noise of c and of M: together they cost what one of z does."""
        z, share = self.config.noise_multiplier, self.config.popularity_share
        return z / math.sqrt(share), z / math.sqrt(1 - share)

    @property
    def sums(self) -> UserSums:
        return UserSums(self.config, self.sizes.users, self.sizes.items, self.noises)


def make(config: LinearConfig, sizes: Sizes) -> Method:
    """Build the one-shot method; raises SettingError on settings that cannot work."""
    check_gram(config, sizes)
    check_sum(config, sizes.clients)
    check_user_sums(config, sizes)
    gram = Gram(config, sizes, directions(config, sizes))
    return Method(
        partial(init, gram),
        partial(step, gram),
        partial(prepare, sizes.users),
        scoring.score,
        one_shot=True,
        traffic=traffic(gram),
        releases=partial(releases, gram) if config.noised else None,
        vectors=scoring.vectors,
        fold_in=fold_in,
    )


def directions(config: LinearConfig, sizes: Sizes) -> int:
    """r, as asked for or as many as the noise leaves useful."""
    useful = useful_directions(sizes.users, sizes.items, config.noise_multiplier)
    return min(config.directions, sizes.items - 1) if config.directions else useful


def init(gram: Gram, key: jax.Array, data: Data) -> Model:
    """Zero weights."""
    zero = jnp.zeros((gram.sizes.items, 1 + gram.directions))
    return Model(zero, zero)


def step(gram: Gram, model: Model, data: Data, key: jax.Array) -> tuple[Model, Metrics]:
    """The whole training, by two sums."""
    items = gram.sizes.items
    data = supported(data, supported_items(gram.config, data, items))
    keys = jax.random.split(key)
    c = jnp.maximum(popularity(gram.sums, data, keys[0]), FLOOR)
    basis = basis_of(gram.config.basis, gram.directions, c, data.text)
    M = similarity(gram.sums, data, basis, keys[1])
    return build(c, basis, M, gram.noises[1])


def build(c: jax.Array, basis: jax.Array, M: jax.Array, sigma: float) -> tuple[Model, Metrics]:
    """The model of both sums, c [I] and M [r, r] with noise of `sigma`, in directions [I, r]."""
    usual = jnp.trace(M) * jnp.sum(c**2) / jnp.sum(c) ** 2
    left, weights = leading(M, sigma, usual)
    left, scale = basis @ left, c[:, None] ** 0.25
    return Model(left * weights / scale, left * scale), Metrics(jnp.sum(weights > 0))


def leading(M: jax.Array, sigma: float, usual: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Eigenvectors E [r, r] of M, the largest first, and weights [r], 0 where noise reaches."""
    values, vectors = linalg.eigh((M + M.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    edge = sigma * math.sqrt(2 * len(M))
    penalty = edge + RIDGE * usual
    kept = values > jnp.maximum(edge, 1e-6 * values[0])
    return vectors, jnp.where(kept, values / jnp.maximum(values + penalty, 1e-30), 0)


def prepare(users: int, model: Model, data: Data) -> scoring.Served:
    """The users' vectors x D^-1/4 L f, laid end to end, and the items'."""
    items = len(model.left)

    def vectors(clients: Clients) -> jax.Array:
        return dense_rows(clients, items) @ model.left

    parts = [over_clients(vectors, c, items) for c in data.clients]  # [C, U, r]
    rows = jnp.concatenate([part.reshape(-1, model.left.shape[1]) for part in parts])
    return scoring.Served(
        rows, model.right, jnp.zeros(len(rows), jnp.int32), scoring.user_slots(data, users)
    )


def fold_in(model: Model, data: Data) -> scoring.Served:
    """`prepare` for the users of `data`, whoever they are."""
    return prepare(scoring.user_places(data), model, data)


def releases(gram: Gram, rounds: int) -> tuple[Release, ...]:
    """What the budget is spent on: two sums, once each."""
    popular, alike = gram.noises
    return Release("item popularity", popular), Release("similarity", alike)


def traffic(gram: Gram) -> Traffic:
    """Four bytes a number: c each way, then the upper triangle of M up and the factors down."""
    config, items, clients = gram.config, gram.sizes.items, gram.sizes.clients
    number, setup = 1 + gram.directions, 1 + (config.support > 1)
    counts = 4.0 * items * setup
    plain = Traffic(2.0 * number * (number + 1), 8.0 * items * number, counts, counts)
    return with_protocol(config, plain, clients, setup=setup)

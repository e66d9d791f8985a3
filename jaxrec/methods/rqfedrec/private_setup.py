"""RQFedRec's set-up under a budget: counts and item vectors from two noisy sums over users.

The passes of `federated/cooccurrence.py` would each cost a part of the budget, in I x D numbers.
Here everything follows from what is popular, c [I], and what goes together, M [r, r], in directions
made of c and of the items' public texts (`federated/user_sums.py`). With M = E w E^T, the vectors
are the leading rows of D^-1/4 Q E f^1/2 but for the first, D = diag(c), f = w / (w + edge): noise
alone has no eigenvalues above the edge.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from jaxrec.federated.cooccurrence import of_variance_one
from jaxrec.federated.user_sums import (
    FLOOR,
    UserSums,
    basis_of,
    popularity,
    similarity,
    useful_directions,
)
from jaxrec.methods.rqfedrec.config import Config
from jaxrec.ops import linalg
from jaxrec.types import Data, Release, Sizes

SHARE = 0.1  # of the set-up's budget that is spent on c


def noises(config: Config) -> tuple[float, float]:
    """Standard deviations of the noise of c and of M."""
    once = config.noise_multiplier * config.setup_noise
    return once / math.sqrt(SHARE), once / math.sqrt(1 - SHARE)


def releases(config: Config) -> tuple[Release, ...]:
    """What the set-up spends a budget on."""
    popular, alike = noises(config)
    return Release("item popularity", popular), Release("similarity", alike)


def directions(config: Config, sizes: Sizes) -> int:
    """r beside the first: as many as the noise leaves useful, and enough for the vectors."""
    useful = useful_directions(sizes.users, sizes.items, noises(config)[1])
    return max(useful, min(config.width, sizes.items - 1))


def traffic(config: Config, sizes: Sizes) -> tuple[float, float]:
    """Bytes up, c and the upper triangle of M, and down, c: directions follow from public texts."""
    number = 1 + directions(config, sizes)
    return 4.0 * sizes.items + 2.0 * number * (number + 1), 4.0 * sizes.items


def counts_and_vectors(
    config: Config, sizes: Sizes, data: Data, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """About how many users each item has [I], and item vectors [I, D] of variance 1."""
    key_popularity, key_similarity = jax.random.split(key)
    sums = UserSums(config, sizes.users, sizes.items, noises(config))
    c = jnp.maximum(popularity(sums, data, key_popularity), FLOOR)
    kind = "items" if data.text is None else "both"
    basis = basis_of(kind, directions(config, sizes), c, data.text)
    M = similarity(sums, data, basis, key_similarity)
    values, turn = linalg.eigh((M + M.T) / 2)
    edge = sums.noises[1] * math.sqrt(2 * len(M))
    values = jnp.where(values > edge, values / jnp.maximum(values + edge, 1e-30), 0)
    leading = (turn * jnp.sqrt(values))[:, ::-1][:, 1 : 1 + config.width]
    vectors = basis @ leading / c[:, None] ** 0.25
    vectors = jnp.pad(vectors, ((0, 0), (0, config.width - vectors.shape[1])))
    rows = c.sum() / max(sizes.users, 1)  # about the root of a user's number of rows
    return c * rows, of_variance_one(vectors, c)

"""ItemKNN: items whose users are the same are neighbours, centralised.

    similarity[i, j] = c_ij / ((c_ii c_jj)^beta + shrink),     c_ij = sum_{u has i and j} n_u^-alpha

with n_u the interactions of user u. alpha = 0 and beta = 1/2 are the cosine of the items' columns
(Sarwar et al., WWW 2001; Deshpande and Karypis, TOIS 2004). A user of many items says less of
each, and popular items keep some of their lead: that is worth 5 % on most data. Of each item the
`nearest` ones count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrec.models import item_weights, recency
from jaxrec.ops import co_occurrence
from jaxrec.ops.edges import Edges, Owned, edges, of_users
from jaxrec.settings.fields import check, setting
from jaxrec.types import Data, Method, Sizes, Traits

TRAITS = Traits(run={"baselines": ()}, uses=("order",), settled=recency.settled)


@dataclass(frozen=True)
class Config:
    """Settings of ItemKNN."""

    nearest: int = setting(100, at_least=1)
    """K, the most similar items of each item that its score is made of."""
    user_exponent: float = setting(0.5, at_least=0)
    """alpha: a user with n interactions counts n^-alpha; 0: all users count alike."""
    item_exponent: float = setting(0.4, at_least=0)
    """beta: how much of its popularity an item loses; 0.5: all of it, which is the cosine."""
    shrink: float = setting(0.0, at_least=0)
    """Added to the denominator, in users: what few users say counts less."""
    recency: float | Literal["auto"] = setting("auto", at_least=0)
    """When serving, a row with n newer ones of its user counts 1 / (1 + n / recency); 0: all count
    1; auto: whichever of 0, 1, 5 and 20 finds users' newest train rows best."""

    __post_init__ = check


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; one step counts."""
    number = sizes.items * min(config.nearest, sizes.items)
    start = jnp.zeros(sizes.items + 1, jnp.int32)
    nothing = lambda: Owned(start, jnp.zeros(number, jnp.int32), jnp.zeros(number))
    return item_weights.method(config.recency, sizes, nothing, partial(neighbours, config, sizes))


def neighbours(config: Config, sizes: Sizes, data: Data) -> Owned:
    """What each item adds to those that it is among the nearest of, some targets at a time."""
    items, rows = sizes.items, edges(data.clients)
    known = jnp.zeros(sizes.users).at[rows.user].add(rows.weight, mode="drop")
    each = jnp.maximum(known, 1) ** (-config.user_exponent / 2)  # of both rows of a pair
    rows = rows._replace(weight=rows.weight * each.at[rows.user].get(mode="clip"))
    length = jnp.zeros(items).at[rows.item].add(rows.weight**2) ** config.item_exponent

    def nearest(first: jax.Array) -> tuple[jax.Array, jax.Array]:
        own = first + jnp.arange(co_occurrence.COLUMNS)
        common = co_occurrence.columns(rows, sizes.users, items, first)  # [I, COLUMNS]
        scale = length[:, None] * length[jnp.minimum(own, items - 1)] + config.shrink
        alike = common / jnp.maximum(scale, 1e-30)
        alike = jnp.where(jnp.arange(items)[:, None] == own, 0, alike)
        return jax.lax.top_k(alike.T, min(config.nearest, items))

    found = jax.lax.map(nearest, jnp.arange(0, items, co_occurrence.COLUMNS))
    value, item = (leaf.reshape(-1, leaf.shape[-1])[:items] for leaf in found)  # [I, K]
    target = jnp.broadcast_to(jnp.arange(items)[:, None], item.shape)
    return of_users(Edges(item.ravel(), target.ravel(), value.ravel()), items)

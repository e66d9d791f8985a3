"""Matrix factorisation and LightGCN: a user table and an item table, and what is made of them.

Both score by the inner product of a user vector and an item vector. They differ in `encode`:
matrix factorisation takes the tables as they are, LightGCN averages them over the interaction
graph (He et al., SIGIR 2020).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Tables(NamedTuple):
    user: Any  # f32 [U, D], or a Flax module's parameters that are about users
    item: Any  # f32 [I, D], or an item encoder's parameters
    network: Any = ()  # a Flax module's other parameters


def encode(tables: Tables, rows: jax.Array, *, layers: int) -> Tables:
    """User and item vectors after `layers` of LightGCN on `rows` [U, I]; 0 is plain factorisation.

    With N = D_u^-1/2 R D_i^-1/2, layer l is user_l = N item_{l-1}, item_l = N^T user_{l-1}; the
    result is the mean of layers 0 .. `layers`.
    """
    if layers == 0:
        return tables
    normalised = normalise(rows, rows.sum(0))

    def propagate(carry, _):
        layer, total = carry
        layer = Tables(normalised @ layer.item, normalised.T @ layer.user)
        return (layer, jax.tree.map(jnp.add, total, layer)), None

    (_, total), _ = jax.lax.scan(propagate, (tables, tables), length=layers)
    return jax.tree.map(lambda table: table / (layers + 1), total)


def normalise(rows: jax.Array, item_degree: jax.Array) -> jax.Array:
    """N = D_u^-1/2 R D_i^-1/2 [U, I]; an empty row or column stays zero."""
    return inverse_root(rows.sum(1))[:, None] * rows * inverse_root(item_degree)


def inverse_root(degree: jax.Array) -> jax.Array:
    """degree^-1/2, and 0 where the degree is 0."""
    return jnp.where(degree > 0, jax.lax.rsqrt(jnp.maximum(degree, 1e-30)), 0.0)

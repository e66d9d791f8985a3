"""How often two items share a user: R^T R [I, I] of rows R [U, I], whole or some columns at a time.

Of a sparse R the columns are sums over edges, O(R) each; of one that is not, a matrix product is
quicker. Which of them is chosen by the shapes alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.ops.edges import Edges, Owned, dense, of_users

COLUMNS = 256  # made together
EDGES = 2**16  # read together
USERS = 512  # whose rows are multiplied together
DENSE = 50  # a sum over an edge takes as long as a product with so many numbers


def whole(edges: Edges, users: int, items: int) -> jax.Array:
    """R^T R [I, I]."""
    if users * items <= DENSE * len(edges.user):
        return _product(of_users(edges, users), items)
    blocks = jnp.arange(0, items, COLUMNS)
    found = jax.lax.map(lambda first: columns(edges, users, items, first), blocks)  # [n, I, B]
    return found.swapaxes(0, 1).reshape(items, -1)[:, :items]


def _product(rows: Owned, items: int) -> jax.Array:
    users = len(rows.start) - 1

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        own = number * USERS + jnp.arange(USERS)
        block = dense(rows, jnp.minimum(own, users - 1), items)
        block = jnp.where((own < users)[:, None], block, 0)
        return total + block.T @ block

    return jax.lax.fori_loop(0, -(-users // USERS), add, jnp.zeros((items, items)))


def columns(edges: Edges, users: int, items: int, first: jax.Array) -> jax.Array:
    """Columns `first` .. `first` + `COLUMNS` of R^T R [I, COLUMNS]; 0 behind the last item."""
    place = edges.item - first
    inside = (place >= 0) & (place < COLUMNS) & (edges.weight > 0)
    block = jnp.zeros((users, COLUMNS))
    user = jnp.where(inside, edges.user, users)
    block = block.at[user, place].add(edges.weight, mode="drop")  # R's columns
    size = min(EDGES, len(edges.user))

    def add(number: jax.Array, total: jax.Array) -> jax.Array:
        at = number * size + jnp.arange(size)
        real = at < len(edges.user)
        at = jnp.minimum(at, len(edges.user) - 1)
        weight = jnp.where(real, edges.weight[at], 0)[:, None]
        return total.at[edges.item[at]].add(weight * block[edges.user[at]])

    steps = -(-len(edges.user) // size)
    return jax.lax.fori_loop(0, steps, add, jnp.zeros((items, COLUMNS)))

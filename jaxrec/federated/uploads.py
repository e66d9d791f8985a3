"""What happens to each upload before uploads are added: its size is known, and may be bounded.

Uploads are trees of leaves [C, ...] with a client axis, or `Factored`, or `Touched`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Factored(NamedTuple):
    """An upload that is a product, left^T right [I, D], before it is multiplied out.

    The product is what crosses the network. A mean of products needs none of them alone, so the
    engine keeps the factors apart where it can.
    """

    left: jax.Array  # f32 [U, I]
    right: jax.Array  # f32 [U, D]


@partial(
    jax.tree_util.register_dataclass, meta_fields=["items"], data_fields=["item", "rows", "common"]
)
@dataclass(frozen=True)
class Touched:
    """An upload that is linear in a table [I, D] of which a client touches its own items' rows.

    Row i is the sum of `rows` whose `item` is i, and every row of another table, which is public,
    times `common`. A sum of such costs what the rows do, however many items there are.
    """

    item: jax.Array  # int32 [N]
    rows: jax.Array  # f32 [N, D]
    common: jax.Array  # f32 [D, D]
    items: int  # I


class Table(NamedTuple):
    """A sum of `Touched` uploads."""

    rows: jax.Array  # f32 [I, D]
    common: jax.Array  # f32 [D, D]


def summed(uploads: Touched, weights: jax.Array) -> Table:
    """The weighted sum of the clients' uploads, leaves [C, ...] and weights [C]."""
    uploads = scaled(uploads, weights)
    rows = uploads.rows.reshape(-1, uploads.rows.shape[-1])
    table = jax.ops.segment_sum(rows, uploads.item.reshape(-1), uploads.items)
    return Table(table, uploads.common.sum(0))


def spread(upload: Touched) -> Table:
    """One client's rows at their places."""
    return Table(jax.ops.segment_sum(upload.rows, upload.item, upload.items), upload.common)


def multiply(upload: Factored) -> jax.Array:
    """The product [I, D] of one client's factors."""
    return upload.left.T @ upload.right


def finite(uploads: Any, clients: int) -> jax.Array:
    """Which of the clients [C] sent finite numbers alone."""
    fine = jnp.ones(clients, bool)
    for leaf in jax.tree.leaves(uploads):
        fine &= jnp.isfinite(leaf).all(tuple(range(1, leaf.ndim)))
    return fine


def keep(tree: Any, clients: jax.Array) -> Any:
    """Leaves [C, ...] with zeros for all but some clients bool [C]: 0 times NaN would be NaN."""
    return jax.tree.map(lambda leaf: jnp.where(beside(clients, leaf), leaf, 0), tree)


def norms(uploads: Any) -> jax.Array:
    """The L2 norm [C] of each upload over all of its numbers; of factors, that of the product."""
    if isinstance(uploads, Factored):
        left = jnp.einsum("cui,cvi->cuv", uploads.left, uploads.left)
        right = jnp.einsum("cud,cvd->cuv", uploads.right, uploads.right)
        return jnp.sqrt(jnp.maximum(jnp.sum(left * right, axis=(1, 2)), 0))
    leaves = jax.tree.leaves(uploads)
    return jnp.sqrt(sum((jnp.sum(x.reshape(len(x), -1) ** 2, axis=1) for x in leaves), 0.0))


def clipped(uploads: Any, clip: jax.Array | float) -> tuple[Any, jax.Array]:
    """Uploads scaled down to a norm of at most `clip`, and which [C] were not longer."""
    long = norms(uploads)
    share = jnp.minimum(1, clip / jnp.maximum(long, 1e-30))
    return scaled(uploads, share), long <= clip


def scaled(uploads: Any, factors: jax.Array) -> Any:
    """Each client's upload times its factor [C]."""
    times = lambda leaf: leaf * beside(factors, leaf)
    if isinstance(uploads, Factored):
        return uploads._replace(left=times(uploads.left))
    if isinstance(uploads, Touched):
        return replace(uploads, rows=times(uploads.rows), common=times(uploads.common))
    return jax.tree.map(times, uploads)


def beside(values: jax.Array, leaf: jax.Array) -> jax.Array:
    """Values [C] in a shape that broadcasts against a leaf [C, ...]."""
    return values.reshape(values.shape + (1,) * (leaf.ndim - 1))

"""A user's vector in closed form under the weighted square loss, the items standing still.

With w the weight of an unobserved entry, J a user's items and l the L2 penalty,

    x = (w E^T E + (1 - w) sum_{j in J} r_j e_j e_j^T + l I)^-1 sum_{j in J} r_j e_j

minimises sum_i c_i (x . e_i - 1[i in J])^2 + l ||x||^2 with c = 1 on J and w elsewhere, where every
row counts r_j = 1 (Hu, Koren and Volinsky, ICDM 2008). A row that counts less has the confidence
c_j = w + (1 - w) r_j and the target r_j / c_j. Only E^T E, which all users share, touches items
that a user does not have.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.ops import linalg
from jaxrec.ops.co_occurrence import DENSE
from jaxrec.ops.edges import PIECE, Owned, counts, piece
from jaxrec.types import Clients

OWNERS = 1024  # whose equations are made and solved together
PIECES = 256  # of their edges that are read together


def users(
    item: jax.Array,
    clients: Clients,
    gram: jax.Array,
    *,
    negative_weight: float,
    l2: jax.Array | float,
    weights: jax.Array | None = None,
) -> jax.Array:
    """One client's user vectors [U, D]; a user without rows gets 0.

    Args:
      item: E [I, D].
      clients: one client; see `types.Clients`.
      gram: E^T E [D, D].
      negative_weight: w.
      l2: l, one number or one for each user [U].
      weights: r [N], what each row counts as; 1 where None.
    """
    number, width = len(clients.users), item.shape[1]
    counts = clients.mask.astype(item.dtype) if weights is None else clients.mask * weights
    rows = item[clients.item]  # [N, D]
    wanted = jax.ops.segment_sum(counts[:, None] * rows, clients.user, number)
    penalty = jnp.broadcast_to(l2, (number,))[:, None, None] * jnp.eye(width)
    own = _outer_products(item, rows, counts, clients)
    return jax.vmap(linalg.solve)(
        negative_weight * gram + (1 - negative_weight) * own + penalty, wanted
    )


def of_owners(
    table: jax.Array, owned: Owned, *, negative_weight: float, l2: jax.Array
) -> jax.Array:
    """The vectors [N, D] of all owners of edges, users or items; `table` [J, D] stands still.

    Owners go in blocks of `OWNERS` and their edges in pieces of one length, so that what is in
    memory does not depend on their number, and popular owners cost no padding of the others.

    Args:
      table: the vectors of the edges' other ends.
      owned: the edges; their weights are r above.
      negative_weight: w.
      l2: l of each owner [N].
    """
    number, width = len(owned.start) - 1, table.shape[1]
    gram = negative_weight * (table.T @ table)
    parts = -(-counts(owned) // PIECE)  # pieces of each owner
    begin = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(parts)])
    size = min(OWNERS, number)

    def solve(first: jax.Array) -> jax.Array:
        def add(step: jax.Array, sums: tuple[jax.Array, jax.Array]):
            at = begin[first] + step * PIECES + jnp.arange(PIECES)
            owner = jnp.clip(jnp.searchsorted(begin, at, side="right") - 1, first, number - 1)
            other, weight = piece(owned, owner, at - begin[owner])
            weight = jnp.where((at < last)[:, None], weight, 0)
            rows = table[other]
            counted = weight[..., None] * rows
            place = owner - first  # of owners behind this block, too large: dropped
            form = jnp.einsum("pld,ple->pde", (1 - negative_weight) * counted, rows)
            return (
                sums[0].at[place].add(form, mode="drop"),
                sums[1].at[place].add(counted.sum(1), mode="drop"),
            )

        own = jnp.minimum(first + jnp.arange(size), number - 1)
        last = begin[jnp.minimum(first + size, number)]
        nothing = jnp.zeros((size, width, width)), jnp.zeros((size, width))
        steps = -(-(last - begin[first]) // PIECES)
        form, wanted = jax.lax.fori_loop(0, steps, add, nothing)
        penalty = l2[own][:, None, None] * jnp.eye(width)
        return jax.vmap(linalg.solve)(gram + form + penalty, wanted)

    blocks = jnp.arange(0, number, size)
    return jax.lax.map(solve, blocks).reshape(-1, width)[:number]


def _outer_products(
    item: jax.Array, rows: jax.Array, counts: jax.Array, clients: Clients
) -> jax.Array:
    """sum_{j in J} r_j e_j e_j^T of each user, [U, D, D], by whichever way is short."""
    number = len(clients.users)
    counted = counts[:, None] * rows
    if number == 1:
        return (counted.T @ rows)[None]
    if number * len(item) <= DENSE * len(rows):
        # A product with all e_j e_j^T, which all clients share; they are symmetric.
        left, right = np.triu_indices(item.shape[1])
        has = jnp.zeros((number, len(item))).at[clients.user, clients.item].max(counts)
        place = np.zeros((item.shape[1],) * 2, int)
        place[left, right] = place[right, left] = np.arange(len(left))
        return (has @ (item[:, left] * item[:, right]))[:, place]
    return jax.ops.segment_sum(counted[:, :, None] * rows[:, None, :], clients.user, number)

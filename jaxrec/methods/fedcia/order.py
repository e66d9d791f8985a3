"""What a client adds at home when it serves: the order of its users' rows, which nothing sent says.

A similarity is symmetric, so it cannot say what comes after what. Two things can, and neither
leaves the client:

    recency      a train row with n newer ones of its user counts 1 / (1 + n / recency)
    transitions  T[i, j] = sum over the client's users of 1 / d, where j came d <= WINDOW rows after
                 i;  a user with weights w [I] gets  w T / (T's row sums + SHRINKAGE)  on top

Few rows say little of an item, and the shrinkage then leaves the score as it was. Ours, not the
paper's.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.federated.local import row_weights
from jaxrec.types import Clients, Data, SettingError

WINDOW = 10  # rows
SHRINKAGE = 50.0  # in transitions
DENSE = 4  # a scatter of one number takes as long as so many of a product


def weighted_rows(clients: Clients, recency: float, items: int) -> jax.Array:
    """One client's rows [U, I], each as what it counts; raises SettingError without an order."""
    nothing = jnp.zeros((clients.users.shape[-1], items))
    return nothing.at[clients.user, clients.item].max(row_weights(clients, recency))


def pairs(clients: Clients) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A client's pairs of rows of one user: earlier item, later item [N, WINDOW], 1 / d or 0."""
    if clients.age is None:
        raise SettingError(
            "transitions: the data have no timestamps, so the order of a user's rows is unknown; "
            "set transitions = 0"
        )
    number = len(clients.users)
    user = jnp.where(clients.mask, clients.user, number)  # padding behind everybody
    order = jnp.lexsort((-clients.age, user))
    user, item = user[order], clients.item[order]
    steps = jnp.arange(1, WINDOW + 1)
    later = jnp.arange(len(user))[:, None] + steps  # [N, WINDOW]
    same = user.at[later].get(mode="fill", fill_value=number) == user[:, None]
    worth = jnp.where(same & (user < number)[:, None], 1 / steps, 0)
    return jnp.broadcast_to(item[:, None], worth.shape), item.at[later].get(mode="clip"), worth


def after(clients: Clients, rows: jax.Array) -> jax.Array:
    """What one client's transitions say of its users [U, I], whose rows count `rows` [U, I]."""
    earlier, later, worth = pairs(clients)
    items = rows.shape[1]
    number = jnp.zeros(items).at[earlier].add(worth)
    rows = rows / (number + SHRINKAGE)
    if len(rows) * worth.size * DENSE > items**2:
        return rows @ jnp.zeros((items, items)).at[earlier, later].add(worth)
    add = lambda own: jnp.zeros(items).at[later].add(own[earlier] * worth)
    return jax.vmap(add)(rows)


def of_users(data: Data, recency: float, items: int) -> jax.Array:
    """`after` for all users, laid end to end bucket by bucket, [rows, I]."""

    def one(clients: Clients) -> jax.Array:
        return after(clients, weighted_rows(clients, recency, items))

    parts = [jax.lax.map(one, clients) for clients in data.clients]  # [C, U, I]
    return jnp.concatenate([part.reshape(-1, items) for part in parts])

"""What users choose next, from what they chose last: RQFedRec's second set of codebooks.

With context codebooks B [P, K, D], an item says b_i = sum_p B[p, code(i, p)] of what comes after
it. The context of a user is the mean of that over the user's rows, the newest counting most, and
is added to the user's vector (as in Rendle et al., FPMC, WWW 2010, and He and McAuley, Fossil,
ICDM 2016):

    score(u, i) = (x_u + h_u) . x_i + ...,   h_u ~ sum_r b_{i_r} / (1 + newer rows / recency).

B starts at zero and is learned in the rounds: each client predicts its users' newest rows, each
row from those before it, with vectors x_u fitted to older rows still. What a user has already is
no rival of what comes next. The gradient is zero but at the codes of the client's own rows, so a
server that sees it by itself knows those codes; a sum over many clients hides whose they are.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.federated import local
from jaxrec.federated.catalogue import NO_RIVAL, View
from jaxrec.methods.rqfedrec.config import Config
from jaxrec.ops import fold_in, quantize
from jaxrec.types import Clients


def of_users(config: Config, said: jax.Array, clients: Clients) -> jax.Array:
    """The contexts [U, D] of one client's users, where the items say `said` [I, D]."""
    nothing = jnp.zeros((clients.users.shape[-1], len(said)))
    weights = local.row_weights(clients, config.context_recency)
    rows = nothing.at[clients.user, clients.item].add(weights)
    return rows @ said / jnp.maximum(rows.sum(1, keepdims=True), 1e-30)


def before(clients: Clients, place: jax.Array) -> Clients:
    """The client before its rows of age `place` ([] or [N]) and newer ones came; ages from 0 on."""
    assert clients.age is not None
    age = clients.age - place - 1
    return clients._replace(age=jnp.maximum(age, 0), mask=clients.mask & (age >= 0))


def targets(config: Config, clients: Clients) -> jax.Array:
    """How many rows of each user are predicted [U]: the newest half, `next_rows` at most."""
    rows = jnp.zeros(clients.users.shape, jnp.int32).at[clients.user].add(clients.mask)
    return jnp.minimum(rows // 2, config.next_rows)


def gradient(
    config: Config,
    codebooks: jax.Array,
    users: jax.Array,
    seen: View,
    clients: Clients,
) -> jax.Array:
    """The gradient [P, K, D] in the context codebooks of the loss of one client's newest rows.

    Args:
      codebooks: B, as broadcast.
      users: [U, D + T + 1], fitted to the rows before their `targets`.
    """
    codes = seen.items.codes[seen.slot]
    said = quantize.decode(codes, codebooks)  # [N, D]
    vectors = seen.items.features[:, : config.width]
    fixed = users @ seen.items.features.T + seen.offset
    number = targets(config, clients)[clients.user]  # [N]
    zeros = jnp.zeros(fixed.shape)

    def add(total, place):
        shares = _shares(config, before(clients, place))
        wanted = clients.mask & (clients.age == place) & (place < number)
        chosen = zeros.at[clients.user, seen.slot].add(wanted)
        had = zeros.at[clients.user, seen.slot].add(clients.mask & (clients.age > place))
        scores = jnp.where((had > 0) & (chosen == 0), NO_RIVAL, fixed + shares @ said @ vectors.T)
        return total + shares.T @ (fold_in.residual(scores, chosen) @ vectors), None

    rows, _ = jax.lax.scan(add, jnp.zeros_like(said), jnp.arange(config.next_rows))
    # One level after the other: side by side each would have a copy of the rows.
    return jax.lax.map(lambda code: jax.ops.segment_sum(rows, code, config.codes), codes.T)


def _shares(config: Config, clients: Clients) -> jax.Array:
    """The part [U, N] that each row has in its user's context; a user without rows has zeros."""
    users = jnp.arange(clients.users.shape[-1])[:, None]
    weights = local.row_weights(clients, config.context_recency)
    own = jnp.where(clients.user == users, weights, 0)
    return own / jnp.maximum(own.sum(1, keepdims=True), 1e-30)

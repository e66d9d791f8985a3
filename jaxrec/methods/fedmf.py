"""FedMF: FedAvg in its FedSGD form, made for one user per client (Chai et al., 2020).

A client fits its user vector to its own history (`ops/fold_in.py`), then uploads one gradient of
the softmax loss with respect to the item table; the server moves the table by the mean gradient:

    E <- E - server_step( sum_c g_c / sum_c n_c + 2 l2_item E / (n I) ),    g_c = sum_u r_u^T x_u.

`r_u` [I] is the residual of user u's scores, n_c the client's train interactions, n their mean; the
penalty is divided by I because a softmax spreads its gradient over all items. No client's own item
table is ever formed: the users of a cohort come first, then one product. Clients fit their users as
RQFedRec's do, recency included; unlike there, the item table starts at random and popularity is no
term of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import catalogue, local
from jaxrec.federated.catalogue import Catalogue
from jaxrec.federated.cooccurrence import item_counts
from jaxrec.federated.engine import Cohort, federated_round, weighted_mean
from jaxrec.models.collaborative import Tables
from jaxrec.ops import fold_in
from jaxrec.types import Clients, Data, Method, SettingError, Sizes, Traffic

FITS = 4  # times that a new user is fitted anew, from where the last time ended


class Shared(NamedTuple):
    item: jax.Array  # f32 [I, D]
    moments: Any  # the server optimiser's
    shares: jax.Array  # f32 [I]  of the train interactions
    rows: jax.Array  # f32 []  train interactions of a client, on average


class State(NamedTuple):
    shared: Shared
    user: tuple[jax.Array, ...]  # a bucket: f32 [C, U, D]


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction of the fitted users, before the round
    participants: jax.Array  # clients whose upload arrived


def make(config: Any, sizes: Sizes, cohort: Cohort, server: optax.GradientTransformation) -> Method:
    """Build the method from `fedavg.Config`; raises SettingError on settings that cannot work."""
    if config.loss != "softmax" or config.layers:
        raise SettingError(
            f"upload = 'gradient': needs loss = 'softmax' and layers = 0, not loss = "
            f"{config.loss!r} and layers = {config.layers}"
        )
    if not 0 < config.damping <= 1 or not config.l2_user > 0:
        raise SettingError(
            f"damping = {config.damping}, l2_user = {config.l2_user}: upload = 'gradient' needs "
            "a damping in (0, 1] and an l2_user above 0"
        )

    def init(key: jax.Array, data: Data) -> State:
        counts = item_counts(data, sizes.items)
        item = local.init_items(key, sizes.items, config.width, config.init_scale)
        shares = counts / jnp.maximum(counts.sum(), 1)
        user = tuple(jnp.zeros((*c.users.shape, config.width)) for c in data.clients)
        members = sum(jnp.sum(clients.weight > 0) for clients in data.clients)
        rows = jnp.maximum(counts.sum() / jnp.maximum(members, 1), 1)
        return State(Shared(item, server.init(item), shares, rows), user)

    def fit(user: jax.Array, view: catalogue.View, curvature: fold_in.Curvature) -> jax.Array:
        return fold_in.fold_in(
            user, view.items.features, view.chosen, view.offset, jnp.zeros(config.width), curvature,
            l2=2 * config.l2_user, damping=config.damping, steps=config.local_steps,
        )  # fmt: skip

    def see(shared: Shared, clients: Clients) -> catalogue.View:
        items = Catalogue(shared.shares[:, None], shared.shares, shared.item)
        return catalogue.whole(items, clients, local.row_weights(clients, config.recency))

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        curvature = fold_in.curvature(state.shared.item, state.shared.shares)

        def train(shared, user, clients, key):
            view = see(shared, clients)
            user = fit(user, view, curvature)
            scores = user @ shared.item.T
            number = jnp.maximum(clients.weight, 1)
            loss = fold_in.loss(scores, view.chosen).sum() / number
            upload = fold_in.residual(scores, view.chosen) / number, user
            # Noise takes the place of what really travels, the product.
            return upload[0].T @ upload[1] if config.noisy else upload, user, loss

        def aggregate(shared, uploads, weights, key):
            mean = weighted_mean if config.noisy else item_gradient
            penalty = 2 * config.l2_item / (shared.rows * sizes.items)
            gradient = mean(uploads, weights) + penalty * shared.item
            updates, moments = server.update(gradient, shared.moments, shared.item)
            return shared._replace(item=optax.apply_updates(shared.item, updates), moments=moments)

        shared, user, loss, participants = federated_round(
            (train,) * len(data.clients), aggregate, state.shared, state.user, data.clients, key,
            cohort=cohort, additive=config.noisy > 0,
        )  # fmt: skip
        return State(shared, user), Metrics(loss, participants)

    def prepare(state: State, data: Data) -> local.Served:
        curvature = fold_in.curvature(state.shared.item, state.shared.shares)
        return local.serve(data, fitted(state, data, curvature), sizes.users)

    def fitted(state: State, data: Data, curvature) -> tuple[Tables, ...]:
        def one(pair):
            user, clients = pair
            return fit(user, see(state.shared, clients), curvature)

        users = catalogue.each_client(one, state.user, data, sizes.items)
        return tuple(Tables(user, state.shared.item) for user in users)

    def fold_in_users(state: State, data: Data) -> local.Served:
        curvature = fold_in.curvature(state.shared.item, state.shared.shares)
        refit = lambda users: fitted(state._replace(user=users), data, curvature)
        return serve_new(refit, jnp.zeros(config.width), data)

    table, counts = 4.0 * sizes.items * config.width, 4.0 * sizes.items
    traffic = Traffic(up=table, down=table, setup_up=counts, setup_down=counts)
    return Method(
        init, step, prepare, local.score, traffic=traffic, vectors=local.vectors,
        fold_in=fold_in_users,
    )  # fmt: skip


def serve_new(
    refit: Callable[[tuple[jax.Array, ...]], tuple[Tables, ...]], start: jax.Array, data: Data
) -> local.Served:
    """The users of `data` as they serve, each fitted from `start` [D] by `refit` (user tables)."""
    users = tuple(jnp.broadcast_to(start, (*c.users.shape, len(start))) for c in data.clients)
    for _ in range(FITS):
        tables = refit(users)
        users = tuple(table.user for table in tables)
    return local.serve(data, tables, local.number(data))


def item_gradient(
    uploads: tuple[tuple[jax.Array, jax.Array], ...], weights: tuple[jax.Array, ...]
) -> jax.Array:
    """sum_c w_c r_c^T x_c / sum_c w_c [I, D], from residuals [C, U, I] and users [C, U, D]."""
    total = jnp.maximum(sum(weight.sum() for weight in weights), 1e-30)
    return sum(
        jnp.einsum("c,cui,cud->id", weight / total, *upload)
        for weight, upload in zip(weights, uploads, strict=True)
    )

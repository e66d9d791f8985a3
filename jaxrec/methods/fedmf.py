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
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import catalogue, local, scoring
from jaxrec.federated.aggregate import combine, descending
from jaxrec.federated.catalogue import Catalogue
from jaxrec.federated.cohort import CohortConfig, releases
from jaxrec.federated.divided import sum_over_clients
from jaxrec.federated.engine import federated_round
from jaxrec.federated.private_mean import Bounds, first_bounds
from jaxrec.federated.sum_bytes import with_protocol
from jaxrec.federated.support import supported, supported_counts
from jaxrec.federated.uploads import Factored
from jaxrec.models.collaborative import Tables
from jaxrec.ops import fold_in
from jaxrec.ops.fold_in import Curvature
from jaxrec.ops.growth import over, users_over
from jaxrec.settings.fields import setting
from jaxrec.types import Attendance, Clients, Data, Earlier, Method, Sizes, Traffic


@dataclass(frozen=True)
class FedMFConfig(CohortConfig, local.LocalConfig):
    """The settings of FedAvg that FedMF reads."""

    damping: float = setting(0.3, above=0, at_most=1)
    """Part of a Newton step that is taken, 0 to 1, upload = gradient."""


class Shared(NamedTuple):
    item: jax.Array  # f32 [I, D]
    moments: Any  # the server optimiser's
    shares: jax.Array  # f32 [I]  of the train interactions
    rows: jax.Array  # f32 []  train interactions of a client, on average
    support: jax.Array | None  # bool [I]  items that enough users have; None: all are learned
    bounds: Bounds | None  # what uploads are measured with


class State(NamedTuple):
    shared: Shared
    user: tuple[jax.Array, ...]  # a bucket: f32 [C, U, D]


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction of the fitted users, before the round
    participants: jax.Array  # clients whose upload arrived
    non_finite: jax.Array  # those of them that were dropped: some number was not finite


class FedMF(NamedTuple):
    """The fixed parts of the method: settings, sizes and optimisers."""

    config: FedMFConfig
    sizes: Sizes
    server: optax.GradientTransformation


def make(config: FedMFConfig, sizes: Sizes, server: optax.GradientTransformation) -> Method:
    """Build the method for `sizes`; the server's optimiser takes the mean gradient."""
    fedmf = FedMF(config, sizes, server)
    table, counts = 4.0 * sizes.items * config.width, 4.0 * sizes.items * (not config.noised)
    return Method(
        partial(init, fedmf),
        partial(step, fedmf),
        partial(prepare, fedmf),
        scoring.score,
        traffic=with_protocol(
            config,
            Traffic(up=table, down=table, setup_up=counts, setup_down=counts),
            sizes.clients,
            cohort=config.participation,
            setup=int(not config.noised),
        ),
        releases=partial(releases, config) if config.noised else None,
        attendance=lambda metrics: Attendance(metrics.participants),
        vectors=scoring.vectors,
        fold_in=partial(fold_in_users, fedmf),
        grow=partial(grow, partial(init, fedmf)),
    )


def init(fedmf: FedMF, key: jax.Array, data: Data) -> State:
    """Random items, users at zero, and how often each item was chosen, by a secure sum."""
    config, sizes = fedmf.config, fedmf.sizes
    if config.noised:  # counts would cost: users then meet all items alike, a client has one row
        counts, members = jnp.ones(sizes.items), sizes.items
    else:
        counts = supported_counts(config, data, sizes.items)
        members = sum_over_clients(sum(jnp.sum(clients.weight > 0) for clients in data.clients))
    support = None if config.support == 1 else counts > 0
    item = local.init_items(key, sizes.items, config.width, config.init_scale)
    shares = counts / jnp.maximum(counts.sum(), 1)
    user = tuple(jnp.zeros((*c.users.shape, config.width)) for c in data.clients)
    rows = jnp.maximum(counts.sum() / jnp.maximum(members, 1), 1)
    bounds = first_bounds(config, (), ())
    return State(Shared(item, fedmf.server.init(item), shares, rows, support, bounds), user)


def grow(begin: Callable, state: Any, was: Earlier, key: jax.Array, data: Data) -> Any:
    """The tables, new items and users as `begin` makes them; the optimisers start anew."""
    fresh = begin(key, data)
    shared = fresh.shared._replace(item=over(fresh.shared.item, state.shared.item))
    return fresh._replace(shared=shared, user=users_over(fresh.user, data, state.user, was))


def view(config: FedMFConfig, shared: Shared, clients: Clients) -> catalogue.View:
    """One client's choices among all items."""
    items = Catalogue(shared.shares[:, None], shared.shares, shared.item)
    return catalogue.whole(items, clients, local.row_weights(clients, config.recency))


def fit(
    config: FedMFConfig, user: jax.Array, seen: catalogue.View, curvature: Curvature
) -> jax.Array:
    """One client's users [U, D] after `local_steps` damped Newton steps; the items stand still."""
    return fold_in.fold_in(
        user,
        seen.items.features,
        seen.chosen,
        seen.offset,
        jnp.zeros(config.width),
        curvature,
        l2=2 * config.l2_user,
        damping=config.damping,
        steps=config.local_steps,
    )


def train(
    config: FedMFConfig,
    curvature: Curvature,
    shared: Shared,
    user: jax.Array,
    clients: Clients,
    key: jax.Array,
) -> tuple[Factored, jax.Array, jax.Array]:
    """One client fits its users; uploads the item table's gradient per interaction [I, D]."""
    seen = view(config, shared, clients)
    user = fit(config, user, seen, curvature)
    scores = user @ shared.item.T
    number = jnp.maximum(clients.weight, 1)
    loss = fold_in.loss(scores, seen.chosen).sum() / number
    return Factored(fold_in.residual(scores, seen.chosen) / number, user), user, loss


def aggregate(
    fedmf: FedMF,
    shared: Shared,
    uploads: tuple[Any, ...],
    weights: tuple[jax.Array, ...],
    key: jax.Array,
) -> Shared:
    """The server's step by the mean gradient and the penalty on the items."""
    penalty = 2 * fedmf.config.l2_item / (shared.rows * fedmf.sizes.items)
    config = fedmf.config
    if config.rule != "mean" and config.l2_user > 0:
        weights = descending(uploads, weights, shared.item)
    gradient = combine(config.rule, uploads, weights, config.malicious) + penalty * shared.item
    updates, moments = fedmf.server.update(gradient, shared.moments, shared.item)
    item = jnp.asarray(optax.apply_updates(shared.item, updates))
    return shared._replace(item=item, moments=moments)


def step(fedmf: FedMF, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round."""
    curvature = fold_in.curvature(state.shared.item, state.shared.shares)
    done = federated_round(
        (partial(train, fedmf.config, curvature),) * len(data.clients),
        partial(aggregate, fedmf),
        state.shared,
        state.user,
        supported(data, state.shared.support).clients,
        key,
        cohort=fedmf.config,
        bounds=state.shared.bounds,
        additive=fedmf.config.rule == "mean",
    )
    shared = done.shared._replace(bounds=done.bounds)
    metrics = Metrics(done.metrics, done.participants, done.non_finite)
    return State(shared, done.private), metrics


def fitted(
    config: FedMFConfig, shared: Shared, users: tuple[jax.Array, ...], data: Data
) -> tuple[Tables, ...]:
    """The tables of a bucket's clients, every user fitted to the newest items."""
    curvature = fold_in.curvature(shared.item, shared.shares)
    data = supported(data, shared.support)

    def one(pair):
        user, clients = pair
        return fit(config, user, view(config, shared, clients), curvature)

    users = catalogue.each_client(one, users, data, len(shared.item))
    return tuple(Tables(user, shared.item) for user in users)


def prepare(fedmf: FedMF, state: State, data: Data) -> scoring.Served:
    """Every user of the federation, fitted and laid out for scoring."""
    tables = fitted(fedmf.config, state.shared, state.user, data)
    return scoring.serve(data, tables, fedmf.sizes.users)


def fold_in_users(fedmf: FedMF, state: State, data: Data) -> scoring.Served:
    """New users, fitted and laid out for scoring."""
    served = lambda users: fitted(fedmf.config, state.shared, users, data)
    refit = lambda users: tuple(table.user for table in served(users))
    return scoring.fit_new_users(refit, served, jnp.zeros(fedmf.config.width), data)

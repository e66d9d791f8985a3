"""Local only: every client trains alone and nothing crosses the network.

What a federation must beat: matrix factorisation or LightGCN on each client's own interactions,
from one common initial item table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import local, scoring
from jaxrec.federated.cohort import CohortConfig
from jaxrec.federated.engine import federated_round
from jaxrec.models.collaborative import Tables
from jaxrec.ops.growth import clients_over, users_over
from jaxrec.settings.fields import setting
from jaxrec.types import Clients, Data, Earlier, Method, Sizes, Traits, Unavailable

TRAITS = Traits(
    run={"rounds": 20, "evaluate_every": 2, "patience": 5},
    uses=("order",),
    privacy="nothing is sent",
    retired=("memory",),
    unread=lambda config: {"loss": local.unread_by_loss(config.loss)},
)


@dataclass(frozen=True)
class Config(local.LocalConfig):
    """Settings of local-only training."""

    layers: int = setting(0, at_least=0)
    """LightGCN layers; 0 is matrix factorisation."""
    block: int = setting(0, at_least=0)
    """Clients computed at once, a bound on memory; 0 = all of a bucket."""


class State(NamedTuple):
    tables: tuple[Tables, ...]  # a bucket: [C, U, D] and [C, I, D]
    moments: tuple[Any, ...]  # Adam's, the same shapes


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction before the round


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`."""
    return Method(
        partial(init, config, sizes),
        partial(step, config),
        partial(prepare, config, sizes),
        scoring.score,
        vectors=scoring.vectors,
        fold_in=Unavailable("clients share nothing that a new one could begin with"),
        grow=partial(grow, config, sizes),
    )


def optimizer(config: Config) -> optax.GradientTransformation:
    """A client's, for both of its tables."""
    return optax.adam(config.learning_rate)


def init(config: Config, sizes: Sizes, key: jax.Array, data: Data) -> State:
    """Random tables, the item table common to all clients."""
    key_item, key_user = jax.random.split(key)
    item = local.init_items(key_item, sizes.items, config.width, config.init_scale)
    tables = tuple(
        Tables(
            local.init_users(key_user, clients, config.width, config.init_scale),
            jnp.tile(item, (len(clients.client), 1, 1)),
        )
        for clients in data.clients
    )
    return State(tables, tuple(jax.vmap(optimizer(config).init)(table) for table in tables))


def grow(
    config: Config, sizes: Sizes, state: State, was: Earlier, key: jax.Array, data: Data
) -> State:
    """Clients' tables, new items and users as `init` makes them; the optimisers start anew."""
    fresh = init(config, sizes, key, data)
    users, items = zip(*fresh.tables, strict=True)
    old_users, old_items = zip(*state.tables, strict=True)
    users = users_over(users, data, old_users, was)
    items = clients_over(items, data, old_items, was)
    return fresh._replace(tables=tuple(map(Tables, users, items)))


def train(
    config: Config, shared: Any, private: Any, clients: Clients, key: jax.Array
) -> tuple[Any, Any, Metrics]:
    """One client's steps on its own tables; uploads nothing."""
    tables, moments = private
    tables, moments, loss = local.train(
        tables,
        moments,
        clients,
        key,
        optimizer=optimizer(config),
        config=config,
        layers=config.layers,
    )
    return (), (tables, moments), Metrics(loss)


def step(config: Config, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round."""
    done = federated_round(
        (partial(train, config),) * len(data.clients),
        lambda shared, uploads, weights, key: shared,
        (),
        tuple(zip(*state, strict=True)),
        data.clients,
        key,
        cohort=CohortConfig(block=config.block, privacy="plain"),
    )
    return State(*zip(*done.private, strict=True)), done.metrics


def prepare(config: Config, sizes: Sizes, state: State, data: Data) -> scoring.Served:
    """Every client's tables, laid out for scoring."""
    tables = tuple(
        scoring.encode_bucket(tables, clients, config.layers)
        for tables, clients in zip(state.tables, data.clients, strict=True)
    )
    return scoring.serve(data, tables, sizes.users)

"""Local only: every client trains alone and nothing crosses the network.

What a federation must beat: matrix factorisation or LightGCN on each client's own interactions,
from one common initial item table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import local
from jaxrec.federated.engine import Cohort, federated_round
from jaxrec.models.collaborative import Tables
from jaxrec.types import Data, Method, SettingError, Sizes

RUN = {"rounds": 20, "evaluate_every": 2, "patience": 5}


@dataclass(frozen=True)
class Config(local.LocalConfig):
    """Settings of local-only training."""

    layers: int = 0
    """LightGCN layers; 0 is matrix factorisation."""
    block: int = 0
    """Clients computed at once, a bound on memory; 0 = all of a bucket."""
    memory: float = 16.0
    """GB that kept item tables and their Adam moments may take; more is refused."""


class State(NamedTuple):
    tables: tuple[Tables, ...]  # a bucket: [C, U, D] and [C, I, D]
    moments: tuple[Any, ...]  # Adam's, the same shapes


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction before the round


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    local.check(config)
    kept = 4e-9 * 3 * sizes.clients * sizes.items * config.width  # table, two moments
    if kept > config.memory:
        raise SettingError(
            f"local_only: {sizes.clients:,} clients that keep {sizes.items:,} x {config.width} "
            f"item tables take {kept:.1f} GB, above memory = {config.memory}; give it fewer "
            "clients or leave it out of baselines"
        )
    optimizer = optax.adam(config.learning_rate)

    def init(key: jax.Array, data: Data) -> State:
        key_item, key_user = jax.random.split(key)
        item = local.init_items(key_item, sizes.items, config.width, config.init_scale)
        tables = tuple(
            Tables(
                local.init_users(key_user, clients, config.width, config.init_scale),
                jnp.tile(item, (len(clients.client), 1, 1)),
            )
            for clients in data.clients
        )
        return State(tables, tuple(jax.vmap(optimizer.init)(table) for table in tables))

    def train(shared, private, clients, key):
        tables, moments, loss = local.train(
            *private, clients, key, optimizer=optimizer, config=config, layers=config.layers
        )
        return (), (tables, moments), Metrics(loss)

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        _, private, metrics, _ = federated_round(
            (train,) * len(data.clients),
            lambda shared, uploads, weights, key: shared,
            (),
            tuple(zip(*state, strict=True)),
            data.clients,
            key,
            cohort=Cohort(block=config.block),
        )
        return State(*zip(*private, strict=True)), metrics

    def prepare(state: State, data: Data) -> local.Served:
        tables = tuple(
            local.encode_bucket(tables, clients, config.layers)
            for tables, clients in zip(state.tables, data.clients, strict=True)
        )
        return local.serve(data, tables, sizes.users)

    alone = "clients share nothing that a new one could begin with"
    return Method(init, step, prepare, local.score, vectors=local.vectors, fold_in=alone)

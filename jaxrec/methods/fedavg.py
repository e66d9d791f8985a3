"""FedAvg: the ID-indexed baseline. Clients share the item table, user vectors stay private.

Each round a client downloads the item table E [I, D], takes `local_steps` on its own
interactions and uploads its change; the server moves E by the weighted mean change
(McMahan et al., AISTATS 2017), as it is or through a server-side Adam (Reddi et al., ICLR 2021):

    E <- E + server_step( sum_c n_c (E_c - E) / sum_c n_c ),    n_c = train interactions of c.

Against FedCIA's published baseline: the server may use Adam, losses act on the inner product,
and no client keeps a dense item table or its Adam moments between rounds. `upload="gradient"` is
FedMF, the form for one-user clients: see `fedmf.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import local
from jaxrec.federated.engine import Cohort, federated_round, weighted_mean
from jaxrec.methods import fedmf
from jaxrec.models.collaborative import Tables
from jaxrec.types import Data, Method, SettingError, Sizes, Traffic

RUN = {"rounds": 400, "evaluate_every": 20, "patience": 3}


@dataclass(frozen=True)
class Config(local.LocalConfig):
    """Settings of FedAvg."""

    loss: Literal["auto", "square", "softmax", "bpr", "elementwise"] = "auto"
    """square: weighted least squares over the full catalogue; softmax: full-catalogue
    cross-entropy; bpr: sampled pairs; elementwise: FedCIA's published loss, for parity;
    auto: square, and softmax where upload = gradient."""
    layers: int = 0
    """LightGCN layers; 0 is matrix factorisation."""
    item_learning_rate: float = 1.0
    """Step size of a client's plain gradient descent on the item table."""
    server: Literal["average", "adam"] = "adam"
    """How the server takes the mean change: as it is, or as a gradient for Adam."""
    server_learning_rate: float = 0.02
    """Step size of the server's Adam."""
    participation: float = 1.0
    """Chance of a client to be in a round, 0 to 1."""
    dropout: float = 0.0
    """Chance of a chosen client to fail before its upload arrives, 0 to 1."""
    block: int = 0
    """Clients computed at once, a bound on memory; 0 = all of a bucket."""
    memory: float = 16.0
    """GB that the item tables of clients computed at once may take; more is refused."""
    upload: Literal["auto", "change", "gradient"] = "auto"
    """change: of the item table after `local_steps`; gradient: FedMF, users take `local_steps`
    Newton steps alone and send one gradient of the softmax loss; auto: gradient where every client
    is one user, else change."""
    damping: float = 0.3
    """Part of a Newton step that is taken, 0 to 1, upload = gradient."""
    noisy: float = 0.0
    """Share of clients that send noise instead of an upload, to test robustness, 0 to 1."""
    noise_scale: float = 10.0
    """Size of that noise, in sizes of the upload that it replaces."""


class Shared(NamedTuple):
    item: jax.Array  # f32 [I, D]
    moments: Any  # the server optimiser's


class State(NamedTuple):
    shared: Shared
    user: tuple[jax.Array, ...]  # a bucket: f32 [C, U, D]
    moments: tuple[Any, ...]  # Adam's of the user tables


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction before the round
    participants: jax.Array  # clients whose upload arrived


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    config = _resolved(config, sizes)
    local.check(config)
    cohort = Cohort.checked(
        config.participation, config.dropout, config.block, config.noisy, config.noise_scale
    )
    optimizer = optax.multi_transform(
        {"user": optax.adam(config.learning_rate), "item": optax.sgd(config.item_learning_rate)},
        Tables("user", "item"),
    )
    server = {
        "average": optax.sgd(1.0),
        "adam": optax.adam(config.server_learning_rate),
    }[config.server]
    if config.upload == "gradient":
        return fedmf.make(config, sizes, cohort, server)
    _check_memory(config, sizes)

    def init(key: jax.Array, data: Data) -> State:
        key_item, key_user = jax.random.split(key)
        item = local.init_items(key_item, sizes.items, config.width, config.init_scale)
        user = tuple(
            local.init_users(key_user, clients, config.width, config.init_scale)
            for clients in data.clients
        )
        moments = tuple(
            jax.vmap(lambda table: optimizer.init(Tables(table, item)))(table) for table in user
        )
        return State(Shared(item, server.init(item)), user, moments)

    def train(shared, private, clients, key):
        user, moments = private
        tables, moments, loss = local.train(
            Tables(user, shared.item),
            moments,
            clients,
            key,
            optimizer=optimizer,
            config=config,
            layers=config.layers,
        )
        return tables.item - shared.item, (tables.user, moments), loss

    def aggregate(shared, uploads, weights, key):
        change = weighted_mean(uploads, weights)
        updates, moments = server.update(-change, shared.moments, shared.item)
        return Shared(optax.apply_updates(shared.item, updates), moments)

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        shared, private, loss, participants = federated_round(
            (train,) * len(data.clients),
            aggregate,
            state.shared,
            tuple(zip(state.user, state.moments, strict=True)),
            data.clients,
            key,
            cohort=cohort,
            additive=True,
        )
        return State(shared, *zip(*private, strict=True)), Metrics(loss, participants)

    def prepare(state: State, data: Data) -> local.Served:
        if config.layers == 0:
            tables = tuple(Tables(user, state.shared.item) for user in state.user)
        else:
            tables = tuple(
                local.encode_bucket(
                    Tables(user, jnp.tile(state.shared.item, (len(user), 1, 1))),
                    clients,
                    config.layers,
                )
                for user, clients in zip(state.user, data.clients, strict=True)
            )
        return local.serve(data, tables, sizes.users)

    table = 4.0 * sizes.items * config.width
    return Method(
        init, step, prepare, local.score, traffic=Traffic(up=table, down=table),
        vectors=local.vectors,
        fold_in=local.folding(config, config.layers, lambda state: state.shared.item),
    )  # fmt: skip


def _resolved(config: Config, sizes: Sizes) -> Config:
    """The settings with every `auto` settled."""
    upload, loss = config.upload, config.loss
    if upload == "auto":
        fits = loss in ("auto", "softmax") and config.layers == 0
        upload = "gradient" if fits and sizes.users == sizes.clients else "change"
    if loss == "auto":
        loss = "softmax" if upload == "gradient" or config.recency else "square"
    return replace(config, upload=upload, loss=loss)


def _check_memory(config: Config, sizes: Sizes) -> None:
    at_once = config.block or math.ceil(config.participation * sizes.clients)
    tables = 4e-9 * 3 * at_once * sizes.items * config.width  # table, gradient, change
    if tables > config.memory:
        raise SettingError(
            f"{at_once:,} clients with {sizes.items:,} x {config.width} item tables at once take "
            f"{tables:.1f} GB, above memory = {config.memory}; set block = 64, or "
            "upload = 'gradient' (loss = 'softmax'), which needs no client's own table"
        )

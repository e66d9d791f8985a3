"""Local only: every client trains alone and nothing crosses the network.

What a federation must beat: a model of each client's own interactions, from one common initial item
table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from jaxrec.federated import local, scoring
from jaxrec.federated.cohort import CohortConfig
from jaxrec.federated.engine import federated_round
from jaxrec.models.clients import ClientModel
from jaxrec.models.collaborative import Tables
from jaxrec.ops.growth import clients_over, users_over
from jaxrec.settings.fields import setting
from jaxrec.types import Clients, Data, Earlier, Method, Sizes, Traits, Unavailable

TRAITS = Traits(
    run={"rounds": 20, "evaluate_every": 2, "patience": 5},
    reads=local.reads,
    settled=local.settled,
    uses=("order", "text"),
    privacy="nothing is sent",
    retired=("memory",),
    unread=lambda config: {
        "loss": local.unread_by_loss(config.loss),
        "model": local.unread_by_plain(config),
    },
)


@dataclass(frozen=True)
class Config(local.ModelConfig):
    """Settings of local-only training."""

    block: int = setting(0, at_least=0)
    """Clients computed at once, a bound on memory; 0 = all of a bucket."""


class State(NamedTuple):
    tables: tuple[Tables, ...]  # a bucket: [C, U, D] and [C, I, D]
    moments: tuple[Any, ...]  # Adam's, the same shapes


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction before the round


class LocalOnly(NamedTuple):
    """The fixed parts of the method."""

    config: Config
    sizes: Sizes
    model: ClientModel
    optimizer: optax.GradientTransformation  # a client's, for all that it trains


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    model = local.model_of(config)
    fixed = LocalOnly(config, sizes, model, local.optimizer(config, model))
    method = Method(
        partial(init, fixed),
        partial(step, fixed),
        partial(prepare, fixed),
        scoring.score,
        vectors=scoring.vectors,
        fold_in=Unavailable("clients share nothing that a new one could begin with"),
        grow=partial(grow, fixed),
    )
    return scoring.with_models(method, (model,))


def init(fixed: LocalOnly, key: jax.Array, data: Data) -> State:
    """Random parameters, the items' common to all clients."""
    key_item, key_user = jax.random.split(key)
    data = local.with_text(fixed.config, data)
    numbers = local.text_numbers(data.text)
    item = fixed.model.init_items(key_item, fixed.sizes.items, numbers)
    tables = []
    for clients in data.clients:
        user, network = local.init_users(key_user, clients, fixed.model)
        tables.append(Tables(user, local.for_each(clients, item), network))
    return State(tuple(tables), tuple(jax.vmap(fixed.optimizer.init)(each) for each in tables))


def grow(fixed: LocalOnly, state: State, was: Earlier, key: jax.Array, data: Data) -> State:
    """Clients' tables, new items and users as `init` makes them; the optimisers start anew."""
    fresh = init(fixed, key, data)
    users, items, _ = zip(*fresh.tables, strict=True)
    old_users, old_items, _ = zip(*state.tables, strict=True)
    users = users_over(users, data, old_users, was)
    items = clients_over(items, data, old_items, was)
    return fresh._replace(tables=tuple(map(Tables, users, items)))


def train(
    fixed: LocalOnly,
    text: jax.Array | None,
    shared: Any,
    private: Any,
    clients: Clients,
    key: jax.Array,
) -> tuple[Any, Any, Metrics]:
    """One client's steps on its own parameters; uploads nothing."""
    tables, moments = private
    tables, moments, loss = local.train(
        tables,
        moments,
        clients,
        key,
        optimizer=fixed.optimizer,
        config=fixed.config,
        items=fixed.sizes.items,
        model=fixed.model,
        text=text,
    )
    return (), (tables, moments), Metrics(loss)


def step(fixed: LocalOnly, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round."""
    data = local.with_text(fixed.config, data)
    done = federated_round(
        (partial(train, fixed, data.text),) * len(data.clients),
        lambda shared, uploads, weights, key: shared,
        (),
        tuple(zip(*state, strict=True)),
        data.clients,
        key,
        cohort=CohortConfig(block=fixed.config.block, privacy="plain"),
    )
    return State(*zip(*done.private, strict=True)), done.metrics


def prepare(fixed: LocalOnly, state: State, data: Data) -> Any:
    """Every client's tables, laid out for scoring."""
    models, data = (fixed.model,), local.with_text(fixed.config, data)
    own = models * len(data.clients)
    return scoring.serve_models(models, own, state.tables, data, fixed.sizes.users)

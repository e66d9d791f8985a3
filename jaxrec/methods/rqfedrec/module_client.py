"""Clients of RQFedRec that train a Flax module, or LightGCN, on what the codebooks say of items.

Item vectors are E [I, D + T], the sums of an item's codes beside its text. A client takes
`user_steps` Adam steps on its own users and network, the codebooks standing still, then sends the
softmax loss's gradient in the codebooks, through whatever its model makes of E. Popularity is added
to every score. Codebooks are all that clients share, so their models need not be of one kind.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import codecs, local, scoring
from jaxrec.federated.catalogue import Catalogue
from jaxrec.methods.rqfedrec import client
from jaxrec.methods.rqfedrec.config import Config
from jaxrec.methods.rqfedrec.state import Broadcast, Shared
from jaxrec.models.clients import ClientModel
from jaxrec.models.collaborative import Tables
from jaxrec.models.kinds import client_model
from jaxrec.ops import fold_in, quantize
from jaxrec.types import Clients, Data

SCALE = 0.1  # of the initial tables
Private = tuple[tuple[Tables, Any], jax.Array]  # (tables, Adam's moments), what was rounded off


def model_of(config: Config) -> ClientModel:
    """The model of every client; raises SettingError where there is none of that name."""
    return client_model(config.model, config.width + config.text_numbers, scale=SCALE, layers=1)


def optimizer(config: Config) -> optax.GradientTransformation:
    """A client's, of its users and its network."""
    return optax.adam(config.model_learning_rate)


def init(config: Config, model: ClientModel, key: jax.Array, data: Data) -> tuple[Any, ...]:
    """Each bucket's tables and moments [C, ...]; a client's depend on its id alone."""
    start = []
    for clients in data.clients:
        user, network = local.init_users(key, clients, model)
        tables = Tables(user, (), network)
        start.append((tables, jax.vmap(optimizer(config).init)(tables)))
    return tuple(start)


def scores_of(
    model: ClientModel, tables: Tables, item: jax.Array, popularity: jax.Array, rows: jax.Array
) -> jax.Array:
    """A client's scores [U, I] of items with vectors [I, D + T] and log popularity [I]."""
    return model.scores(model.encode(tables, item, rows), len(rows)) + popularity


def train(
    config: Config,
    model: ClientModel,
    sent: Broadcast,
    items: Catalogue,
    shared: Shared,
    private: Private,
    clients: Clients,
    key: jax.Array,
) -> tuple[jax.Array, Private, jax.Array]:
    """One client's round; uploads the gradient [P, K, D] in all codebooks."""
    (tables, moments), error = private
    rows = local.dense_rows(clients, len(items.codes))
    chosen = client.view(config, items, clients).chosen
    number = jnp.maximum(clients.weight, 1)

    def loss(tables: Tables, codebooks: jax.Array) -> jax.Array:
        item = jnp.hstack([quantize.decode(items.codes, codebooks), shared.text])
        scores = scores_of(model, tables, item, items.popularity, rows)
        squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tables.user))
        return (fold_in.loss(scores, chosen).sum() + config.l2 / 2 * squares) / number

    def step(carry, _):
        tables, moments = carry
        value, gradient = jax.value_and_grad(loss)(tables, sent.codebooks)
        updates, moments = optimizer(config).update(gradient, moments, tables)
        return (optax.apply_updates(tables, updates), moments), value

    carry, values = jax.lax.scan(step, (tables, moments), length=config.user_steps)
    change = jax.grad(loss, argnums=1)(carry[0], sent.codebooks)
    if config.privacy != "plain":
        return change, (carry, error), values[0]
    upload = codecs.round_trip(change + error if config.keeps_error else change, config.uplink)
    error = change + error - upload if config.keeps_error else error
    return upload, (carry, error), values[0]


class Served(NamedTuple):
    """Clients' models and rows, and the items: scores are made when they are asked for."""

    tables: tuple[Tables, ...]  # a bucket: [C, ...]
    clients: tuple[Clients, ...]
    item: jax.Array  # f32 [I, D + T]
    popularity: jax.Array  # f32 [I]
    place: jax.Array  # int32 [rows, 3]  bucket, client and row of each user, end to end
    slot: jax.Array  # int32 [U]  a user's row


def prepare(
    shared: Shared, sent: Broadcast, users: tuple[Any, ...], data: Data, number: int
) -> Served:
    """Every client's model beside the items that the codebooks say."""
    item = jnp.hstack([quantize.decode(shared.codes.table, sent.codebooks), shared.text])
    tables = tuple(tables for tables, _ in users)
    place, slot = scoring.user_grid(data), scoring.user_slots(data, number)
    return Served(tables, data.clients, item, shared.popularity, place, slot)


def score(model: ClientModel, served: Served, users: jax.Array) -> jax.Array:
    """Scores f32 [B, I] of global user ids [B], each by its own client's model."""

    def one(tables: Tables, clients: Clients, place: jax.Array) -> jax.Array:
        tables, clients = jax.tree.map(lambda leaf: leaf[place[1]], (tables, clients))
        rows = local.dense_rows(clients, len(served.item))
        return scores_of(model, tables, served.item, served.popularity, rows)[place[2]]

    branches = [partial(one, *each) for each in zip(served.tables, served.clients, strict=True)]
    places = served.place[served.slot[users]]
    return jax.lax.map(lambda place: jax.lax.switch(place[0], branches, place), places)

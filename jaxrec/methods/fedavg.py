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

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import local, scoring
from jaxrec.federated.aggregate import weighted_mean
from jaxrec.federated.engine import federated_round
from jaxrec.methods import fedmf
from jaxrec.models.collaborative import Tables
from jaxrec.settings.fields import check, setting
from jaxrec.types import Attendance, Clients, Data, Method, SettingError, Sizes, Traffic, Traits

TRAITS = Traits(
    run={"rounds": 400, "evaluate_every": 20, "patience": 3},
    uses=("order",),
    renamed={"dropout": "dropped"},
    retired=("memory",),
    smaller=({"upload": "gradient", "loss": "softmax"},),
)


@dataclass(frozen=True)
class Config(fedmf.FedMFConfig):
    """Settings of FedAvg."""

    loss: Literal["auto", "square", "softmax", "bpr", "elementwise"] = "auto"
    """square: weighted least squares over the full catalogue; softmax: full-catalogue
    cross-entropy; bpr: sampled pairs; elementwise: FedCIA's published loss, for parity;
    auto: square, and softmax where upload = gradient."""
    layers: int = setting(0, at_least=0)
    """LightGCN layers; 0 is matrix factorisation."""
    item_learning_rate: float = setting(1.0, at_least=0)
    """Step size of a client's plain gradient descent on the item table."""
    server: Literal["average", "adam"] = "adam"
    """How the server takes the mean change: as it is, or as a gradient for Adam."""
    server_learning_rate: float = setting(0.02, at_least=0)
    """Step size of the server's Adam."""
    upload: Literal["auto", "change", "gradient"] = "auto"
    """change: of the item table after `local_steps`; gradient: FedMF, users take `local_steps`
    Newton steps alone and send one gradient of the softmax loss; auto: gradient where every client
    is one user, else change."""

    def __post_init__(self) -> None:
        check(self)
        local.check_recency(self)
        if self.upload != "gradient":
            return
        if self.loss not in ("auto", "softmax") or self.layers:
            raise SettingError(
                "upload = 'gradient': needs loss = 'softmax' and layers = 0, not loss = "
                f"{self.loss!r} and layers = {self.layers}"
            )
        if not self.l2_user > 0:
            raise SettingError(f"l2_user = {self.l2_user}: must be above 0 for upload = 'gradient'")


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


class FedAvg(NamedTuple):
    """The fixed parts of the method: settings, sizes and optimisers."""

    config: Config
    sizes: Sizes
    client: optax.GradientTransformation
    server: optax.GradientTransformation


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    config = settled(config, sizes)
    user, item = optax.adam(config.learning_rate), optax.sgd(config.item_learning_rate)
    client = optax.multi_transform({"user": user, "item": item}, Tables._make(Tables._fields))
    average, adam = optax.sgd(1.0), optax.adam(config.server_learning_rate)
    server = adam if config.server == "adam" else average
    if config.upload == "gradient":
        return fedmf.make(config, sizes, server)
    fedavg = FedAvg(config, sizes, client, server)
    table = 4.0 * sizes.items * config.width
    return Method(
        partial(init, fedavg),
        partial(step, fedavg),
        partial(prepare, fedavg),
        scoring.score,
        traffic=Traffic(up=table, down=table),
        attendance=lambda metrics: Attendance(metrics.participants),
        vectors=scoring.vectors,
        fold_in=scoring.folding(config, config.layers, lambda state: state.shared.item),
    )


def settled(config: Config, sizes: Sizes) -> Config:
    """The settings with every `auto` settled."""
    upload, loss = config.upload, config.loss
    if upload == "auto":
        fits = loss in ("auto", "softmax") and config.layers == 0
        upload = "gradient" if fits and sizes.users == sizes.clients else "change"
    if loss == "auto":
        loss = "softmax" if upload == "gradient" or config.recency else "square"
    return replace(config, upload=upload, loss=loss)


def init(fedavg: FedAvg, key: jax.Array, data: Data) -> State:
    """Random tables, the item table common to all clients."""
    config = fedavg.config
    key_item, key_user = jax.random.split(key)
    item = local.init_items(key_item, fedavg.sizes.items, config.width, config.init_scale)
    user = tuple(
        local.init_users(key_user, clients, config.width, config.init_scale)
        for clients in data.clients
    )
    moments = tuple(
        jax.vmap(lambda table: fedavg.client.init(Tables(table, item)))(table) for table in user
    )
    return State(Shared(item, fedavg.server.init(item)), user, moments)


def train(
    fedavg: FedAvg, shared: Shared, private: Any, clients: Clients, key: jax.Array
) -> tuple[jax.Array, Any, jax.Array]:
    """One client's steps from the server's item table; uploads how it changed [I, D]."""
    user, moments = private
    tables, moments, loss = local.train(
        Tables(user, shared.item),
        moments,
        clients,
        key,
        optimizer=fedavg.client,
        config=fedavg.config,
        layers=fedavg.config.layers,
    )
    return tables.item - shared.item, (tables.user, moments), loss


def aggregate(
    fedavg: FedAvg,
    shared: Shared,
    uploads: tuple[Any, ...],
    weights: tuple[jax.Array, ...],
    key: jax.Array,
) -> Shared:
    """The server's step by the mean change."""
    change = weighted_mean(uploads, weights)
    updates, moments = fedavg.server.update(-change, shared.moments, shared.item)
    return Shared(jnp.asarray(optax.apply_updates(shared.item, updates)), moments)


def step(fedavg: FedAvg, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round."""
    shared, private, loss, participants = federated_round(
        (partial(train, fedavg),) * len(data.clients),
        partial(aggregate, fedavg),
        state.shared,
        tuple(zip(state.user, state.moments, strict=True)),
        data.clients,
        key,
        cohort=fedavg.config,
        additive=True,
    )
    return State(shared, *zip(*private, strict=True)), Metrics(loss, participants)


def prepare(fedavg: FedAvg, state: State, data: Data) -> scoring.Served:
    """Every user's vector beside the server's items; with LightGCN each client's own items."""
    item, layers = state.shared.item, fedavg.config.layers
    tables = tuple(Tables(user, item) for user in state.user)
    if layers:
        tables = tuple(
            scoring.encode_bucket(Tables(user, jnp.tile(item, (len(user), 1, 1))), clients, layers)
            for user, clients in zip(state.user, data.clients, strict=True)
        )
    return scoring.serve(data, tables, fedavg.sizes.users)

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
from jaxrec.federated.aggregate import combine
from jaxrec.federated.cohort import check_cohort, check_rounds, releases, with_enough
from jaxrec.federated.engine import federated_round
from jaxrec.federated.malicious import RENAMED, with_attackers
from jaxrec.federated.private_mean import Bounds, first_bounds
from jaxrec.federated.sum_bytes import with_protocol
from jaxrec.federated.support import supported, supported_items
from jaxrec.methods import fedmf
from jaxrec.models.collaborative import Tables
from jaxrec.settings.fields import check, setting
from jaxrec.types import Attendance, Clients, Data, Method, SettingError, Sizes, Traffic, Traits

ALONE = {  # settings that only the other form reads
    "auto": (),
    "change": ("damping",),
    "gradient": ("learning_rate", "item_learning_rate", "negative_weight"),
}
TRAITS = Traits(
    run={"rounds": 400, "evaluate_every": 20, "patience": 3},
    uses=("order",),
    renamed={"dropout": "dropped"} | RENAMED,
    retired=("memory",),
    unread=lambda config: {
        "upload": ALONE[config.upload],
        "loss": local.unread_by_loss(config.loss),
        "server": ("server_learning_rate",) if config.server == "average" else (),
    },
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
        check_cohort(self)
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
    support: jax.Array | None  # bool [I]  items that enough users have; None: all are learned
    bounds: Bounds | None  # what uploads are measured with


class State(NamedTuple):
    shared: Shared
    user: tuple[jax.Array, ...]  # a bucket: f32 [C, U, D]
    moments: tuple[Any, ...]  # Adam's of the user tables


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction before the round
    participants: jax.Array  # clients whose upload arrived
    non_finite: jax.Array  # those of them that were dropped: some number was not finite


class FedAvg(NamedTuple):
    """The fixed parts of the method: settings, sizes and optimisers."""

    config: Config
    sizes: Sizes
    client: optax.GradientTransformation
    server: optax.GradientTransformation


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    config = settled(config, sizes)
    config = with_enough(config, sizes)
    check_rounds(config, sizes)
    user, item = optax.adam(config.learning_rate), optax.sgd(config.item_learning_rate)
    client = optax.multi_transform({"user": user, "item": item}, Tables._make(Tables._fields))
    average, adam = optax.sgd(1.0), optax.adam(config.server_learning_rate)
    server = adam if config.server == "adam" else average
    if config.upload == "gradient":
        return with_attackers(config, sizes, fedmf.make(config, sizes, server))
    fedavg = FedAvg(config, sizes, client, server)
    method = Method(
        partial(init, fedavg),
        partial(step, fedavg),
        partial(prepare, fedavg),
        scoring.score,
        traffic=traffic(config, sizes),
        releases=partial(releases, config) if config.noised else None,
        attendance=lambda metrics: Attendance(metrics.participants),
        vectors=scoring.vectors,
        fold_in=scoring.folding(config, config.layers, lambda state: state.shared.item),
        grow=partial(fedmf.grow, partial(init, fedavg)),
    )
    return with_attackers(config, sizes, method)


def traffic(config: Config, sizes: Sizes) -> Traffic:
    """The item table each way; before, which items have support."""
    table, counts = 4.0 * sizes.items * config.width, 4.0 * sizes.items * (config.support > 1)
    plain = Traffic(up=table, down=table, setup_up=counts, setup_down=counts)
    setup = int(config.support > 1)
    return with_protocol(config, plain, sizes.clients, cohort=config.participation, setup=setup)


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
    support = supported_items(config, data, fedavg.sizes.items)
    shared = Shared(item, fedavg.server.init(item), support, first_bounds(config, ()))
    return State(shared, user, moments)


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
    config = fedavg.config
    change = combine(config.rule, uploads, weights, config.malicious)
    updates, moments = fedavg.server.update(-change, shared.moments, shared.item)
    item = jnp.asarray(optax.apply_updates(shared.item, updates))
    return shared._replace(item=item, moments=moments)


def step(fedavg: FedAvg, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round."""
    done = federated_round(
        (partial(train, fedavg),) * len(data.clients),
        partial(aggregate, fedavg),
        state.shared,
        tuple(zip(state.user, state.moments, strict=True)),
        supported(data, state.shared.support).clients,
        key,
        cohort=fedavg.config,
        bounds=state.shared.bounds,
        additive=fedavg.config.rule == "mean",
    )
    shared = done.shared._replace(bounds=done.bounds)
    metrics = Metrics(done.metrics, done.participants, done.non_finite)
    return State(shared, *zip(*done.private, strict=True)), metrics


def prepare(fedavg: FedAvg, state: State, data: Data) -> scoring.Served:
    """Every user's vector beside the server's items; with LightGCN each client's own items."""
    item, layers = state.shared.item, fedavg.config.layers
    data = supported(data, state.shared.support)
    tables = tuple(Tables(user, item) for user in state.user)
    if layers:
        tables = tuple(
            scoring.encode_bucket(Tables(user, jnp.tile(item, (len(user), 1, 1))), clients, layers)
            for user, clients in zip(state.user, data.clients, strict=True)
        )
    return scoring.serve(data, tables, fedavg.sizes.users)

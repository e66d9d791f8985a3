"""FedAvg: the ID-indexed baseline. Clients share the item table, user vectors stay private.

Each round a client downloads the item table E [I, D], takes `local_steps` on its own
interactions and uploads its change; the server moves E by the weighted mean change
(McMahan et al., AISTATS 2017), as it is or through a server-side Adam (Reddi et al., ICLR 2021):

    E <- E + server_step( sum_c n_c (E_c - E) / sum_c n_c ),    n_c = train interactions of c.

Clients whose model is a Flax module share all of it that is not `modules.Private`. The weights of
networks are averaged without Adam at the server, and clients keep Adam's moments of them.

Against FedCIA's published baseline: the server may use Adam, losses act on the inner product, and
no client keeps a dense item table or its Adam moments between rounds. `upload="gradient"` is FedMF,
the form for one-user clients: see `fedmf.py`.
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
from jaxrec.models.clients import ClientModel
from jaxrec.models.collaborative import Tables
from jaxrec.settings.fields import check, setting
from jaxrec.types import Attendance, Clients, Data, Method, SettingError, Sizes, Traffic, Traits

ALONE = {  # settings that only the other form reads
    "auto": (),
    "change": ("damping",),
    "gradient": ("learning_rate", "item_learning_rate", "negative_weight"),
}
OF_TABLE = "item_learning_rate", "server", "server_learning_rate"  # of a shared table of items
TRAITS = Traits(
    run={"rounds": 400, "evaluate_every": 20, "patience": 3},
    reads=local.reads,
    settled=local.settled,
    uses=("order", "text"),
    renamed={"dropout": "dropped"} | RENAMED,
    retired=("memory",),
    unread=lambda config: {
        "upload": ALONE[config.upload],
        "loss": local.unread_by_loss(config.loss),
        "server": ("server_learning_rate",) if config.server == "average" else (),
        "model": local.unread_by_plain(config),
        "item_encoder": () if config.item_encoder == "table" else OF_TABLE,
    },
    smaller=({"upload": "gradient", "loss": "softmax"},),
)


@dataclass(frozen=True)
class Config(fedmf.FedMFConfig, local.ModelConfig):
    """Settings of FedAvg."""

    loss: Literal["auto", "square", "softmax", "bpr", "elementwise"] = "auto"
    """square: weighted least squares over the full catalogue; softmax: full-catalogue
    cross-entropy; bpr: sampled pairs; elementwise: FedCIA's published loss, for parity;
    auto: square, and softmax where upload = gradient."""
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
        if self.loss not in ("auto", "softmax") or not self.factorises:
            raise SettingError(
                "upload = 'gradient': needs loss = 'softmax', model = 'mf', layers = 0 and "
                f"item_encoder = 'table', not loss = {self.loss!r}, model = {self.model!r}, "
                f"layers = {self.layers} and item_encoder = {self.item_encoder!r}"
            )
        if not self.l2_user > 0:
            raise SettingError(f"l2_user = {self.l2_user}: must be above 0 for upload = 'gradient'")

    @property
    def factorises(self) -> bool:
        """Whether clients train two plain tables and nothing else."""
        return self.model == "mf" and not self.layers and self.item_encoder == "table"


class Shared(NamedTuple):
    item: Any  # f32 [I, D]; of Flax modules (the items' parameters, the network's)
    moments: Any  # the server optimiser's
    support: jax.Array | None  # bool [I]  items that enough users have; None: all are learned
    bounds: Bounds | None  # what uploads are measured with


class State(NamedTuple):
    shared: Shared
    user: tuple[Any, ...]  # a bucket: f32 [C, U, D], or a Flax module's parameters about users
    moments: tuple[Any, ...]  # Adam's of these


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction before the round
    participants: jax.Array  # clients whose upload arrived
    non_finite: jax.Array  # those of them that were dropped: some number was not finite


class FedAvg(NamedTuple):
    """The fixed parts of the method: settings, sizes and optimisers."""

    config: Config
    sizes: Sizes
    model: ClientModel
    client: optax.GradientTransformation
    server: optax.GradientTransformation

    @property
    def whole(self) -> bool:
        """Whether more is shared than one table of items."""
        return not (self.model.plain and self.model.table)


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    config = settled(config, sizes)
    config = with_enough(config, sizes)
    check_rounds(config, sizes)
    average, adam = optax.sgd(1.0), optax.adam(config.server_learning_rate)
    server = adam if config.server == "adam" else average
    if config.upload == "gradient":
        return with_attackers(config, sizes, fedmf.make(config, sizes, server))
    model = local.model_of(config)
    client = local.optimizer(config, model, items=optax.sgd(config.item_learning_rate))
    if not (model.plain and model.table):  # the weights of networks are averaged, as they are
        kinds = "items" if model.table else "weights", "weights"
        server = optax.multi_transform({"items": server, "weights": average}, kinds)
    fedavg = FedAvg(config, sizes, model, client, server)
    method = Method(
        partial(init, fedavg),
        partial(step, fedavg),
        partial(prepare, fedavg),
        scoring.score,
        traffic=traffic(fedavg),
        releases=partial(releases, config) if config.noised else None,
        attendance=lambda metrics: Attendance(metrics.participants),
        vectors=scoring.vectors,
        fold_in=scoring.folding(config, model.layers, lambda state: state.shared.item),
        grow=partial(fedmf.grow, partial(init, fedavg)),
    )
    return with_attackers(config, sizes, scoring.with_models(method, (model,)))


def traffic(fedavg: FedAvg) -> Traffic:
    """What is shared each way; before, which items have support, and the items' texts if read."""
    config, sizes = fedavg.config, fedavg.sizes
    first = jax.eval_shape(
        partial(first_item, fedavg, max(config.text_numbers, 1)), jax.random.key(0)
    )
    table = 4.0 * sum(leaf.size for leaf in jax.tree.leaves(first))
    counts = 4.0 * sizes.items * (config.support > 1)
    texts = local.text_bytes(config, sizes.items)
    plain = Traffic(up=table, down=table, setup_up=counts, setup_down=counts + texts)
    setup = int(config.support > 1)
    return with_protocol(config, plain, sizes.clients, cohort=config.participation, setup=setup)


def settled(config: Config, sizes: Sizes) -> Config:
    """The settings with every `auto` settled."""
    upload, loss = config.upload, config.loss
    if upload == "auto":
        fits = loss in ("auto", "softmax") and config.factorises
        upload = "gradient" if fits and sizes.users == sizes.clients else "change"
    if loss == "auto":
        loss = "softmax" if upload == "gradient" or config.recency else "square"
    return replace(config, upload=upload, loss=loss)


def first_item(fedavg: FedAvg, numbers: int, key: jax.Array) -> Any:
    """What all clients begin with: the item table, or all that Flax modules share."""
    key_item, key_user = jax.random.split(key)
    item = fedavg.model.init_items(key_item, fedavg.sizes.items, numbers)
    return (item, fedavg.model.init_users(key_user, 1)[1]) if fedavg.whole else item


def tables_of(fedavg: FedAvg, user: Any, item: Any) -> Tables:
    """A client's tables: what is its own beside what is shared."""
    return Tables(user, *item) if fedavg.whole else Tables(user, item)


def init(fedavg: FedAvg, key: jax.Array, data: Data) -> State:
    """Random tables, the item table common to all clients."""
    config, data = fedavg.config, local.with_text(fedavg.config, data)
    _, key_user = jax.random.split(key)
    item = first_item(fedavg, local.text_numbers(data.text), key)
    user = tuple(local.init_users(key_user, each, fedavg.model)[0] for each in data.clients)
    moments = tuple(
        jax.vmap(lambda own: fedavg.client.init(tables_of(fedavg, own, item)))(each)
        for each in user
    )
    support = supported_items(config, data, fedavg.sizes.items)
    reaches = ((),) * len(jax.tree.leaves(item))
    shared = Shared(item, fedavg.server.init(item), support, first_bounds(config, *reaches))
    return State(shared, user, moments)


def train(
    fedavg: FedAvg,
    text: jax.Array | None,
    shared: Shared,
    private: Any,
    clients: Clients,
    key: jax.Array,
) -> tuple[Any, Any, jax.Array]:
    """One client's steps from what the server shares; uploads how that changed, [I, D]."""
    user, moments = private
    tables, moments, loss = local.train(
        tables_of(fedavg, user, shared.item),
        moments,
        clients,
        key,
        optimizer=fedavg.client,
        config=fedavg.config,
        items=fedavg.sizes.items,
        model=fedavg.model,
        text=text,
    )
    new = (tables.item, tables.network) if fedavg.whole else tables.item
    return jax.tree.map(jnp.subtract, new, shared.item), (tables.user, moments), loss


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
    against = jax.tree.map(jnp.negative, change)
    updates, moments = fedavg.server.update(against, shared.moments, shared.item)
    item = optax.apply_updates(shared.item, updates)
    return shared._replace(item=item, moments=moments)


def step(fedavg: FedAvg, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One round."""
    data = local.with_text(fedavg.config, data)
    done = federated_round(
        (partial(train, fedavg, data.text),) * len(data.clients),
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


def prepare(fedavg: FedAvg, state: State, data: Data) -> Any:
    """Every user's vector beside the server's items; else each client's own tables, encoded."""
    item, model = state.shared.item, fedavg.model
    data = supported(local.with_text(fedavg.config, data), state.shared.support)
    if not (fedavg.whole or model.layers):
        return scoring.serve(
            data, tuple(Tables(own, item) for own in state.user), fedavg.sizes.users
        )
    tables = tuple(
        tables_of(fedavg, own, local.for_each(clients, item))
        for own, clients in zip(state.user, data.clients, strict=True)
    )
    own = (model,) * len(data.clients)
    return scoring.serve_models((model,), own, tables, data, fedavg.sizes.users)

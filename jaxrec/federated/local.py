"""What happens on one client's device: a few gradient steps on its own interactions.

FedAvg, FedCIA and local-only differ in what they send, not in this. Loss, per client:
(data loss + l2_user ||U||^2 + l2_item ||E||^2) / number of train interactions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxrec.models.clients import ClientModel, factorisation
from jaxrec.models.collaborative import Tables
from jaxrec.models.kinds import PLAIN, client_model
from jaxrec.models.recency import row_weights as by_age
from jaxrec.ops import losses
from jaxrec.settings.fields import check, require, setting
from jaxrec.types import Clients, Data, Reads, SettingError

MF = factorisation(0, 0.0)  # its functions know no width of tables that exist


@dataclass(frozen=True)
class LocalConfig:
    """Settings of a client's own training."""

    width: int = setting(64, at_least=1)
    """D, the width of user and item vectors (numbers per vector)."""
    loss: Literal["square", "softmax", "bpr", "elementwise"] = "square"
    """square: weighted least squares over the full catalogue; softmax: full-catalogue
    cross-entropy; bpr: sampled pairs; elementwise: FedCIA's published loss, for parity."""
    negative_weight: float = setting(0.1, at_least=0)
    """Weight of an unobserved entry in the square loss (an interaction weighs 1)."""
    l2_user: float = setting(1.0, at_least=0)
    """L2 penalty on the user table, in interactions."""
    l2_item: float = setting(0.3, at_least=0)
    """L2 penalty on the item table, in interactions."""
    learning_rate: float = setting(0.02, above=0)
    """Step size of a client's Adam optimiser."""
    local_steps: int = setting(10, at_least=1)
    """Gradient steps a client takes per round, each over all of its interactions."""
    init_scale: float = setting(0.1, above=0)
    """Standard deviation of the initial tables."""
    recency: float = setting(0.0, at_least=0)
    """A train row with n newer ones of its user counts 1 / (1 + n / recency); 0: all count 1."""

    def __post_init__(self) -> None:
        check(self)
        check_recency(self)


@dataclass(frozen=True)
class ModelConfig(LocalConfig):
    """Settings of a client's own training and of the model that it trains."""

    model: str = "mf"
    """A client's model: mf, lightgcn, mlp, or a Flax module in jaxrec.CLIENT_MODELS."""
    layers: int = setting(0, at_least=0)
    """LightGCN's layers; 0 is matrix factorisation, and 1 where model = lightgcn."""
    item_encoder: str = "table"
    """Where item vectors come from: table, one of each item's own; text, a network over the vectors
    of the items' texts; or a Flax module in jaxrec.ITEM_ENCODERS."""
    weights_learning_rate: float = setting(0.005, above=0)
    """Step size of a client's Adam optimiser on the weights of a Flax module or an item encoder."""
    text_numbers: int = setting(0, at_least=0)
    """T, how many numbers of an item's text vector an encoder reads, the first ones; 0: all."""


def model_of(config: ModelConfig) -> ClientModel:
    """The model of every client; raises SettingError where there is none that can be trained."""
    name = "lightgcn" if config.model == "mf" and config.layers else config.model
    rule = f"0 for model = {config.model!r}: LightGCN alone has layers"
    require(name == "lightgcn" or not config.layers, config, "layers", rule)
    layers = max(config.layers, 1)
    model = client_model(
        name, config.width, scale=config.init_scale, layers=layers, encoder=config.item_encoder
    )
    check_models(config, (model,))
    return model


def check_recency(config: LocalConfig) -> None:
    """Raises SettingError where `recency` is set and the loss does not weigh rows."""
    weighs = config.loss in ("softmax", "auto")  # a method may settle on a loss later
    rule = f"0 where loss = {config.loss!r}: only loss = 'softmax' weighs rows"
    require(weighs or not config.recency, config, "recency", rule)


def unread_by_loss(loss: str) -> tuple[str, ...]:
    """The settings of a client's training that a loss leaves unread."""
    return () if loss in ("square", "auto") else ("negative_weight",)


def row_weights(clients: Clients, recency: float) -> jax.Array:
    """How much each train row counts, [..., N]: 1 / (1 + newer rows / recency), 0 for padding.

    Raises SettingError where `recency` is set and the order of a user's rows is unknown.
    """
    if recency == 0:
        return clients.mask.astype(jnp.float32)
    if clients.age is None:
        raise SettingError(
            f"recency = {recency}: the data have no timestamps, so the order of a user's rows is "
            "unknown; set recency = 0"
        )
    return by_age(clients, 1 / recency)


def loss(
    tables: Tables,
    rows: jax.Array,
    clients: Clients,
    key: jax.Array,
    config: LocalConfig,
    model: ClientModel = MF,
    text: jax.Array | None = None,
) -> jax.Array:
    """One client's loss per interaction of its `model`; rows [U, I], the items' text [I, T]."""
    item = model.items(tables.item, text)
    encoded = model.encode(tables, item, rows)
    if config.loss == "softmax":
        weights = row_weights(clients, config.recency)
        chosen = jnp.zeros_like(rows).at[clients.user, clients.item].add(weights)
        data = losses.softmax(model.scores(encoded, len(rows)), chosen)
    elif config.loss == "square":
        scores = model.scores(encoded, len(rows))
        data = losses.weighted_square(scores, rows, negative_weight=config.negative_weight)
    else:
        negative = jax.random.randint(key, clients.item.shape, 0, rows.shape[1])
        # A sampled negative that is a train interaction is no negative: its pair is dropped.
        where = clients.mask & (rows[clients.user, negative] == 0)
        data = sampled_loss(model, encoded, len(rows), clients, negative, where, config.loss)
    squares = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tables.user))
    penalty = config.l2_user * squares + config.l2_item * jnp.sum(item**2)
    return (data + penalty) / jnp.maximum(rows.sum(), 1)


def sampled_loss(
    model: ClientModel,
    encoded: Tables,
    users: int,
    clients: Clients,
    negative: jax.Array,
    where: jax.Array,
    kind: str,
) -> jax.Array:
    """The loss of one client's rows beside `negative` items [N], `where` these are negatives."""
    if model.head:
        scores = model.scores(encoded, users)
        liked, other = scores[clients.user, clients.item], scores[clients.user, negative]
        return losses.bpr(liked, other, where=where)
    chooser = encoded.user[clients.user]  # [N, D]
    liked, other = chooser * encoded.item[clients.item], chooser * encoded.item[negative]
    if kind == "bpr":
        return losses.bpr(liked.sum(-1), other.sum(-1), where=where)
    data = losses.elementwise_square(liked, 1.0, where=clients.mask)
    return data + losses.elementwise_square(other, 0.0, where=where)


def train(
    tables: Tables,
    moments: Any,
    clients: Clients,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    config: LocalConfig,
    items: int,
    model: ClientModel = MF,
    text: jax.Array | None = None,
) -> tuple[Tables, Any, jax.Array]:
    """`config.local_steps` gradient steps of one client; returns tables, moments, first loss."""
    rows = dense_rows(clients, items)

    def step(carry, key):
        tables, moments = carry
        value, gradient = jax.value_and_grad(loss)(tables, rows, clients, key, config, model, text)
        updates, moments = optimizer.update(gradient, moments, tables)
        return (jax.tree.map(optax.apply_updates, tables, updates), moments), value

    keys = jax.random.split(key, config.local_steps)
    (tables, moments), values = jax.lax.scan(step, (tables, moments), keys)
    return tables, moments, values[0]


def optimizer(
    config: ModelConfig, model: ClientModel, items: optax.GradientTransformation | None = None
) -> optax.GradientTransformation:
    """A client's: Adam for its tables, or `items` for that of the items, and Adam for weights."""
    tables = optax.adam(config.learning_rate)
    plain = model.plain and model.table
    if items is None and plain:
        return tables
    each = {"user": tables, "item": items or tables}
    if plain:
        return optax.multi_transform(each, Tables("user", "item", "user"))
    each |= {"weights": optax.adam(config.weights_learning_rate)}
    return optax.multi_transform(
        each, Tables("user", "item" if model.table else "weights", "weights")
    )


def reads(config: Any) -> Reads:
    """What a method reads beside the clients' rows for its models."""
    return Reads(text=config.item_encoder != "table")


def settled(config: Any, data: Data, forward: bool) -> tuple[Any, str]:
    """The config with the number of an item's text numbers, which the bytes depend on."""
    if config.item_encoder == "table":
        return config, ""
    data = with_text(config, data)
    return replace(config, text_numbers=text_numbers(data.text)), ""


def for_each(clients: Clients, tree: Any) -> Any:
    """The same arrays for every client of a bucket, [C, ...]."""
    number = len(clients.client)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (number, *leaf.shape)), tree)


def check_models(config: LocalConfig, models: tuple[ClientModel, ...]) -> None:
    """Raises SettingError where a model cannot be trained as the settings ask."""
    for model in models:
        rule = f"square, softmax or bpr for model = {model.name!r}: it has no inner product"
        require(not model.head or config.loss != "elementwise", config, "loss", rule)


def init_users(key: jax.Array, clients: Clients, model: ClientModel) -> tuple[Any, Any]:
    """A bucket's initial users and networks, [C, ...] each; a client's depend on its id alone."""
    keys = jax.vmap(lambda client: jax.random.fold_in(key, client))(clients.client)
    return jax.vmap(lambda key: model.init_users(key, clients.users.shape[1]))(keys)


OF_MODULES = "weights_learning_rate", "text_numbers"  # what plain tables do not read


def unread_by_plain(config: ModelConfig, models: Iterable[str] = ()) -> tuple[str, ...]:
    """The settings that clients of these models, or of the config's, leave unread."""
    models = models or (config.model,)
    tables = config.item_encoder == "table"
    plain = tables and all(model.partition(":")[0] in PLAIN for model in models)
    return OF_MODULES if plain else ("text_numbers",) if tables else ()


def text_numbers(text: jax.Array | None) -> int:
    """T, how many numbers an item's text has; 0 where no text is read."""
    return 0 if text is None else text.shape[1]


def text_bytes(config: ModelConfig, items: int) -> float:
    """Bytes of the items' texts, which come down once where an encoder reads them."""
    return 4.0 * items * config.text_numbers if config.item_encoder != "table" else 0.0


def with_text(config: ModelConfig, data: Data) -> Data:
    """The data with as much of the items' texts as an encoder reads; SettingError without any."""
    if config.item_encoder == "table":
        return data._replace(text=None)
    if data.text is None:
        raise SettingError(
            f"item_encoder = {config.item_encoder!r}: the items have no texts; give them a title, "
            "or set item_encoder = 'table'"
        )
    return data._replace(text=data.text[:, : config.text_numbers or None])


def init_items(key: jax.Array, items: int, width: int, scale: float) -> jax.Array:
    """The initial item table [I, D], common to all clients."""
    return scale * jax.random.normal(key, (items, width))


def dense_rows(clients: Clients, items: int) -> jax.Array:
    """One client's 0/1 interaction matrix R [U, I] (vmap it for a bucket)."""
    users = clients.users.shape[-1]
    return jnp.zeros((users, items)).at[clients.user, clients.item].max(clients.mask)

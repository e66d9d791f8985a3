"""What happens on one client's device: a few gradient steps on its own interactions.

FedAvg, FedCIA and local-only differ in what they send, not in this. Loss, per client:
(data loss + l2_user ||U||^2 + l2_item ||E||^2) / number of train interactions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from jaxrec.models.collaborative import Tables, encode
from jaxrec.ops import losses
from jaxrec.settings.fields import check, require, setting
from jaxrec.types import Clients, SettingError


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
    return clients.mask / (1 + clients.age / recency)


def loss(
    tables: Tables,
    rows: jax.Array,
    clients: Clients,
    key: jax.Array,
    config: LocalConfig,
    layers: int,
) -> jax.Array:
    """One client's loss per interaction; tables [U, D] and [I, D], rows [U, I]."""
    user, item = encode(tables, rows, layers=layers)
    if config.loss == "softmax":
        weights = row_weights(clients, config.recency)
        chosen = jnp.zeros_like(rows).at[clients.user, clients.item].add(weights)
        data = losses.softmax(user @ item.T, chosen)
    elif config.loss == "square":
        data = losses.weighted_square(user @ item.T, rows, negative_weight=config.negative_weight)
    else:
        negative = jax.random.randint(key, clients.item.shape, 0, rows.shape[1])
        chooser = user[clients.user]  # [N, D]
        liked, other = chooser * item[clients.item], chooser * item[negative]
        # A sampled negative that is a train interaction is no negative: its pair is dropped.
        where = clients.mask & (rows[clients.user, negative] == 0)
        if config.loss == "bpr":
            data = losses.bpr(liked.sum(-1), other.sum(-1), where=where)
        else:
            data = losses.elementwise_square(liked, 1.0, where=clients.mask)
            data += losses.elementwise_square(other, 0.0, where=where)
    penalty = config.l2_user * jnp.sum(tables.user**2) + config.l2_item * jnp.sum(tables.item**2)
    return (data + penalty) / jnp.maximum(rows.sum(), 1)


def train(
    tables: Tables,
    moments: Any,
    clients: Clients,
    key: jax.Array,
    *,
    optimizer: optax.GradientTransformation,
    config: LocalConfig,
    layers: int = 0,
) -> tuple[Tables, Any, jax.Array]:
    """`config.local_steps` gradient steps of one client; returns tables, moments, first loss."""
    rows = dense_rows(clients, len(tables.item))

    def step(carry, key):
        tables, moments = carry
        value, gradient = jax.value_and_grad(loss)(tables, rows, clients, key, config, layers)
        updates, moments = optimizer.update(gradient, moments, tables)
        return (jax.tree.map(optax.apply_updates, tables, updates), moments), value

    keys = jax.random.split(key, config.local_steps)
    (tables, moments), values = jax.lax.scan(step, (tables, moments), keys)
    return tables, moments, values[0]


def init_users(key: jax.Array, clients: Clients, width: int, scale: float) -> jax.Array:
    """Initial user tables [C, U, D] of a bucket; a client's depends on its id alone."""
    keys = jax.vmap(lambda client: jax.random.fold_in(key, client))(clients.client)
    shape = (clients.users.shape[1], width)
    return scale * jax.vmap(lambda key: jax.random.normal(key, shape))(keys)


def init_items(key: jax.Array, items: int, width: int, scale: float) -> jax.Array:
    """The initial item table [I, D], common to all clients."""
    return scale * jax.random.normal(key, (items, width))


def dense_rows(clients: Clients, items: int) -> jax.Array:
    """One client's 0/1 interaction matrix R [U, I] (vmap it for a bucket)."""
    users = clients.users.shape[-1]
    return jnp.zeros((users, items)).at[clients.user, clients.item].max(clients.mask)

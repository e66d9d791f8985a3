"""What happens on one client's device: a few gradient steps on its own interactions.

FedAvg, FedCIA and local-only differ in what they send, not in this. Loss, per client:
(data loss + l2_user ||U||^2 + l2_item ||E||^2) / number of train interactions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrec.federated.engine import dense_rows
from jaxrec.models.collaborative import Tables, encode
from jaxrec.ops import losses
from jaxrec.types import Clients, Data, SettingError


@dataclass(frozen=True)
class LocalConfig:
    """Settings of a client's own training."""

    width: int = 64
    """D, the width of user and item vectors (numbers per vector)."""
    loss: Literal["square", "softmax", "bpr", "elementwise"] = "square"
    """square: weighted least squares over the full catalogue; softmax: full-catalogue
    cross-entropy; bpr: sampled pairs; elementwise: FedCIA's published loss, for parity."""
    negative_weight: float = 0.1
    """Weight of an unobserved entry in the square loss (an interaction weighs 1)."""
    l2_user: float = 1.0
    """L2 penalty on the user table, in interactions."""
    l2_item: float = 0.3
    """L2 penalty on the item table, in interactions."""
    learning_rate: float = 0.02
    """Step size of a client's Adam optimiser."""
    local_steps: int = 10
    """Gradient steps a client takes per round, each over all of its interactions."""
    init_scale: float = 0.1
    """Standard deviation of the initial tables."""
    recency: float = 0.0
    """A train row with n newer ones of its user counts 1 / (1 + n / recency); 0: all count 1."""


def check(config: LocalConfig) -> None:
    """Refuse settings that cannot work; raises SettingError naming the value."""
    for name in ("width", "local_steps"):
        if getattr(config, name) < 1:
            raise SettingError(f"{name} = {getattr(config, name)}: must be at least 1")
    for name in ("negative_weight", "l2_user", "l2_item", "recency"):
        if not getattr(config, name) >= 0:
            raise SettingError(f"{name} = {getattr(config, name)}: must not be negative")
    for name in ("learning_rate", "init_scale"):
        if not getattr(config, name) > 0:
            raise SettingError(f"{name} = {getattr(config, name)}: must be positive")
    if config.recency and config.loss != "softmax":
        raise SettingError(
            f"recency = {config.recency}: only the softmax loss weighs rows; set loss = 'softmax'"
        )


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
        return (optax.apply_updates(tables, updates), moments), value

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


def encode_bucket(tables: Tables, clients: Clients, layers: int) -> Tables:
    """`encode` for every client of a bucket; tables [C, U, D] and [C, I, D]."""
    if layers == 0:
        return tables
    items = tables.item.shape[1]
    return jax.vmap(lambda t, c: encode(t, dense_rows(c, items), layers=layers))(tables, clients)


class Served(NamedTuple):
    """Vectors laid out for scoring, made once per evaluation."""

    user: jax.Array  # f32 [rows, D]  all buckets' user vectors end to end
    item: jax.Array  # f32 [I, D], or [C, I, D] where each client has its own
    client: jax.Array  # int32 [rows]  place of the row's client in `item`
    slot: jax.Array  # int32 [U]  a user's row


def serve(data: Data, tables: tuple[Tables, ...], users: int) -> Served:
    """Lay out per-client tables, [C, U, D] and [C, I, D] (or one [I, D]) a bucket, for `score`.

    Widths may differ between buckets: narrow vectors are padded with zeros, which leaves every
    inner product as it is.
    """
    width = max(table.user.shape[-1] for table in tables)

    def widen(array):
        return jnp.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])])

    user = jnp.concatenate([widen(t.user).reshape(-1, width) for t in tables])
    own = tables[0].item.ndim == 3
    item = jnp.concatenate([widen(t.item) for t in tables]) if own else widen(tables[0].item)
    owners = [clients.users.shape for clients in data.clients]  # [C, U] a bucket
    client = jnp.repeat(
        jnp.arange(sum(c for c, _ in owners), dtype=jnp.int32),
        jnp.concatenate([jnp.full(c, u) for c, u in owners]),
        total_repeat_length=len(user),
    )
    return Served(user, item, client, user_slots(data, users))


def vectors(served: Served) -> tuple[np.ndarray, np.ndarray]:
    """User [U, D] and item vectors [I, D] whose inner products are the scores, on the host.

    Where each client has its own item table, the first client's stands for all if the others' are
    that table times a D x D matrix, as FedCIA's are when every client has just aligned its own to
    the same similarity. SettingError if they are not.
    """
    user, item, client, slot = map(np.asarray, served)
    if item.ndim == 2:
        return user[slot], item
    common, user = item[0].astype(np.float64), user.copy()
    inverse = np.linalg.pinv(common)
    for number, own in enumerate(item):
        turn = inverse @ own
        apart = np.linalg.norm(common @ turn - own) / max(np.linalg.norm(own), 1e-30)
        if apart > 1e-3:
            raise SettingError(
                f"every client has an item table of its own, and no common one stands for them: "
                f"that of client {number} differs by {apart:.0%} of its length from the first one's"
            )
        user[client == number] @= turn.T.astype(user.dtype)
    return user[slot], item[0]


def folding(
    config: LocalConfig, layers: int, table: Callable[[Any], jax.Array]
) -> Callable[[Any, Data], Served] | str:
    """How a method takes in new users: `fold_in` with the items of `table(state)`, or why not."""
    if layers:
        return "LightGCN needs the new users' graph in training"
    if config.loss != "square":
        return f"loss = {config.loss!r}: only the square loss gives a new user's vector at once"

    def fold_in_users(state: Any, data: Data) -> Served:
        item = table(state)
        tables = tuple(Tables(fold_in(item, each, config), item) for each in data.clients)
        return serve(data, tables, number(data))

    return fold_in_users


def fold_in(item: jax.Array, clients: Clients, config: LocalConfig) -> jax.Array:
    """User tables [C, U, D] that minimise the square loss, the item table E [I, D] standing still.

    With w the weight of an unobserved entry and J the user's items,

        x = (w E^T E + (1 - w) sum_{j in J} e_j e_j^T + l2 I)^-1 sum_{j in J} e_j.
    """
    width = item.shape[1]
    common = config.negative_weight * item.T @ item + (config.l2_user + 1e-6) * jnp.eye(width)

    def fit(clients: Clients) -> jax.Array:
        rows = dense_rows(clients, len(item))  # [U, I]
        gram = jax.vmap(lambda own: (own[:, None] * item).T @ item)(rows)
        gram = common + (1 - config.negative_weight) * gram
        return jnp.linalg.solve(gram, (rows @ item)[..., None])[..., 0]

    return jax.lax.map(fit, clients)


def number(data: Data) -> int:
    """How many places for users there are, padding included."""
    return sum(clients.users.size for clients in data.clients)


def user_slots(data: Data, users: int) -> jax.Array:
    """Row of each user [U] when the buckets' user tables are laid end to end, client by client."""
    owner = jnp.concatenate([clients.users.reshape(-1) for clients in data.clients])
    rows = jnp.arange(len(owner), dtype=jnp.int32)
    return jnp.zeros(users, jnp.int32).at[owner].set(rows, mode="drop")


def score(served: Served, users: jax.Array) -> jax.Array:
    """Inner-product scores f32 [B, I] of global user ids [B]."""
    row = served.slot[users]
    vectors = served.user[row]
    if served.item.ndim == 2:
        return vectors @ served.item.T
    return jax.lax.map(lambda pair: served.item[pair[0]] @ pair[1], (served.client[row], vectors))

"""Sequential recommenders, centralised: SASRec and GRU4Rec learn what comes next.

    loss = - mean over users u and places t of log softmax(h_ut E^T)_{x_{u,t+1}}

over the full catalogue, h_ut being the vector after the user's t-th item x_ut. The server holds
everybody's history; nothing is federated here.

Against the papers. SASRec was published with binary cross-entropy against one sampled negative,
GRU4Rec with pairwise losses over the batch; here it is the full softmax, which `losses.next_item`
makes cheap. Batches are rows that short sequences share (`data/rows.py`), so that little is spent
on padding. Positions count from a sequence's first item.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec.data.pack import history_of
from jaxrec.data.rows import Rows, lay
from jaxrec.models import sequential
from jaxrec.ops import losses
from jaxrec.types import Data, History, Method, SettingError, Sizes

RUN = {
    "split": "leave-one-out",
    "rounds": 100,
    "evaluate_every": 3,
    "patience": 3,
    "baselines": ("popularity",),
}
reads_history = True


@dataclass(frozen=True)
class Config:
    """Settings of a sequential recommender; one round is one epoch."""

    model: Literal["sasrec", "gru4rec"] = "sasrec"
    """sasrec: causal self-attention; gru4rec: a gated recurrent network."""
    width: int = 64
    """Numbers an item, and what is known after it, have."""
    layers: int = 1
    """Attention blocks or recurrent layers."""
    heads: int = 2
    """Parts of `width` that attend on their own; sasrec."""
    inner: int = 4
    """Width of the layers between attentions, in widths; sasrec."""
    norm: Literal["pre", "post"] = "post"
    """Where the layer norms stand: before each part of a block, or after its sum; sasrec. On
    beauty-s3rec post reaches in 9 epochs what pre does in 24."""
    length: int = 50
    """Newest items of a user that are read."""
    dropout: float = 0.5
    """Share of the inner values set to 0 while training, 0 to below 1."""
    loss: Literal["softmax", "binary"] = "softmax"
    """softmax: over the full catalogue; binary: against one sampled negative a position."""
    batch: int = 1024
    """Places of a step, at least `length`: rows of `length` places that short sequences share."""
    learning_rate: float = 3e-3
    """Of AdamW."""
    weight_decay: float = 0.0
    """Of AdamW, decoupled: what a step takes off each weight, in parts of learning_rate."""
    warmup: int = 0
    """Steps over which the learning rate grows from 0."""


class State(NamedTuple):
    params: Any  # nnx.State of the model
    moments: Any  # AdamW's


class Metrics(NamedTuple):
    loss: jax.Array  # mean over the places of the epoch


class Served(NamedTuple):
    user: jax.Array  # f32 [U, D]  after each user's newest item; 0 for a user without any
    item: jax.Array  # f32 [I, D]


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    _check(config)
    rows = config.batch // config.length  # of a step
    optimizer = adamw(config)
    graphdef = nnx.graphdef(jax.eval_shape(lambda: build(jax.random.key(0), config, sizes.items)))

    def init(key: jax.Array, data: Data) -> State:
        history_of(data)
        params = nnx.state(build(key, config, sizes.items))
        return State(params, optimizer.init(params))

    def loss(params, batch: Rows, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean over the places of a batch, and their number."""
        drop_key, key = jax.random.split(key)
        module = nnx.merge(graphdef, params)
        hidden = module(batch.item, batch.position, key=drop_key).reshape(-1, config.width)
        target, where = batch.target.ravel(), batch.item.ravel() < sizes.items
        table = module.table[...]
        if config.loss == "softmax":
            total = losses.next_item(hidden, table, target, where=where)
        else:
            other = jax.random.randint(key, target.shape, 0, sizes.items - 1)
            other += other >= target  # any item but the target
            score = lambda item: jnp.sum(hidden * table[item], axis=1)
            total = losses.binary(score(target), score(other), where=where)
        number = jnp.sum(where)
        return total / jnp.maximum(number, 1), number

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        order_key, key = jax.random.split(key)
        order = jax.random.permutation(order_key, sizes.users)
        past, items, length = history_of(data), sizes.items, config.length
        laid, used = lay(past, order, items=items, length=length, ahead=1, multiple=rows)

        def advance(number, carry):
            params, moments, total, count = carry
            batch, batch_key = laid.batch(number, rows), jax.random.fold_in(key, number)
            (mean, n), gradient = jax.value_and_grad(loss, has_aux=True)(params, batch, batch_key)
            updates, moments = optimizer.update(gradient, moments, params)
            return optax.apply_updates(params, updates), moments, total + n * mean, count + n

        start = (*state, jnp.float32(0), jnp.int32(0))
        *state, total, count = jax.lax.fori_loop(0, -(-used // rows), advance, start)
        return State(*state), Metrics(total / jnp.maximum(count, 1))

    def prepare(state: State, data: Data) -> Served:
        module = nnx.merge(graphdef, state.params)
        past, items, length = history_of(data), sizes.items, config.length
        hidden = lambda rows: module(rows.item, rows.position)
        user = encode(hidden, past, config.width, items=items, length=length, batch=rows)
        return Served(user, module.table[...])

    def score(served: Served, users: jax.Array) -> jax.Array:
        return served.user[users] @ served.item.T

    return Method(init, step, prepare, score, axis="batch", vectors=tuple, fold_in=prepare)


def build(key: jax.Array, config: Config, items: int) -> nnx.Module:
    """The model of `config`, with fresh weights."""
    names = ["width", "layers", "dropout"]
    if config.model == "sasrec":
        names += ["length", "heads", "inner", "norm"]
    model = {"sasrec": sequential.SASRec, "gru4rec": sequential.GRU4Rec}[config.model]
    return model(key, items=items, **{name: getattr(config, name) for name in names})


def adamw(config: Config) -> optax.GradientTransformation:
    """The optimizer of `config`."""
    rate = config.learning_rate
    if config.warmup:
        rate = optax.linear_schedule(0.0, rate, config.warmup)
    return optax.adamw(rate, weight_decay=config.weight_decay)


def encode(
    hidden: Callable[[Rows], jax.Array],
    past: History,
    width: int,
    *,
    items: int,
    length: int,
    batch: int,
) -> jax.Array:
    """The vectors [U, D] after each user's newest item, `batch` rows at a time."""
    users = len(past.start) - 1
    everyone = jnp.arange(users)
    laid, used = lay(past, everyone, items=items, length=length, ahead=0, multiple=batch)

    def serve(number, served):
        rows = laid.batch(number, batch)
        newest = jnp.where(rows.target == items, rows.user, users)
        return served.at[newest].set(hidden(rows), mode="drop")

    return jax.lax.fori_loop(0, -(-used // batch), serve, jnp.zeros((users, width)))


def _check(config: Config) -> None:
    for name, at_least in (
        ("width", 1), ("layers", 1), ("heads", 1), ("inner", 1), ("length", 1), ("warmup", 0),
    ):  # fmt: skip
        require(getattr(config, name) >= at_least, config, name, f"at least {at_least}")
    if config.model == "sasrec":
        require(config.width % config.heads == 0, config, "heads", f"a divisor of {config.width}")
    require(0 <= config.dropout < 1, config, "dropout", "from 0 to below 1")
    require(
        config.batch >= config.length, config, "batch", f"at least length = {config.length} places"
    )
    require(0 < config.learning_rate < math.inf, config, "learning_rate", "above 0")
    require(0 <= config.weight_decay < math.inf, config, "weight_decay", "at least 0")


def require(holds: bool, config: Any, name: str, rule: str) -> None:
    """SettingError, naming the value and the rule, where a setting does not hold to it."""
    if not holds:
        raise SettingError(f"{name} = {getattr(config, name)!r}: must be {rule}")

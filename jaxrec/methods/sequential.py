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

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxrec.data.pack import history_of
from jaxrec.data.rows import Rows, fill_rows
from jaxrec.models import sequential
from jaxrec.ops import losses
from jaxrec.ops.growth import over
from jaxrec.settings.fields import check, require, setting
from jaxrec.types import Data, Earlier, History, Method, Reads, Sizes, Traits

ALONE = {"sasrec": (), "gru4rec": ("heads", "inner", "norm")}  # that only the other model reads
TRAITS = Traits(
    run={
        "rounds": 100,
        "evaluate_every": 3,
        "patience": 3,
        "baselines": ("itemknn", "popularity"),
    },
    reads=lambda config: Reads(history=True),
    needs=("order",),
    unread=lambda config: {"model": ALONE[config.model]},
)


@dataclass(frozen=True)
class Config:
    """Settings of a sequential recommender; one round is one epoch."""

    model: Literal["sasrec", "gru4rec"] = "sasrec"
    """sasrec: causal self-attention; gru4rec: a gated recurrent network."""
    width: int = setting(64, at_least=1)
    """D, the width of the item vectors and of the vector after each item (numbers per vector)."""
    layers: int = setting(1, at_least=1)
    """Attention blocks or recurrent layers."""
    heads: int = setting(2, at_least=1)
    """Attention heads, which divide `width`; sasrec."""
    inner: int = setting(4, at_least=1)
    """Width of the feed-forward layer of a block, in multiples of `width`; sasrec."""
    norm: Literal["pre", "post"] = "post"
    """Where the layer norms stand: before each part of a block, or after its sum; sasrec. On
    beauty-s3rec post reaches in 9 epochs what pre does in 24."""
    length: int = setting(50, at_least=1)
    """L, the number of a user's newest items that the model reads."""
    dropout: float = setting(0.5, at_least=0, below=1)
    """Share of the inner values set to 0 while training."""
    loss: Literal["softmax", "binary"] = "softmax"
    """softmax: over the full catalogue; binary: against one sampled negative a position."""
    batch: int = setting(1024, at_least=1)
    """Places of a step, at least `length`: rows of `length` places that short sequences share."""
    learning_rate: float = setting(3e-3, above=0)
    """Learning rate of AdamW."""
    weight_decay: float = setting(0.0, at_least=0)
    """Weight decay of AdamW, decoupled: a step takes this share of a weight off, times the learning
    rate."""
    warmup: int = setting(0, at_least=0)
    """Steps over which the learning rate grows from 0."""

    def __post_init__(self) -> None:
        check(self)
        if self.model == "sasrec":
            require(self.width % self.heads == 0, self, "heads", f"a divisor of {self.width}")
        rule = f"at least length = {self.length} places"
        require(self.batch >= self.length, self, "batch", rule)


class State(NamedTuple):
    params: Any  # nnx.State of the model
    moments: Any  # AdamW's


class Metrics(NamedTuple):
    loss: jax.Array  # mean over the places of the epoch


class Served(NamedTuple):
    user: jax.Array  # f32 [U, D]  after each user's newest item; 0 for a user without any
    item: jax.Array  # f32 [I, D]


class Fixed(NamedTuple):
    """The parts of the method that no step changes."""

    config: Config
    sizes: Sizes
    graphdef: nnx.GraphDef
    optimizer: optax.GradientTransformation

    @property
    def rows(self) -> int:
        """Rows of a step."""
        return self.config.batch // self.config.length


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`."""
    fixed = Fixed(config, sizes, graphdef_of(config, sizes.items), adamw(config))
    serve = partial(prepare, fixed)
    return Method(
        partial(init, fixed), partial(step, fixed), serve, score,
        axis="batch", vectors=tuple, fold_in=serve, grow=partial(grow, fixed),
    )  # fmt: skip


def init(fixed: Fixed, key: jax.Array, data: Data) -> State:
    """A model with fresh weights; DataError where the data know no order."""
    history_of(data)
    params = nnx.state(build(key, fixed.config, fixed.sizes.items))
    return State(params, fixed.optimizer.init(params))


def grow(fixed: Fixed, state: State, was: Earlier, key: jax.Array, data: Data) -> State:
    """The weights, new items with fresh vectors; the optimizer starts anew."""
    fresh = init(fixed, key, data)
    return fresh._replace(params=over(fresh.params, state.params))


def step(fixed: Fixed, state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
    """One epoch: every user's places once, the users in random order."""
    order_key, key = jax.random.split(key)
    order = jax.random.permutation(order_key, fixed.sizes.users)
    rows, items, length = fixed.rows, fixed.sizes.items, fixed.config.length
    laid, used = fill_rows(
        history_of(data), order, items=items, length=length, ahead=1, multiple=rows
    )

    def advance(number, carry):
        params, moments, total, count = carry
        batch, batch_key = laid.batch(number, rows), jax.random.fold_in(key, number)
        gradient_of = jax.value_and_grad(partial(batch_loss, fixed), has_aux=True)
        (mean, n), gradient = gradient_of(params, batch, batch_key)
        updates, moments = fixed.optimizer.update(gradient, moments, params)
        return optax.apply_updates(params, updates), moments, total + n * mean, count + n

    start = (*state, jnp.float32(0), jnp.int32(0))
    params, moments, total, count = jax.lax.fori_loop(0, -(-used // rows), advance, start)
    return State(params, moments), Metrics(total / jnp.maximum(count, 1))


def batch_loss(
    fixed: Fixed, params: nnx.State, batch: Rows, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The mean loss over the places of a batch, and their number; dropout with `key`."""
    drop_key, key = jax.random.split(key)
    module, items = nnx.merge(fixed.graphdef, params), fixed.sizes.items
    hidden = module(batch.item, batch.position, key=drop_key).reshape(-1, fixed.config.width)
    target, where = batch.target.ravel(), batch.item.ravel() < items
    table = module.table[...]
    if fixed.config.loss == "softmax":
        total = losses.next_item(hidden, table, target, where=where)
    else:
        other = jax.random.randint(key, target.shape, 0, items - 1)
        other += other >= target  # any item but the target
        logit = lambda item: jnp.sum(hidden * table[item], axis=1)
        total = losses.binary(logit(target), logit(other), where=where)
    number = jnp.sum(where)
    return total / jnp.maximum(number, 1), number


def prepare(fixed: Fixed, state: State, data: Data) -> Served:
    """The vectors that serve, of every user's newest items in `data`."""
    module = nnx.merge(fixed.graphdef, state.params)
    user = encode_users(
        lambda rows: module(rows.item, rows.position), history_of(data), fixed.config.width,
        items=fixed.sizes.items, length=fixed.config.length, batch=fixed.rows,
    )  # fmt: skip
    return Served(user, module.table[...])


def score(served: Served, users: jax.Array) -> jax.Array:
    """Scores f32 [B, I] of every item for `users` int32 [B]."""
    return served.user[users] @ served.item.T


def graphdef_of(config: Config, items: int) -> nnx.GraphDef:
    """The structure of `config`'s model, without weights."""
    return nnx.graphdef(jax.eval_shape(lambda: build(jax.random.key(0), config, items)))


def build(key: jax.Array, config: Config, items: int) -> nnx.Module:
    """The model of `config` with fresh weights."""
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


def encode_users(
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
    laid, used = fill_rows(past, everyone, items=items, length=length, ahead=0, multiple=batch)

    def serve(number, served):
        rows = laid.batch(number, batch)
        newest = jnp.where(rows.target == items, rows.user, users)
        return served.at[newest].set(hidden(rows), mode="drop")

    return jax.lax.fori_loop(0, -(-used // batch), serve, jnp.zeros((users, width)))

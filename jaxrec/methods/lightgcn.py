"""LightGCN: vectors averaged over the graph of users and items, trained as BPR is; centralised.

    layer_l of users = N layer_{l-1} of items,   layer_l of items = N^T layer_{l-1} of users,
    N = D_u^-1/2 R D_i^-1/2,                     vectors = mean of layers 0 .. L

(He et al., SIGIR 2020). The loss is BPR's, of these vectors, with a penalty on layer 0. A step goes
through the graph once, so batches are larger than BPR's. A product with N is a matrix product where
R is not sparse, else a sum over edges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import optax

from jaxrec.methods import bpr
from jaxrec.methods.bpr import Encode, Pairwise, State
from jaxrec.models.collaborative import Tables, inverse_root
from jaxrec.ops.co_occurrence import DENSE
from jaxrec.ops.edges import edges
from jaxrec.settings.fields import check, setting
from jaxrec.types import Data, Method, Sizes, Traits, Unavailable

TRAITS = Traits(run={"rounds": 200, "evaluate_every": 5, "patience": 4, "baselines": ()})


@dataclass(frozen=True)
class Config:
    """Settings of LightGCN; one round is one epoch."""

    width: int = setting(64, at_least=1)
    """D, the width of user and item vectors (numbers per vector)."""
    layers: int = setting(3, at_least=1)
    """L, how far a vector spreads along the graph; edges."""
    learning_rate: float = setting(0.02, above=0)
    """Step size of Adam."""
    l2: float = setting(1e-3, at_least=0)
    """L2 penalty on the layer-0 vectors of each pair."""
    batch: int = setting(8192, at_least=1)
    """Interactions of a step."""
    init_scale: float = setting(0.1, above=0)
    """Standard deviation of the first numbers."""

    __post_init__ = check


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`."""
    fixed = Pairwise(config, sizes, optax.adam(config.learning_rate), config.l2)
    encoder = partial(encoder_of, config.layers, sizes)
    return Method(
        partial(init, fixed),
        partial(bpr.step, fixed, encoder),
        lambda state, data: encoder(data)(state.tables),
        bpr.score,
        vectors=lambda served: (served.user, served.item),
        fold_in=Unavailable("a new user's vector needs its edges in the graph while training"),
        grow=partial(bpr.grow, fixed, init),
        axis="",
    )


def init(fixed: Pairwise, key: jax.Array, data: Data) -> State:
    """Random vectors."""
    tables = bpr.first_tables(fixed.config, fixed.sizes, key)
    return State(tables, fixed.optimizer.init(tables))


def encoder_of(layers: int, sizes: Sizes, data: Data) -> Encode:
    """What averages tables [U, D] and [I, D] over the graph of `data`'s rows."""
    to_users, to_items = products(sizes, data)

    def encode(tables: Tables) -> Tables:
        layer = total = Tables(tables.user, tables.item)
        for _ in range(layers):
            layer = Tables(to_users(layer.item), to_items(layer.user))
            total = jax.tree.map(jnp.add, total, layer)
        return jax.tree.map(lambda table: table / (layers + 1), total)

    return encode


def products(
    sizes: Sizes, data: Data
) -> tuple[Callable[[jax.Array], jax.Array], Callable[[jax.Array], jax.Array]]:
    """The products with N, [I, D] -> [U, D], and with its transpose."""
    user, item, weight = edges(data.clients)
    user = jnp.where(weight > 0, user, 0)
    shape = sizes.users, sizes.items
    known = [
        jnp.zeros(number).at[of].add(weight) for number, of in zip(shape, (user, item), strict=True)
    ]
    weight = weight * inverse_root(known[0])[user] * inverse_root(known[1])[item]
    if sizes.users * sizes.items <= DENSE * len(user):
        graph = jnp.zeros(shape).at[user, item].add(weight)
        return lambda table: graph @ table, lambda table: graph.T @ table
    spread = lambda to, of, number, table: (
        jnp.zeros((number, table.shape[1])).at[to].add(weight[:, None] * table[of])
    )
    return partial(spread, user, item, shape[0]), partial(spread, item, user, shape[1])

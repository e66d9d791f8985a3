"""ALS: matrix factorisation of implicit feedback by alternating least squares, centralised.

    loss = sum_ui c_ui (x_u . e_i - R_ui)^2 + sum_u l_u ||x_u||^2 + sum_i l_i ||e_i||^2

with c = 1 on interactions and w elsewhere (Hu, Koren and Volinsky, ICDM 2008; their alpha is
1 / w - 1 up to scale). While items stand still every user's optimum is a linear system of D
equations, and the other way round: a round solves the users' and then the items'.

A vector's penalty grows with its interactions n, l (1 + n / 100)^nu. Rendle et al. (RecSys 2022)
found that penalties decide whether ALS keeps up with newer models; their own form, l (n + w N)^nu
with N all that a vector might have, needs another l on every data set. The first items are random,
and there is no learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.models import recency
from jaxrec.models.recency import edges_by_age, fade_of
from jaxrec.ops import least_squares
from jaxrec.ops.edges import Owned, counts, edges, of_items, of_users
from jaxrec.ops.growth import over
from jaxrec.settings.fields import check, setting
from jaxrec.types import Data, Earlier, Method, Sizes, Traits

ROWS = 100  # interactions with which a penalty begins to grow


@dataclass(frozen=True)
class Config:
    """Settings of ALS; one round is one sweep over users and items."""

    width: int = setting(64, at_least=1)
    """D, the width of user and item vectors (numbers per vector)."""
    negative_weight: float = setting(0.1, above=0)
    """w, the weight of an unobserved entry (an interaction weighs 1)."""
    l2: float = setting(4.0, above=0)
    """l, the L2 penalty on a vector, in interactions."""
    l2_exponent: float = setting(0.5, at_least=0)
    """nu: how the penalty on a vector grows with its n interactions; 0: it does not."""
    init_scale: float = setting(0.1, above=0)
    """Standard deviation of the items' first numbers."""
    recency: float | Literal["auto"] = setting("auto", at_least=0)
    """When serving, a row with n newer ones of its user counts 1 / (1 + n / recency); 0: all count
    1; auto: whichever of 0, 1, 5 and 20 finds users' newest train rows best."""

    __post_init__ = check


TRAITS = Traits(
    run={"rounds": 16, "evaluate_every": 2, "patience": 3, "baselines": ()},
    uses=("order",),
    settled=recency.settled,
)


class State(NamedTuple):
    item: jax.Array  # f32 [I, D]
    fade: jax.Array  # f32 []  when serving, a row with n newer ones counts 1 / (1 + n fade)


class Metrics(NamedTuple):
    change: jax.Array  # of the items in the round, as a part of their length


class Served(NamedTuple):
    user: jax.Array  # f32 [U, D]
    item: jax.Array  # f32 [I, D]


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`."""
    return Method(
        partial(init, config, sizes),
        partial(step, config, sizes),
        partial(prepare, config, sizes.users),
        score,
        vectors=tuple,
        fold_in=partial(fold_in, config),
        grow=partial(grow, config, sizes),
        axis="",
    )


def init(config: Config, sizes: Sizes, key: jax.Array, data: Data) -> State:
    """Random items."""
    shape = sizes.items, config.width
    return State(config.init_scale * jax.random.normal(key, shape), jnp.float32(0))


def grow(
    config: Config, sizes: Sizes, state: State, was: Earlier, key: jax.Array, data: Data
) -> State:
    """The items, new ones as `init` makes them."""
    return over(init(config, sizes, key, data), state)


def step(
    config: Config, sizes: Sizes, state: State, data: Data, key: jax.Array
) -> tuple[State, Metrics]:
    """One sweep: all users, then all items."""
    rows = edges(data.clients)
    user = solved(config, state.item, of_users(rows, sizes.users))
    item = solved(config, user, of_items(rows, sizes.items))
    item = jnp.where(jnp.any(rows.weight > 0), item, state.item)
    change = jnp.linalg.norm(item - state.item) / jnp.maximum(jnp.linalg.norm(item), 1e-30)
    fitted = lambda before: lambda rows: solved(config, item, rows) @ item.T
    fade = fade_of(config.recency, data, sizes.users, sizes.items, fitted)
    return State(item, fade), Metrics(change)


def solved(config: Config, table: jax.Array, owned: Owned) -> jax.Array:
    """Each owner's vector [N, D] at its optimum, beside the other side's `table` [J, D]."""
    return least_squares.of_owners(
        table,
        owned,
        negative_weight=config.negative_weight,
        l2=penalty(config, counts(owned)),
    )


def penalty(config: Config, known: jax.Array) -> jax.Array:
    """The penalty on vectors with so many interactions [N]."""
    return config.l2 * (1 + known / ROWS) ** config.l2_exponent


def prepare(config: Config, users: int, state: State, data: Data) -> Served:
    """Every user at its optimum, beside the items."""
    rows = of_users(edges_by_age(data, state.fade), users)
    return Served(solved(config, state.item, rows), state.item)


def fold_in(config: Config, state: State, data: Data) -> Served:
    """`prepare` for the users of `data`, whoever they are."""
    return prepare(config, sum(clients.users.size for clients in data.clients), state, data)


def score(served: Served, users: jax.Array) -> jax.Array:
    """Scores f32 [B, I] of every item for `users` int32 [B]."""
    return served.user[users] @ served.item.T

"""Federated ALS: clients solve their users, the server solves the items from summed equations.

The loss is that of `als`. A round:

    users   x_u = (w E^T E + (1 - w) sum_{j in u} e_j e_j^T + l_u)^-1 sum_{j in u} e_j
    client  for each item i:  sum_{u has i} (x_u x_u^T, x_u),  and sum_u x_u x_u^T
    server  e_i = (w X^T X + (1 - w) sum_{u has i} x_u x_u^T + l_i)^-1 sum_{u has i} x_u

It is what centralised ALS computes, to rounding: the server needs the clients' sums alone, and no
client keeps anything. It is the strongest simple federated baseline, and what it costs is plain: a
symmetric matrix D x D for every item, so D is small and rounds are few. Ammad-ud-din et al. (2019)
send the items' gradient in its place, D numbers an item, and take many more rounds.

What the server sees is R^T Q with R [U, I] everybody's rows and another Q [U, F] in every round:
after U / F rounds that says what R's row space says, as one whole R^T R would. So no more items
than users are learned under `secure_sum`, as in FedCIA's whole sums (`federated/support.py`).
How much older rows count is chosen by four sums over users; the simulation takes every so many-th
user, whoever is in the round.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.federated import local, scoring
from jaxrec.federated.aggregate import combine
from jaxrec.federated.cohort import CohortConfig, check_rounds, weighed_alike, with_enough
from jaxrec.federated.cooccurrence import item_counts
from jaxrec.federated.engine import federated_round
from jaxrec.federated.malicious import with_attackers
from jaxrec.federated.private_mean import FACTOR_BITS, Bounds, first_bounds
from jaxrec.federated.sum_bytes import with_protocol
from jaxrec.federated.support import supported, supported_items
from jaxrec.federated.uploads import Factored
from jaxrec.methods import als
from jaxrec.methods.als import penalty
from jaxrec.models import recency
from jaxrec.models.collaborative import Tables
from jaxrec.models.recency import fade_of, row_weights
from jaxrec.ops import least_squares, linalg
from jaxrec.ops.growth import over
from jaxrec.settings.fields import require, setting
from jaxrec.types import Attendance, Clients, Data, Earlier, Method, Sizes, Traffic, Traits

TRAITS = Traits(
    run={"rounds": 16, "evaluate_every": 2, "patience": 3},
    uses=("order",),
    settled=recency.settled,
)


@dataclass(frozen=True)
class Config(CohortConfig, als.Config):
    """Settings of federated ALS: those of `als` and of a cohort; one round is one sweep."""

    width: int = setting(16, at_least=1)
    """D, the width of user and item vectors (numbers per vector); an upload grows with D^2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        rule = "plain or secure_sum: noise on equations would leave nothing to solve"
        require(not self.noised, self, "privacy", rule)
        rule = "mean: equations add up, and no other rule joins them"
        require(self.rule == "mean", self, "aggregate", rule)
        require(not self.clip, self, "clip", "0: equations that are cut are of another problem")


class State(NamedTuple):
    item: jax.Array  # f32 [I, D]
    counts: jax.Array  # f32 [I]  train rows of each item; 0 where too few users have it
    fade: jax.Array  # f32 []  when serving, a row with n newer ones counts 1 / (1 + n fade)
    bounds: Bounds | None  # what uploads are measured with


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction of the fitted users, before the round
    participants: jax.Array  # clients whose upload arrived
    non_finite: jax.Array  # those of them that were dropped: some number was not finite


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    config = with_enough(config, sizes)
    check_rounds(config, sizes)
    method = Method(
        partial(init, config, sizes),
        partial(step, config, sizes),
        partial(prepare, config, sizes.users),
        scoring.score,
        traffic=traffic(config, sizes),
        attendance=lambda metrics: Attendance(metrics.participants),
        vectors=scoring.vectors,
        fold_in=lambda state, data: prepare(config, scoring.user_places(data), state, data),
        grow=partial(grow, config, sizes),
    )
    return with_attackers(config, sizes, method)


def traffic(config: Config, sizes: Sizes) -> Traffic:
    """The equations up and the item table down; before, the items' counts; float32."""
    equations = triangle(config.width) + config.width
    plain = Traffic(
        up=4.0 * (sizes.items + 1) * equations,
        down=4.0 * sizes.items * config.width,
        setup_up=4.0 * sizes.items,
        setup_down=4.0 * sizes.items,
    )
    return with_protocol(config, plain, sizes.clients, cohort=config.participation, setup=1)


def triangle(width: int) -> int:
    """Numbers of a symmetric matrix."""
    return width * (width + 1) // 2


def init(config: Config, sizes: Sizes, key: jax.Array, data: Data) -> State:
    """Random items, and how often each was chosen, by a secure sum."""
    item = local.init_items(key, sizes.items, config.width, config.init_scale)
    counts = item_counts(data, sizes.items)
    known = supported_items(config, data, sizes.items, most=sizes.users)
    counts = counts if known is None else jnp.where(known, counts, 0)
    return State(item, counts, jnp.float32(0), first_bounds(config, (), (), bits=FACTOR_BITS))


def grow(
    config: Config, sizes: Sizes, state: State, was: Earlier, key: jax.Array, data: Data
) -> State:
    """The item table, new items as `init` makes them."""
    fresh = init(config, sizes, key, data)
    return fresh._replace(item=over(fresh.item, state.item), fade=state.fade)


def users(
    config: Config, item: jax.Array, clients: Clients, weights: jax.Array | None = None
) -> jax.Array:
    """One client's users [U, D] at the optimum of their loss, in which rows count `weights` [N]."""
    rows = jax.ops.segment_sum(clients.mask * 1.0, clients.user, len(clients.users))
    return least_squares.users(
        item,
        clients,
        item.T @ item,
        negative_weight=config.negative_weight,
        l2=penalty(config, rows),
        weights=weights,
    )


def train(
    config: Config, item: jax.Array, private: Any, clients: Clients, key: jax.Array
) -> tuple[Factored, Any, jax.Array]:
    """One client solves its users; uploads their part of every item's equations [I + 1, F]."""
    user = users(config, item, clients)  # [U, D]
    rows = local.dense_rows(clients, len(item))  # [U, I]
    there = (rows.sum(1) > 0) * 1.0
    left, right = np.triu_indices(config.width)
    equations = jnp.concatenate([user[:, left] * user[:, right], user], axis=1)
    scores = user @ item.T
    confidence = jnp.where(rows > 0, 1.0, config.negative_weight)
    loss = jnp.sum(confidence * (scores - rows) ** 2) / jnp.maximum(rows.sum(), 1)
    everyone = jnp.concatenate([rows, there[:, None]], axis=1)
    return Factored(everyone, equations), private, loss


def aggregate(
    config: Config,
    members: jax.Array,
    counts: jax.Array,
    item: jax.Array,
    uploads: tuple[Any, ...],
    weights: tuple[jax.Array, ...],
    key: jax.Array,
) -> jax.Array:
    """The items [I, D] at their optimum, from the mean over clients times their number."""
    sums = members * combine(config.rule, uploads, weights, config.malicious)  # [I + 1, F]
    return solved(config, sums, penalty(config, counts))


def solved(config: Config, sums: jax.Array, l2: jax.Array) -> jax.Array:
    """The items [I, D] of summed equations [I + 1, F], of which the last are everybody's."""
    width, weight = config.width, config.negative_weight
    own, everyone = sums[:-1], sums[-1]
    place = np.zeros((width, width), int)
    place[np.triu_indices(width)] = np.arange(triangle(width))
    place = np.maximum(place, place.T)
    form = weight * everyone[place] + (1 - weight) * own[:, place]
    form += l2[:, None, None] * jnp.eye(width)
    return jax.vmap(linalg.solve)(form, own[:, triangle(width) :])


def step(
    config: Config, sizes: Sizes, state: State, data: Data, key: jax.Array
) -> tuple[State, Metrics]:
    """One round."""
    data = weighed_alike(supported(data, state.counts > 0))
    members = jnp.stack([clients.weight.sum() for clients in data.clients]).sum()
    done = federated_round(
        (partial(train, config),) * len(data.clients),
        partial(aggregate, config, members, state.counts),
        state.item,
        ((),) * len(data.clients),
        data.clients,
        key,
        cohort=config,
        bounds=state.bounds,
        additive=True,
    )
    metrics = Metrics(done.metrics, done.participants, done.non_finite)
    fitted = lambda before: lambda rows: als.solved(config, done.shared, rows) @ done.shared.T
    fade = fade_of(config.recency, data, sizes.users, sizes.items, fitted)
    fade = jnp.where(done.participants > 0, fade, state.fade)
    return State(done.shared, state.counts, fade, done.bounds), metrics


def prepare(config: Config, users_served: int, state: State, data: Data) -> scoring.Served:
    """Every user at its optimum, beside the items."""
    data = supported(data, state.counts > 0)

    def fit(clients: Clients) -> jax.Array:
        return users(config, state.item, clients, row_weights(clients, state.fade))

    tables = tuple(Tables(jax.lax.map(fit, clients), state.item) for clients in data.clients)
    return scoring.serve(data, tables, users_served)

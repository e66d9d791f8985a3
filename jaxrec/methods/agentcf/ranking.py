"""How agents rank: features of a user and an item, their weights, and the scores of all items.

    fused likes . item memory + fused likes . content + fused dislikes . item memory
    + private likes . content + private likes of the other domains . content
    + group vector . item memory + log group count + log count,

each times its weight of the item's domain, [M, K]. A softmax regression finds the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrec.methods.agentcf import groups, interaction
from jaxrec.methods.agentcf.config import Config
from jaxrec.methods.agentcf.events import draw_negatives
from jaxrec.methods.agentcf.interaction import Memory, Rates, rates_of
from jaxrec.methods.agentcf.state import OF_COUNTS, OF_GROUPS, State
from jaxrec.methods.agentcf.world import World, unit
from jaxrec.types import History, Sizes


class Tastes(NamedTuple):
    """What items are compared with, by target domain; a single memory is the same in each."""

    fused: jax.Array  # f32 [U, M, D]  likes
    disliked: jax.Array  # f32 [U, M, D]  fused dislikes
    private: jax.Array  # f32 [U, M, D]  likes in the domain
    other: jax.Array  # f32 [U, M, D]  likes in the other domains, weighted by interactions
    group: jax.Array  # f32 [U, M, D]  what the user's groups took lately


class Served(NamedTuple):
    """What ranking reads; a user's vectors are multiplied by the weights of each domain."""

    taste: jax.Array  # f32 [U, M, 2 D]  against item memories and contents
    table: jax.Array  # f32 [I, 2 D]
    prior: jax.Array  # f32 [U, M]  log-probability of each domain
    state: State
    domain: jax.Array  # int32 [I]


def tastes_of(state: State, world: World, rates: Rates) -> Tastes:
    """The tastes of all users. A domain that a user never touched is fused here, and not kept."""

    def fused_of(user: Memory) -> jax.Array:
        anew = jax.vmap(interaction.fuse, (None, 0, None, None))(
            user, jnp.arange(len(user.count)), world.bases, rates
        )
        return jnp.where((user.count > 0)[:, None, None], user.fused, anew)

    users = state.memories.user
    both, group = jax.vmap(fused_of)(users), groups.vectors_of(state.groups, state.memories.item)
    told = users.count[..., None] * users.like * (rates.transfer > 0)
    elsewhere = jnp.einsum("umd,mt->utd", told, 1 - jnp.eye(told.shape[1]))
    own = both[:, :, 0], both[:, :, 1], unit(users.like), unit(elsewhere)
    fused, disliked, private, other = (jnp.broadcast_to(each, group.shape) for each in own)
    return Tastes(fused, disliked, private, other, group)


def features(
    state: State, world: World, tastes: Tastes, user: jax.Array, shown: jax.Array
) -> jax.Array:
    """The K features of the items `shown` [B, S], of one domain, to each `user` [B]: [B, S, K]."""
    chex.assert_shape(shown, (len(user), None))
    domain = world.domain[shown[:, 0]]
    fused, disliked, private, other, group = (taste[user, domain] for taste in tastes)  # [B, D]
    remembered, content = state.memories.item[shown], world.content[shown]  # [B, S, D]
    meet = lambda taste, items: jnp.einsum("bd,bsd->bs", taste, items)
    return jnp.stack(
        [
            meet(fused, remembered), meet(fused, content), meet(disliked, remembered),
            meet(private, content), meet(other, content), meet(group, remembered),
            jnp.log1p(groups.counts_of(state.groups, user, shown)),
            jnp.log1p(state.popularity[shown]),
        ],
        axis=-1,
    )  # fmt: skip


def fit_weights(
    config: Config,
    sizes: Sizes,
    state: State,
    world: World,
    user: jax.Array,
    item: jax.Array,
    history: History,
    key: jax.Array,
) -> jax.Array:
    """The weights [M, K] under which rows' items are likeliest among some rivals of their domain.

    Args:
      config, sizes: of the method.
      state, world: before the rows were lived through.
      user, item: int32 [E], the rows.
      history: what users are known to have, which is no rival.
      key: of the rivals.
    """
    domain = world.domain
    draws = jax.vmap(lambda key: draw_negatives(key, user, item, domain, history))(
        jax.random.split(key, config.rivals)
    )
    shown = jnp.concatenate([item[None], draws]).T  # [E, S], the chosen one first
    values = features(state, world, tastes_of(state, world, rates_of(config)), user, shown)
    counted = (state.popularity[shown] > 0) | config.new_items
    if not config.groups:
        values = values.at[..., OF_GROUPS].set(0)
    if not config.popularity:
        values = values.at[..., OF_COUNTS].set(0)
    mine = jnp.arange(sizes.domains)[:, None] == domain[item]
    return jax.lax.map(lambda mine: softmax_regression(values, mine, counted), mine)


def softmax_regression(
    values: jax.Array, mine: jax.Array, counted: jax.Array, ridge: float = 1.0
) -> jax.Array:
    """Weights [K] of a softmax over candidates [B, S, K], the first being chosen, by Newton.

    Args:
      values: f32 [B, S, K]; each feature is divided by its root mean square over all of them.
      mine: bool [B], the rows that count.
      counted: bool [B, S], the candidates that count; a row whose first one does not has no say.
      ridge: weight of half the squared norm of the weights of the divided features, in events.
    """
    chex.assert_shape(mine, values.shape[:1])
    chex.assert_shape(counted, values.shape[:2])
    mine = mine & counted[:, 0]
    counted = counted | ~mine[:, None]  # so that each row has something to choose
    scale = jnp.sqrt(jnp.mean(values**2, axis=(0, 1))) + 1e-6
    values = values / scale

    def newton(weights, _):
        scores = jnp.where(counted, values @ weights, -jnp.inf)
        chance = jax.nn.softmax(scores) * mine[:, None]  # [B, S]
        mean = jnp.einsum("bs,bsk->bk", chance, values)
        gradient = mean.sum(0) - mine @ values[:, 0] + ridge * weights
        curvature = jnp.einsum("bs,bsk,bsl->kl", chance, values, values) - mean.T @ mean
        step = jnp.linalg.solve(curvature + ridge * jnp.eye(len(weights)), gradient)
        return weights - step / jnp.maximum(1, jnp.linalg.norm(step) / 2), None

    start = jnp.zeros(values.shape[-1])
    return jax.lax.scan(newton, start, length=20)[0] / scale


def serve(config: Config, sizes: Sizes, state: State, world: World, past: History) -> Served:
    """What scores need, from a state that has lived through `past`."""
    domain = world.domain
    visits = jnp.ones((sizes.users, sizes.domains)).at[past.user, domain[past.item]].add(1)
    weights = state.weights[:, :, None]
    fused, disliked, private, other, group = tastes_of(state, world, rates_of(config))
    to_memory = weights[:, 0] * fused + weights[:, 2] * disliked + weights[:, 5] * group
    to_content = weights[:, 1] * fused + weights[:, 3] * private + weights[:, 4] * other
    table = jnp.concatenate([state.memories.item, world.content], axis=1)
    taste = jnp.concatenate([to_memory, to_content], axis=-1)
    return Served(taste, table, jnp.log(visits / visits.sum(1, keepdims=True)), state, domain)


def score(served: Served, users: jax.Array) -> jax.Array:
    """log P(item | user) of all items, f32 [B, I], for `users` [B]."""
    state, taste = served.state, jnp.moveaxis(served.taste[users], 1, 0)  # [M, B, 2 D]
    domain, weights = served.domain, state.weights
    each = domain == jnp.arange(len(weights))[:, None]  # [M, I]
    found = jnp.select(list(each), list(taste @ served.table.T))
    found += weights[domain, 6] * jnp.log1p(groups.counts_of(state.groups, users))
    found += weights[domain, 7] * jnp.log1p(state.popularity)
    # Between domains: P(i | u) = P(d | u) P(i | u, d). Rankings within a domain do not change.
    chance = served.prior[users] - jnp.stack(
        [jax.nn.logsumexp(found, axis=1, where=one) for one in each], axis=1
    )  # [B, M]
    return found + chance[:, domain]

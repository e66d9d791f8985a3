"""How agents live: through the train rows with weights fitted on the way, then through later rows.

A log is run in the order of time, or as if it were (`schedule`); after it the users of like
memories form groups. The newest rows of the train part are kept apart until the ranking's weights
have been fitted to them.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxrec.data.pack import history_of
from jaxrec.mesh import divide
from jaxrec.methods.agentcf import groups, schedule
from jaxrec.methods.agentcf.config import Config
from jaxrec.methods.agentcf.events import Events, draw_events, draw_negatives, has_taken
from jaxrec.methods.agentcf.interaction import interact, rates_of
from jaxrec.methods.agentcf.ranking import fit_weights
from jaxrec.methods.agentcf.schedule import Memories
from jaxrec.methods.agentcf.state import Metrics, State
from jaxrec.methods.agentcf.world import World, unit, world_of
from jaxrec.types import Data, History, Sizes


def step(
    config: Config, sizes: Sizes, state: State, data: Data, key: jax.Array
) -> tuple[State, Metrics]:
    """Live through the train rows; the ranking's weights are fitted before the newest of them."""
    world, history = world_of(config, sizes, data), history_of(data)
    key_negatives, key_groups, key_rivals, key = jax.random.split(key, 4)
    events = draw_events(key_negatives, history, world.domain)
    user, item, number = events.user, events.item, len(events.user)
    head = number - max(1, int(config.tail * number))
    level = schedule.levels(events, sizes.users, sizes.items)
    when = _when(config, level)
    part = lambda begin, end: jax.tree.map(lambda leaf: leaf[begin:end], events)

    memories = state.memories._replace(user=divide(state.memories.user, "users"))
    memories, early = _replay(config, memories, part(0, head), when[:head], world)
    state = state._replace(memories=memories, seen=history, key=key)
    state = with_groups(config, sizes, state, world, user[:head], item[:head], key_groups)
    weights = fit_weights(
        config, sizes, state, world, user[head:], item[head:], history, key_rivals
    )
    memories, late = _replay(config, state.memories, part(head, number), when[head:], world)
    state = state._replace(memories=memories, weights=weights)
    state = with_groups(config, sizes, state, world, user, item, key_groups)
    likely = jnp.concatenate([early, late])
    # Sums of changes may overshoot in a minibatch, up to a choice that rounds to impossible.
    loss = -jnp.mean(jnp.log(jnp.maximum(likely, jnp.finfo(likely.dtype).tiny)))
    return state, Metrics(jnp.mean(likely > 0.5), loss, level.max() + 1, weights)


def live_through(config: Config, sizes: Sizes, state: State, world: World, past: History) -> State:
    """The state after the rows of a history that it has not seen, in the order of time."""
    more = len(past.item) - len(state.seen.item)
    if not more:
        return state
    key_negatives, key_groups = jax.random.split(state.key)
    user, item = past.user[past.order], past.item[past.order]
    rows = jnp.nonzero(~has_taken(state.seen, user, item), size=more)[0]
    drawn = draw_negatives(key_negatives, user[rows], item[rows], world.domain, past)
    events = Events(user[rows], item[rows], drawn)
    level = _when(config, schedule.levels(events, sizes.users, sizes.items))
    memories, _ = _replay(config, state.memories, events, level, world)
    return with_groups(
        config, sizes, state._replace(memories=memories), world, user, item, key_groups
    )


def with_groups(
    config: Config,
    sizes: Sizes,
    state: State,
    world: World,
    user: jax.Array,
    item: jax.Array,
    key: jax.Array,
) -> State:
    """The state with the counts of rows `user`, `item` [E] and with groups, which took them."""
    popularity = jnp.zeros(sizes.items).at[item].add(1)
    state = state._replace(popularity=popularity)
    if not config.groups:
        return state
    users = state.memories.user
    active = users.count > 0
    memories = unit(users.like)
    flat, weight = memories.reshape(-1, memories.shape[-1]), active.ravel().astype(jnp.float32)
    centres = groups.spherical_k_means(flat, weight, key, config.groups)
    slot = groups.assign(memories, active, centres)
    found = groups.remember(
        slot, user, item, world.domain, config.groups, sizes.domains,
        half_life=config.half_life, last=config.recent,
    )  # fmt: skip
    return state._replace(groups=found)


def _replay(
    config: Config, memories: Memories, events: Events, level: jax.Array, world: World
) -> tuple[Memories, jax.Array]:
    """The memories after some events, and the probability of each choice, [E]."""
    rule = partial(interact, rates=rates_of(config), single=config.single)
    lanes = config.minibatch_size if config.minibatch else schedule.default_lanes()
    return schedule.replay(
        rule, memories, events, level, lanes=lanes, shared=world, add=config.minibatch
    )


def _when(config: Config, level: jax.Array) -> jax.Array:
    """When each event runs: at its level, or with its minibatch."""
    return jnp.arange(len(level)) // config.minibatch_size if config.minibatch else level

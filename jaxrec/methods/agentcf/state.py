"""State of AgentCF++'s vector engine: memories, groups, and the weights of the ranking."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.data.pack import history_of
from jaxrec.methods.agentcf.config import Config
from jaxrec.methods.agentcf.groups import Groups
from jaxrec.methods.agentcf.interaction import Memory
from jaxrec.methods.agentcf.schedule import Memories
from jaxrec.methods.agentcf.world import world_of
from jaxrec.types import Data, History, Sizes

FEATURES = (
    "fused likes, item memory", "fused likes, content", "fused dislikes, item memory",
    "private likes, content", "other domains' likes, content", "group vector, item memory",
    "log group count", "log count",
)  # fmt: skip
OF_GROUPS, OF_COUNTS = slice(5, 7), slice(7, 8)  # of the features


class State(NamedTuple):
    memories: Memories  # Memory of users [U, M, ...], memory of items [I, D]
    groups: Groups
    popularity: jax.Array  # f32 [I]  rows lived through
    weights: jax.Array  # f32 [M, K]  of FEATURES in a ranking, by domain
    seen: History  # the rows lived through
    key: jax.Array  # of what is drawn when life goes on


class Metrics(NamedTuple):
    right: jax.Array  # share of choices that were right before the memories had seen them
    loss: jax.Array  # mean negative log-probability of what was chosen
    levels: jax.Array  # steps that the log takes if everything that may runs at once
    weights: jax.Array  # [M, K]


def init(config: Config, sizes: Sizes, key: jax.Array, data: Data) -> State:
    """Users without any memory, items that remember their content, no groups, weights 0.

    Raises DataError where the data know no order or no text vectors.
    """
    history, world = history_of(data), world_of(config, sizes, data)
    domains = 1 if config.single else sizes.domains
    nothing = jnp.zeros((sizes.users, domains, world.content.shape[1]))
    users = Memory(nothing, nothing, nothing[..., 0], jnp.stack([nothing, nothing], axis=2))
    groups = max(config.groups, 1)
    nobody = Groups(
        jnp.full((sizes.users, domains), groups, jnp.int32),
        jnp.zeros((groups, sizes.items)),
        jnp.full((groups, sizes.domains, config.recent), sizes.items, jnp.int32),
    )
    return State(
        memories=Memories(users, world.content),
        groups=nobody,
        popularity=jnp.zeros(sizes.items),
        weights=jnp.zeros((sizes.domains, len(FEATURES))),
        seen=jax.tree.map(jnp.zeros_like, history),
        key=key,
    )

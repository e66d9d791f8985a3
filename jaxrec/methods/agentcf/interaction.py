"""What an agent does in one interaction, as functions of vectors: choose, reflect, fuse, revise.

A user's memory is private per domain (running means of what was liked and disliked) and fused per
target domain; an item's memory is a vector that starts as its content and leans towards the users
who choose it. All of it lives in the space of the items' contents (`World`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.methods.agentcf.config import Config
from jaxrec.methods.agentcf.events import Events
from jaxrec.methods.agentcf.world import World, length, unit


class Memory(NamedTuple):
    """One user's memory."""

    like: jax.Array  # [M, D]  private: running mean of what was chosen in each domain
    dislike: jax.Array  # [M, D]  private: of what was rejected
    count: jax.Array  # [M]  interactions by domain  # pyright: ignore
    fused: jax.Array  # [M, 2, D]  likes and dislikes that bear on each target domain


class Rates(NamedTuple):
    """How strongly memories move."""

    aversion: float = 0.5  # weight of dislikes in a choice
    temperature: float = 0.1  # of a choice
    surprise: float = 0.5  # 0: every event counts alike; 1: the more, the less expected
    newest_weight: float = 0.05  # least weight of the newest event in a running mean
    transfer: float = 0.5  # weight of an event of another domain in a fused memory
    threshold: float = 0.3  # share of another domain's memory that must bear on the target
    sharpness: float = 0.1  # of that gate; smaller is sharper
    renewal: float = 0.7  # share of a fused memory that is written anew
    item: float = 0.1  # how far an unexpected choice moves an item
    rejected: float = 0.3  # how far it moves the rejected item, relative to that
    anchor: float = 0.02  # pull of an item's content


def rates_of(config: Config) -> Rates:
    """The rates that settings ask for: private memories take nothing from other domains."""
    return Rates(
        temperature=config.temperature,
        surprise=config.surprise,
        newest_weight=config.newest_weight,
        transfer=config.transfer if config.memory == "dual" else 0.0,
        renewal=1.0 if config.memory == "private" else config.renewal,
        item=config.item_rate,
    )


def interact(
    user: Memory,
    item: jax.Array,
    negative: jax.Array,
    event: Events,
    world: World,
    rates: Rates,
    *,
    single: bool = False,
) -> tuple[Memory, jax.Array, jax.Array, jax.Array]:
    """One event: user's memory and both items' [D] anew, and the probability of what was chosen.

    `single` keeps one memory for all domains (M = 1).
    """
    target = 0 if single else world.domain[event.item]
    likely = choose(user.fused[target], item, negative, rates)
    user = reflect(user, target, item, negative, likely, rates)
    fused = fuse(user, target, world.bases, rates)
    user = user._replace(fused=user.fused.at[target].set(fused))
    contents = world.content[event.item], world.content[event.negative]
    return user, *revise((item, negative), contents, fused[0], likely, rates), likely


def choose(fused: jax.Array, item: jax.Array, negative: jax.Array, rates: Rates) -> jax.Array:
    """The probability that a user of this fused memory [2, D] takes `item` [D]."""
    drawn = fused[0] - rates.aversion * fused[1]
    return jax.nn.sigmoid(drawn @ (item - negative) / rates.temperature)


def reflect(
    user: Memory,
    target: int | jax.Array,
    item: jax.Array,
    negative: jax.Array,
    likely: jax.Array,
    rates: Rates,
) -> Memory:
    """The private memory of domain `target` moves, the further the less it was expected."""
    number = user.count[target]
    pace = jnp.maximum(1 / (number + 1), rates.newest_weight)
    pace *= 1 - rates.surprise + 2 * rates.surprise * (1 - likely)
    pace = jnp.where(number > 0, jnp.minimum(pace, 1), 1)
    move = lambda memory, to: memory.at[target].add(pace * (to - memory[target]))
    return user._replace(
        like=move(user.like, item),
        dislike=move(user.dislike, negative),
        count=user.count.at[target].add(1),
    )


def fuse(user: Memory, target: int | jax.Array, bases: jax.Array, rates: Rates) -> jax.Array:
    """The fused memory [2, D] of domain `target`, from all private ones.

    Step one keeps of another domain's memory what the target's basis, of `bases` [M, D, R], can
    express, as far as that is enough of it. Step two merges it with the target's own, weighted by
    interactions.
    """
    private = jnp.stack([user.like, user.dislike])  # [2, M, D]
    # All bases, then one of them: a basis for each event would be copied, [B, D, R].
    filtered = jnp.einsum("kmd,tdr->tkmr", private, bases)[target]  # [2, M, R]
    share = jnp.sum(filtered[0] ** 2, -1) / jnp.maximum(jnp.sum(user.like**2, -1), 1e-12)
    gate = jax.nn.sigmoid((share - rates.threshold) / rates.sharpness)
    other = (jnp.arange(len(user.count)) != target) & (user.count > 0)
    weight = rates.transfer * gate * other * user.count
    weight /= user.count[target] + 1e-3 + weight.sum()  # of each other domain; the rest is its own
    here = jnp.arange(len(bases)) == target
    brought = here[:, None, None] * (weight @ filtered)
    own = (1 - weight.sum()) * private[:, target]
    merged = unit(own + jnp.einsum("tkr,tdr->kd", brought, bases))
    empty = length(user.fused[target][0]) == 0
    renewal = jnp.where(empty, 1, rates.renewal)
    return unit((1 - renewal) * user.fused[target] + renewal * merged)


def revise(
    items: tuple[jax.Array, jax.Array],
    contents: tuple[jax.Array, jax.Array],
    taste: jax.Array,
    likely: jax.Array,
    rates: Rates,
) -> tuple[jax.Array, jax.Array]:
    """Both items' memories [D] anew: the chosen one leans towards the user, the other away."""
    step = rates.item * (1 - likely)

    def moved(item: jax.Array, content: jax.Array, move: jax.Array) -> jax.Array:
        return unit(item + move * taste + rates.anchor * (content - item))

    return (
        moved(items[0], contents[0], step),
        moved(items[1], contents[1], -rates.rejected * step),
    )

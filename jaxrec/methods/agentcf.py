"""AgentCF++: user and item agents with memories that learn from each other (arXiv 2502.13843).

Every event of the log, in the order of time, is one interaction of a user with an item that was
chosen and one that was not (`ops/memory.py`):

    choose between the two from the fused memory of the item's domain; reflect: the private memory
    moves, the further the less the choice was expected; fuse: what all private memories say about
    this domain is filtered and merged anew; items: both lean towards, or away from, the new taste.

Events that share nothing run at once (`ops/schedule.py`), with the same result as one by one. After
the log, users of like memories form interest groups (`ops/groups.py`), which remember what was
lately popular among them. A ranking adds up, with weights [M, K] of the target's domain,

    fused likes . item memory + fused likes . content + fused dislikes . item memory
    + private likes . content + private likes of the other domains . content
    + group vector . item memory + log group count + log count.

Here the agents are vectors and every step is arithmetic; `agentcf_text` lets a language model do
the same. What differs from the paper, and why:
- The paper's LLM weighs all it is shown; here a softmax regression does, fitted to the newest tenth
  of the training log, before the memories have seen it (a user's rejected items are drawn from all
  that the whole train part does not have). No validation row is read.
- Groups are clusters of the memories themselves, not of tags, and they count as well as list. The
  count of everybody is a feature of its own: without it, groups get the credit for popularity
  (docs/agentcf.md).
- Before test rows are ranked, the agents live through the validation rows too, as any model that
  reads histories does; the ranking's weights stay as they were fitted.
- A domain that a user never touched has no fused memory yet; it is fused when it is first read.
- memory = "single" with groups = 0 and popularity = false is AgentCF (Zhang et al., WWW 2024): one
  memory for all domains, nothing of other users but what item memories have taken from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.data.pack import history_of
from jaxrec.mesh import divide
from jaxrec.ops import groups as interest
from jaxrec.ops import linalg, memory, schedule
from jaxrec.ops.groups import Groups
from jaxrec.ops.memory import Memory, Rates, World, unit
from jaxrec.ops.schedule import Events, Memories
from jaxrec.types import Data, DataError, History, Method, SettingError, Sizes

RUN = {
    "split": "leave-one-out", "ranking": "domains", "candidates": 9, "baselines": ("popularity",),
    "ks": (1, 5, 10), "monitor": "MRR",
}  # fmt: skip
reads_history = True
FEATURES = (
    "fused likes, item memory", "fused likes, content", "fused dislikes, item memory",
    "private likes, content", "other domains' likes, content", "group vector, item memory",
    "log group count", "log count",
)  # fmt: skip
OF_GROUPS, OF_COUNTS = slice(5, 7), slice(7, 8)


@dataclass(frozen=True)
class Config:
    """Settings of AgentCF++."""

    memory: Literal["dual", "single", "private"] = "dual"
    """dual: private per domain and fused; single: one memory for all domains (AgentCF); private:
    per domain, nothing crosses over."""
    groups: int = 20
    """G, interest groups; 0: none."""
    popularity: bool = True
    """Whether the ranking reads how many rows an item has so far."""
    half_life: float = 0.0
    """Rows of the log after which a row counts half in a group; 0: all count alike."""
    recent: int = 20
    """R, a group's newest rows in a domain that make its vector."""
    rank: int = 32
    """Directions in which a domain's items differ, that filter what other domains say."""
    item_rate: float = 0.03
    """How far an unexpected choice moves an item's memory; 0: items are frozen."""
    surprise: float = 0.5
    """How much more an unexpected choice moves a memory than an expected one, 0 to 1."""
    recency: float = 0.01
    """Least weight of the newest interaction in a private memory, 0 to 1."""
    transfer: float = 0.5
    """Weight of an interaction of another domain in a fused memory, in interactions."""
    renewal: float = 0.7
    """Share of a fused memory that each interaction writes anew, 0 to 1."""
    temperature: float = 0.3
    """Of a choice, in inner products of unit vectors."""
    tail: float = 0.1
    """Share of the training log, its newest, that the ranking's weights are fitted to."""
    rivals: int = 9
    """Items that each row of the tail is ranked against in that fit, at most."""
    new_items: bool = True
    """Whether the fit counts items without an earlier row, as a ranking of all items does. Those of
    a log are there because somebody takes them later: with catalogue = known, set it to false."""
    minibatch: bool = False
    """Run the log in order, `width` events at once, whatever they share: an approximation."""
    width: int = 128
    """Events of a minibatch; without minibatches the device decides how many run at once."""


class State(NamedTuple):
    memories: Memories  # Memory of users [U, M, ...], memory of items [I, D]
    groups: Groups
    popularity: jax.Array  # f32 [I]  rows lived through
    weights: jax.Array  # f32 [M, K]
    seen: History  # the rows lived through
    key: jax.Array  # of what is drawn when life goes on


class Metrics(NamedTuple):
    right: jax.Array  # share of choices that were right before the memories had seen them
    loss: jax.Array  # mean negative log-probability of what was chosen
    levels: jax.Array  # steps that the log takes if everything that may runs at once
    weights: jax.Array  # [M, K]


class Served(NamedTuple):
    """What ranking reads; a user's vectors are multiplied by the weights of each domain."""

    taste: jax.Array  # f32 [U, M, 2 D]  against item memories and contents
    table: jax.Array  # f32 [I, 2 D]
    prior: jax.Array  # f32 [U, M]  log-probability of each domain
    state: State
    domain: jax.Array  # int32 [I]


def reads_text(config: Config) -> bool:
    """Always: an item's first memory is its text."""
    del config
    return True


def check_data(config: Config, data: Data) -> None:
    """Refuse data that lack what agents need, or that hold a domain of one item; DataError."""
    del config
    _check_columns(data)
    if data.domain is not None:
        schedule.check_domains(data.domain)


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; raises SettingError on settings that cannot work."""
    _check(config, sizes)
    single = config.memory == "single"
    rates = Rates(
        temperature=config.temperature,
        surprise=config.surprise,
        recency=config.recency,
        transfer=config.transfer if config.memory == "dual" else 0.0,
        renewal=1.0 if config.memory == "private" else config.renewal,
        item=config.item_rate,
    )
    rule = partial(memory.interact, rates=rates, single=single)
    at_once = config.width if config.minibatch else schedule.at_once()
    replay = partial(schedule.replay, rule, width=at_once, add=config.minibatch)
    world_of = partial(_world, domains=sizes.domains, rank=config.rank, single=single)
    domains = 1 if single else sizes.domains
    groups = max(config.groups, 1)

    def init(key: jax.Array, data: Data) -> State:
        _check_columns(data)
        world = world_of(data)
        nothing = jnp.zeros((sizes.users, domains, world.content.shape[1]))
        users = Memory(nothing, nothing, nothing[..., 0], jnp.stack([nothing, nothing], axis=2))
        nobody = Groups(
            jnp.full((sizes.users, domains), groups, jnp.int32),
            jnp.zeros((groups, sizes.items)),
            jnp.full((groups, sizes.domains, config.recent), sizes.items, jnp.int32),
        )
        weights = jnp.zeros((sizes.domains, len(FEATURES)))
        memories, seen = Memories(users, world.content), jax.tree.map(jnp.zeros_like, data.history)
        return State(memories, nobody, jnp.zeros(sizes.items), weights, seen, key)

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        world = world_of(data)
        key_negatives, key_groups, key_rivals, key = jax.random.split(key, 4)
        events = schedule.log(key_negatives, data.history, world.domain)
        user, item, number = events.user, events.item, len(events.user)
        head = number - max(1, int(config.tail * number))
        level = schedule.levels(events, sizes.users, sizes.items)
        timed = events, when(level)
        part = lambda begin, end: jax.tree.map(lambda leaf: leaf[begin:end], timed)

        memories = state.memories._replace(user=divide(state.memories.user, "users"))
        memories, early = replay(memories, *part(0, head), shared=world)
        state = state._replace(memories=memories, seen=data.history, key=key)
        state = gathered(state, world, user[:head], item[:head], key_groups)
        weights = fitted(state, world, user[head:], item[head:], data.history, key_rivals)
        memories, late = replay(state.memories, *part(head, number), shared=world)
        state = state._replace(memories=memories, weights=weights)
        state = gathered(state, world, user, item, key_groups)
        likely = jnp.concatenate([early, late])
        # Sums of changes may overshoot in a minibatch, up to a choice that rounds to impossible.
        loss = -jnp.mean(jnp.log(jnp.maximum(likely, jnp.finfo(likely.dtype).tiny)))
        return state, Metrics(jnp.mean(likely > 0.5), loss, level.max() + 1, weights)

    def lived(state: State, world: World, past: History) -> State:
        """The state after the rows of a history that it has not seen, in the order of time."""
        more = len(past.item) - len(state.seen.item)
        if not more:
            return state
        key_negatives, key_groups = jax.random.split(state.key)
        user, item = past.user[past.order], past.item[past.order]
        rows = jnp.nonzero(~schedule.has(state.seen, user, item), size=more)[0]
        drawn = schedule.negatives(key_negatives, user[rows], item[rows], world.domain, past)
        events = Events(user[rows], item[rows], drawn)
        level = when(schedule.levels(events, sizes.users, sizes.items))
        memories, _ = replay(state.memories, events, level, shared=world)
        return gathered(state._replace(memories=memories), world, user, item, key_groups)

    def when(level: jax.Array) -> jax.Array:
        return jnp.arange(len(level)) // config.width if config.minibatch else level

    def gathered(
        state: State, world: World, user: jax.Array, item: jax.Array, key: jax.Array
    ) -> State:
        """The state with counts and groups of these rows."""
        popularity = jnp.zeros(sizes.items).at[item].add(1)
        state = state._replace(popularity=popularity)
        if not config.groups:
            return state
        users = state.memories.user
        active = users.count > 0
        memories = unit(users.like)
        flat, weight = memories.reshape(-1, memories.shape[-1]), active.ravel().astype(jnp.float32)
        centres = interest.spherical_k_means(flat, weight, key, config.groups)
        slot = interest.assign(memories, active, centres)
        found = interest.remember(
            slot, user, item, world.domain, groups, sizes.domains,
            half_life=config.half_life, last=config.recent,
        )  # fmt: skip
        return state._replace(groups=found)

    def fitted(
        state: State,
        world: World,
        user: jax.Array,
        item: jax.Array,
        history: History,
        key: jax.Array,
    ) -> jax.Array:
        """The weights [M, K] under which the rows' items are likeliest among some rivals."""
        domain = world.domain
        draws = jax.vmap(lambda key: schedule.negatives(key, user, item, domain, history))(
            jax.random.split(key, config.rivals)
        )
        shown = jnp.concatenate([item[None], draws]).T  # [B, S], the chosen one first
        values = features(state, world, vectors(state, world, rates), user, shown)
        counted = (state.popularity[shown] > 0) | config.new_items
        if not config.groups:
            values = values.at[..., OF_GROUPS].set(0)
        if not config.popularity:
            values = values.at[..., OF_COUNTS].set(0)
        mine = jnp.arange(sizes.domains)[:, None] == domain[item]
        return jax.lax.map(lambda mine: _regression(values, mine, counted), mine)

    def prepare(state: State, data: Data) -> Served:
        past, world = data.history, world_of(data)
        state, domain = lived(state, world, past), world.domain
        visits = jnp.ones((sizes.users, sizes.domains)).at[past.user, domain[past.item]].add(1)
        weights = state.weights[:, :, None]
        fused, disliked, private, other, group = vectors(state, world, rates)
        to_memory = weights[:, 0] * fused + weights[:, 2] * disliked + weights[:, 5] * group
        to_content = weights[:, 1] * fused + weights[:, 3] * private + weights[:, 4] * other
        table = jnp.concatenate([state.memories.item, world.content], axis=1)
        taste = jnp.concatenate([to_memory, to_content], axis=-1)
        return Served(taste, table, jnp.log(visits / visits.sum(1, keepdims=True)), state, domain)

    def score(served: Served, users: jax.Array) -> jax.Array:
        state, taste = served.state, jnp.moveaxis(served.taste[users], 1, 0)  # [M, B, 2 D]
        domain, weights = served.domain, state.weights
        each = domain == jnp.arange(sizes.domains)[:, None]  # [M, I]
        found = jnp.select(list(each), list(taste @ served.table.T))
        found += weights[domain, 6] * jnp.log1p(interest.counts_of(state.groups, users))
        found += weights[domain, 7] * jnp.log1p(state.popularity)
        # Between domains: P(i | u) = P(d | u) P(i | u, d). Rankings within a domain do not change.
        chance = served.prior[users] - jnp.stack(
            [jax.nn.logsumexp(found, axis=1, where=one) for one in each], axis=1
        )  # [B, M]
        return found + chance[:, domain]

    parts = "a score adds counts of a user's group and the odds of a domain to inner products"
    alone = "an agent's memories come from living through events, one after another"
    return Method(
        init, step, prepare, score, one_shot=True, axis="users", vectors=parts, fold_in=alone
    )


def vectors(state: State, world: World, rates: Rates) -> tuple[jax.Array, ...]:
    """Fused likes and dislikes, private likes, those of the other domains, and group vectors.

    Each is [U, M, D]. A single memory is the same in every domain.
    """

    def fused(user: Memory) -> jax.Array:
        anew = jax.vmap(memory.fuse, (None, 0, None, None))(
            user, jnp.arange(len(user.count)), world.bases, rates
        )
        return jnp.where((user.count > 0)[:, None, None], user.fused, anew)

    users = state.memories.user
    both, group = jax.vmap(fused)(users), interest.vectors_of(state.groups, state.memories.item)
    told = users.count[..., None] * users.like * (rates.transfer > 0)
    elsewhere = jnp.einsum("umd,mt->utd", told, 1 - jnp.eye(told.shape[1]))
    own = both[:, :, 0], both[:, :, 1], unit(users.like), unit(elsewhere)
    return *(jnp.broadcast_to(each, group.shape) for each in own), group


def features(
    state: State,
    world: World,
    tastes: tuple[jax.Array, ...],
    user: jax.Array,
    shown: jax.Array,
) -> jax.Array:
    """The K features of the items `shown` [B, S], of one domain, to each `user` [B]: [B, S, K]."""
    domain = world.domain[shown[:, 0]]
    fused, disliked, private, other, group = (taste[user, domain] for taste in tastes)  # [B, D]
    remembered, content = state.memories.item[shown], world.content[shown]  # [B, S, D]
    meet = lambda taste, items: jnp.einsum("bd,bsd->bs", taste, items)
    return jnp.stack(
        [
            meet(fused, remembered), meet(fused, content), meet(disliked, remembered),
            meet(private, content), meet(other, content), meet(group, remembered),
            jnp.log1p(interest.counts_of(state.groups, user, shown)),
            jnp.log1p(state.popularity[shown]),
        ],
        axis=-1,
    )  # fmt: skip


def _world(data: Data, domains: int, rank: int, single: bool) -> World:
    """Contents without their domain's mean, and the directions in which a domain's items differ."""
    items, width = data.text.shape
    domain = jnp.zeros(items, jnp.int32) if data.domain is None else data.domain
    given = jnp.any(data.text != 0, axis=1)
    each = jax.nn.one_hot(domain, domains) * given[:, None]  # [I, M]
    mean = (each.T @ data.text) / jnp.maximum(each.sum(0), 1)[:, None]
    content = unit(jnp.where(given[:, None], data.text - mean[domain], 0))
    if single:
        return World(content, domain, jnp.zeros((1, width, 1)))
    spread = jnp.einsum("im,id,ie->mde", each, content, content)
    _, axes = jax.vmap(linalg.eigh)(spread)
    return World(content, domain, axes[:, :, ::-1][:, :, :rank])


def _regression(
    values: jax.Array, mine: jax.Array, counted: jax.Array, ridge: float = 1.0
) -> jax.Array:
    """Weights [K] of a softmax over candidates [B, S, K], the first being chosen, by Newton.

    Rows that are not `mine` [B] do not count, nor do candidates that are not `counted` [B, S], nor
    rows that chose one of those; `ridge` counts in events.
    """
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


def _check_columns(data: Data) -> None:
    history_of(data)
    if data.text is None:
        raise DataError("items: no text vectors; give the items a title or a text")


def _check(config: Config, sizes: Sizes) -> None:
    for name in ("recent", "rank", "rivals", "width"):
        if getattr(config, name) < 1:
            raise SettingError(f"{name} = {getattr(config, name)}: must be at least 1")
    for name in ("half_life", "item_rate", "transfer"):
        if not getattr(config, name) >= 0:
            raise SettingError(f"{name} = {getattr(config, name)}: must not be negative")
    for name in ("surprise", "recency", "renewal"):
        if not 0 <= getattr(config, name) <= 1:
            raise SettingError(f"{name} = {getattr(config, name)}: must lie in [0, 1]")
    if not config.temperature > 0:
        raise SettingError(f"temperature = {config.temperature}: must be positive")
    if not 0 < config.tail < 1:
        raise SettingError(f"tail = {config.tail}: must lie between 0 and 1")
    if not 0 <= config.groups <= sizes.users:
        raise SettingError(
            f"groups = {config.groups}: must be 0 (none) or up to the {sizes.users:,} users"
        )

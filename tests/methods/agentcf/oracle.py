"""AgentCF++ with vectors as loops over rows, users and items, in NumPy's float64.

Written from docs/agentcf.md and the method's description: it shares no code with jaxrec.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize


class World(NamedTuple):
    content: Any  # [I, D]
    domain: Any  # [I]
    bases: Any  # [M, D, R]


class Memory(NamedTuple):
    """Of all users, or of one: without the first axis."""

    like: Any  # [U, M, D]
    dislike: Any  # [U, M, D]
    count: Any  # [U, M]
    fused: Any  # [U, M, 2, D]


class Agents(NamedTuple):
    """All that a ranking knows; `config` has the settings by name."""

    config: Any
    world: World
    user: Memory
    item: Any  # [I, D]
    slot: Any  # [U, M]  the group of each memory; any number beyond the groups: none
    rows: Any  # [(user, item)] in the order of time


def length(vector):
    return np.sqrt((vector**2).sum())


def unit(vector):
    return vector / max(length(vector), 1e-12)


def rates(config):
    """How memories move: only dual ones take from other domains, private ones are merely copied."""
    return SimpleNamespace(
        aversion=0.5, threshold=0.3, sharpness=0.1, rejected=0.3, anchor=0.02,
        temperature=config.temperature, surprise=config.surprise, item=config.item_rate,
        newest_weight=config.newest_weight,
        transfer=config.transfer if config.memory == "dual" else 0.0,
        renewal=1.0 if config.memory == "private" else config.renewal,
    )  # fmt: skip


def world(text, domain, domains, rank, single):
    """Texts without their domain's mean, and the main directions of each domain's items."""
    given = np.array([vector.any() for vector in text])
    content = np.zeros_like(text, dtype=float)
    for i, d in enumerate(domain):
        if given[i]:
            content[i] = unit(text[i] - text[given & (domain == d)].mean(0))
    if single:
        return World(content, domain, np.zeros((1, text.shape[1], 1)))
    axes = [np.linalg.svd(content[domain == d])[2][:rank].T for d in range(domains)]
    return World(content, domain, np.stack(axes))


def nobody(users, domains, width):
    """Users who remember nothing."""
    return Memory(
        np.zeros((users, domains, width)),
        np.zeros((users, domains, width)),
        np.zeros((users, domains)),
        np.zeros((users, domains, 2, width)),
    )


def interact(user, items, event, world, rates, single):
    """One event, in place: choose, reflect, fuse, revise. The probability of the choice."""
    u, i, j = event
    like, dislike, count, fused = (part[u] for part in user)
    t = 0 if single else world.domain[i]
    v, w = items[i].copy(), items[j].copy()
    drawn = fused[t, 0] - rates.aversion * fused[t, 1]
    likely = 1 / (1 + np.exp(-(drawn @ v - drawn @ w) / rates.temperature))

    pace = max(1 / (count[t] + 1), rates.newest_weight)
    pace *= 1 - rates.surprise + 2 * rates.surprise * (1 - likely)
    pace = min(pace, 1) if count[t] else 1
    like[t] += pace * (v - like[t])
    dislike[t] += pace * (w - dislike[t])
    count[t] += 1
    fused[t] = fuse(Memory(like, dislike, count, fused), t, world.bases, rates)

    step = rates.item * (1 - likely)
    taste = fused[t, 0]
    items[i] = unit(v + step * taste + rates.anchor * (world.content[i] - v))
    items[j] = unit(w - rates.rejected * step * taste + rates.anchor * (world.content[j] - w))
    return likely


def fuse(user, t, bases, rates):
    """The fused memory [2, D] of domain t: step one filters, step two merges."""
    basis, others = bases[t], []
    for d in range(len(user.count)):
        if d != t and user.count[d] > 0:
            kept = [basis @ (basis.T @ memory) for memory in (user.like[d], user.dislike[d])]
            share = length(kept[0]) ** 2 / max(length(user.like[d]) ** 2, 1e-12)
            gate = 1 / (1 + np.exp(-(share - rates.threshold) / rates.sharpness))
            others.append((rates.transfer * gate * user.count[d], *kept))
    total = user.count[t] + 1e-3 + sum(weight for weight, _, _ in others)
    own = 1 - sum(weight for weight, _, _ in others) / total
    renewal = rates.renewal if length(user.fused[t, 0]) else 1
    fused = []
    for k, mine in enumerate((user.like[t], user.dislike[t])):
        merged = own * mine + sum(other[0] / total * other[1 + k] for other in others)
        fused.append(unit((1 - renewal) * user.fused[t, k] + renewal * unit(merged)))
    return np.stack(fused)


def groups(agents):
    """How often each group's members took each item, and their newest items of each domain."""
    number, items = agents.config.groups, len(agents.item)
    counts = np.zeros((number, items))
    newest = [[[] for _ in range(agents.world.domain.max() + 1)] for _ in range(number)]
    for age, (u, i) in enumerate(reversed(agents.rows)):
        half_life = agents.config.half_life
        for g in set(agents.slot[u].tolist()) - {number}:
            counts[g, i] += 0.5 ** (age / half_life) if half_life else 1
            if len(newest[g][agents.world.domain[i]]) < agents.config.recent:
                newest[g][agents.world.domain[i]].append(i)
    return counts, newest


def tastes(agents, u, d, newest):
    """What user u's features of domain d are products with: five vectors.

    `newest` is of `groups`, None where there are none.
    """
    memory = Memory(*(part[u] for part in agents.user))
    t = 0 if agents.config.memory == "single" else d
    own = rates(agents.config)
    touched = memory.count[t] > 0
    fused = memory.fused[t] if touched else fuse(memory, t, agents.world.bases, own)
    elsewhere = np.zeros(agents.item.shape[1])
    for other in range(len(memory.count)):
        if other != t and own.transfer > 0:
            elsewhere = elsewhere + memory.count[other] * memory.like[other]
    group = np.zeros(agents.item.shape[1])
    if newest:
        for g in set(agents.slot[u].tolist()) - {agents.config.groups}:
            if newest[g][d]:
                group = group + unit(sum(agents.item[i] for i in newest[g][d]))
    return fused[0], fused[1], unit(memory.like[t]), unit(elsewhere), unit(group)


def features(agents):
    """All eight features, those of groups 0 where there are none: [U, I, 8]."""
    users, items = len(agents.user.count), len(agents.item)
    found = np.zeros((users, items, 8))
    popularity = np.zeros(items)
    for _, i in agents.rows:
        popularity[i] += 1
    counts, newest = groups(agents) if agents.config.groups else (None, None)
    domains = range(agents.world.domain.max() + 1)
    for u in range(users):
        by_domain = [tastes(agents, u, d, newest) for d in domains]
        mine = set(agents.slot[u].tolist()) - {agents.config.groups}
        for i in range(items):
            likes, dislikes, private, elsewhere, group = by_domain[agents.world.domain[i]]
            memory, content = agents.item[i], agents.world.content[i]
            taken = 0 if counts is None else sum(counts[g, i] for g in mine)
            found[u, i] = [
                likes @ memory, likes @ content, dislikes @ memory, private @ content,
                elsewhere @ content, group @ memory, np.log(1 + taken), np.log(1 + popularity[i]),
            ]  # fmt: skip
    return found


def scores(agents, weights):
    """log P(domain | user) + log P(item | user, domain), [U, I]."""
    found, domain = features(agents), agents.world.domain
    result = np.zeros(found.shape[:2])
    for u in range(len(found)):
        mine = [domain[i] for who, i in agents.rows if who == u]
        for d in range(len(weights)):
            own = np.flatnonzero(domain == d)
            each = np.array([found[u, i] @ weights[d] for i in own])
            prior = (1 + mine.count(d)) / (len(mine) + len(weights))
            result[u, own] = each - np.log(np.exp(each).sum()) + np.log(prior)
    return result


def weights(values, mine, counted, ridge=1.0):
    """Weights [K] under which the first of each list is likeliest; see `softmax_regression`."""
    scale = np.sqrt((values**2).mean((0, 1))) + 1e-6
    scaled = values / scale

    def loss(weights):
        total = 0.5 * ridge * (weights**2).sum()
        for row in np.flatnonzero(mine & counted[:, 0]):
            each = scaled[row] @ weights
            total += np.log(np.exp(each[counted[row]]).sum()) - each[0]
        return total

    found = minimize(loss, np.zeros(values.shape[-1]), tol=1e-10).x
    # The ridge holds what is zero everywhere at 0. Finite differences leave some 1e-8 there, which
    # a scale of 1e-6 would make large.
    return np.where((values != 0).any((0, 1)), found, 0) / scale

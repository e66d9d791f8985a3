"""One interaction, and a whole log, against plain NumPy loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops import memory, schedule
from jaxrec.ops.memory import Memory, Rates, World
from jaxrec.ops.schedule import Events, Memories

USERS, ITEMS, DOMAINS, WIDTH, RANK = 12, 30, 3, 8, 3
RATES = Rates(aversion=0.4, temperature=0.3, recency=0.2, threshold=0.2, item=0.3, rejected=0.4)


def length(vector):
    return np.sqrt((vector**2).sum())


def unit(vector):
    return vector / max(length(vector), 1e-12)


def slow_interact(user, items, event, world, rates, single):
    """As the method is described, one number after another."""
    u, i, j = event
    like, dislike, count, fused = (part[u] for part in user)
    t = 0 if single else world.domain[i]
    v, w = items[i].copy(), items[j].copy()
    drawn = fused[t, 0] - rates.aversion * fused[t, 1]
    likely = 1 / (1 + np.exp(-(drawn @ v - drawn @ w) / rates.temperature))

    pace = max(1 / (count[t] + 1), rates.recency)
    pace *= 1 - rates.surprise + 2 * rates.surprise * (1 - likely)
    pace = min(pace, 1) if count[t] else 1
    like[t] += pace * (v - like[t])
    dislike[t] += pace * (w - dislike[t])
    count[t] += 1

    basis, others = world.bases[t], []
    for d in range(len(count)):
        if d != t and count[d] > 0:
            kept = basis @ (basis.T @ like[d])
            share = (length(kept) / length(like[d])) ** 2
            gate = 1 / (1 + np.exp(-(share - rates.threshold) / rates.sharpness))
            others.append((rates.transfer * gate * count[d], kept, basis @ (basis.T @ dislike[d])))
    total = count[t] + 1e-3 + sum(weight for weight, _, _ in others)
    own = 1 - sum(weight for weight, _, _ in others) / total
    renewal = rates.renewal if length(fused[t, 0]) else 1
    for k, mine in enumerate((like[t], dislike[t])):
        merged = own * mine + sum(other[0] / total * other[1 + k] for other in others)
        fused[t, k] = unit((1 - renewal) * fused[t, k] + renewal * unit(merged))

    step = rates.item * (1 - likely)
    taste = fused[t, 0]
    items[i] = unit(v + step * taste + rates.anchor * (world.content[i] - v))
    items[j] = unit(w - rates.rejected * step * taste + rates.anchor * (world.content[j] - w))
    return likely


def world(rng, single):
    content = np.stack([unit(v) for v in rng.normal(size=(ITEMS, WIDTH))])
    bases = [np.linalg.qr(rng.normal(size=(WIDTH, RANK)))[0] for _ in range(DOMAINS)]
    basis = np.zeros((1, WIDTH, 1)) if single else np.stack(bases)
    return World(content, rng.permutation(np.arange(ITEMS) % DOMAINS), basis)


def log(rng, known, number=300):
    user, item = rng.integers(USERS, size=number), rng.integers(ITEMS, size=number)
    alike = [np.flatnonzero(known.domain == known.domain[i]) for i in item]
    other = [rng.choice(own[own != i]) for own, i in zip(alike, item, strict=True)]
    return np.stack([user, item, np.array(other)], axis=1)


@pytest.mark.parametrize("single", [False, True])
def test_a_log_replayed_at_once_is_the_loop_over_its_events(single):
    rng = np.random.default_rng(0)
    known = world(rng, single)
    events = log(rng, known)
    domains = 1 if single else DOMAINS
    start = Memory(
        np.zeros((USERS, domains, WIDTH)),
        np.zeros((USERS, domains, WIDTH)),
        np.zeros((USERS, domains)),
        np.zeros((USERS, domains, 2, WIDTH)),
    )
    user, items = jax.tree.map(np.copy, start), known.content.copy()
    likely = [slow_interact(user, items, event, known, RATES, single) for event in events]

    with jax.enable_x64(True):
        batch = Events(*(jnp.asarray(column, jnp.int32) for column in events.T))
        rule = lambda *args: memory.interact(*args, RATES, single=single)
        level = schedule.levels(batch, USERS, ITEMS)
        memories, found = jax.jit(schedule.replay, static_argnums=(0, 4))(
            rule, jax.tree.map(jnp.asarray, Memories(start, known.content)), batch, level, 8,
            jax.tree.map(jnp.asarray, known),
        )  # fmt: skip
        found = np.asarray(found)
        assert found.dtype == np.float64
    assert int(level.max()) < len(events) - 1  # something ran at once
    np.testing.assert_allclose(found, likely, atol=1e-12)
    for mine, expected in zip(memories.user, user, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-12)
    np.testing.assert_allclose(memories.item, items, atol=1e-12)
    assert np.std(likely) > 0.02


def test_a_memory_without_any_opinion_chooses_by_chance():
    rng = np.random.default_rng(1)
    v, w = rng.normal(size=(2, WIDTH))
    assert memory.choose(jnp.zeros((2, WIDTH)), v, w, RATES) == 0.5


def test_what_the_target_cannot_express_does_not_cross_over():
    axes = np.eye(WIDTH, dtype=np.float32)
    bases = jnp.stack([jnp.asarray(axes[:, :2]), jnp.asarray(axes[:, 2:4])])
    own, foreign, useful = axes[0], axes[5], axes[1]

    def fused(other):
        like = jnp.stack([own, other])
        nothing = jnp.zeros((2, WIDTH))
        user = Memory(like, nothing, jnp.array([1.0, 9.0]), jnp.zeros((2, 2, WIDTH)))
        return np.asarray(memory.fuse(user, 0, bases, Rates())[0])

    np.testing.assert_allclose(fused(foreign), own, atol=1e-6)
    assert fused(useful) @ useful > 0.5


def test_the_chosen_item_leans_towards_the_user_and_the_rejected_one_away():
    rng = np.random.default_rng(2)
    v, w, taste = (unit(x).astype(np.float32) for x in rng.normal(size=(3, WIDTH)))
    chosen, rejected = memory.revise((v, w), (v, w), taste, 0.2, RATES)
    assert chosen @ taste > v @ taste
    assert rejected @ taste < w @ taste
    frozen = memory.revise((v, w), (v, w), taste, 0.2, RATES._replace(item=0.0))
    np.testing.assert_allclose(np.stack(frozen), np.stack([v, w]), atol=1e-6)

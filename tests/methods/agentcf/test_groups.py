"""Interest groups against loops over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.agentcf import groups

USERS, ITEMS, DOMAINS, G, R = 9, 14, 2, 3, 4


def rows(seed=0, number=80):
    rng = np.random.default_rng(seed)
    return rng.integers(USERS, size=number), rng.integers(ITEMS, size=number)


def slots():
    """Users in two groups, in one, in none."""
    slot = np.random.default_rng(1).integers(0, G, (USERS, DOMAINS))
    slot[slot[:, 1] == slot[:, 0], 1] = G
    slot[2] = G
    return slot


@pytest.mark.parametrize("half_life", [0.0, 10.0])
def test_groups_remember_what_their_members_did(half_life):
    user, item = rows()
    domain, slot = np.arange(ITEMS) % DOMAINS, slots()
    count, recent = np.zeros((G, ITEMS)), [[[] for _ in range(DOMAINS)] for _ in range(G)]
    for e, (u, i) in enumerate(zip(user, item, strict=True)):
        for g in slot[u]:
            if g < G:
                count[g, i] += 0.5 ** ((len(user) - 1 - e) / half_life) if half_life else 1
                recent[g][domain[i]].insert(0, i)
    found = groups.remember(
        *map(jnp.asarray, (slot, user, item, domain)), G, DOMAINS, half_life=half_life, last=R
    )
    np.testing.assert_allclose(found.count, count, rtol=1e-5)
    for g in range(G):
        for d in range(DOMAINS):
            newest = [*recent[g][d], *[ITEMS] * R][:R]
            assert found.recent[g, d].tolist() == newest
    users = jnp.arange(USERS)
    expected = [sum((count[g] for g in slot[u] if g < G), np.zeros(ITEMS)) for u in range(USERS)]
    np.testing.assert_allclose(groups.counts_of(found, users), expected, rtol=1e-5)

    vectors = np.random.default_rng(2).normal(size=(ITEMS, 5)).astype(np.float32)
    unit = lambda v: v / max(np.linalg.norm(v), 1e-12)
    for u, mine in enumerate(np.asarray(groups.vectors_of(found, jnp.asarray(vectors)))):
        for d in range(DOMAINS):
            of = [recent[g][d][:R] for g in slot[u] if g < G]
            means = [unit(vectors[items].sum(0)) for items in of if items]
            np.testing.assert_allclose(mine[d], unit(sum(means, np.zeros(5))), atol=1e-5)


def test_k_means_finds_planted_directions_and_ignores_weight_zero():
    rng = np.random.default_rng(0)
    axes = np.eye(6)[:3]
    vectors = np.repeat(axes, 20, axis=0) + 0.1 * rng.normal(size=(60, 6))
    stray = np.tile(np.eye(6)[5], (40, 1))
    every = np.concatenate([vectors, stray])
    every /= np.linalg.norm(every, axis=1, keepdims=True)
    weights = jnp.asarray(np.repeat([1.0, 0.0], [60, 40]))
    found = [
        groups.spherical_k_means(jnp.asarray(every), weights, jax.random.key(seed), 3)
        for seed in range(5)
    ]
    best = max(found, key=lambda centres: float(jnp.max(every[:60] @ centres.T, axis=1).sum()))
    assert sorted(np.argmax(best @ axes.T, axis=1).tolist()) == [0, 1, 2]
    assert np.max(best @ axes.T, axis=1).min() > 0.98
    for centres in found:
        np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, rtol=1e-5)


def test_a_group_named_twice_counts_once_and_idle_memories_have_none():
    centres = jnp.eye(2)
    memories = jnp.array([[[1.0, 0], [0.9, 0.1]], [[1, 0], [0, 1]], [[0, 1], [1, 0]]])
    active = jnp.array([[True, True], [True, True], [False, True]])
    assert groups.assign(memories, active, centres).tolist() == [[0, 2], [0, 1], [2, 0]]

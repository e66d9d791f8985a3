"""One interaction, and a whole log, against plain NumPy loops in float64."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.agentcf import interaction, schedule
from jaxrec.methods.agentcf.events import Events
from jaxrec.methods.agentcf.interaction import Memory, Rates
from jaxrec.methods.agentcf.schedule import Memories
from jaxrec.methods.agentcf.world import World

USERS, ITEMS, DOMAINS, WIDTH, RANK = 12, 30, 3, 8, 3
RATES = Rates(
    aversion=0.4, temperature=0.3, newest_weight=0.2, threshold=0.2, item=0.3, rejected=0.4
)


def unit(vector):
    return vector / np.linalg.norm(vector)


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
def test_a_log_replayed_at_once_is_the_loop_over_its_events(oracle, single):
    rng = np.random.default_rng(0)
    known = world(rng, single)
    events = log(rng, known)
    domains = 1 if single else DOMAINS
    start = Memory(*oracle.nobody(USERS, domains, WIDTH))
    user, items = jax.tree.map(np.copy, start), known.content.copy()
    likely = [oracle.interact(user, items, event, known, RATES, single) for event in events]

    with jax.enable_x64(True):
        batch = Events(*(jnp.asarray(column, jnp.int32) for column in events.T))
        rule = lambda *args: interaction.interact(*args, RATES, single=single)
        level = schedule.levels(batch, USERS, ITEMS)
        memories, found = jax.jit(schedule.replay, static_argnums=(0, 4))(
            rule, jax.tree.map(jnp.asarray, Memories(start, known.content)), batch, level, 8,
            jax.tree.map(jnp.asarray, known),
        )  # fmt: skip
        found = np.asarray(found)
        assert found.dtype == np.float64
    assert int(level.max()) < len(events) - 1  # something ran at once
    np.testing.assert_allclose(found, likely, atol=1e-12)
    chex.assert_trees_all_close(memories, Memories(user, items), rtol=0, atol=1e-12)
    assert np.std(likely) > 0.02


def test_a_memory_without_any_opinion_chooses_by_chance():
    rng = np.random.default_rng(1)
    v, w = rng.normal(size=(2, WIDTH))
    assert interaction.choose(jnp.zeros((2, WIDTH)), v, w, RATES) == 0.5


def test_what_the_target_cannot_express_does_not_cross_over():
    axes = np.eye(WIDTH, dtype=np.float32)
    bases = jnp.stack([jnp.asarray(axes[:, :2]), jnp.asarray(axes[:, 2:4])])
    own, foreign, useful = axes[0], axes[5], axes[1]

    def fused(other):
        like = jnp.stack([own, other])
        nothing = jnp.zeros((2, WIDTH))
        user = Memory(like, nothing, jnp.array([1.0, 9.0]), jnp.zeros((2, 2, WIDTH)))
        return np.asarray(interaction.fuse(user, 0, bases, Rates())[0])

    np.testing.assert_allclose(fused(foreign), own, atol=1e-6)
    assert fused(useful) @ useful > 0.5


def test_the_chosen_item_leans_towards_the_user_and_the_rejected_one_away():
    rng = np.random.default_rng(2)
    v, w, taste = (unit(x).astype(np.float32) for x in rng.normal(size=(3, WIDTH)))
    chosen, rejected = interaction.revise((v, w), (v, w), taste, 0.2, RATES)
    assert chosen @ taste > v @ taste
    assert rejected @ taste < w @ taste
    frozen = interaction.revise((v, w), (v, w), taste, 0.2, RATES._replace(item=0.0))
    np.testing.assert_allclose(np.stack(frozen), np.stack([v, w]), atol=1e-6)

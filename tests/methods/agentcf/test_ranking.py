"""The ranking against loops: features of each user and item, fitted weights, scores."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods import agentcf
from jaxrec.methods.agentcf import groups, life, ranking
from jaxrec.methods.agentcf.events import draw_events, draw_negatives
from jaxrec.methods.agentcf.interaction import Memory, rates_of
from jaxrec.methods.agentcf.schedule import Memories
from jaxrec.methods.agentcf.world import world_of
from jaxrec.types import Data, History, Sizes

USERS, ITEMS, DOMAINS, WIDTH = 20, 36, 3, 8
SIZES = Sizes(USERS, ITEMS, 1, DOMAINS)
TWO = jnp.array([7, 2])
SMALL = {"rank": 3, "recent": 4, "groups": 5, "half_life": 40.0, "item_rate": 0.2, "tail": 0.2}
CASES = {
    "dual": {},
    "dual without groups": {"groups": 0},
    "dual without half-life": {"half_life": 0.0},
    "single": {"memory": "single"},
    "single without groups": {"memory": "single", "groups": 0},
    "private": {"memory": "private"},
}
cases = pytest.mark.parametrize("settings", list(CASES.values()), ids=list(CASES))


@cache
def log():
    """Data, and their rows in the order of time.

    Users from 12 on are in two domains, those from 16 on in one, and the last has no rows at all.
    Two items have no text.
    """
    rng = np.random.default_rng(0)
    domain = rng.permutation(np.arange(ITEMS) % DOMAINS)
    text = rng.normal(size=(ITEMS, WIDTH)) * 2.0 ** -np.arange(WIDTH) + 2 * (domain == 1)[:, None]
    text[[3, 7]] = 0
    rows = []
    for user in range(USERS - 1):
        allowed = [d for d in range(DOMAINS) if user < 12 or (d != 2 and (user < 16 or d == 0))]
        own = np.flatnonzero(np.isin(domain, allowed))
        skewed = (np.arange(len(own)) + 2.0) ** -1
        taken = rng.choice(own, min(len(own) - 2, 11), replace=False, p=skewed / skewed.sum())
        rows += [(user, int(item)) for item in taken]
    rows = [rows[k] for k in rng.permutation(len(rows))]
    user, item = np.array(rows).T
    by_user = np.argsort(user, kind="stable")
    start, order = np.searchsorted(user[by_user], np.arange(USERS + 1)), np.argsort(by_user)
    history = History(*map(jnp.asarray, (user[by_user], item[by_user], start, order)))
    shown = Data((), history, jnp.asarray(domain), jnp.asarray(text, jnp.float32))
    return shown, rows


@pytest.fixture
def lived(oracle):
    """Agents of the loops after some rows, and the engine's state with what they remember."""

    def live(config, slot, negatives, rows):
        data, _ = log()
        single = config.memory == "single"
        text, domain = np.asarray(data.text, float), np.asarray(data.domain)
        world = oracle.world(text, domain, DOMAINS, config.rank, single)
        user, items = oracle.nobody(USERS, 1 if single else DOMAINS, WIDTH), world.content.copy()
        for (u, i), j in zip(rows, negatives, strict=True):
            oracle.interact(user, items, (u, i, j), world, oracle.rates(config), single)
        return oracle.Agents(config, world, user, items, slot, rows)

    return live


def state_of(config, agents, weights):
    """The engine's state with the memories and groups' members of agents of the loops."""
    user, item = (np.array(part, np.int32) for part in zip(*agents.rows, strict=True))
    state = agentcf.make(config, SIZES).init(jax.random.key(0), log()[0])
    found = state.groups
    if config.groups:
        found = groups.remember(
            *map(jnp.asarray, (agents.slot, user, item, agents.world.domain)), config.groups,
            DOMAINS, half_life=config.half_life, last=config.recent,
        )  # fmt: skip
    memory = Memory(*(jnp.asarray(part, jnp.float32) for part in agents.user))
    return state._replace(
        memories=Memories(memory, jnp.asarray(agents.item, jnp.float32)),
        groups=found,
        popularity=jnp.zeros(ITEMS).at[item].add(1),
        weights=jnp.asarray(weights, jnp.float32),
        seen=log()[0].history,
    )


def members(config):
    """Users in several groups, in one, in none."""
    slots = 1 if config.memory == "single" else DOMAINS
    slot = np.random.default_rng(1).integers(0, max(config.groups, 1) + 1, (USERS, slots))
    for u in range(USERS):
        for m in range(1, slots):
            if slot[u, m] in slot[u, :m]:
                slot[u, m] = max(config.groups, 1)
    return slot


@cases
def test_features_and_scores_are_those_of_the_loops(oracle, lived, settings):
    config = agentcf.Config(**SMALL | settings)
    data, rows = log()
    negatives = draw_events(jax.random.key(3), data.history, data.domain).negative.tolist()
    weights = np.random.default_rng(2).normal(size=(DOMAINS, 8))
    if not config.groups:
        weights[:, 5:7] = 0
    agents = lived(config, members(config), negatives, rows)
    everybody, shown = jnp.arange(USERS), [agents.world.domain == d for d in range(DOMAINS)]
    lists = [jnp.tile(jnp.flatnonzero(of), (USERS, 1)) for of in shown]

    @partial(jax.jit)
    def engine(state):
        world = world_of(config, SIZES, data)
        tastes = ranking.tastes_of(state, world, rates_of(config))
        found = [ranking.features(state, world, tastes, everybody, each) for each in lists]
        served = ranking.serve(config, SIZES, state, world, data.history)
        return tastes, found, ranking.score(served, everybody), ranking.score(served, TWO)

    tastes, found, scores, of_two = engine(state_of(config, agents, weights))
    newest = oracle.groups(agents)[1] if config.groups else None
    loops = [[oracle.tastes(agents, u, d, newest) for d in range(DOMAINS)] for u in range(USERS)]
    by_taste = np.moveaxis(np.array(loops), 2, 0)
    chex.assert_trees_all_close(tastes, ranking.Tastes(*by_taste), atol=2e-4)
    expected = oracle.features(agents)
    for values, of in zip(found, shown, strict=True):
        np.testing.assert_allclose(values, expected[:, of], atol=2e-4)
    np.testing.assert_allclose(scores, oracle.scores(agents, weights), atol=2e-3)
    np.testing.assert_allclose(of_two, scores[TWO], atol=1e-5)
    told = np.abs(expected).max((0, 1)) > 0.1  # each feature has something to say, or is absent
    others, members_took = config.memory == "dual", config.groups > 0
    assert told.tolist() == [*[True] * 4, others, members_took, members_took, True]


def test_the_log_has_what_the_features_must_tell_apart(oracle, lived):
    """Unread domains that are folded in, users without groups, items never taken."""
    config = agentcf.Config(**SMALL)
    data, rows = log()
    negatives = draw_events(jax.random.key(3), data.history, data.domain).negative.tolist()
    agents = lived(config, members(config), negatives, rows)
    unread = [oracle.tastes(agents, u, 2, None) for u in range(12, USERS)]
    assert all(np.isclose(oracle.length(taste[0]), 1) for taste in unread[:-1])
    assert all(oracle.length(taste[2]) == 0 for taste in unread)
    assert oracle.length(unread[-1][0]) == 0  # of a user who has no rows
    lonely = [u for u in range(USERS) if (agents.slot[u] == config.groups).all()]
    assert any(oracle.features(agents)[u, :, 6].max() == 0 for u in lonely) or not lonely
    assert set(range(ITEMS)) - {i for _, i in rows}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"groups": 0, "new_items": False},
        pytest.param({"memory": "single", "popularity": False}, marks=pytest.mark.slow),
        pytest.param({"memory": "private", "groups": 0}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_fits_its_weights_before_the_tail_is_seen(oracle, lived, settings):
    """All of training by loops; only what is drawn and who belongs together is the engine's."""
    config = agentcf.Config(**SMALL | settings)
    data, rows = log()
    method = agentcf.make(config, SIZES)
    step = jax.jit(method.step)
    state, metrics = step(method.init(jax.random.key(0), data), data, jax.random.key(1))

    key_negatives, key_groups, key_rivals, _ = jax.random.split(jax.random.key(1), 4)
    events = draw_events(key_negatives, data.history, data.domain)
    head = len(rows) - int(0.2 * len(rows))
    nobody = np.full((USERS, 1 if config.single else DOMAINS), max(config.groups, 1))
    early = lived(config, nobody, events.negative[:head].tolist(), rows[:head])
    if config.groups:
        found = life.with_groups(
            config, SIZES, state_of(config, early, state.weights), world_of(config, SIZES, data),
            events.user[:head], events.item[:head], key_groups,
        )  # fmt: skip
        early = early._replace(slot=np.asarray(found.groups.slot))
    user, item = events.user[head:], events.item[head:]
    draw = lambda key: draw_negatives(key, user, item, data.domain, data.history)
    rivals = jax.vmap(draw)(jax.random.split(key_rivals, config.rivals))
    shown = np.concatenate([item[None], rivals]).T
    values = oracle.features(early)[np.asarray(user)[:, None], shown]
    if not config.popularity:
        values[..., 7] = 0
    taken = {i for _, i in rows[:head]}
    counted = np.array([[config.new_items or i in taken for i in line] for line in shown])
    mine = [early.world.domain[shown[:, 0]] == d for d in range(DOMAINS)]
    weights = np.stack([oracle.weights(values, each, counted) for each in mine])
    np.testing.assert_allclose(metrics.weights, weights, rtol=2e-2, atol=2e-2)
    assert config.new_items or not counted.all()

    agents = lived(config, np.asarray(state.groups.slot), events.negative.tolist(), rows)
    found = jax.jit(
        lambda state: method.score(method.prepare(state, data), jnp.arange(USERS)),
    )(state)
    np.testing.assert_allclose(found, oracle.scores(agents, metrics.weights), atol=5e-3)


def test_the_weights_are_those_of_the_likeliest_choice(oracle):
    rng = np.random.default_rng(0)
    values, mine = rng.normal(size=(200, 6, 3)), rng.random(200) < 0.7
    values[:, 0] += [0.7, -0.4, 0.0]
    counted = rng.random((200, 6)) < 0.8
    for ridge in (1.0, 20.0):
        found = ranking.softmax_regression(*map(jnp.asarray, (values, mine, counted)), ridge)
        expected = oracle.weights(values, mine, counted, ridge)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_shape_that_would_be_broadcast_is_refused():
    values, mine, counted = jnp.ones((6, 6, 3)), jnp.ones(6, bool), jnp.ones((6, 6), bool)
    regress = partial(ranking.softmax_regression, values)
    with pytest.raises(AssertionError):
        regress(mine[:1], counted)
    with pytest.raises(AssertionError):
        regress(mine, counted[:, :1])
    with pytest.raises(AssertionError):
        groups.assign(jnp.ones((4, 2, 3)), jnp.ones((4, 1), bool), jnp.ones((2, 3)))

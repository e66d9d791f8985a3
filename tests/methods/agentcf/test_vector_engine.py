"""AgentCF++: rankings from memories, weights fitted to the log's tail, trends inside groups."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec.data.pack import history, pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.data.text import texts, tfidf
from jaxrec.methods import agentcf
from jaxrec.methods.agentcf import ranking, schedule
from jaxrec.methods.agentcf.events import Events, draw_negatives
from jaxrec.methods.agentcf.interaction import Rates, interact
from jaxrec.methods.agentcf.state import OF_COUNTS, OF_GROUPS
from jaxrec.methods.agentcf.world import world_of
from jaxrec.training.settings import read_settings
from jaxrec.types import TEST, TRAIN, VALID, DataError, Dataset, SettingError

SMALL = {"groups": 4, "rank": 6, "minibatch_size": 16}


@cache
def held_out(how="leave-one-out"):
    return split(synthetic(users=60, items=50, clients=6, length=16), how)


@cache
def problem(how="leave-one-out"):
    data, sizes = pack(held_out(how))
    return data._replace(text=jnp.asarray(tfidf(texts(held_out(how).items)), jnp.float32)), sizes


@cache
def programs(sizes, **settings):
    """A method whose init, step, prepare and score are compiled once for data of one shape."""
    method = agentcf.make(agentcf.Config(**SMALL | settings), sizes)
    parts = {name: getattr(method, name) for name in ("init", "step", "prepare", "score")}
    return method._replace(**{name: jax.jit(part) for name, part in parts.items()})


def trained(data, sizes, **settings):
    """The state after the one step."""
    method = programs(sizes, **settings)
    return method.step(method.init(jax.random.key(0), data), data, jax.random.key(1))[0]


@cache
def small(**settings):
    return trained(*problem(), **settings)


def test_events_one_at_a_time_are_the_same_log():
    """Groups are made of memories afterwards, which stay the same without them."""
    batches = {"minibatch": True, "groups": 0, "popularity": False}
    exact, slow = small(), small(**batches, minibatch_size=1)
    np.testing.assert_allclose(slow.memories.item, exact.memories.item, atol=1e-5)
    np.testing.assert_allclose(slow.memories.user.fused, exact.memories.user.fused, atol=1e-4)
    coarse = small(**batches)
    difference = jnp.abs(coarse.memories.item - exact.memories.item).max()
    assert 1e-3 < difference < 1.5


@pytest.mark.parametrize("how", ["leave-one-out", pytest.param("ratio", marks=pytest.mark.slow)])
def test_at_test_time_the_agents_have_lived_through_the_validation_rows(how):
    data, sizes = problem(how)
    known = data._replace(history=history(held_out(how), TEST))
    state, served = trained(data, sizes), programs(sizes).prepare
    unchanged = served(state, data).state
    np.testing.assert_array_equal(unchanged.memories.item, state.memories.item)

    rows = held_out(how).interactions
    late = rows[rows["split"] == VALID].sort_values("timestamp", kind="stable")
    user, item = (jnp.asarray(late[column].to_numpy()) for column in ("user", "item"))
    rates = Rates(temperature=0.3, newest_weight=0.01, item=0.03)

    @jax.jit
    def lived_through(state, known):
        key_negatives, _ = jax.random.split(state.key)
        rejected = draw_negatives(key_negatives, user, item, known.domain, known.history)
        return schedule.replay(
            lambda *args: interact(*args, rates), state.memories, Events(user, item, rejected),
            jnp.arange(len(late)), 1, world_of(agentcf.Config(**SMALL), sizes, known),
        )[0]  # fmt: skip

    by_hand = lived_through(state, known)
    after = served(state, known).state
    np.testing.assert_allclose(after.memories.item, by_hand.item, atol=1e-5)
    np.testing.assert_allclose(after.memories.user.fused, by_hand.user.fused, atol=1e-5)
    taken = rows.loc[rows["split"] < TEST, "item"]
    np.testing.assert_array_equal(after.popularity, np.bincount(taken, minlength=sizes.items))
    np.testing.assert_array_equal(after.weights, state.weights)


@pytest.mark.slow
def test_frozen_items_keep_their_content_and_no_groups_weigh_nothing():
    state = small(item_rate=0.0, groups=0, popularity=False)
    data, sizes = problem()
    np.testing.assert_allclose(
        state.memories.item, world_of(agentcf.Config(**SMALL), sizes, data).content, atol=1e-6
    )
    weights = np.asarray(state.weights)
    assert (weights[:, OF_GROUPS] == 0).all() and (weights[:, OF_COUNTS] == 0).all()
    with_counts = np.asarray(small(groups=0).weights)
    assert (with_counts[:, OF_GROUPS] == 0).all()
    assert (with_counts[:, OF_COUNTS] != 0).all()
    assert (np.asarray(state.weights)[:, 3] != 0).all()


def test_a_user_new_to_a_domain_is_served_from_the_others():
    data, sizes = problem()
    past, domain = data.history, np.asarray(data.domain)
    user, item = np.asarray(past.user), np.array(past.item)
    theirs = np.flatnonzero((user == 5) & (domain[item] == 1))  # and instead items of domain 0
    new = np.setdiff1d(np.flatnonzero(domain == 0), item[user == 5])
    item[theirs] = new[: len(theirs)]
    state = trained(data._replace(history=past._replace(item=jnp.asarray(item))), sizes)
    assert state.memories.user.count[5, 1] == 0

    @jax.jit
    def tastes(state, data, transfer):
        world = world_of(agentcf.Config(**SMALL), sizes, data)
        return ranking.tastes_of(state, world, Rates(transfer=transfer))

    fused, _, private, _, _ = tastes(state, data, Rates().transfer)
    assert np.linalg.norm(fused[5, 1]) == pytest.approx(1, abs=1e-5)
    assert (private[5, 1] == 0).all()
    alone, *_ = tastes(state, data, 0.0)
    assert np.linalg.norm(alone[5, 1]) < 1e-3


def trend():
    """Two circles of users with tastes of their own; the last days bring item 0 to one of them."""
    rng, rows = np.random.default_rng(0), []
    for user in range(60):
        own = 2 + np.flatnonzero(np.arange(48) % 2 == user % 2)
        for time, item in enumerate(rng.permutation(own)[:12]):
            rows.append((user, item, 100 * time + user))
        if user % 4 == 0 and user < 48:  # half of the first circle
            rows.append((user, 0, 10_000 + user))
        if user % 4 == 1 and user < 48:  # and as many of the other take item 1, long ago
            rows.append((user, 1, user - 1000))
    rows = pd.DataFrame(rows, columns=["user", "item", "timestamp"]).assign(split=TRAIN, client=0)
    items = pd.DataFrame({"item": range(50), "domain": 0})
    dataset = Dataset("trend", rows, items, pd.DataFrame({"user": range(60)}))
    content = np.zeros((50, 6))
    content[np.arange(2, 50), np.arange(48) % 2] = 1
    content[:2, 2] = 1  # of nobody's taste
    content += 0.05 * rng.normal(size=content.shape)
    data, sizes = pack(dataset)
    return data._replace(text=jnp.asarray(content, jnp.float32)), sizes


def test_only_the_members_rankings_follow_a_trend_of_their_group():
    data, sizes = trend()
    state = trained(data, sizes, groups=2, rank=2, half_life=200.0)
    # The log's tail is the trend itself, so the weights are given: taste, and the group's counts.
    weights = jnp.zeros_like(state.weights).at[0, 3].set(1.0).at[0, 6].set(3.0)
    method = programs(sizes, groups=2)
    served = method.prepare(state._replace(weights=weights), data)
    scores = np.asarray(method.score(served, jnp.arange(60)))
    place = (scores[:, :1] < scores).sum(1)  # items ahead of the new one
    circle, bystander = np.arange(60) % 2 == 0, np.arange(60) % 4 == 2
    assert place[circle & bystander].max() < 3
    assert place[~circle].min() > 10
    old = (scores[:, 1:2] < scores).sum(1)  # long ago is forgotten
    assert old[~circle].mean() > 10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": 61}, "groups = 61: must be 0 .none. or up to the 60 users"),
        ({"tail": 1.0}, "tail = 1.0: must be above 0 and below 1"),
        ({"temperature": 0.0}, "temperature = 0.0: must be above 0"),
        ({"minibatch_size": 0}, "minibatch_size = 0: must be at least 1"),
        ({"surprise": 1.5}, "surprise = 1.5: must be at least 0 and at most 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        agentcf.make(agentcf.Config(**settings), problem()[1])


def test_settings_of_older_runs_are_read_under_their_new_names():
    _, config = read_settings("agentcf", words={"recency": 0.2, "minibatch": True, "width": 7})
    assert config == agentcf.Config(newest_weight=0.2, minibatch=True, minibatch_size=7)


def test_data_that_agents_cannot_live_in_are_refused():
    dataset = synthetic(users=30, items=80, clients=3, length=10)
    timeless = replace(dataset, interactions=dataset.interactions.drop(columns="timestamp"))
    train = lambda data, **more: jaxrec.train("agentcf", data, text="tfidf", **more)
    with pytest.raises(DataError, match="no column 'timestamp' or 'position'"):
        train(timeless, split="ratio")
    lonely = dataset.items.assign(domain=np.where(dataset.items.item == 7, 1, 0))
    with pytest.raises(DataError, match="item 7 is the only one of domain 1"):
        train(replace(dataset, items=lonely))
    nowhere = replace(dataset, items=dataset.items.drop(columns="domain"))
    with pytest.raises(DataError, match="needs a column 'domain'"):
        train(nowhere)


@pytest.mark.slow
def test_one_domain_is_ranked_by_rows():
    dataset = synthetic(users=30, items=80, clients=3, length=10)
    nowhere = replace(dataset, items=dataset.items.drop(columns="domain"))
    settings = {"progress": False, "text": "tfidf", "baselines": (), "ranking": "rows"}
    found = jaxrec.train("agentcf", nowhere, **settings).values
    assert 0 < found["test/MRR(9 negatives)"] < 1


def test_a_domain_that_no_user_or_no_item_is_in_does_no_harm():
    dataset = synthetic(users=40, items=40, clients=4, length=10)
    moved = dataset.items.assign(domain=2 * dataset.items["domain"])  # domain 1 has no items
    dataset = split(replace(dataset, items=moved), "leave-one-out")
    rows = dataset.interactions  # users below 10 are in one domain only
    other = moved["domain"].to_numpy()[rows["item"]] == 2
    rows = rows[~((rows["user"] < 10) & other & (rows["split"] < VALID))]
    data, sizes = pack(replace(dataset, interactions=rows))
    assert sizes.domains == 3
    data = data._replace(text=jnp.asarray(tfidf(texts(dataset.items)), jnp.float32))
    state, method = trained(data, sizes), programs(sizes)
    assert np.isfinite(method.score(method.prepare(state, data), jnp.arange(40))).all()
    assert (state.weights[1] == 0).all()

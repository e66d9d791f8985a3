"""Waves are the sequential loop: proved with a rule that tells any other order."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrec
from jaxrec.data.pack import history
from jaxrec.data.split import split
from jaxrec.methods.agentcf import schedule
from jaxrec.methods.agentcf.events import Events, draw_events, has_taken
from jaxrec.methods.agentcf.schedule import Memories


def mix(number, *values):
    """A hash of values in this order, of 32 bits; `number` makes one of them."""
    found = number(2166136261)
    for value in values:
        found = (found ^ number(value)) * number(16777619) & number(2**32 - 1)
        found = found ^ (found >> number(15))
    return found


def hashing(user, item, negative, event, number=lambda value: jnp.asarray(value, jnp.uint32)):
    """Everything written depends on everything read, in an order that matters."""
    read = mix(number, user, item, negative, event.user, event.item, event.negative)
    return *(mix(number, read, number(k)) for k in (1, 2, 3)), read


def one_by_one(events, users, items):
    """The loop that all schedules must equal, in Python's integers."""
    user, item = list(range(users)), list(range(items))
    for u, i, j in np.stack([np.asarray(part) for part in events], axis=1).tolist():
        user[u], item[i], item[j], _ = hashing(user[u], item[i], item[j], Events(u, i, j), int)
    return np.array(user), np.array(item)


@jax.jit(static_argnames=("lanes", "users", "items", "add"))
def replay(events, level, lanes, users, items, add=False):
    start = Memories(*(jnp.arange(n, dtype=jnp.uint32) for n in (users, items)))
    rule = lambda user, item, negative, event, _: hashing(user, item, negative, event)
    return schedule.replay(rule, start, events, level, lanes, add=add)


levels = jax.jit(schedule.levels, static_argnums=(1, 2))


def assert_equals_the_loop(events, level, lanes, users, items):
    found, _ = replay(events, level, lanes, users, items)
    chex.assert_trees_all_equal(tuple(found), one_by_one(events, users, items))


def log(draw_users, pairs):
    """Events of made-up pairs (item, other item)."""
    user, item, shift = (np.array(part, np.int32) for part in zip(*pairs, strict=True))
    return Events(*(jnp.asarray(p) for p in (user % draw_users, item, (item + shift) % 9)))


logs = st.builds(
    log,
    st.integers(1, 6),
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 8), st.integers(1, 8)), min_size=30, max_size=30
    ),
)


@settings(deadline=None, max_examples=25)
@given(logs, st.sampled_from([1, 3, 8]), st.integers(0, 10))
def test_levels_with_any_lanes_and_inner_order_equal_the_loop(events, lanes, seed):
    level = np.asarray(levels(events, 6, 9))
    assert_equals_the_loop(events, level, lanes, 6, 9)
    order = np.random.default_rng(seed).permutation(len(level))
    order = order[np.argsort(level[order], kind="stable")]  # another order within each level
    moved = jax.tree.map(lambda part: part[order], events)
    found, _ = replay(moved, level[order], lanes, 6, 9)
    chex.assert_trees_all_equal(tuple(found), one_by_one(events, 6, 9))


@settings(deadline=None)
@given(logs)
def test_a_level_is_one_more_than_that_of_the_latest_event_in_conflict(events):
    level = np.asarray(levels(events, 6, 9))
    rows = np.stack([np.asarray(part) for part in events], axis=1).tolist()
    touched = [{("u", u), ("i", i), ("i", j)} for u, i, j in rows]
    for e, mine in enumerate(touched):
        earlier = [level[d] for d in range(e) if touched[d] & mine]
        assert level[e] == 1 + max(earlier, default=-1)


def random_log(users, items, number):
    rng = np.random.default_rng(0)
    item = rng.integers(0, items, number)
    other = (item + rng.integers(1, items, number)) % items
    return Events(
        *(jnp.asarray(p, jnp.int32) for p in (rng.integers(0, users, number), item, other))
    )


def test_ignoring_conflicts_is_another_result():
    events = random_log(20, 30, 400)
    user, item = one_by_one(events, 20, 30)
    for lanes in (1, 16):
        found, _ = replay(events, np.arange(400) // lanes, lanes, 20, 30)
        assert (np.asarray(found.user) == user).all() == (lanes == 1)
        assert (np.asarray(found.item) == item).all() == (lanes == 1)


def test_every_event_reports_what_it_read():
    events = random_log(20, 30, 400)
    _, read = replay(events, levels(events, 20, 30), 8, 20, 30)
    user, item = list(range(20)), list(range(30))
    for e, (u, i, j) in enumerate(np.stack([np.asarray(p) for p in events], axis=1).tolist()):
        user[u], item[i], item[j], expected = hashing(
            user[u], item[i], item[j], Events(u, i, j), int
        )
        assert int(read[e]) == expected


def test_changes_of_events_at_once_add_up():
    events = Events(*(jnp.array(part) for part in ([0, 0, 1], [0, 1, 0], [2, 2, 1])))

    def rule(user, item, negative, event, step):
        return user + step, item + 10 * user, negative - item, item

    start = Memories(jnp.array([1.0, 2.0]), jnp.array([5.0, 6.0, 7.0]))
    found, read = schedule.replay(rule, start, events, jnp.zeros(3), 4, 0.5, add=True)
    np.testing.assert_allclose(found.user, [2.0, 2.5])
    np.testing.assert_allclose(found.item, [5 + 10 + 20, 6 + 10 - 5, 7 - 5 - 6])
    np.testing.assert_allclose(read, [5, 6, 5])


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["movies-toys", "food-kitchen"])
def test_real_logs_bit_for_bit(data_root, name):
    dataset = jaxrec.load(name)
    users, items = dataset.num_users, dataset.num_items
    rows = history(split(dataset, "leave-one-out"))
    domain = jnp.asarray(dataset.items["domain"].to_numpy())
    events = jax.jit(draw_events)(jax.random.key(0), rows, domain)
    assert not has_taken(rows, events.user, events.negative).any()
    assert_equals_the_loop(events, levels(events, users, items), 64, users, items)
    careless, _ = replay(events, np.arange(len(events.item)) // 64, 64, users, items)
    expected = one_by_one(events, users, items)[1]
    assert (np.asarray(careless.item) != expected)[np.unique(events.item)].mean() > 0.05

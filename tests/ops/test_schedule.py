"""Waves are the sequential loop: proved with a rule that tells any other order."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxrec
from jaxrec.data.pack import history
from jaxrec.data.split import split
from jaxrec.ops import schedule
from jaxrec.ops.schedule import Events, Memories
from jaxrec.types import DataError


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


@jax.jit(static_argnames=("users", "items"))
def replay(events, lines, users, items):
    start = Memories(*(jnp.arange(n, dtype=jnp.uint32) for n in (users, items)))
    rule = lambda user, item, negative, event, _: hashing(user, item, negative, event)
    return schedule.replay(rule, start, events, lines)[0]


def replayed(events, lines, users, items):
    most = len(events.user)  # of lines: one shape, one program
    lines = np.pad(lines, ((0, most - len(lines)), (0, 0)), constant_values=most)
    return jax.tree.map(np.asarray, replay(events, jnp.asarray(lines), users, items))


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
def test_waves_of_any_width_and_inner_order_equal_the_loop(events, width, seed):
    lines = schedule.waves(schedule.levels(events), width)
    shuffled = np.random.default_rng(seed).permuted(lines, axis=1)
    user, item = one_by_one(events, 6, 9)
    for each in (lines, shuffled):
        found = replayed(events, each, 6, 9)
        np.testing.assert_array_equal(found.user, user)
        np.testing.assert_array_equal(found.item, item)


@given(logs, st.integers(1, 8))
def test_every_event_lies_in_one_line_after_all_that_it_depends_on(events, width):
    level = schedule.levels(events)
    lines = schedule.waves(level, width)
    assert sorted(lines[lines < len(level)]) == list(range(len(level)))
    touched = [
        {("u", u), ("i", i), ("i", j)} for u, i, j in zip(*map(np.asarray, events), strict=True)
    ]
    for e, mine in enumerate(touched):
        earlier = [level[d] for d in range(e) if touched[d] & mine]
        assert level[e] == 1 + max(earlier, default=-1)
    at = {int(e): k for k, line in enumerate(lines) for e in line}
    for e, before in enumerate(schedule.dependencies(events)):
        assert all(at[int(d)] < at[e] for d in before if d >= 0)


def test_ignoring_conflicts_is_another_result():
    rng = np.random.default_rng(0)
    item = rng.integers(0, 30, 400)
    events = Events(rng.integers(0, 20, 400), item, (item + rng.integers(1, 30, 400)) % 30)
    events = Events(*(jnp.asarray(part, jnp.int32) for part in events))
    user, item = one_by_one(events, 20, 30)
    for width in (1, 16):
        lines = schedule.waves(np.arange(400) // width, width)
        found = replayed(events, lines, 20, 30)
        assert (found.user == user).all() == (width == 1)
        assert (found.item == item).all() == (width == 1)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["movies-toys", "food-kitchen"])
def test_real_logs_bit_for_bit(data_root, name):
    dataset = jaxrec.load(name)
    rows = history(split(dataset, "leave-one-out"))
    item = rows.item[rows.order]
    rejected = schedule.negatives(jax.random.key(0), item, dataset.items["domain"].to_numpy())
    events = Events(rows.user[rows.order], item, rejected)
    lines = schedule.waves(schedule.levels(events), 64)
    user, item = one_by_one(events, dataset.num_users, dataset.num_items)
    found = replayed(events, lines, dataset.num_users, dataset.num_items)
    np.testing.assert_array_equal(found.user, user)
    np.testing.assert_array_equal(found.item, item)
    careless = schedule.waves(np.arange(len(events.user)) // 64, 64)
    found = replayed(events, careless, dataset.num_users, dataset.num_items)
    assert (found.item != item)[np.unique(events.item)].mean() > 0.05


def test_negatives_are_all_others_of_the_domain_alike():
    domain = np.array([0, 1, 0, 1, 0, 0])
    item = jnp.asarray([0, 1, 2, 3, 4, 5] * 300)
    drawn = np.asarray(schedule.negatives(jax.random.key(1), item, domain))
    assert (domain[drawn] == domain[np.asarray(item)]).all()
    assert (drawn != np.asarray(item)).all()
    counts = Counter(drawn[::6].tolist())
    assert set(counts) == {2, 4, 5}
    assert min(counts.values()) > 60  # of 300, 100 expected, standard deviation 8
    again = schedule.negatives(jax.random.key(1), item[:7], domain)
    np.testing.assert_array_equal(again, drawn[:7])


def test_a_domain_of_one_item_is_refused():
    with pytest.raises(DataError, match="item 2 is the only one of domain 1"):
        schedule.negatives(jax.random.key(0), np.array([0, 2]), np.array([0, 0, 1]))

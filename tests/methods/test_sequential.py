"""Sequential recommenders: the epoch's loss against loops, order that must be learnt, odd data."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from flax import nnx

from jaxrec.data.pack import history, pack
from jaxrec.data.partition import partition
from jaxrec.data.rows import fill_rows
from jaxrec.data.split import split
from jaxrec.methods import sequential
from jaxrec.models.sequential import last
from jaxrec.training import checkpoint
from jaxrec.training.run import train
from jaxrec.types import TEST, TRAIN, DataError, Dataset

USERS, ITEMS = 40, 24
SMALL = {"width": 8, "layers": 1, "heads": 2, "length": 8, "batch": 64}


def chain(users=USERS, items=ITEMS, seed=0):
    """Item i is followed by 5 i + 3, one time in ten by any item; all items are equally popular."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        item = rng.integers(items)
        for time in range(rng.integers(3, 15)):
            rows.append((user, item, time))
            item = rng.integers(items) if rng.random() < 0.1 else (5 * item + 3) % items
    rows = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    tables = pd.DataFrame({"item": range(items)}), pd.DataFrame({"user": range(users)})
    return Dataset("chain", rows, *tables)


@cache
def problem():
    dataset = partition(split(chain(), "leave-one-out"), "blocks", clients=4)
    return dataset, *pack(dataset)


class Program(NamedTuple):
    config: sequential.Config
    init: Callable
    step: Callable
    prepare: Callable
    score: Callable


@cache
def made(sizes=None, **settings):
    config = sequential.Config(**SMALL | settings)
    method = sequential.make(config, sizes or problem()[2])
    jit = lambda function: jax.jit(function)
    return Program(config, *map(jit, (method.init, method.step, method.prepare)), method.score)


def fit(program, data, epochs):
    state = program.init(jax.random.key(0), data)
    for epoch in range(epochs):
        state, _ = program.step(state, data, jax.random.key(epoch))
    return state


@cache
def applied(config):
    graphdef = nnx.graphdef(sequential.build(jax.random.key(0), config, ITEMS))
    apply = lambda params, items: nnx.merge(graphdef, params)(items)
    return jax.jit(apply)


def own_items(data, user):
    return np.asarray(data.history.item[data.history.start[user] : data.history.start[user + 1]])


def padded(sequences, length):
    rows = [[ITEMS] * (length - len(s)) + list(s) for s in (s[-length:] for s in sequences)]
    return jnp.array(rows, jnp.int32)


@cache
def prefixes(length):
    """Each place alone: the items before it, newest `length` pairs of a user, and what came."""
    pairs = []
    for user in range(USERS):
        items = own_items(problem()[1], user)
        begin = max(0, len(items) - 1 - length)
        pairs += [(items[begin : t + 1], items[t + 1]) for t in range(begin, len(items) - 1)]
    return padded([p for p, _ in pairs], length), np.array([y for _, y in pairs])


@pytest.mark.parametrize("model", ["sasrec", "gru4rec"])
def test_an_epoch_of_one_batch_has_the_loss_of_a_loop_over_prefixes(model):
    """Rows that sequences share, all places in one pass, scores chunk by chunk: one number."""
    program, data = made(model=model, dropout=0.0, batch=800), problem()[1]
    config, state = program.config, program.init(jax.random.key(0), data)
    after, metrics = program.step(state, data, jax.random.key(1))
    before, target = prefixes(config.length)
    hidden = applied(config)(state.params, before)
    scores = last(hidden) @ state.params["table"][...].T
    share = jax.nn.log_softmax(scores)[np.arange(len(target)), target]
    assert metrics.loss == pytest.approx(float(-share.mean()), rel=1e-5)
    # Adam's first step moves every weight with a gradient by the learning rate.
    moved = np.abs(after.params["table"][...] - state.params["table"][...])
    np.testing.assert_allclose(moved.max(), config.learning_rate, rtol=1e-2)


def test_the_gradient_of_shared_rows_is_that_of_one_row_a_user():
    config, data = made(dropout=0.0).config, problem()[1]
    graphdef, params = nnx.split(sequential.build(jax.random.key(0), config, ITEMS))

    def total(params, item, target, position):
        module = nnx.merge(graphdef, params)
        hidden = module(item, position).reshape(-1, config.width)
        share = jax.nn.log_softmax(hidden @ module.table[...].T)
        gain = jnp.take_along_axis(share, jnp.minimum(target, ITEMS - 1).reshape(-1, 1), 1)[:, 0]
        return jnp.sum(gain, where=(item < ITEMS).ravel())

    order = jax.random.permutation(jax.random.key(3), USERS)
    rows, _ = fill_rows(data.history, order, items=ITEMS, length=config.length, ahead=1)
    items = [own_items(data, user) for user in range(USERS)]
    item = padded([x[:-1] for x in items], config.length)
    target = padded([x[1:] for x in items], config.length)
    position = jnp.cumsum(item < ITEMS, axis=1) - 1
    gradient = jax.jit(jax.grad(total))
    shared = gradient(params, rows.item, rows.target, rows.position)
    alone = gradient(params, item, target, position)
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(
            found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
        ),
        shared,
        alone,
    )


def test_users_are_served_by_their_newest_items():
    dataset, data, _ = problem()
    program = made(batch=16)
    state = program.init(jax.random.key(0), data)
    for past in (data, data._replace(history=history(dataset, TEST))):
        found = program.prepare(state, past)
        items = padded([own_items(past, user) for user in range(USERS)], program.config.length)
        expected = last(applied(program.config)(state.params, items))
        np.testing.assert_allclose(found.user, expected, rtol=1e-4, atol=1e-5)
        scores = program.score(found, jnp.array([2, 7]))
        np.testing.assert_allclose(
            scores, found.user[np.array([2, 7])] @ found.item.T, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("settings", [{}, {"model": "gru4rec", "loss": "binary"}])
def test_an_order_is_learnt_that_counts_do_not_show(settings):
    """The chain's next item is right 9 times in 10; popularity can only guess."""
    dataset = partition(split(chain(users=300, seed=1), "leave-one-out"), "blocks", clients=4)
    data, sizes = pack(dataset)
    data = data._replace(clients=())
    program = made(sizes, width=16, dropout=0.1, learning_rate=1e-2, **settings)
    state = fit(program, data, 40)
    known = program.prepare(state, data._replace(history=history(dataset, TEST)))
    rows = dataset.interactions
    test = rows[rows["split"] == TEST]
    right = np.argmax(program.score(known, test["user"].to_numpy()), axis=1) == test["item"]
    most = rows.loc[rows["split"] < TEST, "item"].mode()[0]
    assert right.mean() > 0.6
    assert (test["item"] == most).mean() < 0.15


def test_a_user_with_one_item_teaches_nothing_and_is_served():
    program, data = made(warmup=4), problem()[1]
    past = data.history._replace(  # users 0, 1 and 2 with one item each, nothing else
        user=jnp.minimum(jnp.arange(len(data.history.user)), 3),
        item=data.history.item.at[:3].set(jnp.array([3, 1, 3])),
        start=jnp.minimum(jnp.arange(USERS + 1), 3),
    )
    data = data._replace(history=past)
    state = program.init(jax.random.key(0), data)
    after, metrics = program.step(state, data, jax.random.key(1))
    chex.assert_trees_all_equal(after, state, strict=True)
    assert metrics.loss == 0
    found = program.prepare(state, data).user
    assert (found[0] != 0).any()
    np.testing.assert_allclose(found[0], found[2], rtol=1e-5)
    assert (found[0] != found[1]).any()
    assert not found[3:].any()


def test_items_held_out_do_not_reach_the_state():
    dataset, data, _ = problem()
    rows = dataset.interactions
    other = rows["item"].where(rows["split"] == TRAIN, (rows["item"] + 7) % ITEMS)
    changed, _ = pack(replace(dataset, interactions=rows.assign(item=other)))
    states = [fit(made(warmup=4), each, 2) for each in (data, changed)]
    chex.assert_trees_all_equal(*states, strict=True)


def test_an_interrupted_training_goes_on_with_the_same_bits():
    program, data = made(warmup=4), problem()[1]
    whole = fit(program, data, 4)
    stored = checkpoint.to_arrays(fit(program, data, 2))
    state = checkpoint.to_state(stored, jax.eval_shape(program.init, jax.random.key(0), data))
    for epoch in (2, 3):
        state, _ = program.step(state, data, jax.random.key(epoch))
    chex.assert_trees_all_equal(state, whole, strict=True)


def test_data_without_an_order_are_refused():
    data = problem()[1]._replace(history=None)
    with pytest.raises(DataError, match=r"'timestamp' or 'position'"):
        made().init(jax.random.key(0), data)
    rows = chain().interactions[["user", "item"]].drop_duplicates()
    with pytest.raises(DataError, match="this method needs the order of a user's items"):
        train("sequential", rows, progress=False)


def test_an_odd_number_of_heads_is_no_matter_to_a_recurrent_network():
    made(model="gru4rec", heads=3)

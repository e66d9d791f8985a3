"""The centralised baselines, and federated ALS, beside slow oracles."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import forward, split
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import METHODS, als, bpr, fedals, itemknn, lightgcn
from jaxrec.models import item_weights, recency
from jaxrec.models.collaborative import Tables, encode
from jaxrec.ops.edges import of_users
from jaxrec.types import SettingError


@cache
def problem(how="ratio"):
    dataset = split(synthetic(users=90, items=50, clients=9, length=14), how, 0.1, 0.2, 0)
    data, sizes = pack(dataset)
    rows = dataset.interactions
    train = rows[rows["split"] == 0]
    matrix = np.zeros((sizes.users, sizes.items))
    matrix[train["user"], train["item"]] = 1
    return data, sizes, matrix


def after(method, rounds, data):
    step = jax.jit(lambda state, key: method.step(state, data, key)[0])
    state = method.init(jax.random.key(0), data)
    for number in range(rounds):
        state = step(state, jax.random.key(number))
    return state


def scores(method, state, data, users):
    prepared = jax.jit(method.prepare)(state, data)
    return np.asarray(jax.jit(method.score)(prepared, jnp.arange(users)))


def test_sweeps_of_als_are_the_loop_over_users_and_items():
    data, sizes, rows = problem()
    config = als.Config(width=4, negative_weight=0.2, l2=1.5, recency=0.0)
    method = als.make(config, sizes)
    item = np.asarray(method.init(jax.random.key(0), data).item, float)

    def optimum(own, table):
        form = 0.2 * table.T @ table + 0.8 * table[own].T @ table[own]
        l2 = 1.5 * np.sqrt(1 + own.sum() / 100)
        return np.linalg.solve(form + l2 * np.eye(4), table[own].sum(0))

    for _ in range(2):
        user = np.array([optimum(row > 0, item) for row in rows])
        item = np.array([optimum(column > 0, user) for column in rows.T])
    state = after(method, 2, data)
    np.testing.assert_allclose(state.item, item, atol=1e-4)
    user = np.array([optimum(row > 0, item) for row in rows])
    np.testing.assert_allclose(scores(method, state, data, sizes.users), user @ item.T, atol=1e-4)


def test_federated_als_in_clear_is_centralised_als():
    data, sizes, _ = problem()
    shared = {"width": 4, "recency": 0.0}
    alone = als.make(als.Config(**shared), sizes)
    together = fedals.make(fedals.Config(**shared, privacy="plain"), sizes)
    expected = after(alone, 3, data).item
    np.testing.assert_allclose(after(together, 3, data).item, expected, atol=2e-4)


def test_federated_als_by_secure_sums_comes_near_it():
    data, sizes, _ = problem()
    settings = {"width": 4, "recency": 0.0, "min_support": 1}
    losses = []
    for privacy in ("plain", "secure_sum"):
        method = fedals.make(fedals.Config(**settings, privacy=privacy), sizes)
        state = after(method, 10, data)
        losses.append(float(jax.jit(method.step)(state, data, jax.random.key(9))[1].loss))
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def slow_neighbours(rows, nearest, alpha, beta, shrink):
    weight = np.maximum(rows.sum(1), 1) ** -alpha
    common = (rows.T * weight) @ rows
    length = np.diagonal(common) ** beta
    alike = common / np.maximum(np.outer(length, length) + shrink, 1e-30)
    np.fill_diagonal(alike, 0)
    for column in alike.T:
        column[np.argsort(-column, kind="stable")[nearest:]] = 0
    return alike


@pytest.mark.parametrize("apart", [False, True])
def test_itemknn_adds_what_the_nearest_items_say(apart, monkeypatch):
    monkeypatch.setattr(item_weights, "SUM", 0 if apart else 10**9)  # apart, or as one matrix
    data, sizes, rows = problem()
    config = itemknn.Config(nearest=7, shrink=0.5, recency=0.0)
    method = METHODS["itemknn"].make(config, sizes)
    expected = rows @ slow_neighbours(rows, 7, 0.5, 0.4, 0.5)
    found = scores(method, after(method, 1, data), data, sizes.users)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pairs_hold_what_a_user_chose_and_what_it_does_not_have():
    data, sizes, rows = problem()
    owned = of_users(recency.edges_by_age(data, 0.0), sizes.users)
    user, chosen = np.nonzero(rows)
    number = len(user)
    where = np.arange(number) % 5 > 0
    pairs = bpr.draw(owned, user, chosen, where, sizes.items, jax.random.key(1))
    kept = np.asarray(pairs.where)
    assert kept.sum() > 0.5 * number and not kept[~where].any()
    assert (rows[user, np.asarray(pairs.other)][kept] == 0).all()


def test_the_loss_of_bpr_is_its_formula():
    rng = np.random.default_rng(0)
    tables = Tables(rng.normal(size=(4, 3)), rng.normal(size=(5, 3)))
    pairs = bpr.Pairs(
        np.array([0, 3, 1]), np.array([2, 0, 4]), np.array([1, 4, 3]), np.array([True, True, False])
    )
    found, number = bpr.loss(0.2, lambda tables: tables, tables, pairs)
    expected = 0
    for user, chosen, other in ((0, 2, 1), (3, 0, 4)):
        x, e, f = tables.user[user], tables.item[chosen], tables.item[other]
        expected += np.log1p(np.exp(-x @ (e - f))) + 0.1 * (x @ x + e @ e + f @ f)
    assert number == 2
    np.testing.assert_allclose(found, expected / 2, rtol=1e-5)


@pytest.mark.parametrize("dense", [0, 10**6])
def test_lightgcn_averages_over_the_graph(dense, monkeypatch):
    monkeypatch.setattr(lightgcn, "DENSE", dense)
    data, sizes, rows = problem()
    rng = np.random.default_rng(0)
    tables = Tables(*(rng.normal(size=(n, 4)).astype(np.float32) for n in rows.shape))
    found = jax.jit(lightgcn.encoder_of(3, sizes, data))(tables)
    expected = encode(tables, jnp.asarray(rows, jnp.float32), layers=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, expected)


def ordered(repeated):
    """Data in which users either choose again what is like their newest item, or anything."""
    rng, users, items, length = np.random.default_rng(0), 120, 40, 9
    block = rng.integers(8, size=(users, length))
    if repeated:  # a taste of the moment lasts three rows
        block = np.repeat(rng.integers(8, size=(users, 3)), 3, axis=1)
    item = block * 5 + np.argsort(rng.random((users, length, 5)), axis=2)[:, :, 0]
    frame = synthetic(users=users, items=items, clients=4, length=length)
    rows = frame.interactions.iloc[:0]
    user = np.repeat(np.arange(users), length)
    rows = rows.reindex(range(users * length))
    rows = rows.assign(user=user, item=item.ravel(), timestamp=np.tile(np.arange(length), users))
    rows = rows.assign(client=user % 4, domain=0, split=0)
    rows = rows.drop_duplicates(["user", "item"], ignore_index=True)
    types = {name: frame.interactions[name].dtype for name in frame.interactions}
    return replace(frame, interactions=rows.astype(types | {"split": "int8"}))


def fade_found(repeated):
    data, sizes = pack(ordered(repeated))
    method = METHODS["ease"].make(METHODS["ease"].Config(ridge=5.0), sizes)
    return float(after(method, 1, data).fade)


def test_newer_rows_count_more_where_they_say_more():
    assert fade_found(repeated=True) > 0
    assert fade_found(repeated=False) == 0


def test_weights_by_age_are_those_of_recency():
    data, sizes, _ = problem()
    found = recency.edges_by_age(data, 1 / 3)
    expected = np.concatenate([(c.mask / (1 + c.age / 3)).ravel() for c in data.clients])
    np.testing.assert_allclose(found.weight, expected, rtol=1e-6)
    timeless = data._replace(clients=tuple(c._replace(age=None) for c in data.clients))
    method = als.make(als.Config(width=4, recency=3.0), sizes)
    with pytest.raises(SettingError, match=r"recency = 3.*no timestamps.*set recency = 0"):
        jax.eval_shape(lambda: method.step(method.init(jax.random.key(0), data), timeless, None))
    auto = als.make(als.Config(width=4), sizes)
    assert after(auto, 1, timeless).fade == 0


@pytest.mark.parametrize(("how", "later"), [("leave-one-out", True), ("ratio", False)])
def test_recency_is_left_alone_where_held_out_rows_are_no_newer(how, later):
    dataset = split(synthetic(users=60, items=40, clients=4, length=12), how)
    assert forward(dataset) == later
    config, _ = als.TRAITS.settled(als.Config(), None, later)
    assert config.recency == ("auto" if later else 0.0)
    assert als.TRAITS.settled(als.Config(recency=2.0), None, False)[0].recency == 2.0

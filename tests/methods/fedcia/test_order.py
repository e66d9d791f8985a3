"""What clients add by the order of their rows, against loops over users and pairs of rows."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import fedcia
from jaxrec.methods.fedcia import order
from jaxrec.ops import least_squares
from jaxrec.types import SettingError

ITEMS, W, L2 = 40, 0.3, 2.0


@cache
def problem(clients=5):
    dataset = split(synthetic(users=20, items=ITEMS, clients=clients, length=18), "leave-one-out")
    return pack(dataset)


def each_client(clients=5):
    for bucket in problem(clients)[0].clients:
        for number in range(len(bucket.client)):
            yield jax.tree.map(lambda leaf, n=number: leaf[n], bucket)


def sequences(client):
    """The items of each of a client's users, oldest first."""
    mask = np.asarray(client.mask)
    for user in range(len(client.users)):
        rows = np.flatnonzero(mask & (np.asarray(client.user) == user))
        yield np.asarray(client.item)[rows[np.argsort(-np.asarray(client.age)[rows])]]


@pytest.mark.parametrize("clients", [2, 20])
def test_transitions_are_those_of_a_loop_over_pairs(clients):
    for client in each_client(clients):
        counted = np.zeros((ITEMS, ITEMS))
        for items in sequences(client):
            for at, earlier in enumerate(items):
                for far, later in enumerate(items[at + 1 : at + 1 + order.WINDOW], 1):
                    counted[earlier, later] += 1 / far
        rows = np.asarray(order.weighted_rows(client, 2.0, ITEMS))
        for user, items in enumerate(sequences(client)):
            expected = np.zeros(ITEMS)
            expected[items] = 1 / (1 + np.arange(len(items))[::-1] / 2.0)
            np.testing.assert_allclose(rows[user], expected, rtol=1e-6)
        expected = rows @ (counted / (counted.sum(1, keepdims=True) + order.SHRINKAGE))
        np.testing.assert_allclose(order.after(client, jnp.asarray(rows)), expected, atol=1e-6)
        assert expected.any()


@pytest.mark.parametrize("dense", [0, 10**6])
@pytest.mark.parametrize("clients", [2, 20])
def test_users_solve_their_weighted_least_squares(monkeypatch, dense, clients):
    monkeypatch.setattr(least_squares, "DENSE", dense)
    item = np.random.default_rng(0).normal(size=(ITEMS, 3))
    for client in each_client(clients):
        counts = np.asarray(order.weighted_rows(client, 1.5, ITEMS), float)
        weights = np.asarray(order.row_weights(client, 1.5))
        l2 = L2 * (1 + np.arange(len(client.users)))
        found = least_squares.users(
            jnp.float32(item), client, jnp.float32(item.T @ item), negative_weight=W,
            l2=jnp.float32(l2), weights=jnp.asarray(weights),
        )  # fmt: skip
        for user, row in enumerate(counts):
            confidence = W + (1 - W) * row
            left = (item.T * confidence) @ item + l2[user] * np.eye(3)
            np.testing.assert_allclose(found[user], np.linalg.solve(left, item.T @ row), atol=1e-4)


@pytest.mark.parametrize("settings", [{"model": "ease"}, {"model": "gfcf"}, {"width": 4}])
def test_methods_add_transitions_to_what_they_score(settings):
    data, sizes = problem()
    few = {"min_cohort": 1, "min_support": 1, "singular_vectors": 4} | settings
    few = few if "gfcf" in settings.values() else {k: v for k, v in few.items() if "sing" not in k}
    scores = []
    for transitions in (0.0, 2.0):
        method = fedcia.make(fedcia.Config(**few, recency=3.0, transitions=transitions), sizes)
        state = jax.jit(method.init)(jax.random.key(0), data)
        state, _ = jax.jit(method.step)(state, data, jax.random.key(1))
        score = jax.jit(lambda s, m=method: m.score(m.prepare(s, data), jnp.arange(20)))
        scores.append(score(state))
    expected = np.zeros((20, ITEMS))
    for client in each_client():
        own = np.asarray(client.users)
        expected[own[own < 20]] = order.after(client, order.weighted_rows(client, 3.0, ITEMS))[
            : (own < 20).sum()
        ]
    np.testing.assert_allclose(scores[1] - scores[0], 2 * expected, atol=1e-4)


def test_an_order_is_asked_for_by_name():
    data, sizes = problem()
    data = data._replace(clients=tuple(c._replace(age=None) for c in data.clients))
    method = fedcia.make(fedcia.Config(model="ease", recency=1.0, min_support=1), sizes)
    with pytest.raises(SettingError, match=r"recency = 1\.0: the data have no timestamps"):
        method.prepare(method.init(jax.random.key(0), data), data)

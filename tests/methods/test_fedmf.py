"""FedMF: a round is the loop over clients that each send a dense gradient."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import fedavg
from jaxrec.ops import fold_in
from jaxrec.types import SettingError, Sizes

L2_USER, L2_ITEM = 0.4, 0.6
SETTINGS = {
    "upload": "gradient",
    "loss": "softmax",
    "width": 5,
    "local_steps": 3,
    "init_scale": 0.5,
    "l2_user": L2_USER,
    "l2_item": L2_ITEM,
    "damping": 0.4,
    "server_learning_rate": 0.05,
    "privacy": "plain",
}
ROUNDS = 3


@cache
def problem(clients):
    """Clients of one user (as many as users) or of several; the last two only pad."""
    dataset = split(synthetic(users=16, items=20, clients=clients, length=8), "ratio", 0.1, 0.2, 0)
    rng = np.random.default_rng(0)
    dataset.interactions["timestamp"] = rng.permutation(len(dataset.interactions))
    data, sizes = pack(dataset, multiple=3)
    assert any((bucket.weight == 0).any() for bucket in data.clients)
    return data, sizes


@cache
def program(clients, **settings):
    data, sizes = problem(clients)
    method = fedavg.make(fedavg.Config(**(SETTINGS | settings)), sizes)

    def start(key):
        state = method.init(key, data)
        return state, method.score(method.prepare(state, data), jnp.arange(sizes.users))

    step = lambda state, key: method.step(state, data, key)
    scores = lambda state: method.score(method.prepare(state, data), jnp.arange(sizes.users))
    return tuple(jax.jit(f) for f in (start, step, scores))


def rows_of(clients, recency):
    """How much each user of one client chose each item, [U, I], row by row."""
    rows = np.zeros((len(clients.users), 20), np.float32)
    for user, item, real, age in zip(
        clients.user, clients.item, clients.mask, clients.age, strict=True
    ):
        rows[user, item] += bool(real) / (1 + int(age) / recency if recency else 1)
    return rows


def each(data):
    for number, bucket in enumerate(data.clients):
        for place in range(len(bucket.client)):
            yield number, place, jax.tree.map(lambda leaf, p=place: np.asarray(leaf[p]), bucket)


fit = jax.jit(fold_in.fold_in, static_argnames=("l2", "damping", "steps"))


def slow_round(item, user, shares, data, recency):
    """New users, the mean gradient of the item table, and the mean loss."""
    curve = fold_in.curvature(jnp.asarray(item), jnp.asarray(shares))
    gradient, loss, number = np.zeros(item.shape), 0.0, 0.0
    user = [np.array(bucket) for bucket in user]
    for bucket, place, clients in each(data):
        if clients.weight == 0:
            continue
        rows = rows_of(clients, recency)
        x = fit(
            jnp.asarray(user[bucket][place]), item, rows, jnp.zeros(()), jnp.zeros(item.shape[1]),
            curve, l2=2 * L2_USER, damping=0.4, steps=3,
        )  # fmt: skip
        user[bucket][place] = x
        for one, chosen in zip(np.asarray(x, float), rows.astype(float), strict=True):
            scores = item.astype(float) @ one
            softmax = np.exp(scores) / np.exp(scores).sum()
            gradient += np.outer(chosen.sum() * softmax - chosen, one)
            loss -= chosen @ np.log(softmax)
        gradient += 2 * L2_ITEM * item / len(item)
        number += clients.weight
    return user, gradient / number, loss / number


@pytest.mark.parametrize(
    ("clients", "server", "recency"),
    [(16, "adam", 0.0), (16, "average", 0.0), (4, "adam", 0.0), (4, "adam", 2.0)],
)
def test_a_round_is_the_loop_over_clients(clients, server, recency):
    data, _ = problem(clients)
    start, step, _ = program(clients, server=server, recency=recency)
    state, _ = start(jax.random.key(0))
    counts = sum(rows_of(one, 0.0).sum(0) for _, _, one in each(data))
    np.testing.assert_allclose(state.shared.shares, counts / counts.sum(), rtol=1e-6)
    optimizer = optax.adam(0.05) if server == "adam" else optax.sgd(1.0)
    item, user = np.asarray(state.shared.item), state.user
    assert all((bucket == 0).all() for bucket in user)
    moments = optimizer.init(jnp.asarray(item))
    for number in range(ROUNDS):
        user, gradient, loss = slow_round(item, user, state.shared.shares, data, recency)
        updates, moments = optimizer.update(jnp.float32(gradient), moments)
        before, item = item, np.asarray(optax.apply_updates(jnp.asarray(item), updates))
        state, metrics = step(state, jax.random.key(number))
        moved = np.abs(item - before).max()
        np.testing.assert_allclose(state.shared.item, item, atol=5e-3 * moved)
        for found, expected in zip(state.user, user, strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-3)
        np.testing.assert_allclose(metrics.loss, loss, rtol=1e-3)
        assert metrics.participants == clients
        item, user = np.asarray(state.shared.item), state.user  # Adam blows up what is rounding


def test_serving_fits_every_user_to_the_newest_table():
    data, _ = problem(4)
    start, step, scores = program(4, recency=2.0)
    state, first = start(jax.random.key(0))
    state, _ = step(state, jax.random.key(1))
    item = state.shared.item
    user, _, _ = slow_round(np.asarray(item), state.user, state.shared.shares, data, 2.0)
    found = np.asarray(scores(state))
    for bucket, place, clients in each(data):
        for row, one in enumerate(clients.users):
            if one < len(found):
                expected = item @ user[bucket][place][row]
                np.testing.assert_allclose(found[one], expected, atol=2e-3)
    assert np.abs(found - first).max() > 1e-2


def test_noise_that_nobody_sends_changes_nothing_and_real_noise_does():
    """Noisy rounds send the product itself; without noise it must be the same sum."""
    states = {}
    for noisy in (0.0, 1e-9, 0.5):
        start, step, _ = program(16, attackers=noisy, server="average")
        states[noisy], _ = step(start(jax.random.key(0))[0], jax.random.key(1))
    item = {noisy: np.asarray(state.shared.item) for noisy, state in states.items()}
    np.testing.assert_allclose(item[1e-9], item[0.0], rtol=1e-4, atol=1e-5)
    assert np.abs(item[0.5] - item[0.0]).max() > 0.05
    for noisy, one in zip(states[0.5].user, states[0.0].user, strict=True):
        np.testing.assert_allclose(noisy, one, rtol=1e-4, atol=1e-5)


def test_only_those_who_took_part_move():
    data, _ = problem(16)
    start, step, _ = program(16, participation=0.4)
    state, _ = start(jax.random.key(0))
    new, metrics = step(state, jax.random.key(1))
    moved = sum(int(np.abs(new.user[bucket][place]).max() > 0) for bucket, place, _ in each(data))
    assert 0 < metrics.participants == moved < 16


def test_traffic_is_one_table_each_way_and_the_counts_once():
    traffic = fedavg.make(fedavg.Config(**SETTINGS), Sizes(16, 20, 16)).traffic
    assert traffic.up == traffic.down == 4 * 20 * 5
    assert traffic.setup_up == traffic.setup_down == 4 * 20


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "square"}, "upload = 'gradient'.*loss = 'square'"),
        ({"loss": "bpr"}, "upload = 'gradient'.*loss = 'bpr'"),
        ({"layers": 2}, "upload = 'gradient'.*layers = 2"),
        ({"damping": 0.0}, "damping = 0.0"),
        ({"damping": 1.1}, "damping = 1.1"),
        ({"damping": float("nan")}, "damping = nan"),
        ({"l2_user": 0.0}, "l2_user = 0.0"),
        ({"l2_user": float("nan")}, "l2_user = nan"),
        ({"attackers": 1.0}, "attackers = 1.0"),
        ({"width": 0}, "width = 0"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused_by_name(settings, message):
    with pytest.raises(SettingError, match=message):
        fedavg.make(fedavg.Config(**(SETTINGS | settings)), Sizes(16, 20, 16))


@pytest.mark.parametrize("clients", [16, 4])
def test_who_flips_the_sign_of_a_gradient_is_left_out(clients):
    """The others' gradients count as if the liars had sent nothing."""
    lies = {"attackers": 0.3, "aggregate": "norm_bound", "local_steps": 20}
    items = []
    for attack in ("sign_flip", "non_finite"):
        start, step, _ = program(clients, attack=attack, **lies)
        state = start(jax.random.key(0))[0]
        for number in range(2):
            state, metrics = step(state, jax.random.key(number))
        items.append(state.shared.item)
    assert 0 < metrics.non_finite < clients
    np.testing.assert_array_equal(*items)
    honest, step, _ = program(clients, aggregate="norm_bound", local_steps=20)
    state, _ = step(honest(jax.random.key(0))[0], jax.random.key(0))
    assert np.abs(state.shared.item - items[0]).max() > 1e-3

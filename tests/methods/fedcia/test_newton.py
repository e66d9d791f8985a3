"""FedCIA's Newton steps against dense matrices: what users are, what travels, where S goes."""

from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import fedcia
from jaxrec.methods.fedcia import newton
from jaxrec.types import SettingError

WIDTH, W, L2, ROWS, L2_ITEM = 4, 0.4, 1.0, 100.0, 35.0


@cache
def problem():
    dataset = split(synthetic(users=24, items=30, clients=6, length=14), "ratio", 0.1, 0.2, 0)
    return pack(dataset)


def method(**settings):
    few = {"min_cohort": 1, "min_support": 1}
    return fedcia.make(fedcia.Config(**{"width": WIDTH} | few | settings), problem()[1])


@cache
def programs(**settings):
    made = method(**settings)
    return jax.jit(made.init), jax.jit(made.step)


@cache
def after(rounds, **settings):
    """The state after so many rounds, and the last one's metrics."""
    (data, _), (init, step) = problem(), programs(**settings)
    if not rounds:
        return init(jax.random.key(0), data), None
    return step(after(rounds - 1, **settings)[0], data, jax.random.key(rounds - 1))


def dense(state):
    vectors, values = (np.asarray(leaf, float) for leaf in state.similarity)
    return vectors * values @ vectors.T


def matrix():
    """The federation's rows [U, I], whoever holds them."""
    rows = np.zeros((24, 30))
    for clients in jax.tree.map(np.asarray, problem()[0].clients):
        for c in range(len(clients.client)):
            own = clients.mask[c]
            rows[clients.users[c][clients.user[c][own]], clients.item[c][own]] = 1
    return rows


def table(similarity):
    values, vectors = np.linalg.eigh(similarity)
    return (vectors * np.sqrt(np.maximum(values, 0)))[:, -WIDTH:]


def fitted(item, rows):
    """Users by the normal equations of a weighted least-squares problem, one after another."""
    users = np.zeros((len(rows), item.shape[1]))
    for u, row in enumerate(rows):
        confidence = np.where(row > 0, 1, W)
        penalty = L2 * (1 + row.sum() / ROWS)
        left = (item.T * confidence) @ item + penalty * np.eye(item.shape[1])
        users[u] = np.linalg.solve(left, item.T @ row)
    return users


def objective(similarity, rows):
    item = table(similarity)
    users = fitted(item, rows)
    data = np.sum(np.where(rows > 0, 1, W) * (users @ item.T - rows) ** 2)
    ridge = np.sum(L2 * (1 + rows.sum(1) / ROWS) * np.sum(users**2, axis=1))
    return data + ridge + L2_ITEM * np.sum(item**2)


def stepped(similarity, rows):
    """One round on dense matrices, in another basis than the server's."""
    item = table(similarity)
    users = fitted(item, rows)
    slope = (np.where(rows > 0, 1, W) * (users @ item.T - rows)).T @ users
    form = (users.T * (1 + rows.sum(1) / ROWS)) @ users
    curvature = (1 + W) / 2 * form + L2_ITEM * np.eye(WIDTH)
    item = item - np.linalg.solve(curvature, (slope + L2_ITEM * item).T).T
    return item @ item.T


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("privacy", ["plain", "secure_sum"])
@pytest.mark.parametrize("block", [0, 2])
def test_rounds_are_those_of_one_table_of_all_rows(privacy, block):
    state, metrics = after(3, privacy=privacy, block=block)
    expected = dense(after(0)[0])
    for _ in range(3):
        expected = stepped(expected, matrix())
    assert relative(dense(state), expected) < 2e-4
    assert metrics.participants == 6 and metrics.non_finite == 0


def test_the_objective_never_rises():
    rows = matrix()
    values = [objective(dense(after(n)[0]), rows) for n in range(7)]
    assert all(b < a for a, b in pairwise(values))


def test_the_reported_loss_is_that_of_the_fitted_users():
    _, metrics = after(1)
    item, rows = table(dense(after(0)[0])), matrix()
    users = fitted(item, rows)
    whole = np.where(rows > 0, 1, W) * (users @ item.T - rows) ** 2
    each = []
    for clients in problem()[0].clients:
        for own in clients.users:
            own = np.asarray(own)[np.asarray(own) < 24]
            each.append(whole[own].sum() / rows[own].sum())
    assert metrics.loss == pytest.approx(np.mean(each), rel=1e-4)


def test_users_serve_at_their_optimum():
    state, _ = after(2)
    item = table(dense(state))
    expected = fitted(item, matrix()) @ item.T
    users, made = jnp.arange(24), method()
    found = jax.jit(lambda state, data: made.score(made.prepare(state, data), users))(
        state, problem()[0]
    )
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_an_upload_is_the_same_in_any_rotation_of_the_table():
    """A client need not know the server's frame: it uploads how its similarity should change."""
    state = after(2)[0]
    config = fedcia.method.settled(fedcia.Config(width=WIDTH))
    client = jax.tree.map(lambda leaf: leaf[0], problem()[0].clients[0])

    @jax.jit
    def sent(similarity, client):
        return newton.sent(similarity, newton.train(config, similarity, (), client, None)[0])

    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(WIDTH, WIDTH)))[0]
    item = np.asarray(newton.table_of(state.similarity), float) @ turn
    own = np.asarray(client.users)[np.asarray(client.users) < 24]
    rows = matrix()[own]
    users = fitted(item, rows)
    slope = (np.where(rows > 0, 1, W) * (users @ item.T - rows)).T @ users
    expected = (item @ slope.T + slope @ item.T) @ np.asarray(state.similarity.vectors)
    assert relative(np.asarray(sent(state.similarity, client)), expected) < 1e-4


def test_the_server_reads_the_slope_out_of_what_similarities_should_change_by():
    rng = np.random.default_rng(0)
    vectors = np.linalg.qr(rng.normal(size=(30, WIDTH)))[0]
    similarity = newton.Similarity(jnp.float32(vectors), jnp.float32([9, 4, 1, 0.25]))
    item = np.asarray(newton.table_of(similarity), float)
    outside = rng.normal(size=(30, WIDTH))
    outside -= vectors @ (vectors.T @ outside)
    inner = rng.normal(size=(WIDTH, WIDTH))
    slope = outside + item @ np.linalg.inv(item.T @ item) @ (inner + inner.T)  # E^T g symmetric
    sent = (item @ slope.T + slope @ item.T) @ vectors
    assert relative(np.asarray(newton.slope(similarity, jnp.float32(sent))), slope) < 1e-5


def test_a_step_is_that_of_the_clients_slopes_one_by_one():
    data, sizes = problem()
    config = fedcia.method.settled(fedcia.Config(width=WIDTH, min_support=1, min_cohort=1))
    state = after(1)[0]

    @jax.jit
    @jax.vmap
    def slope(one):
        touched = newton.train(config, state.similarity, (), one, None)[0]
        return newton.slope_of(state.similarity, newton.spread(touched))

    slopes = np.concatenate([slope(clients) for clients in data.clients])
    moved = jax.jit(lambda slope: newton.moved(config, state.similarity, slope))(slopes.sum(0))
    whole = dense(newton.State(moved, None, None))
    assert relative(whole, dense(after(2)[0])) < 1e-3
    assert sizes.clients == len(slopes)


@pytest.mark.parametrize(
    "settings",
    [
        {"model": "lightgcn"},
        {"loss": "bpr"},
        {"upload": "factor", "privacy": "plain"},
        {"clip": 1.0},
        {"l2_user": 0.0},
    ],
)
def test_newton_is_refused_where_it_cannot_work(settings):
    with pytest.raises(SettingError, match="training = 'newton'"):
        method(training="newton", **settings)
    begun = jax.eval_shape(method(**settings).init, jax.random.key(0), problem()[0])
    assert not hasattr(begun, "similarity")


def test_traffic_counts_a_sketch_and_the_eigenpairs():
    traffic = method(privacy="plain").traffic
    assert traffic.up == 4 * 30 * WIDTH
    assert traffic.down == 4 * WIDTH * 31


def test_new_items_change_nothing_of_what_is_known():
    data, sizes = problem()
    state = after(2)[0]
    larger = fedcia.make(
        fedcia.Config(width=WIDTH, min_support=1, min_cohort=1), sizes._replace(items=33)
    )
    grow = jax.jit(lambda state, data: larger.grow(state, None, jax.random.key(1), data))
    found = dense(grow(state, data))
    assert relative(found[:30, :30], dense(state)) < 1e-4
    assert not found[30:].any()


def test_settings_of_steps_ask_for_steps():
    for given in ({"local_steps": 3}, {"rank": 8}, {"tables": "rebuilt"}):
        assert not fedcia.Config(**given).newton
    assert fedcia.Config(width=8, l2_item=3.0, negative_weight=0.2, participation=0.5).newton


def test_items_without_support_stay_out_of_the_similarity():
    state = after(2, min_support=8)[0]
    counts = matrix().sum(0)
    assert 0 < (counts < 8).sum() < 30
    rows = np.asarray(newton.table_of(state.similarity))
    moved = np.linalg.norm(rows, axis=1)
    assert moved[counts < 8].max() < 0.2 * moved[counts >= 8].max()


@pytest.mark.parametrize(
    "rule",
    ["norm_bound"]
    + [pytest.param(r, marks=pytest.mark.slow) for r in ("multi_krum", "trimmed_mean", "median")],
)
def test_a_robust_rule_sees_sketches_and_drops_flipped_signs(rule):
    bad = {} if rule in ("norm_bound", "median") else {"malicious": 0.4}
    settings = {"privacy": "plain", "aggregate": rule} | bad
    rows = matrix()
    honest = objective(dense(after(4, **settings)[0]), rows)
    flipped = {"attackers": 0.4, "attack": "sign_flip"}
    lied = objective(dense(after(4, **settings, **flipped)[0]), rows)
    start = objective(dense(after(0)[0]), rows)
    assert honest < start
    assert lied < start


def test_a_part_of_the_clients_takes_a_part_of_the_step():
    rows = matrix()
    values = [objective(dense(after(n, participation=0.5)[0]), rows) for n in (0, 4, 12)]
    assert values[2] < values[1] < values[0]

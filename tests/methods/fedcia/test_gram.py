"""The one-shot model for a budget: against NumPy, and what one user can change of its releases."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.data.text import texts, tfidf
from jaxrec.federated import user_sums
from jaxrec.federated.sum_bytes import protocol_overhead
from jaxrec.federated.support import supported
from jaxrec.methods import fedcia
from jaxrec.methods.fedcia import gram
from jaxrec.types import SettingError, Sizes

USERS, ITEMS, R = 60, 40, 16
NOISY = {"noise_multiplier": 0.5, "directions": R}


@cache
def problem(clients=9):
    """Clients of several users; two users have item 0."""
    dataset = split(synthetic(users=USERS, items=ITEMS, clients=9, length=12), "ratio", 0.1, 0.2, 0)
    rows = dataset.interactions
    rows["client"] = rows["user"] % clients
    rows["item"] = rows["item"].where(rows["item"] > 0, 1)
    rows.loc[rows["user"].isin([3, 4]) & ~rows["user"].duplicated(), "item"] = 0
    rows = rows.drop_duplicates(["user", "item"], ignore_index=True)
    dataset = replace(dataset, interactions=rows)
    data, sizes = pack(dataset)
    train = rows[rows["split"] == 0]
    table = np.zeros((sizes.users, sizes.items))
    table[train["user"], train["item"]] = 1
    text = tfidf(texts(dataset.items)).astype(np.float32)
    return data._replace(text=jnp.asarray(text)), sizes, table


def parts(privacy="plain", sizes=None, **settings):
    """The method's fixed parts, and its step."""
    budget = {"epsilon": 8.0} if privacy.endswith("dp") else {}
    config = fedcia.Config(model="gram", privacy=privacy, **budget, **settings)
    sizes = sizes or problem()[1]
    fixed = gram.Gram(config, sizes, gram.directions(config, sizes))
    return fixed, fedcia.make(config, sizes)


@partial(jax.jit, static_argnums=0)
def model_of(method, data):
    return method.step(method.init(jax.random.key(0), data), data, jax.random.key(5))[0]


def slow_model(x, text, number):
    """left @ right^T [I, I] without noise, in float64."""
    x = x[x.sum(1) > 0]
    c = np.maximum((x / np.sqrt(x.sum(1, keepdims=True))).sum(0), user_sums.FLOOR)
    text = text - text.mean(0)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    first = np.sqrt(c) / np.linalg.norm(np.sqrt(c))
    told = np.sqrt(c)[:, None] * text
    left = np.linalg.svd(told - np.outer(first, first @ told))[0][:, : number // 3]
    own = np.eye(len(c))[:, np.argsort(-c, kind="stable")[: number - number // 3]]
    basis = np.linalg.qr(np.column_stack([first, left, own]))[0]
    y = x @ basis * np.r_[user_sums.HALVED, np.ones(number)]
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(y.T @ y)
    values, vectors = values[values > 1e-6], vectors[:, values > 1e-6]
    usual = len(x) * (c**2).sum() / c.sum() ** 2
    weights = values / (values + gram.RIDGE * usual)
    inner = basis @ (vectors * weights) @ vectors.T @ basis.T
    return c[:, None] ** -0.25 * inner * c**0.25


def test_without_noise_it_is_the_centralised_model():
    data, _, rows = problem()
    model = model_of(parts(directions=R)[1], data)
    expected = slow_model(rows, np.asarray(data.text, np.float64), R)
    np.testing.assert_allclose(
        model.left @ model.right.T, expected, atol=2e-3 * np.abs(expected).max()
    )


@partial(jax.jit, static_argnums=0)
def sums(fixed, data, basis, key):
    made = user_sums.similarity(fixed.sums, data, basis, key)
    return user_sums.popularity(fixed.sums, data, key), made


def released(fixed, data, basis, seed=0):
    """c [I] and M [1 + r, 1 + r] as vectors whose lengths the budget is about."""
    c, alike = map(np.asarray, sums(fixed, data, basis, jax.random.key(seed)))
    upper = np.triu_indices(len(alike), 1)
    return c, np.concatenate([np.diag(alike), np.sqrt(2) * alike[upper]])


def client(rows):
    """One client with a user for each row [U, I], whatever is in it."""
    user, item = (place.ravel() for place in np.indices(rows.shape))
    return (
        problem()[0]
        .clients[0]
        ._replace(
            user=jnp.asarray(user)[None],
            item=jnp.asarray(item)[None],
            mask=jnp.asarray(rows.ravel() > 0)[None],
            users=jnp.arange(len(rows))[None],
            client=jnp.zeros(1, jnp.int32),
            weight=jnp.ones(1),
            age=None,
        )
    )


@pytest.mark.parametrize("privacy", ["central_dp", "distributed_dp"])
def test_one_user_more_changes_what_is_released_by_at_most_one(privacy):
    data, _, rows = problem()
    fixed, _ = parts(privacy, directions=R)
    c = np.maximum(rows.sum(0), user_sums.FLOOR).astype(np.float32)
    basis = user_sums.basis_of("both", R, jnp.asarray(c), data.text)
    rng = np.random.default_rng(0)
    one, rare, last = np.eye(ITEMS)[int(c.argmax())], np.eye(ITEMS)[int(c.argmin())], rows[2]
    adversaries = [one, rare, np.ones(ITEMS), last, 1 - last, rng.random(ITEMS) < 0.3]
    for extra in adversaries:
        before, after = (
            released(fixed, data._replace(clients=(client(np.vstack([rows[:9], who])),)), basis)
            for who in (np.zeros(ITEMS), extra)
        )
        changes = [np.linalg.norm(a - b) for a, b in zip(after, before, strict=True)]
        assert max(changes) <= 1 + 1e-5
        assert min(changes) > 0.5  # nor is the budget wasted


def test_noise_0_leaves_the_bits_of_no_noise():
    data = problem()[0]
    for noised, bare, more in (
        ("central_dp", "plain", {}),
        ("distributed_dp", "secure_sum", {"min_support": 1}),
    ):
        found = model_of(parts(noised, directions=R)[1], data)
        expected = model_of(parts(bare, directions=R, **more)[1], data)
        jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("privacy", ["central_dp", "distributed_dp"])
def test_noise_has_the_deviations_that_the_budget_pays_for(privacy):
    data, _, rows = problem()
    basis = user_sums.basis_of("items", R, jnp.asarray(rows.sum(0) + 1, jnp.float32), None)
    clean = released(parts(privacy, directions=R)[0], data, basis)
    fixed = parts(privacy, **NOISY)[0]
    draws = [released(fixed, data, basis, seed) for seed in range(8)]
    for number, deviation in enumerate(fixed.noises):
        noise = np.concatenate([draw[number] - clean[number] for draw in draws])
        # Of n normal numbers the deviation is known within 1 / sqrt(2 n); four of that.
        assert noise.std() == pytest.approx(deviation, rel=4 / np.sqrt(2 * len(noise)))
        assert abs(noise.mean()) < 4 * deviation / np.sqrt(len(noise))


def test_two_releases_cost_what_one_of_the_whole_noise_does():
    _, method = parts("central_dp", popularity_share=0.2, **NOISY)
    each = method.releases(1)
    assert all(release.times == 1 and release.sampling == 1 for release in each)
    spent = [release.noise_multiplier**-2 for release in each]
    assert sum(spent) == pytest.approx(0.5**-2)
    assert spent[0] == pytest.approx(0.2 * sum(spent))
    assert parts()[1].releases is None


def test_sums_are_of_integers_and_do_not_depend_on_the_clients():
    data, _, rows = problem()
    fixed, _ = parts("secure_sum", directions=R)
    basis = user_sums.basis_of("items", R, jnp.asarray(rows.sum(0) + 1, jnp.float32), None)
    found = released(fixed, data, basis)
    for total, unit in zip(found, (fixed.sums.units[0], fixed.sums.units[1] ** 2), strict=True):
        steps = total[: R + 1] * unit  # of M, its diagonal
        np.testing.assert_array_equal(steps, np.round(steps))
    regrouped = released(fixed, problem(clients=USERS)[0], basis)
    jax.tree.map(np.testing.assert_array_equal, found, regrouped)


def test_integer_squares_are_exact():
    rows = np.random.default_rng(0).integers(-512, 513, (300, 7))
    found = jax.jit(user_sums._squares)(jnp.asarray(rows, jnp.int32))
    np.testing.assert_array_equal(found, rows.T @ rows)


def test_an_item_of_few_users_is_in_no_sum():
    with_two = problem()[0]
    with_none = supported(with_two, jnp.arange(ITEMS) > 0)
    for privacy, same in (("secure_sum", True), ("plain", False)):
        method = parts(privacy, directions=R)[1]
        models = [model_of(method, data) for data in (with_two, with_none)]
        assert same == np.array_equal(models[0].left, models[1].left)


def test_noise_decides_how_many_directions_there_are():
    sizes = Sizes(users=10_000, items=5_000, clients=10)
    number = lambda **more: parts("central_dp", sizes, **more)[0].directions
    louder = [number(noise_multiplier=noise) for noise in (0.5, 1.0, 2.0, 4.0)]
    assert louder == sorted(louder, reverse=True) and len(set(louder)) == 4
    assert number() == user_sums.MOST_DIRECTIONS
    assert number(directions=7) == 7
    assert parts(directions=0)[0].directions == ITEMS - 1


def test_traffic_is_a_triangle_up_and_factors_down():
    traffic = parts("plain", directions=R)[1].traffic
    assert traffic.up == 4 * (R + 1) * (R + 2) / 2
    assert traffic.down == 2 * 4 * ITEMS * (R + 1)
    assert traffic.setup_up == traffic.setup_down == 4 * ITEMS
    hidden = parts("secure_sum", directions=R)[1].traffic
    up, _ = protocol_overhead(problem()[1].clients)
    assert hidden.up == traffic.up + up
    assert hidden.setup_up == 2 * (traffic.setup_up + up)  # c, and who has an item


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"directions": ITEMS}, "directions = 40: must be at most 39 with 40 items"),
        ({"privacy": "central_dp", "privacy_unit": "client"}, "privacy_unit = 'client': must be"),
        ({"popularity_share": 1.0}, "popularity_share = 1.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        parts(**settings)


def test_texts_that_are_missing_are_asked_for():
    with pytest.raises(ValueError, match="set basis = 'items'"):
        model_of(parts(directions=R)[1], problem()[0]._replace(text=None))


@pytest.mark.realdata
@pytest.mark.slow
def test_a_budget_of_8_keeps_most_of_it_on_ml100k(data_root):
    # 0.67 is the least noise for (8, 1e-6) of one Gaussian sum.
    result = jaxrec.train(
        "fedcia",
        data_root / "fedcia-ml100k",
        model="gram",
        privacy="central_dp",
        epsilon=8.0,
        noise_multiplier=0.67,
        baselines=(),
        ks=(10,),
        progress=False,
    )
    assert result.values["test/F1@10"] > 0.23

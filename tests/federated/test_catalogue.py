"""Scores by table against gathered code vectors; sampled rivals against the whole catalogue."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.federated import catalogue
from jaxrec.federated.catalogue import NO_RIVAL
from jaxrec.ops import fold_in
from jaxrec.types import TRAIN, Clients, Data

ITEMS, USERS, LEVELS, CODES, WIDTH = 30, 3, 4, 6, 5
both_forms = pytest.mark.parametrize("incidence", [False, True], ids=["gather", "incidence"])


def normals(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


TEXT = normals(8, ITEMS, 3)


def codes(seed=0, items=ITEMS):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, CODES - 1, (items, LEVELS)), jnp.int32)  # one is never used


def described(codebooks, incidence=False):
    items = catalogue.describe(codebooks, codes(), TEXT, normals(9, ITEMS))
    return catalogue.with_incidence(items, CODES) if incidence else items


def slow_look_up(table, codes):
    found = np.zeros((len(table), len(codes)))
    for user, item in np.ndindex(found.shape):
        for level, code in enumerate(np.asarray(codes)[item]):
            found[user, item] += table[user, level, code]
    return found


def test_an_item_is_the_sum_of_its_code_vectors_and_its_popularity():
    codebooks = normals(0, LEVELS, CODES, WIDTH)
    items = described(codebooks)
    for item in range(ITEMS):
        vector = sum(codebooks[level, items.codes[item, level]] for level in range(LEVELS))
        np.testing.assert_allclose(items.features[item, :WIDTH], vector, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(items.features[:, WIDTH:-1], TEXT)
    np.testing.assert_array_equal(items.features[:, -1], items.popularity)


@both_forms
def test_scores_by_table_are_those_of_gathered_vectors(incidence):
    codebooks, user = normals(0, LEVELS, CODES, WIDTH), normals(1, USERS, WIDTH)
    items = described(codebooks, incidence)
    table = jnp.einsum("ud,pkd->upk", user, codebooks)
    found = jax.jit(catalogue.look_up)(table, items)
    np.testing.assert_allclose(found, slow_look_up(table, items.codes), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found, user @ items.features[:, :WIDTH].T, rtol=1e-4, atol=1e-4)


@both_forms
def test_gradients_are_those_of_gathered_vectors(incidence):
    """Of a softmax loss, in the codebooks and in the users; `by_code` gives the former."""
    codebooks, user = normals(0, LEVELS, CODES, WIDTH), normals(1, USERS, WIDTH)
    chosen = jnp.asarray(np.random.default_rng(2).integers(0, 2, (USERS, ITEMS)), jnp.float32)
    items = described(codebooks, incidence)

    def by_table(codebooks, user):
        table = jnp.einsum("ud,pkd->upk", user, codebooks)
        return fold_in.loss(catalogue.look_up(table, items), chosen).sum()

    def by_vectors(codebooks, user):
        vectors = codebooks[jnp.arange(LEVELS), items.codes].sum(1)  # [I, P, D] -> [I, D]
        return fold_in.loss(user @ vectors.T, chosen).sum()

    found, expected = (
        jax.jit(jax.value_and_grad(form, (0, 1)))(codebooks, user)
        for form in (by_table, by_vectors)
    )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-4)
    table = jnp.einsum("ud,pkd->upk", user, codebooks)
    residual = fold_in.residual(catalogue.look_up(table, items), chosen)
    summed = catalogue.by_code(residual, items, CODES)
    close(jnp.einsum("upk,ud->pkd", summed, user), expected[1][0])


@both_forms
def test_by_code_sums_over_the_items_of_each_code(incidence):
    items, values = described(normals(0, LEVELS, CODES, WIDTH), incidence), normals(3, USERS, ITEMS)
    expected = np.zeros((USERS, LEVELS, CODES))
    for user, item, level in np.ndindex(USERS, ITEMS, LEVELS):
        expected[user, level, items.codes[item, level]] += values[user, item]
    found = catalogue.by_code(values, items, CODES)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found[..., CODES - 1], 0)


@both_forms
def test_by_code_is_the_transpose_of_look_up(incidence):
    items = described(normals(0, LEVELS, CODES, WIDTH), incidence)
    table, values = normals(4, USERS, LEVELS, CODES), normals(5, USERS, ITEMS)
    left = jnp.vdot(catalogue.look_up(table, items), values)
    right = jnp.vdot(table, catalogue.by_code(values, items, CODES))
    assert abs(left) > 1
    np.testing.assert_allclose(left, right, rtol=1e-4)


# Users' train rows in a client; its arrays have room for more rows and users.
ALONE = ([3, 8, 11, 20],)
APART = ([3, 8, 11], [1, 2], [20, 21, 22, 23])
SHARED = ([3, 8, 11, 5, 6], [3, 8, 11, 5], [3, 8, 22, 5])


def client(histories):
    user = [u for u, rows in enumerate(histories) for _ in rows]
    item = [i for rows in histories for i in rows]
    padding = [0] * (16 - len(item) if len(item) < 16 else 2)
    mask = [True] * len(item) + [False] * len(padding)
    user, item = user + padding, item + padding
    users = [*range(len(histories)), *[99] * (4 - len(histories))]
    arrays = (jnp.asarray(a) for a in (user, item, mask, users, 0, float(sum(mask))))
    return Clients(*arrays)


def ids(items):
    """The popularity of an item, where it stands for the item's id."""
    return np.asarray(items.popularity).astype(int)


@cache
def sampler(number, items=ITEMS):
    """Views of a client with many keys at once; popularity is an item's id."""

    def draw(clients, weights, keys):
        return jax.vmap(
            lambda key: catalogue.sampled(
                normals(0, LEVELS, CODES, WIDTH),
                codes(items=items),
                normals(8, items, 3),
                jnp.arange(items, dtype=jnp.float32),
                clients,
                weights,
                number,
                key,
            )
        )(keys)

    return jax.jit(draw)


def sampled(clients, number=8, draws=400, items=ITEMS):
    keys = jax.random.split(jax.random.key(7), draws)
    return sampler(number, items)(clients, clients.mask.astype(jnp.float32), keys)


def test_a_view_of_the_whole_catalogue_counts_each_row_at_its_item():
    clients = client(SHARED)
    weights = clients.mask * jnp.linspace(1, 2, len(clients.mask))
    items = described(normals(0, LEVELS, CODES, WIDTH))
    view = catalogue.whole(items, clients, weights)
    expected = np.zeros((len(clients.users), ITEMS))
    for user, item, weight in zip(clients.user, clients.item, weights, strict=True):
        expected[user, item] += weight
    np.testing.assert_allclose(view.chosen, expected, rtol=1e-6)
    np.testing.assert_array_equal(view.slot, clients.item)
    assert view.offset == 0 and view.items is items


@pytest.mark.parametrize("histories", [ALONE, APART, SHARED], ids=["alone", "apart", "shared"])
def test_rivals_are_all_items_but_the_clients_own(histories):
    clients = client(histories)
    views = sampled(clients)
    rows = len(clients.item)
    own = {item for rows in histories for item in rows}
    rivals, offset = ids(views.items)[:, rows:], np.asarray(views.offset)[:, :, rows:]
    live = offset > NO_RIVAL / 2
    assert set(rivals[live[:, 0]]) == set(range(ITEMS)) - own
    assert set(rivals[~live[:, 0]]) == own
    # Each is drawn alike: five standard errors.
    often = np.bincount(rivals.ravel(), minlength=ITEMS) / rivals.size
    np.testing.assert_allclose(often, 1 / ITEMS, atol=5 / np.sqrt(ITEMS * rivals.size))
    for row, item in enumerate(clients.item):
        assert (ids(views.items)[:, row] == item).all()


def test_held_out_items_are_drawn_and_train_items_are_not():
    """The leak: a sampler that knows what is held out teaches which items those are."""
    dataset = split(synthetic(users=24, items=ITEMS, clients=24, length=9), "ratio", 0.2, 0.3, 0)
    data, _ = pack(dataset)
    rows = dataset.interactions
    checked = 0
    for bucket in data.clients:
        for place in range(0, len(bucket.client), 4):
            clients = jax.tree.map(lambda leaf, place=place: leaf[place], bucket)
            views = sampled(clients)
            first = len(clients.item)
            live = np.asarray(views.offset)[:, 0, first:] > NO_RIVAL / 2
            drawn = set(ids(views.items)[:, first:][live])
            mine = rows[rows["user"].isin(np.asarray(clients.users).tolist())]
            train = set(mine.loc[mine["split"] == TRAIN, "item"])
            held_out = set(mine.loc[mine["split"] != TRAIN, "item"]) - train
            assert train and held_out
            assert not drawn & train
            assert held_out <= drawn
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize("histories", [APART, SHARED], ids=["apart", "shared"])
def test_rows_of_a_clients_other_users_are_no_rivals(histories):
    clients = client(histories)
    view = jax.tree.map(lambda leaf: leaf[0], sampled(clients, draws=1))
    for user in range(len(clients.users)):
        for row, (owner, real) in enumerate(zip(clients.user, clients.mask, strict=True)):
            mine = bool(real) and int(owner) == user
            assert view.offset[user, row] == (0 if mine else NO_RIVAL)
            assert view.chosen[user, row] == mine
    assert (view.chosen[:, len(clients.item) :] == 0).all()


def test_rows_count_as_much_as_their_weights():
    clients = client(APART)
    weights = clients.mask * jnp.linspace(1, 2, len(clients.mask))
    view = sampler(8)(clients, weights, jax.random.split(jax.random.key(0), 1))
    for row, user in enumerate(clients.user):
        assert view.chosen[0, user, row] == weights[row]
    np.testing.assert_allclose(view.chosen.sum(), weights.sum(), rtol=1e-6)


MANY = 200


@partial(jax.jit)
def total(user, features, offset):
    """The sum of exp(s) over what the softmax sees: features [..., J, D + T + 1] -> [..., U]."""
    scores = jnp.einsum("ud,...jd->...uj", user, features[..., :WIDTH]) + offset
    return jnp.exp(jax.nn.logsumexp(scores, axis=-1))


def sampled_totals(histories, number, draws):
    """Sampled sums [draws, U], and those over all items but the ones of a client's other users."""
    clients = client(histories)
    user = 0.4 * normals(1, len(clients.users), WIDTH)
    views = sampled(clients, number, draws, MANY)
    found = total(user, views.items.features, views.offset)
    others = np.zeros((len(clients.users), MANY), bool)
    others[:, [item for rows in histories for item in rows]] = True
    for one, rows in enumerate(histories):
        others[one, rows] = False
    whole = catalogue.describe(
        normals(0, LEVELS, CODES, WIDTH), codes(items=MANY), jnp.zeros((MANY, 0)), jnp.zeros(MANY)
    )
    expected = total(user, whole.features, jnp.where(others, -jnp.inf, 0))
    real = slice(0, len(histories))
    return np.asarray(found, float)[:, real], np.asarray(expected, float)[real]


@pytest.mark.parametrize("number", [8, 64, MANY])
@pytest.mark.parametrize("histories", [ALONE, APART, SHARED], ids=["alone", "apart", "shared"])
def test_rivals_stand_for_all_others_without_bias(histories, number):
    """The mean of the sampled sum of exp(s) is the full one, whatever the sample."""
    found, expected = sampled_totals(histories, number, draws=2000)
    error = found.std(0) / np.sqrt(len(found))
    assert (error < 0.03 * expected).all()
    assert (np.abs(found.mean(0) - expected) < 4 * error).all()


def test_more_rivals_come_closer_to_the_whole_catalogue():
    gaps = []
    for number in (8, 64, MANY):
        found, expected = sampled_totals(ALONE, number, draws=2000)
        gaps.append(np.sqrt(np.mean((np.log(found) - np.log(expected)) ** 2)))
    assert gaps[1] < 0.5 * gaps[0] and gaps[2] < 0.7 * gaps[1]


@pytest.mark.parametrize(
    "histories",
    [([],), (range(ITEMS),), ([1, 2], [])],
    ids=["no rows", "all items", "a user without rows"],
)
def test_users_without_rows_or_rivals_do_no_harm(histories):
    clients = client(histories)
    view = jax.tree.map(lambda leaf: leaf[0], sampled(clients, draws=1))
    user = normals(1, len(clients.users), WIDTH + TEXT.shape[1] + 1)

    def loss(user, features):
        return fold_in.loss(user @ features.T + view.offset, view.chosen)

    features = view.items.features.at[:, -1].set(0)
    losses = loss(user, features)
    gradients = jax.grad(lambda *pair: loss(*pair).sum(), (0, 1))(user, features)
    residual = fold_in.residual(user @ features.T + view.offset, view.chosen)
    assert all(np.isfinite(leaf).all() for leaf in (losses, residual, *gradients, view.offset))
    idle = np.asarray(view.chosen).sum(1) == 0
    assert idle[-1]
    assert (np.asarray(losses)[idle] == 0).all() and (np.asarray(residual)[idle] == 0).all()
    assert (np.asarray(losses)[~idle] > 0).all()


@pytest.mark.parametrize("scores", [1, 200, 2**25])
def test_each_client_is_the_loop_over_clients_however_many_at_a_time(monkeypatch, scores):
    monkeypatch.setattr(catalogue, "SCORES", scores)

    def fit(pair):
        user, clients = pair
        return user * clients.weight + clients.item.sum()

    buckets = tuple(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *[client(h)] * 5)._replace(
            weight=jnp.arange(5.0) + 1
        )
        for h in (ALONE, APART)
    )
    users = tuple(normals(n, *bucket.users.shape, WIDTH) for n, bucket in enumerate(buckets))
    found = catalogue.each_client(fit, users, Data(buckets), ITEMS)
    for user, bucket, result in zip(users, buckets, found, strict=True):
        for place in range(5):
            one = jax.tree.map(lambda leaf, place=place: leaf[place], (user, bucket))
            np.testing.assert_allclose(result[place], fit(one), rtol=1e-6)

"""Item vectors by secure sums against the dense operator, user by user in NumPy float64."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from jaxrec.federated.cooccurrence import (
    STEPS,
    item_counts,
    item_vectors,
    plain_sum,
    recent_counts,
)
from jaxrec.types import Clients, Data, SettingError

ITEMS, KNOWN, WIDTH = 20, 17, 4  # the last three items have no train rows
USERS = 40
WINDOW, PASSES, MANY = 2.0, 3, 300


@cache
def histories():
    """Users' items, oldest first; three groups of users like different items."""
    rng = np.random.default_rng(0)
    found = []
    for user in range(USERS):
        odds = np.where(np.arange(KNOWN) % 3 == user % 3, 6.0, 1.0) * np.geomspace(3, 1, KNOWN)
        found.append(rng.choice(KNOWN, rng.integers(2, 9), replace=False, p=odds / odds.sum()))
    return found


def federation(groups, age=True, seed=0):
    """Buckets of clients of users, their rows in random order and padded; ids in random order."""
    rng = np.random.default_rng(seed)
    ids = iter(rng.permutation(sum(map(len, groups))).tolist())
    buckets = []
    for bucket in groups:
        rows = max(sum(len(histories()[user]) for user in users) for users in bucket) + 3
        most = max(map(len, bucket)) + 1
        packed = []
        for users in bucket:
            lines = [
                (place, item, later)
                for place, user in enumerate(users)
                for later, item in enumerate(histories()[user][::-1])
            ]
            lines = np.array(lines)[rng.permutation(len(lines))]
            padded = np.pad(lines, ((0, rows - len(lines)), (0, 0)))
            packed.append(
                Clients(
                    user=padded[:, 0].astype(np.int32),
                    item=padded[:, 1].astype(np.int32),
                    mask=np.arange(rows) < len(lines),
                    users=np.int32([*users, *[USERS] * (most - len(users))]),
                    client=np.int32(next(ids)),
                    weight=np.float32(len(lines)),
                    age=padded[:, 2].astype(np.int32) if age else None,
                )
            )
        buckets.append(jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *packed))
    return Data(tuple(buckets))


def grouped(seed=0):
    """Clients of one to four users in two buckets."""
    users = np.random.default_rng(seed).permutation(USERS).tolist()
    singles, rest = [[user] for user in users[:12]], users[12:]
    return [singles, [rest[k : k + 4] for k in range(0, len(rest), 4)]]


def counts():
    return np.bincount(np.concatenate(histories()), minlength=ITEMS)


def dense(window, shrinkage=0.0):
    """A [I, I] as the module states it."""
    total = np.zeros((ITEMS, ITEMS))
    for items in histories():
        z = np.eye(ITEMS)[items]
        apart = np.abs(np.subtract.outer(np.arange(len(items)), np.arange(len(items))))
        kernel = np.exp(-apart / window) if window else np.ones_like(apart, float)
        root = 1 / np.sqrt(kernel.sum(1))
        total += z.T @ (root[:, None] * kernel * root) @ z
    shrunk = counts() + shrinkage * counts()[counts() > 0].mean()
    root = np.where(counts() > 0, 1 / np.sqrt(np.maximum(shrunk, 1)), 0)
    return root[:, None] * total * root


def slow_vectors(operator, width=WIDTH):
    """The eigenvectors after the first, as long as the roots of their values, scaled."""
    values, vectors = np.linalg.eigh(operator)
    found = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, 1 : width + 1]
    rows = np.repeat(found, counts(), axis=0)
    return found / np.sqrt(np.sum((rows - rows.mean(0)) ** 2) / len(rows))


@cache
def program(secure_sum=plain_sum, width=WIDTH, **settings):
    compute = partial(item_vectors, width=width, secure_sum=secure_sum, **settings)
    return jax.jit(compute)


def vectors(data, seed=0, **settings):
    found = program(**settings)(data, jnp.float32(counts()), jax.random.key(seed))
    return np.asarray(found, float)


def gap(found, expected):
    """Of the items' inner products, which neither signs nor turns of the axes change."""
    expected = expected @ expected.T
    return np.linalg.norm(found @ found.T - expected) / np.linalg.norm(expected)


def test_counts_are_those_of_all_rows():
    np.testing.assert_array_equal(item_counts(federation(grouped()), ITEMS), counts())


@pytest.mark.parametrize("recency", [1.0, 2.5])
def test_of_a_users_rows_the_newest_are_popular(recency):
    expected = np.zeros(ITEMS)
    for items in histories():
        for newer, item in enumerate(items[::-1]):
            expected[item] += 1 / (1 + newer / recency)
    data = federation(grouped())
    found = recent_counts(data, jnp.float32(counts()), recency)
    assert (found * STEPS == jnp.round(found * STEPS)).all()  # sums of integers
    np.testing.assert_allclose(found, expected, atol=counts().max() / STEPS / 2)
    everywhere = recent_counts(data, jnp.float32(counts()), 0.0)
    np.testing.assert_array_equal(everywhere, counts())


@pytest.mark.parametrize(("window", "shrinkage"), [(0.0, 0.0), (WINDOW, 0.0), (WINDOW, 0.5)])
def test_many_passes_reach_the_leading_eigenvectors(window, shrinkage):
    found = vectors(federation(grouped()), passes=MANY, window=window, shrinkage=shrinkage)
    expected = slow_vectors(dense(window, shrinkage))
    assert found.shape == (ITEMS, WIDTH)
    assert gap(found, expected) < 1e-3
    signs = np.sign(np.sum(found * expected, axis=0))  # largest eigenvalue first
    np.testing.assert_allclose(found, signs * expected, atol=5e-3)


def test_windows_differ():
    assert gap(slow_vectors(dense(WINDOW)), slow_vectors(dense(0))) > 0.05
    assert gap(slow_vectors(dense(WINDOW)), slow_vectors(dense(0.5))) > 0.05


def test_window_zero_is_the_normalised_interaction_matrix():
    """N^T N with N = D_u^-1/2 R D_i^-1/2; the order of rows may be unknown."""
    rows = np.zeros((USERS, ITEMS))
    for user, items in enumerate(histories()):
        rows[user, items] = 1
    root = np.where(counts() > 0, 1 / np.sqrt(np.maximum(counts(), 1)), 0)
    normalised = rows / np.sqrt(rows.sum(1, keepdims=True)) * root
    found = vectors(federation(grouped(), age=False), passes=MANY)
    assert gap(found, slow_vectors(normalised.T @ normalised)) < 1e-3


def test_passes_close_in_on_the_eigenvectors():
    expected, data = slow_vectors(dense(WINDOW)), federation(grouped())
    gaps = [
        gap(vectors(data, passes=passes, window=WINDOW), expected) for passes in (1, PASSES, 12)
    ]
    assert gaps[1] < 0.8 * gaps[0] and gaps[2] < 0.5 * gaps[1]


def test_the_start_saves_passes():
    """One pass from the eigenvectors themselves, however turned and scaled, is exact."""
    expected, rng = slow_vectors(dense(0)), np.random.default_rng(3)
    turned = expected @ rng.normal(size=(WIDTH, WIDTH))
    arguments = federation(grouped()), jnp.float32(counts()), jax.random.key(0)
    gaps = []
    for basis in (turned, rng.normal(size=turned.shape)):
        start = jnp.float32(basis / np.sqrt(np.maximum(counts(), 1))[:, None])
        gaps.append(gap(np.asarray(program(passes=1)(*arguments, start=start)), expected))
    assert gaps[0] < 1e-3 and gaps[1] > 0.1


@pytest.mark.parametrize(("window", "bits"), [(WINDOW, 32), (WINDOW, 8), (0.0, 8)])
def test_items_without_train_rows_get_zero(window, bits):
    found = vectors(federation(grouped()), passes=PASSES, window=window, bits=bits)
    assert (counts()[:KNOWN] > 0).all() and (counts()[KNOWN:] == 0).all()
    assert np.abs(found[KNOWN:]).max() < 1e-6
    assert (np.abs(found[:KNOWN]).max(1) > 1e-3).all()
    rows = np.repeat(found, counts(), axis=0)
    assert np.sum((rows - rows.mean(0)) ** 2) / len(rows) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("passes", [1, 3])
def test_items_without_train_rows_get_zero_where_the_data_have_fewer_axes(passes):
    """Two users make an operator of rank two: the rest of the basis is no one's."""
    data = federation([[[0], [1]]])
    own = np.bincount(np.concatenate(histories()[:2]), minlength=ITEMS)
    run = program(width=12, passes=passes)
    found = np.asarray(run(data, jnp.float32(own), jax.random.key(0)))
    assert np.isfinite(found).all()
    assert np.abs(found[own == 0]).max() < 1e-5
    rows = np.repeat(found, own, axis=0)
    assert np.sum((rows - rows.mean(0)) ** 2) / len(rows) == pytest.approx(1, rel=1e-5)


def test_without_any_rows_it_is_zero():
    data = federation(grouped())
    nobody = Data(tuple(c._replace(mask=jnp.zeros_like(c.mask)) for c in data.clients))
    assert (item_counts(nobody, ITEMS) == 0).all()
    found = program(passes=PASSES, window=WINDOW)(nobody, jnp.zeros(ITEMS), jax.random.key(0))
    assert np.isfinite(found).all() and np.abs(found).max() < 1e-3


# A secure aggregator: each client's whole array as integers, plus masks that cancel in the sum.

STEP = 2.0**-20


def densified(uploads, items):
    """Every client's array [clients, I, ...]."""
    arrays = []
    for item, rows in uploads:
        nothing = jnp.zeros((items, *rows.shape[2:]))
        arrays.append(jax.vmap(lambda i, r, nothing=nothing: nothing.at[i].add(r))(item, rows))
    return jnp.concatenate(arrays)


def recording_sum(plain, masked):
    """A secure sum that notes what each client computed and what the server received."""

    def secure_sum(uploads, items):
        arrays = densified(uploads, items)
        number = jnp.round(arrays / STEP).astype(jnp.int32).astype(jnp.uint32)
        clients = len(arrays)
        pair = jax.random.bits(jax.random.key(5), (clients, clients, *arrays.shape[1:]))
        upper = jnp.triu(jnp.ones((clients, clients), jnp.uint32), 1)
        pair *= upper.reshape(clients, clients, *[1] * (arrays.ndim - 1))
        sent = number + pair.sum(1) - pair.sum(0)  # of a pair one adds and one subtracts
        jax.debug.callback(lambda a, b: (plain.append(a), masked.append(b)), arrays, sent)
        return STEP * sent.sum(0, dtype=jnp.uint32).astype(jnp.int32).astype(jnp.float32)

    return secure_sum


@cache
def recorded(**settings):
    """Vectors, what the clients computed in each pass, and what the server received."""
    plain, masked = [], []
    found = vectors(federation(grouped()), secure_sum=recording_sum(plain, masked), **settings)
    jax.effects_barrier()
    return found, np.stack(plain), np.stack(masked)


def test_counts_need_nothing_but_sums():
    plain, masked = [], []
    found = item_counts(federation(grouped()), ITEMS, recording_sum(plain, masked))
    np.testing.assert_array_equal(found, counts())
    jax.effects_barrier()
    np.testing.assert_array_equal(plain[0].sum(0), counts())
    assert_hidden(np.stack(plain), np.stack(masked))


@pytest.mark.parametrize("bits", [8, 32])
def test_vectors_need_nothing_but_sums(bits):
    settings = {"window": WINDOW, "bits": bits, "passes": PASSES}
    found, plain, masked = recorded(**settings)
    assert gap(found, vectors(federation(grouped()), **settings)) < 1e-3
    assert plain.shape == masked.shape == (PASSES, 19, ITEMS, WIDTH + 1)
    assert_hidden(plain, masked)


def assert_hidden(plain, masked):
    """What arrives from a client is uniform over all integers, whatever the client computed."""
    assert (plain == 0).mean() > 0.3 and (masked != 0).mean() > 0.999
    assert abs(masked.mean() / 2**32 - 0.5) < 4 / np.sqrt(12 * masked.size)
    for own, sent in zip(plain, masked, strict=True):
        for value in (sent.astype(float), (sent.astype(np.int32) > 0).astype(float)):
            each = [
                np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(own, value, strict=True)
            ]
            bound = 4.5 / np.sqrt(own[0].size)
            assert np.abs(each).max() < bound
            assert abs(np.mean(each)) < bound / 3


def test_clients_whose_sums_are_the_same_give_the_same():
    """Rows of a user stay together; which of them share a client must not matter."""
    data, other = federation(grouped()), federation(grouped(seed=4)[::-1], seed=5)
    np.testing.assert_array_equal(item_counts(data, ITEMS), item_counts(other, ITEMS))
    found = vectors(data, passes=PASSES, window=WINDOW)
    np.testing.assert_allclose(vectors(other, passes=PASSES, window=WINDOW), found, atol=2e-4)
    # For counts even a user's rows may be dealt anew.
    dealt = [
        c._replace(item=jnp.where(c.mask, jnp.roll(c.item, 1, 0), 0), mask=jnp.roll(c.mask, 1, 0))
        for c in data.clients
    ]
    whole = [
        c._replace(item=jnp.roll(c.item, 1, 0), mask=jnp.roll(c.mask, 1, 0)) for c in data.clients
    ]
    assert (item_counts(Data(tuple(dealt)), ITEMS) != counts()).any()  # the test can fail
    np.testing.assert_array_equal(item_counts(Data(tuple(whole)), ITEMS), counts())


def test_what_the_secure_sum_returns_is_all_that_counts():
    """The sums of one federation, replayed to another, give the former's vectors."""
    data, other = federation(grouped()), federation([grouped(seed=4)[0]], seed=5)
    settings = {"passes": PASSES, "window": WINDOW, "bits": 8}
    sums = []

    def record(uploads, items):
        total = plain_sum(uploads, items)
        io_callback(sums.append, None, total, ordered=True)
        return total

    def replay(uploads, items):
        kind = jax.ShapeDtypeStruct((items, WIDTH + 1), jnp.int32)
        return io_callback(lambda: sums.pop(0), kind, ordered=True)

    found = vectors(data, secure_sum=record, **settings)
    jax.effects_barrier()
    assert len(sums) == PASSES
    np.testing.assert_allclose(vectors(other, secure_sum=replay, **settings), found, atol=1e-5)
    assert not sums
    assert np.abs(vectors(other, **settings) - found).max() > 0.1
    none = item_counts(other, ITEMS, lambda uploads, items: jnp.full(items, 7.0))
    np.testing.assert_array_equal(none, 7.0)


def test_eight_bit_uploads_are_whole_multiples_of_a_public_unit():
    _, plain, _ = recorded(window=WINDOW, bits=8, passes=PASSES)
    for column in plain.astype(float).transpose(0, 3, 1, 2).reshape(-1, 19, ITEMS):
        smallest = np.min(np.abs(column[column != 0]))  # the same unit for all clients and items
        unit = next(
            smallest / k
            for k in range(1, 10)
            if np.abs(column / smallest * k - np.round(column / smallest * k)).max() < 1e-3
        )
        number = np.round(column / unit)
        assert len(np.unique(number)) > 30
        assert np.abs(number[:12]).max() <= 127  # clients of one user, who has an item once
    _, exact, _ = recorded(window=WINDOW, bits=32, passes=PASSES)
    column = exact[0, ..., 0][exact[0, ..., 0] != 0].astype(float)
    number = column / np.min(np.abs(column))
    assert np.abs(number - np.round(number)).max() > 0.1  # the test can fail


def test_eight_bits_are_rounded_at_random_and_stay_close():
    (found, plain, _), (coarse, rounded, _) = (
        recorded(window=WINDOW, bits=bits, passes=PASSES) for bits in (32, 8)
    )
    assert 0 < gap(coarse, found) < 0.1
    # In the first pass both start from the same basis, but for the 8 bits of its way down.
    total, other = plain[0].sum(0).astype(float), rounded[0].sum(0).astype(float)
    unit = np.linalg.norm(total, axis=0) / np.linalg.norm(other, axis=0)  # of each column
    other *= unit
    assert 0 < np.linalg.norm(other - total) < 0.03 * np.linalg.norm(total)


def test_a_share_of_the_clients_stays_finite_and_close():
    data, expected = federation(grouped()), slow_vectors(dense(0))
    noise = np.random.default_rng(0).normal(size=(ITEMS, WIDTH))
    noise /= np.sqrt(np.mean(np.sum(noise**2, axis=1)))

    @partial(jax.jit)
    def some(key, share):
        return item_vectors(
            data, jnp.float32(counts()), key, width=WIDTH, passes=6, participation=share
        )

    for key in jax.random.split(jax.random.key(0), 3):
        found = np.asarray(some(key, 0.7))
        assert 1e-3 < gap(found, expected) < 0.6 * gap(noise, expected)
        np.testing.assert_array_equal(some(key, 0.7), found)
        for share in (0.02, 0.0):
            assert np.isfinite(some(key, share)).all()


def test_participants_upload_all_and_the_others_nothing():
    _, plain, _ = recorded(passes=40, participation=0.3)
    touched = np.abs(plain).sum(3) > 0  # [passes, clients, I]
    took_part = touched.any(2)
    np.testing.assert_allclose(took_part.mean(), 0.3, atol=4 * np.sqrt(0.3 * 0.7 / took_part.size))
    assert took_part.any(0).all() and not took_part.all(0).any()
    clients = [client for bucket in grouped() for client in bucket]
    for rows, present in zip(touched, took_part, strict=True):
        for own, here, users in zip(rows, present, clients, strict=True):
            assert set(np.flatnonzero(own)) == (user_items(users) if here else set())


def user_items(users):
    return {int(item) for user in users for item in histories()[user]}


def test_a_window_needs_to_know_the_order_of_rows():
    data = federation(grouped(), age=False)
    with pytest.raises(SettingError, match=r"window = 2\.5"):
        item_vectors(data, jnp.float32(counts()), jax.random.key(0), width=WIDTH, window=2.5)

"""A round on a vmapped axis is the Python loop over clients that it stands for."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.federated import engine
from jaxrec.federated.aggregate import weighted_mean
from jaxrec.federated.cohort import CohortConfig
from jaxrec.federated.cooccurrence import item_counts
from jaxrec.federated.engine import federated_round
from jaxrec.federated.local import dense_rows
from jaxrec.federated.uploads import Factored, multiply
from jaxrec.types import Clients, Data, SettingError

ITEMS, USERS, N = 5, 2, 4
SIZES = (3, 4)  # clients of each bucket
START = np.arange(ITEMS, dtype=np.float32)


def make_buckets(seed=0, sizes=SIZES):
    rng = np.random.default_rng(seed)
    buckets, first = [], 0
    for count in sizes:
        shape = (count, N)
        buckets.append(
            Clients(
                user=rng.integers(USERS, size=shape).astype(np.int32),
                item=np.stack([rng.permutation(ITEMS)[:N] for _ in range(count)]).astype(np.int32),
                mask=rng.random(shape) < 0.8,
                users=np.arange(2 * count).reshape(count, USERS).astype(np.int32),
                client=(10 + first + np.arange(count)).astype(np.int32),
                weight=rng.integers(1, 5, count).astype(np.float32),
            )
        )
        first += count
    return jax.tree.map(jnp.asarray, tuple(buckets))


def make_private(sizes=SIZES):
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=count), jnp.float32) for count in sizes)


def numbers(key, size=1):
    """Numbers [size] that no two keys share; a generator would take longer to compile."""
    return jnp.sin(jnp.arange(1.0, size + 1) * (jax.random.key_data(key)[1] % 1000))


def local(shared, private, clients, key):
    """Reads everything that a client is given."""
    noise = numbers(key, ITEMS)
    seen = jnp.zeros(ITEMS).at[clients.item].add(clients.mask)
    upload = {"change": private * noise + seen * shared, "size": private**2}
    return upload, private + noise[0], upload["change"].sum()


def aggregate(shared, uploads, weights, key):
    mean = weighted_mean(uploads, weights)
    return shared + mean["change"] + mean["size"] + 0.1 * numbers(key)


def mean_of(shared, uploads, weights, key):
    return weighted_mean(uploads, weights)


@cache
def program(cohort, additive):
    def play(buckets, private, key):
        return federated_round(
            (local,) * len(buckets),
            aggregate,
            START,
            private,
            buckets,
            key,
            cohort=cohort,
            additive=additive,
        )

    return jax.jit(play)


def play(buckets, private, key=0, *, additive=False, **cohort):
    """The first four parts of a round in clear."""
    cohort = CohortConfig(**{"privacy": "plain"} | cohort)
    return tuple(program(cohort, additive)(buckets, private, jax.random.key(key)))[:4]


def client(buckets, place):
    bucket, row = place
    return jax.tree.map(lambda leaf: np.asarray(leaf)[row], buckets[bucket])


SOME = {"participation": 0.5, "dropped": 0.2}  # clients whose uploads arrive
PLACES = [(bucket, row) for bucket, count in enumerate(SIZES) for row in range(count)]


def assert_close(found, expected):
    chex.assert_trees_all_close(found, expected, rtol=2e-5, atol=2e-5)


def test_a_round_is_the_loop_over_clients():
    buckets, private = make_buckets(), make_private()
    _, key_local, key_aggregate = jax.random.split(jax.random.key(0), 3)
    change, size, metric, total, after = 0, 0, 0, 0, [[], []]
    work = jax.jit(
        lambda *given: local(START, *given, jax.random.fold_in(key_local, given[1].client))
    )
    for bucket, row in PLACES:
        one = client(buckets, (bucket, row))
        upload, new, value = jax.tree.map(np.asarray, work(np.asarray(private[bucket])[row], one))
        change += one.weight * upload["change"]
        size += one.weight * upload["size"]
        metric += one.weight * value
        total += one.weight
        after[bucket].append(new)
    expected = START + change / total + size / total + 0.1 * numbers(key_aggregate)
    found = play(buckets, private)
    assert_close(found, (expected, tuple(map(np.stack, after)), metric / total, len(PLACES)))


@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("additive", [False, True])
def test_blocks_and_sums_change_nothing(block, additive):
    buckets, private = make_buckets(), make_private()
    found = play(buckets, private, block=block, additive=additive)
    assert_close(found, play(buckets, private))


def test_the_same_clients_take_part_whatever_the_block():
    buckets, private = make_buckets(), make_private()
    settings = SOME | {"key": 3}
    whole = play(buckets, private, **settings)
    assert 0 < whole[3] < len(PLACES)
    assert_close(play(buckets, private, block=1, additive=True, **settings), whole)


def reordered(buckets):
    """A leaf's rows in another order, in each bucket."""
    order = (np.array([2, 0, 1]), np.array([3, 1, 0, 2]))
    return tuple(
        jax.tree.map(lambda leaf, o=o: np.asarray(leaf)[o], bucket)
        for o, bucket in zip(order, buckets, strict=True)
    )


def test_the_order_of_clients_changes_nothing():
    buckets, private = make_buckets(), make_private()
    shared, after, metric, participants = play(buckets, private)
    found = play(reordered(buckets), reordered(private))
    assert_close(found, (shared, reordered(after), metric, participants))


def test_neither_order_nor_padding_decides_who_takes_part():
    buckets, private = make_buckets(), make_private()
    settings = SOME | {"key": 5}
    shared, after, metric, participants = play(buckets, private, **settings)
    assert 0 < participants < len(PLACES)
    found = play(reordered(buckets), reordered(private), **settings)
    assert_close(found, (shared, reordered(after), metric, participants))

    padding = lambda leaf: np.concatenate([leaf, leaf[:3]])
    buckets, private = jax.tree.map(np.asarray, (buckets, private))
    padded = tuple(
        jax.tree.map(padding, bucket)._replace(
            client=np.append(bucket.client, np.arange(100, 103, dtype=np.int32)),
            weight=np.append(bucket.weight, np.zeros(3, np.float32)),
        )
        for bucket in buckets
    )
    found = play(padded, tuple(padding(p) for p in private), **settings)
    kept = tuple(np.asarray(p)[: len(a)] for p, a in zip(found[1], after, strict=True))
    assert_close((found[0], kept, *found[2:]), (shared, after, metric, participants))


@pytest.mark.parametrize("additive", [False, True])
def test_a_client_without_weight_has_no_effect(additive):
    buckets, private = jax.tree.map(np.asarray, (make_buckets(), make_private()))
    without, other, changed = (jax.tree.map(np.copy, tree) for tree in (buckets, buckets, private))
    without[1].weight[2] = other[1].weight[2] = 0
    other[1].item[2] = 0
    changed[1][2] = 1e6
    shared, after, metric, participants = play(without, private, additive=additive)
    found = play(other, changed, additive=additive)
    assert_close((found[0], found[2], found[3]), (shared, metric, participants))
    assert participants == len(PLACES) - 1
    assert after[1][2] == private[1][2] and found[1][1][2] == 1e6
    alone = tuple(
        jax.tree.map(lambda leaf, b=bucket: leaf[np.arange(len(leaf)) != 2] if b else leaf, tree)
        for bucket, tree in enumerate(without)
    )
    gone = play(alone, (private[0], np.delete(private[1], 2)), additive=additive)
    assert_close(gone[0], shared)


@pytest.mark.parametrize("additive", [False, True])
def test_a_round_that_nobody_finishes_leaves_no_trace(additive):
    buckets, private = make_buckets(), make_private()
    shared, after, metric, participants = play(buckets, private, dropped=1.0, additive=additive)
    np.testing.assert_array_equal(shared, START)
    chex.assert_trees_all_equal(after, private)
    assert participants == 0 and np.isfinite(metric)


def attendances(rounds=400, **cohort):
    """Which clients, bool [rounds, C], took part in rounds of little work, and how many."""

    def presence(shared, private, clients, key):
        return 1.0, private + 1, 0.0

    def play(key):
        _, after, _, participants, *_ = federated_round(
            (presence,) * len(SIZES), mean_of, jnp.float32(0), tuple(map(jnp.zeros, SIZES)),
            make_buckets(), key, cohort=CohortConfig(privacy="plain", **cohort),
        )  # fmt: skip
        return jnp.concatenate(after) > 0, participants

    keys = jax.random.split(jax.random.key(0), rounds)
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(play))(keys))


@pytest.mark.parametrize("participation", [0.1, 0.5, 0.9])
def test_each_client_takes_part_as_often_as_asked(participation):
    rounds = 400
    took_part, participants = attendances(rounds, participation=participation)
    np.testing.assert_array_equal(took_part.sum(1), participants)
    expected = participation * np.array(SIZES)
    for count, mean in zip((took_part[:, :3], took_part[:, 3:]), expected, strict=True):
        number = count.sum(1)
        assert (np.abs(number - mean) < 1).all()  # the cohort varies by one place at most
    error = 4 * np.sqrt(participation * (1 - participation) / rounds)
    np.testing.assert_allclose(took_part.mean(0), participation, atol=error)


def test_dropping_loses_uploads_at_its_rate():
    _, participants = attendances(400, dropped=0.25)
    error = 4 * np.sqrt(0.25 * 0.75 / (400 * len(PLACES)))
    assert participants.mean() / len(PLACES) == pytest.approx(0.75, abs=error)
    assert len(np.unique(participants)) > 2


def test_weighted_mean_over_buckets():
    uploads = (jnp.array([[1.0, 2], [3, 4]]), jnp.array([[10.0, 20]]))
    weights = (jnp.array([1.0, 3]), jnp.array([4.0]))
    np.testing.assert_allclose(weighted_mean(uploads, weights), [50 / 8, 94 / 8])
    zeros = jax.tree.map(jnp.zeros_like, weights)
    np.testing.assert_array_equal(weighted_mean(uploads, zeros), [0, 0])


def test_rows_and_counts_are_those_of_a_loop():
    buckets = make_buckets()
    counts, rows_of = np.zeros(ITEMS), jax.jit(partial(dense_rows, items=ITEMS))
    for place in PLACES:
        one, rows = client(buckets, place), np.zeros((USERS, ITEMS))
        for user, item, real in zip(one.user, one.item, one.mask, strict=True):
            rows[user, item] = max(rows[user, item], real)
            counts[item] += real
        np.testing.assert_array_equal(rows_of(one), rows)
    np.testing.assert_array_equal(item_counts(Data(buckets), ITEMS), counts)


NOISY = 0.5


def echo(shared, private, clients, key):
    """Uploads that tell who sent them, of sizes far apart."""
    large = 100.0 * (1 + clients.client) * (1 + jnp.arange(40.0) / 40)
    return {"large": large, "one": 1.0 + clients.client}, private, jnp.float32(0)


@cache
def collector(cohort):
    """A round whose result is what the server receives."""

    def collect(shared, uploads, weights, key):
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *uploads)

    def play(buckets, key):
        count = sum(len(bucket.client) for bucket in buckets)
        start = {"large": jnp.zeros((count, 40)), "one": jnp.zeros(count)}
        private = tuple(jnp.zeros(len(bucket.client)) for bucket in buckets)
        return federated_round(
            (echo,) * len(buckets), collect, start, private, buckets, key, cohort=cohort
        )[0]

    return jax.jit(play)


MANY = (120, 200)  # clients of each bucket


def received(key, **cohort):
    """Uploads as they came, and as they should have come from honest clients."""
    buckets = make_buckets(sizes=MANY)
    found = collector(CohortConfig(privacy="plain", **cohort))(buckets, jax.random.key(key))
    ids = np.concatenate([bucket.client for bucket in buckets])
    honest = jax.jit(jax.vmap(lambda one: echo(0, 0, buckets[0]._replace(client=one), key)[0]))(ids)
    return jax.tree.map(np.asarray, (found, honest))


def test_the_same_clients_send_noise_in_every_round_and_the_others_what_they_have():
    noise = {"attackers": 0.3, "attack_scale": 0.5}
    rounds = [received(key, **noise) for key in range(4)]
    different = [(found["large"] != honest["large"]).any(1) for found, honest in rounds]
    assert 0 < different[0].sum() < sum(MANY)
    for (found, honest), noisy in zip(rounds, different, strict=True):
        np.testing.assert_array_equal(noisy, different[0])
        np.testing.assert_array_equal(found["one"] != honest["one"], noisy)
        for name in found:
            np.testing.assert_array_equal(found[name][~noisy], honest[name][~noisy])
    noisy = different[0]
    for one, other in ((rounds[0], rounds[1]), (rounds[2], rounds[3])):  # each round anew
        assert (one[0]["large"][noisy] != other[0]["large"][noisy]).all()
    blocks, _ = received(0, **noise, block=40)
    assert_close(blocks, rounds[0][0])


def test_noise_is_as_large_as_stated_and_its_clients_as_many():
    for scale in (0.5, 10.0):
        found, honest = received(0, attackers=0.3, attack_scale=scale)
        noisy = (found["large"] != honest["large"]).any(1)
        assert noisy.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 320))
        root = np.sqrt(np.mean(honest["large"] ** 2, axis=1, keepdims=True))
        noise = (found["large"] / root)[noisy] / scale
        assert noise.mean() == pytest.approx(0, abs=4 / np.sqrt(noise.size))
        assert noise.std() == pytest.approx(1, abs=4 / np.sqrt(2 * noise.size))
        single = (found["one"] / honest["one"])[noisy] / scale
        assert single.std() == pytest.approx(1, abs=4 / np.sqrt(2 * single.size))
        together = np.corrcoef(noise[:, 0], single)[0, 1]
        assert abs(together) < 4 / np.sqrt(len(single))  # leaves have noise of their own
    nothing, honest = received(0, attackers=0.0)
    chex.assert_trees_all_equal(nothing, honest)


def test_noise_changes_neither_private_states_nor_metrics():
    buckets, private = make_buckets(), make_private()
    expected, found = play(buckets, private), play(buckets, private, attackers=NOISY)
    assert_close(found[1:], expected[1:])
    assert np.abs(found[0] - expected[0]).max() > 1e-2
    assert_close(play(buckets, private, attackers=NOISY, additive=True, block=1), found)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("participation", 0.0, "above 0 and at most 1"),
        ("participation", 1.5, "above 0 and at most 1"),
        ("participation", float("nan"), "above 0 and at most 1"),
        ("dropped", -0.1, "at least 0 and at most 1"),
        ("dropped", float("nan"), "at least 0 and at most 1"),
        ("block", -2, "at least 0"),
        ("attackers", -0.1, "at least 0 and below 1"),
        ("attackers", 1.0, "at least 0 and below 1"),
        ("attackers", float("nan"), "at least 0 and below 1"),
        ("attack_scale", float("nan"), "finite"),
    ],
)
def test_a_cohort_that_cannot_be_is_refused(name, value, rule):
    with pytest.raises(SettingError, match=f"^{name} = {value}: must be {rule}$"):
        CohortConfig(**{name: value})


def test_a_cohort_at_the_ends_of_its_ranges_can_be():
    CohortConfig(participation=1.0, dropped=1.0, block=0, attackers=0.99, attack_scale=1e-3)
    CohortConfig(participation=1e-6, dropped=0.0, attackers=0.0)


WIDTH = 3


def factors(shared, private, clients, key):
    """An upload that is a product of what the client's users and items are."""
    left = numbers(key, USERS * ITEMS).reshape(USERS, ITEMS) + private
    right = jnp.cos(left[:, :WIDTH]) * shared[:WIDTH]
    return Factored(left, right), private + 1, left.sum()


def products(shared, private, clients, key):
    """The same work, multiplied out by the client."""
    upload, private, metrics = factors(shared, private, clients, key)
    return upload.left.T @ upload.right, private, metrics


@cache
def mean_at_server(local, product=multiply, additive=True, **cohort):
    """The mean [I, D] that the server computes, the private states and the metrics."""

    def aggregate(shared, uploads, weights, key):
        mean = mean_of(shared, uploads, weights, key)
        return {"mean": mean, "item": shared["item"]}

    work = lambda shared, *rest: local(shared["item"], *rest)
    start = {"mean": jnp.zeros((ITEMS, WIDTH)), "item": 1.0 + START}

    @jax.jit
    def play(buckets, private, key):
        return federated_round(
            (work,) * len(buckets), aggregate, start, private, buckets, key,
            cohort=CohortConfig(privacy="plain", **cohort), additive=additive, product=product,
        )  # fmt: skip

    done = play(make_buckets(), make_private(), jax.random.key(2))
    return done.shared["mean"], done.private, done.metrics


@pytest.mark.parametrize(
    ("block", "cohort"),
    [(0, {}), (2, {}), (0, SOME)],
    ids=str,
)
def test_a_mean_of_factors_is_the_mean_of_their_products(block, cohort):
    """Blocks, which change nothing, are of the factors only."""
    assert_close(mean_at_server(factors, block=block, **cohort), mean_at_server(products, **cohort))


@pytest.mark.parametrize(
    "settings",
    [
        {"attackers": NOISY},
        {"attackers": NOISY, "block": 2},
        {"additive": False},
    ],
    ids=["noise", "noise in blocks", "not additive"],
)
def test_factors_are_multiplied_out_where_a_single_upload_counts(settings):
    """Noise takes the place of what really travels, the product."""
    cohort = {"attackers": settings.get("attackers", 0.0)}  # what the products depend on
    found, expected = mean_at_server(factors, **settings), mean_at_server(products, **cohort)
    assert_close(found, expected)
    plain = mean_at_server(products)
    assert ("attackers" in settings) == (np.abs(found[0] - plain[0]).max() > 1e-2)


def test_a_method_says_what_its_factors_send():
    double = lambda upload: 2 * multiply(upload)
    found = mean_at_server(factors, product=double, additive=False)
    expected = mean_at_server(products)
    assert_close(found[0], 2 * expected[0])


def test_a_round_refuses_buckets_and_states_that_do_not_agree():
    buckets, private = make_buckets(), make_private()
    run = lambda local, private: jax.eval_shape(
        lambda: federated_round(local, aggregate, START, private, buckets, jax.random.key(0))
    )
    with pytest.raises(AssertionError):
        run((local,), private)
    with pytest.raises(AssertionError):
        run((local, local), private[:1])
    with pytest.raises(AssertionError):
        run((local, local), (private[1], private[0]))


def test_a_round_refuses_uploads_that_lost_their_client_axis():
    lost = lambda cohort, uploads, client, key: jax.tree.map(lambda leaf: leaf.sum(0), uploads)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError):
        patch.setattr(engine, "falsify", lost)
        program.__wrapped__(CohortConfig(privacy="plain"), False).lower(
            make_buckets(), make_private(), jax.random.key(0)
        )

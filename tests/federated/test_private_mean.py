"""Means of uploads: in clear, in the protocol's integers, and with noise of a known size."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.federated import private_mean, secure_sum
from jaxrec.federated.cohort import CohortConfig, block, check_rounds, draw, places
from jaxrec.federated.engine import federated_round
from jaxrec.federated.private_mean import Bounds, first_bounds, mean, next_bounds, total
from jaxrec.federated.secure_aggregation import aggregate_in_process, agree
from jaxrec.federated.uploads import Factored, clipped, norms
from jaxrec.types import Clients, SettingError, Sizes

CLIENTS, ROWS, WIDTH = 12, 5, 3
KEYS = jax.vmap(lambda c: jax.random.fold_in(jax.random.key(7), c))(jnp.arange(CLIENTS))
EXPECTED = jnp.float32(CLIENTS)
SECURE = CohortConfig()
CENTRAL = CohortConfig(privacy="central_dp", epsilon=1.0, clip=1.0)
DISTRIBUTED = CohortConfig(privacy="distributed_dp", epsilon=1.0, clip=1.0)


def some_uploads(seed=0, clients=CLIENTS):
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(clients, ROWS, WIDTH)) * rng.lognormal(size=(clients, 1, 1))
    return {"table": np.float32(table), "trace": np.float32(table[:, 0, 0] ** 2)}


def weights():
    return np.float32([3, 1, 0, 7, 2, 5, 1, 1, 4, 2, 9, 6])


@partial(jax.jit, static_argnums=0, static_argnames="bits")
def made(config, uploads, weights=None, bits=32, bounds=None, key=0):
    """The mean of uploads, and the bounds of the next round."""
    weights = jnp.ones(len(jax.tree.leaves(uploads)[0])) if weights is None else weights
    shapes = [()] * len(jax.tree.leaves(uploads))
    bounds = first_bounds(config, *shapes) if bounds is None else bounds
    found = total(config, bounds, uploads, weights, KEYS, addends=CLIENTS, bits=bits)
    key = jax.random.key(key)
    moved = next_bounds(config, bounds, found, key, EXPECTED)
    how = {"expected": EXPECTED, "addends": CLIENTS, "bits": bits}
    return mean(config, bounds, found, key, **how), moved, found


@pytest.mark.parametrize("bits", [32, 4, 1])
def test_the_sum_has_the_bits_that_the_protocol_returns(bits):
    """Each client's integers go through masks, shares and a drop-out, and come back as the sum."""
    rng = np.random.default_rng(bits)
    upload = np.float32(rng.normal(size=(CLIENTS, ROWS, WIDTH)))
    bounds = Bounds(np.float32(0), (np.linspace(0.5, 2.0, ROWS, dtype=np.float32),))
    alive = weights() > 0
    found = made(SECURE, upload, weights(), bits=bits, bounds=bounds)[2]

    most = secure_sum.headroom(CLIENTS, bits)
    unit = (bounds.reach[0] / most)[:, None]

    @jax.jit
    def sent(key, weight, upload):  # by a client
        dither = secure_sum.spread_dither(jax.random.fold_in(key, 0), (ROWS, WIDTH))
        return secure_sum.to_integers(weight * upload, unit, most, dither)

    each = [np.asarray(sent(*one)) for one in zip(KEYS, weights(), upload, strict=True)]
    vectors = np.stack(each).reshape(CLIENTS, -1).astype(np.uint32)
    modulus = max(8, secure_sum.sum_bits(CLIENTS, most))
    terms = agree(CLIENTS, vectors.shape[1], modulus, seed=3)
    gone = set(np.flatnonzero(~alive).tolist())
    outcome = aggregate_in_process(
        (vectors % np.uint64(2**modulus)).astype(np.uint32), terms, drop={"mask": gone}
    )
    assert set(outcome.clients) == set(np.flatnonzero(alive).tolist())
    half, whole = 2 ** (modulus - 1), 2**modulus
    signed = (outcome.total.astype(np.int64) + half) % whole - half
    np.testing.assert_array_equal(np.asarray(found.sum).ravel(), signed)


def test_a_secure_mean_is_the_mean_up_to_a_unit():
    uploads = some_uploads()
    plain, _, _ = made(CohortConfig(privacy="plain"), uploads, weights())
    found, _, _ = made(SECURE, uploads, weights())
    unit = private_mean.REACH / secure_sum.headroom(CLIENTS)
    for name in plain:
        np.testing.assert_allclose(found[name], plain[name], atol=unit * CLIENTS / 41, rtol=1e-6)


def test_products_of_factors_are_sums_of_integer_products():
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(CLIENTS, 2, 40)), rng.normal(size=(CLIENTS, 2, WIDTH))
    factors = Factored(np.float32(left), np.float32(right))
    bounds = Bounds(np.float32(0), (np.float32(40), np.float32(4)))
    given = SECURE, bounds, factors, weights(), KEYS
    found = jax.jit(partial(total, addends=CLIENTS), static_argnums=0)(*given)

    @jax.jit
    def integers(key, number, values, unit):
        dither = secure_sum.spread_dither(jax.random.fold_in(key, number), values.shape)
        return secure_sum.to_integers(values, unit, 127, dither)

    expected = np.zeros((40, WIDTH), np.int64)
    for key, weight, left, right in zip(KEYS, weights(), *factors, strict=True):
        left = np.asarray(integers(key, 0, weight * left, 40 / 127))
        expected += left.T.astype(np.int64) @ np.asarray(integers(key, 1, right, 4 / 127))
    np.testing.assert_array_equal(found.sum.table, expected)
    large = jnp.full((3000, 4), 127), jnp.full((3000, 2), -127)
    np.testing.assert_array_equal(secure_sum.product_sum(*large, 127), -3000 * 127**2)


@pytest.mark.parametrize("dither", [secure_sum.spread_dither, secure_sum.independent_dither])
def test_rounding_keeps_the_expectation_and_the_largest_integer(dither):
    values = jnp.array([0.3, -0.7, 2.0, 9.0, -9.0, 0.001])
    one = lambda key: secure_sum.to_integers(values, jnp.float32(1), 5, dither(key, (6,)))
    drawn = np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), 5000)))
    error = 4 * 0.5 / np.sqrt(5000) + 2**-16
    np.testing.assert_allclose(drawn.mean(0), [0.3, -0.7, 2, 5, -5, 0.001], atol=error)
    assert set(np.unique(drawn[:, 0])) == {0, 1}


def test_no_noise_has_the_bits_of_no_budget():
    uploads = some_uploads()
    found, _, _ = made(CENTRAL, uploads)  # its noise multiplier is 0
    short, _ = jax.jit(clipped)(uploads, CENTRAL.clip)
    expected, _, _ = made(CohortConfig(privacy="plain"), short)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    lengths = jax.jit(norms)
    assert (lengths(short) <= CENTRAL.clip * (1 + 1e-6)).all() and (lengths(uploads) > 1).any()


@pytest.mark.parametrize("config", [CENTRAL, DISTRIBUTED], ids=lambda config: config.privacy)
def test_one_client_changes_a_sum_by_no_more_than_noise_counts_on(config):
    """Adversaries: zeros, one huge number, all numbers huge, somebody else's upload, a tiny one."""
    uploads = some_uploads()
    bounds = first_bounds(config, (), ())
    add = jax.jit(lambda ups, w: total(config, bounds, ups, w, KEYS, addends=CLIENTS).sum)
    without = add(uploads, np.float32(np.arange(CLIENTS) != 4))
    _, bound = private_mean._noise_grid(bounds.clip, uploads, axes=1)
    limit = bound if config is DISTRIBUTED else config.clip
    lengths = []
    for value in (
        0, 1e6 * (np.arange(ROWS * WIDTH) == 0).reshape(ROWS, WIDTH), -1e6, uploads["table"][0],
        1e-6,
    ):  # fmt: skip
        other = jax.tree.map(np.copy, uploads)
        other["table"][4] = value
        found = jax.tree.map(np.asarray, (add(other, np.ones(CLIENTS, np.float32)), without))
        difference = jax.tree.map(np.subtract, *found)
        leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(difference)]
        lengths.append(np.linalg.norm(np.concatenate(leaves)))
    assert max(lengths) <= limit * (1 + 1e-5)
    assert max(lengths) > 0.9 * limit  # the bound is not idle


@pytest.mark.parametrize("config", [CENTRAL, DISTRIBUTED], ids=lambda config: config.privacy)
def test_noise_has_the_size_that_was_accounted(config):
    wide = {"table": jnp.zeros((CLIENTS, 100, 30))}
    config = CohortConfig(privacy=config.privacy, noise_multiplier=2.0, clip=0.5)
    found, _, _ = made(config, wide, key=3)
    noise = np.asarray(found["table"]) * CLIENTS
    _, bound = private_mean._noise_grid(jnp.float32(0.5), wide, axes=1)
    inflation = bound / (16 * np.sqrt(noise.size)) if config.privacy == "distributed_dp" else 1.0
    assert 1 <= inflation < 1.01
    assert noise.std() == pytest.approx(2.0 * 0.5 * inflation, rel=4 / np.sqrt(2 * noise.size))
    assert abs(noise.mean()) < 4 / np.sqrt(noise.size)


@pytest.mark.parametrize("variance", [3.0, 900.0, 5e8])
def test_skellam_noise_has_its_variance(variance):
    drawn = np.asarray(secure_sum.skellam(jax.random.key(1), (20_000,), jnp.float32(variance)))
    assert drawn.dtype == np.int32
    spread = drawn.astype(np.float64)
    assert spread.var() == pytest.approx(variance, rel=0.06)
    assert abs(spread.mean()) < 4 * np.sqrt(variance / len(drawn))


def test_a_reach_grows_where_somebody_passed_it_and_shrinks_where_nobody_came_near():
    upload = np.zeros((CLIENTS, 3, 2), np.float32)
    upload[5, 0, 1], upload[2, 1, 0] = 9.0, 0.6
    bounds = Bounds(np.float32(0), (np.ones(3, np.float32),))
    _, moved, found = made(SECURE, upload, bits=8, bounds=bounds)
    np.testing.assert_array_equal(moved.reach[0], [4, 1, 0.5])
    assert found.sum[0, 1] == 127  # the largest integer stands for what is beyond the reach


def test_an_adaptive_clip_finds_its_quantile():
    config = CohortConfig(clip=50.0, clip_quantile=0.5)
    uploads = some_uploads()
    bounds = first_bounds(config, (), ())
    for _ in range(120):
        bounds = made(config, uploads, bounds=bounds)[1]
    lengths = np.sort(norms(uploads))
    assert lengths[CLIENTS // 2 - 1] * 0.9 < bounds.clip < lengths[CLIENTS // 2] * 1.1


def some_clients(weights=None):
    rows = np.zeros((CLIENTS, 1), np.int32)
    weights = np.ones(CLIENTS, np.float32) if weights is None else weights
    number = np.arange(CLIENTS, dtype=np.int32)
    clients = Clients(rows, rows, rows == 0, number[:, None], number, weights)
    return jax.tree.map(jnp.asarray, clients)


@partial(jax.jit, static_argnums=0)
def played(config, uploads, key):
    def local(shared, private, clients, key):
        value = uploads[clients.client]
        return value, private + 1, value

    return federated_round(
        (local,), lambda shared, uploads, weights, key: uploads[0][0], jnp.float32(-1),
        (jnp.zeros(CLIENTS),), (some_clients(),), key,
        cohort=config, bounds=first_bounds(config, ()), additive=True,
    )  # fmt: skip


def play(uploads, key=0, **settings):
    """One round in which client c sends `uploads[c]` and keeps its number."""
    return played(CohortConfig(**settings), np.float32(uploads), jax.random.key(key))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("settings", [{"privacy": "plain"}, {}, {"clip": 100.0}], ids=str)
def test_uploads_that_are_not_finite_are_dropped_and_counted(bad, settings):
    uploads = [bad if client == 3 else client for client in range(CLIENTS)]
    done = play(uploads, **settings)
    others = [client for client in range(CLIENTS) if client != 3]
    assert done.shared == pytest.approx(np.mean(others), abs=1e-4)
    assert done.metrics == pytest.approx(np.mean(others))
    assert (done.participants, done.non_finite) == (CLIENTS, 1)
    np.testing.assert_array_equal(done.private[0], np.arange(CLIENTS) != 3)


def test_training_that_diverged_everywhere_is_no_lie():
    done = play([np.nan] * CLIENTS, privacy="plain")
    assert np.isnan(done.metrics) and done.shared == -1 and done.non_finite == CLIENTS


def test_a_sum_over_too_few_is_left_out():
    uploads = range(CLIENTS)
    few = {"participation": 0.5, "min_cohort": 7}
    assert play(uploads, **few).shared == -1
    assert play(uploads, **few | {"min_cohort": 6}).shared != -1
    assert play(uploads, **few, privacy="plain").shared != -1


def test_a_cohort_under_a_budget_is_a_poisson_sample():
    cohort = CohortConfig(privacy="central_dp", epsilon=1.0, clip=1.0, participation=0.3)
    clients = some_clients(np.float32(np.arange(CLIENTS) > 0))

    def chosen(key):
        rows, present = draw(cohort, clients, key)
        return jnp.zeros(CLIENTS).at[rows].add(present)

    taken = np.asarray(jax.jit(jax.vmap(chosen))(jax.random.split(jax.random.key(0), 2000)))
    assert places(cohort, CLIENTS) == CLIENTS and set(np.unique(taken)) == {0, 1}
    assert (taken[:, 0] == 0).all()
    real = taken[:, 1:]
    np.testing.assert_allclose(real.mean(0), 0.3, atol=4 * np.sqrt(0.21 / 2000))
    variance = 0.21 * (CLIENTS - 1)  # of independent clients; a fixed size would have none
    assert real.sum(1).var() == pytest.approx(variance, rel=0.15)
    assert block(cohort, 100_000) < 30_200 < places(cohort, 100_000)


@pytest.mark.parametrize("more", [{}, {"block": 2}, {"dropped": 0.2}], ids=str)
def test_a_round_adds_all_of_a_poisson_sample_however_many_blocks_it_fills(more):
    settings = {"privacy": "central_dp", "epsilon": 1.0, "clip": 100.0, "participation": 0.3} | more
    sizes = set()
    for key in range(12):
        done = play(np.arange(CLIENTS) + 1, key=key, **settings)
        drawn = np.flatnonzero(done.private[0] == 1)
        assert done.shared * 0.3 * CLIENTS == pytest.approx(np.sum(drawn + 1))
        assert done.participants == len(drawn)
        sizes.add(len(drawn))
    assert min(sizes) <= block(CohortConfig(**settings), CLIENTS) < max(sizes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"participation": 0.01, "privacy": "central_dp", "epsilon": 1.0},
            "min_cohort = 3: a sum would be over 1 of 100 clients on average",
        ),
        ({"privacy": "central_dp", "epsilon": 1.0}, "clip = 0.0: must be above 0"),
        ({"privacy": "distributed_dp", "epsilon": 1.0, "clip": 1.0, "dropped": 0.1}, "dropped"),
        ({"privacy": "central_dp", "epsilon": 1.0, "clip": 1.0, "users": 300}, "privacy_unit"),
        (
            {"privacy": "central_dp", "noise_multiplier": 90.0, "clip": 1, "clip_quantile": 0.5},
            "clip_quantile = 0.5: must be 0 where the noise multiplier is above 10",
        ),
    ],
    ids=str,
)
def test_rounds_that_cannot_keep_a_promise_are_refused(settings, words):
    users = settings.pop("users", 100)
    with pytest.raises(SettingError, match=words):
        check_rounds(CohortConfig(**settings), Sizes(users, 50, 100))

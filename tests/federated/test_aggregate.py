"""What a server makes of uploads, against loops over clients and coordinates."""

import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from scipy import stats

from jaxrec.federated.aggregate import RULES, combine, descending, trimmed_mean
from jaxrec.ops import fold_in

trimmed = jax.jit(trimmed_mean)


def slow_trimmed(uploads, weights, trim):
    present = [
        row
        for bucket, weight in zip(uploads, weights, strict=True)
        for row, one in zip(bucket, weight, strict=True)
        if one > 0
    ]
    shape = uploads[0].shape[1:]
    mean = np.zeros(shape)
    if not present:
        return mean
    cut = math.floor(Fraction(str(trim)) * len(present))
    for place in np.ndindex(shape):
        values = sorted(float(row[place]) for row in present)
        kept = values[cut : len(values) - cut]
        mean[place] = sum(kept) / len(kept)
    return mean


def problem(seed=0, sizes=(4, 7, 2), absent=0.4):
    rng = np.random.default_rng(seed)
    uploads = tuple(rng.normal(size=(count, 3, 5)).astype(np.float32) for count in sizes)
    weights = tuple(
        (rng.integers(1, 9, count) * (rng.random(count) >= absent)).astype(np.float32)
        for count in sizes
    )
    return uploads, weights


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.2, 0.25, 0.49])
@pytest.mark.parametrize("seed", [0, 1])
def test_trimmed_mean_is_the_loop_over_coordinates(trim, seed):
    uploads, weights = problem(seed)
    assert 0 < sum((weight > 0).sum() for weight in weights) < 13
    found = trimmed(uploads, weights, trim)
    np.testing.assert_allclose(found, slow_trimmed(uploads, weights, trim), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.3])
def test_with_everyone_present_it_is_scipys(trim):
    uploads, weights = problem(absent=0.0)
    expected = stats.trim_mean(np.concatenate(uploads), trim, axis=0)
    np.testing.assert_allclose(trimmed(uploads, weights, trim), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [10, 100, 600])
def test_as_many_are_cut_as_stated(count):
    """floor(trim n) in float32 must not lose one where trim n is whole."""
    values = np.arange(count, dtype=np.float32)[:, None] ** 2
    ones = np.ones(count, np.float32)
    for percent in range(50):
        cut = percent * count // 100
        expected = values[cut : count - cut].astype(float).mean()
        found = trimmed((values,), (ones,), percent / 100)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("bad", [1e30, -1e30, np.inf, np.nan], ids=str)
def test_one_outlier_has_no_effect(bad):
    uploads, weights = problem(absent=0.2)
    assert weights[1][3] > 0
    trim = 1.5 / sum((weight > 0).sum() for weight in weights)
    found = []
    for value in (np.copysign(50, bad), bad):  # beyond all others: the same values are kept
        uploads[1][3] = value
        found.append(trimmed(uploads, weights, trim))
    np.testing.assert_array_equal(found[1], found[0])
    assert np.abs(found[0]).max() < 5


def test_what_absent_clients_hold_has_no_effect():
    uploads, weights = problem()
    expected = trimmed(uploads, weights, 0.2)
    for held in (np.nan, -np.inf, 1e30):
        garbled = tuple(
            np.where((weight > 0)[:, None, None], upload, np.float32(held))
            for upload, weight in zip(uploads, weights, strict=True)
        )
        np.testing.assert_array_equal(trimmed(garbled, weights, 0.2), expected)


def test_size_of_weights_and_order_of_clients_have_no_effect():
    uploads, weights = problem()
    expected = trimmed(uploads, weights, 0.2)
    claims = (weights[0], weights[1] * 1e6, weights[2])
    np.testing.assert_array_equal(trimmed(uploads, claims, 0.2), expected)
    order = np.random.default_rng(3).permutation(7)
    moved = (uploads[2], uploads[1][order], uploads[0])
    moved_weights = (weights[2], weights[1][order], weights[0])
    np.testing.assert_allclose(trimmed(moved, moved_weights, 0.2), expected, rtol=1e-6)


def test_without_any_client_it_is_zero():
    uploads, weights = problem()
    nobody = tuple(np.zeros_like(weight) for weight in weights)
    np.testing.assert_array_equal(trimmed(uploads, nobody, 0.2), np.zeros((3, 5)))


def test_one_client_is_its_own_mean():
    uploads, weights = problem()
    alone = tuple(np.zeros_like(weight) for weight in weights)
    alone[1][4] = 3.0
    np.testing.assert_array_equal(trimmed(uploads, alone, 0.49), uploads[1][4])


def clients_of(uploads, weights):
    """(weight, leaves as one vector) of each client that sent something, in float64."""
    return [
        (float(one), np.concatenate([np.ravel(leaf[place]) for leaf in bucket]).astype(float))
        for bucket, weight in zip(uploads, weights, strict=True)
        for place, one in enumerate(weight)
        if one > 0
    ]


def slow_mean(sent, malicious):
    return sum(w * x for w, x in sent) / sum(w for w, _ in sent)


def slow_norm_bound(sent, malicious):
    most = np.median([np.linalg.norm(x) for _, x in sent])
    return slow_mean([(w, x * min(1, most / np.linalg.norm(x))) for w, x in sent], malicious)


def slow_median(sent, malicious):
    return np.median([x for _, x in sent], axis=0)


def slow_trimmed_mean(sent, malicious):
    return stats.trim_mean(np.stack([x for _, x in sent]), malicious, axis=0)


def slow_multi_krum(sent, malicious):
    number, bad = len(sent), math.floor(Fraction(str(malicious)) * len(sent))
    score = []
    for a, (_, mine) in enumerate(sent):
        gaps = sorted(np.sum((mine - x) ** 2) for b, (_, x) in enumerate(sent) if a != b)
        score.append(sum(gaps[: max(number - bad - 2, 1)]))
    return np.mean([sent[a][1] for a in np.argsort(score)[: number - bad]], axis=0)


SLOW = {
    "mean": slow_mean,
    "norm_bound": slow_norm_bound,
    "median": slow_median,
    "trimmed_mean": slow_trimmed_mean,
    "multi_krum": slow_multi_krum,
}
combined = jax.jit(combine, static_argnums=0)


def trees(seed=0, sizes=(4, 7, 2), absent=0.4):
    """Uploads of two leaves, of which the second counts most in a norm."""
    uploads, weights = problem(seed, sizes, absent)
    return tuple((upload, 3 * upload[:, 0, 0]) for upload in uploads), weights


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in tree])


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_its_loop_over_clients(rule):
    assert set(RULES) == set(SLOW)
    for seed, malicious in ((0, 0.2), (1, 0.4), (2, 0.0)):
        uploads, weights = trees(seed)
        expected = SLOW[rule](clients_of(uploads, weights), malicious)
        found = flat(combined(rule, uploads, weights, malicious))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_under_every_rule_clients_without_weight_have_no_effect(rule):
    uploads, weights = trees()
    expected = combined(rule, uploads, weights, 0.2)
    for held in (np.nan, np.inf, 1e30):
        hold = lambda leaf, weight, held=held: np.where(
            weight.reshape(-1, *(1,) * (leaf.ndim - 1)) > 0, leaf, np.float32(held)
        )
        garbled = tuple(
            tuple(hold(leaf, weight) for leaf in upload)
            for upload, weight in zip(uploads, weights, strict=True)
        )
        found = combined(rule, garbled, weights, 0.2)
        np.testing.assert_allclose(flat(found), flat(expected), rtol=1e-6, atol=1e-7)
    nobody = tuple(np.zeros_like(weight) for weight in weights)
    assert not flat(combined(rule, garbled, nobody, 0.2)).any()
    alone = (*nobody[:2], np.float32([0, 2]))
    one = flat(leaf[1] for leaf in uploads[2])
    np.testing.assert_allclose(flat(combined(rule, garbled[:2] + uploads[2:], alone, 0.4)), one)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "mean"])
def test_a_fifth_of_liars_moves_no_robust_rule_beyond_the_honest(rule):
    rng = np.random.default_rng(0)
    honest = (1 + 0.1 * rng.normal(size=(20, 30))).astype(np.float32)
    for lie in (-50.0, 1e4, 1e30):
        uploads = np.concatenate([honest, np.full((5, 30), lie, np.float32)])
        found = combined(rule, (uploads,), (np.ones(25, np.float32),), 0.2)
        if rule == "norm_bound":  # it lets liars say as much as anybody
            most = 0.2 * np.median(np.linalg.norm(honest, axis=1))
            assert np.linalg.norm(found - 0.8 * honest.mean(0)) < 1.1 * most
        else:
            assert (honest.min(0) <= found).all() and (found <= honest.max(0)).all()


def test_the_gradient_of_a_fitted_user_points_down_the_table_by_its_penalty():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(12, 3)).astype(np.float32)
    chosen = (rng.random((6, 12)) < 0.3).astype(np.float32)
    chosen[:, 0] = 1
    shares = np.full(12, 1 / 12, np.float32)
    nothing, l2 = np.zeros((6, 3), np.float32), 0.7
    user = fold_in.fold_in(
        nothing, table, chosen, np.float32(0), nothing[0], fold_in.curvature(table, shares),
        l2=l2, damping=0.5, steps=200,
    )  # fmt: skip
    residuals = fold_in.residual(user @ table.T, chosen)
    gradients = residuals[:, :, None] * user[:, None, :]  # of one user each
    along = np.sum(gradients * table, axis=(1, 2))
    np.testing.assert_allclose(along, -l2 * np.sum(user**2, axis=1), atol=1e-4)
    assert (along < -1e-2).all()
    weights = np.arange(1.0, 7.0)
    sent, expected = np.asarray(gradients).copy(), weights.copy()
    sent[[1, 4]] *= -10
    expected[[1, 4]] = 0
    np.testing.assert_array_equal(descending((sent,), (weights,), table)[0], expected)

"""Defences of the server, against loops over coordinates."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrec.federated.aggregate import clip_rows, trimmed_mean

trimmed = jax.jit(trimmed_mean)


def test_rows_are_cut_to_the_longest_allowed():
    rows = np.float32([[3, 4], [0.3, 0.4], [0, 0], [-6, 8]])
    expected = [[1.2, 1.6], [0.3, 0.4], [0, 0], [-1.2, 1.6]]
    np.testing.assert_allclose(clip_rows(jnp.asarray(rows), 2.0), expected, rtol=1e-6)
    batch = np.stack([rows, 2 * rows])
    found = clip_rows(jnp.asarray(batch), 2.0)
    np.testing.assert_allclose(found[0], expected, rtol=1e-6)
    np.testing.assert_allclose(found[1, 1], [0.6, 0.8], rtol=1e-6)
    assert np.linalg.norm(found, axis=-1).max() <= 2 * (1 + 1e-6)


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

"""Losses against their formulas, entry by entry."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops import losses

RNG = np.random.default_rng(0)
SCORES = RNG.normal(size=(4, 6)).astype(np.float32)
ROWS = (RNG.random((4, 6)) < 0.4).astype(np.float32)
ROWS[2] = 0  # a user without interactions


def test_softmax_is_the_log_likelihood_of_the_interactions():
    expected = 0.0
    for scores, row in zip(SCORES.astype(float), ROWS, strict=True):
        total = sum(math.exp(s) for s in scores)
        expected -= sum(math.log(math.exp(s) / total) for s in scores[row > 0])
    assert losses.softmax(SCORES, ROWS) == pytest.approx(expected, rel=1e-5)


def test_softmax_takes_large_scores():
    assert losses.softmax(jnp.float32([[1e4, 0]]), jnp.float32([[1, 0]])) == 0


def test_weighted_square_leaves_out_users_without_interactions():
    expected = sum(
        (1.0 if ROWS[u, i] else 0.3) * (float(SCORES[u, i]) - ROWS[u, i]) ** 2
        for u in (0, 1, 3)
        for i in range(6)
    )
    found = losses.weighted_square(SCORES, ROWS, negative_weight=0.3)
    assert found == pytest.approx(expected, rel=1e-5)


def test_bpr_and_elementwise_square_sum_over_where():
    positive, negative = SCORES[:, 0], SCORES[:, 1]
    where = np.array([True, False, True, True])
    expected = sum(
        -math.log(1 / (1 + math.exp(n - p)))
        for p, n, w in zip(positive.tolist(), negative.tolist(), where, strict=True)
        if w
    )
    assert losses.bpr(positive, negative, where=where) == pytest.approx(expected, rel=1e-5)
    expected = sum(np.mean((SCORES[n].astype(float) - 1) ** 2) for n in (0, 2, 3))
    found = losses.elementwise_square(SCORES, 1.0, where=where)
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_bpr_is_finite_for_large_scores(size):
    loss = lambda positive: losses.bpr(positive, jnp.zeros(1), where=jnp.ones(1, bool))
    value, gradient = jax.value_and_grad(loss)(jnp.float32([size]))
    assert value == pytest.approx(max(-size, 0))
    assert jnp.isfinite(gradient).all()

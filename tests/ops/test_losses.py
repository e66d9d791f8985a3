"""Losses against their formulas, entry by entry."""

import math
from functools import partial

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


@pytest.mark.parametrize("loss", [losses.softmax, losses.weighted_square])
def test_rows_that_would_be_stretched_to_the_scores_are_refused(loss):
    options = {"negative_weight": 0.3} if loss is losses.weighted_square else {}
    with pytest.raises(AssertionError, match="shape"):
        jax.jit(partial(loss, **options))(SCORES, ROWS[:, :1])


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


def test_binary_sums_both_sides_over_where():
    positive, negative = SCORES[:, 0], SCORES[:, 1]
    where = np.array([True, False, True, True])
    sigmoid = lambda x: 1 / (1 + math.exp(-x))
    expected = -sum(
        math.log(sigmoid(p)) + math.log(1 - sigmoid(n))
        for p, n, w in zip(positive.tolist(), negative.tolist(), where, strict=True)
        if w
    )
    assert losses.binary(positive, negative, where=where) == pytest.approx(expected, rel=1e-5)
    large = losses.binary(jnp.float32([-1e4]), jnp.float32([-1e4]), where=True)
    assert large == pytest.approx(1e4)


NUMBER, ITEMS, WIDTH = 13, 21, 5
HIDDEN = RNG.normal(size=(NUMBER, WIDTH)).astype(np.float32)
TABLE = RNG.normal(size=(ITEMS, WIDTH)).astype(np.float32)
TARGET = RNG.integers(ITEMS, size=NUMBER)
TARGET[:3] = 4  # several rows with one target
WHERE = RNG.random(NUMBER) < 0.6


def plain_next_item(hidden, table, where=WHERE):
    gain = jnp.take_along_axis(jax.nn.log_softmax(hidden @ table.T), TARGET[:, None], axis=1)[:, 0]
    return -jnp.sum(jnp.where(where, gain, 0))


@pytest.mark.parametrize("chunk", [1, 4, 13, None])
@pytest.mark.parametrize("scale", [1.0, 50.0])
def test_next_item_and_its_gradients_are_those_of_the_plain_softmax(chunk, scale):
    target = jnp.where(WHERE, TARGET, ITEMS + 5)  # of padding: any value
    ours = lambda h, e: 3 * losses.next_item(scale * h, e, target, where=WHERE, chunk=chunk)
    plain = lambda h, e: 3 * plain_next_item(scale * h, e)
    value, gradients = jax.jit(jax.value_and_grad(ours, (0, 1)))(HIDDEN, TABLE)
    expected, wanted = jax.value_and_grad(plain, (0, 1))(HIDDEN, TABLE)
    assert value == pytest.approx(float(expected), rel=1e-5)
    assert ours(HIDDEN, TABLE) == pytest.approx(float(expected), rel=1e-5)  # without gradients
    for found, gradient in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-4 * scale)
    assert not gradients[0][~WHERE].any()


def test_next_item_never_holds_all_scores():
    loss = lambda h, e: losses.next_item(h, e, TARGET, where=WHERE, chunk=4)
    program = str(jax.make_jaxpr(jax.grad(loss, (0, 1)))(HIDDEN, TABLE))
    assert f"[4,{ITEMS}]" in program
    assert f"[{NUMBER},{ITEMS}]" not in program and f"[16,{ITEMS}]" not in program


def test_few_rows_are_taken_at_once_of_a_catalogue_of_any_size():
    found = [losses.rows_at_once(items) for items in (2**15, 2**18, 2**24, 2**28)]
    assert found == [64, 32, 32, 32]


def test_next_item_of_padding_alone_is_nothing():
    loss = lambda h, e: losses.next_item(h, e, TARGET, where=np.zeros(NUMBER, bool))
    value, gradients = jax.value_and_grad(loss, (0, 1))(HIDDEN, TABLE)
    assert value == 0
    assert not gradients[0].any() and not gradients[1].any()


def test_next_item_maps_over_a_leading_axis():
    several = jnp.stack([HIDDEN, 2 * HIDDEN])
    loss = lambda h: losses.next_item(h, TABLE, TARGET, where=WHERE, chunk=4)
    found = jax.vmap(jax.grad(loss))(several)
    expected = jax.vmap(jax.grad(lambda h: plain_next_item(h, TABLE)))(several)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)

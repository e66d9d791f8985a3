"""Ranking kernels against slow loops, and the properties that every ranking must have."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.ops import ranking

USERS, ITEMS, TARGETS = 3, 37, 6
KS = (1, 3, 10, 50)


def slow_ranks(scores, targets, excluded):
    """Ranks by sorting: higher scores first, then rivals before targets, then targets in order."""
    order = list(targets)
    part = [i for i in range(len(scores)) if i in order or not excluded[i]]
    part.sort(key=lambda i: (-scores[i], order.index(i) + 1 if i in order else 0))
    return [part.index(i) + 1 for i in targets]


def slow_metrics(ranks, k):
    hits = sorted(r for r in ranks if r <= k)
    number = len(ranks)
    dcg = sum(1 / math.log2(1 + r) for r in hits)
    ideal = sum(1 / math.log2(1 + j) for j in range(1, min(number, k) + 1))
    precision, recall = len(hits) / k, len(hits) / number
    return {
        "NDCG": dcg / ideal,
        "Recall": recall,
        "HR": float(len(hits) > 0),
        "Precision": precision,
        "F1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "MAP": sum(j / r for j, r in enumerate(hits, 1)) / min(number, k),
    }


@st.composite
def problems(draw):
    """Few distinct scores, so that many tie; targets that may be excluded; users without any."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 2, 5, 1000]))
    scores = rng.integers(levels, size=(USERS, ITEMS)).astype(np.float32) - levels // 2
    scores[rng.random(scores.shape) < 0.05] = -np.inf
    targets = np.stack([rng.permutation(ITEMS)[:TARGETS] for _ in range(USERS)])
    mask = rng.random(targets.shape) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    excluded = rng.random(scores.shape) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    return scores, targets.astype(np.int32), mask, excluded


def metrics(ranks, ks):
    return ranking.metrics(ranking.places(ranks, max(ks)), ks)


fast_ranks = jax.jit(ranking.ranks)
fast_metrics = jax.jit(metrics, static_argnums=1)
few = settings(max_examples=60, deadline=None)


@few
@given(problems())
def test_ranks_and_metrics_equal_the_loops(problem):
    scores, targets, mask, excluded = problem
    found = np.asarray(fast_ranks(*problem))
    values = fast_metrics(found, KS)
    for user in range(USERS):
        expected = slow_ranks(scores[user], targets[user][mask[user]], excluded[user])
        assert found[user][mask[user]].tolist() == expected
        assert (found[user][~mask[user]] == ranking.NEVER).all()
        assert values["MRR"][user] == pytest.approx(1 / min(expected) if expected else 0)
        for k in KS if expected else ():
            for name, value in slow_metrics(expected, k).items():
                assert values[f"{name}@{k}"][user] == pytest.approx(value, rel=1e-5), (name, k)


@few
@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_items_and_the_scale_of_scores_do_not_matter(problem, random):
    scores, targets, mask, excluded = problem
    found = fast_ranks(*problem)
    new_place = np.array(random.sample(range(ITEMS), ITEMS), np.int32)
    old = np.argsort(new_place)
    np.testing.assert_array_equal(
        found, fast_ranks(scores[:, old], new_place[targets], mask, excluded[:, old])
    )
    np.testing.assert_array_equal(found, fast_ranks(np.arctan(scores), targets, mask, excluded))


@few
@given(problems(), st.integers(0, ITEMS - 1))
def test_a_tie_never_helps_a_target(problem, rival):
    scores, targets, mask, excluded = problem
    mask = mask & (targets != rival)
    before = fast_ranks(scores, targets, mask, excluded)
    tied = scores.copy()
    tied[:, rival] = np.take_along_axis(scores, targets[:, :1], 1)[:, 0]
    lowered = scores[:, rival] < tied[:, rival]  # the rival rises to the first target's score
    after = fast_ranks(tied, targets, mask, excluded)
    assert (np.asarray(after >= before)[lowered]).all()
    np.testing.assert_array_equal(
        after[:, 0][scores[:, rival] >= tied[:, rival]],
        before[:, 0][scores[:, rival] >= tied[:, rival]],
    )


@pytest.mark.parametrize("items", [1, 15, 16, 17, 5000])
@pytest.mark.parametrize("number", [1, 40])
def test_a_catalogue_of_equal_scores_puts_targets_last(items, number):
    number = min(number, items)
    targets = jnp.arange(number)
    found = fast_ranks(jnp.zeros(items), targets, jnp.ones(number, bool), jnp.zeros(items, bool))
    np.testing.assert_array_equal(found, items - number + 1 + np.arange(number))


def test_leading_axes_are_a_batch():
    rng = np.random.default_rng(0)
    scores = rng.integers(9, size=(2, 5, ITEMS)).astype(np.float32)
    targets = rng.permuted(np.tile(np.arange(ITEMS), (2, 5, 1)), axis=-1)[..., :TARGETS]
    mask, excluded = rng.random(targets.shape) < 0.7, rng.random(scores.shape) < 0.3
    together = fast_ranks(scores, targets, mask, excluded)
    one_by_one = jax.jit(jax.vmap(jax.vmap(ranking.ranks)))(scores, targets, mask, excluded)
    np.testing.assert_array_equal(together, one_by_one)
    np.testing.assert_array_equal(together, ranking.ranks(scores, targets, mask, excluded))
    values = fast_metrics(together, KS)
    each = jax.jit(jax.vmap(jax.vmap(lambda r: metrics(r, KS))))(together)
    for name in values:
        np.testing.assert_allclose(values[name], each[name], rtol=1e-6)


def test_targets_of_another_batch_are_refused():
    scores, excluded = jnp.zeros((2, ITEMS)), jnp.zeros((2, ITEMS), bool)
    with pytest.raises(AssertionError, match="shape"):
        fast_ranks(scores, jnp.zeros((1, 3), int), jnp.ones((1, 3), bool), excluded)


def test_metrics_of_ranks_1_and_3_and_12():
    values = fast_metrics(jnp.array([3, ranking.NEVER, 12, 1]), (2, 10))
    log2 = math.log2
    expected = {
        "Recall@2": 1 / 3,
        "Recall@10": 2 / 3,
        "Precision@2": 1 / 2,
        "Precision@10": 2 / 10,
        "HR@2": 1,
        "HR@10": 1,
        "F1@2": 2 / (1 / (1 / 3) + 1 / (1 / 2)),
        "F1@10": 2 / (1 / (2 / 3) + 1 / (2 / 10)),
        "NDCG@2": (1 / log2(2)) / (1 / log2(2) + 1 / log2(3)),
        "NDCG@10": (1 / log2(2) + 1 / log2(4)) / (1 / log2(2) + 1 / log2(3) + 1 / log2(4)),
        "MAP@2": (1 / 1) / 2,
        "MAP@10": (1 / 1 + 2 / 3) / 3,
        "MRR": 1 / 1,
    }
    assert set(values) == set(expected)
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, rel=1e-6), name


def test_a_user_without_targets_scores_zero():
    values = fast_metrics(jnp.full(4, ranking.NEVER), KS)
    assert all(value == 0 for value in values.values())


@pytest.mark.parametrize("levels", [3, 1000])
def test_lists_and_their_exposure_equal_the_loops(levels):
    rng = np.random.default_rng(levels)
    users, items, ks = 20, 11, (1, 4, 30)
    scores = rng.integers(levels, size=(users, items)).astype(np.float32)
    excluded = rng.random(scores.shape) < 0.5
    excluded[0] = True
    scores[1, :6] = -np.inf
    lists = np.asarray(ranking.top(scores, excluded, max(ks)))
    expected = np.zeros((len(ks), items), int)
    for user in range(users):
        best = [i for i in range(items) if not excluded[user, i]]
        best.sort(key=lambda i: -scores[user, i])  # stable: the first item of equal ones first
        assert lists[user].tolist() == best + [items] * (items - len(best))
        for row, k in enumerate(ks):
            expected[row, best[:k]] += 1
    np.testing.assert_array_equal(ranking.exposure(lists, items, ks), expected)


def test_gini_is_half_the_relative_mean_difference():
    counts = np.random.default_rng(0).integers(50, size=(4, 30))
    difference = np.abs(counts[:, :, None] - counts[:, None, :]).mean((1, 2))
    np.testing.assert_allclose(ranking.gini(counts), difference / (2 * counts.mean(1)), rtol=1e-5)


def test_gini_and_coverage_at_their_ends():
    even, single, none = jnp.full(8, 5), jnp.eye(8, dtype=int)[3] * 9, jnp.zeros(8, int)
    counts = jnp.stack([even, single, none])
    np.testing.assert_allclose(ranking.gini(counts), [0, 1 - 1 / 8, 0], atol=1e-6)
    np.testing.assert_allclose(ranking.coverage(counts), [1, 1 / 8, 0])

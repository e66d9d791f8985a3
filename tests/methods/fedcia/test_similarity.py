"""Factored similarities against the dense I x I matrices that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods.fedcia import similarity
from jaxrec.methods.fedcia.similarity import Similarity

ITEMS, WIDTH = 24, 6


def table(seed, width=WIDTH, scale=1.0):
    return scale * np.random.default_rng(seed).normal(size=(ITEMS, width)).astype(np.float32)


def pairs(rank):
    """A similarity of exactly that rank with eigenvalues well apart."""
    vectors = np.linalg.qr(table(1, rank).astype(float))[0]
    values = np.geomspace(20, 2, rank)
    return Similarity(jnp.float32(vectors), jnp.float32(values))


def matrix(s):
    return np.asarray(s.vectors, float) * np.asarray(s.values, float) @ np.asarray(s.vectors).T


def relative(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("rank", [3, WIDTH, 12])
@pytest.mark.parametrize("decay", [0.0, 0.2])
def test_align_is_descent_on_the_dense_distance(rank, decay):
    start, s = table(0, scale=0.5), pairs(rank)
    target = jnp.float32(matrix(s))

    def objective(e):
        return jnp.linalg.norm(e @ e.T - target) + decay / 2 * jnp.sum(e**2)

    gradient = jax.jit(jax.grad(objective))
    expected = jnp.asarray(start)
    for _ in range(100):
        expected = expected - 0.01 * gradient(expected)
    found = similarity.align(start, s, steps=100, learning_rate=0.01, weight_decay=decay)
    assert relative(expected, start) > 0.2
    assert relative(found, np.asarray(expected)) < 2e-5


def test_align_approaches_a_similarity_that_the_width_can_hold():
    start, s = table(0, scale=0.5), pairs(WIDTH)
    far = similarity.distance(start, s)
    found = similarity.align(start, s, steps=600, learning_rate=0.01)
    assert similarity.distance(found, s) < 0.05 * far
    assert np.isfinite(similarity.align(found, s, steps=3000, learning_rate=0.02)).all()


def test_align_from_the_target_stays_within_the_reach_of_a_step():
    """The gradient of a norm does not vanish near its minimum: it moves E by 2 rate |E|_2."""
    s = pairs(WIDTH)
    start = s.vectors * jnp.sqrt(s.values)
    found = similarity.align(start, s, steps=100, learning_rate=0.01)
    assert np.linalg.norm(found - start) < 2 * 0.01 * np.sqrt(s.values[0])


@pytest.mark.parametrize("rank", [3, 12])
def test_distance_is_the_dense_norm(rank):
    e, s = table(0), pairs(rank)
    expected = np.linalg.norm(e.astype(float) @ e.T - matrix(s))
    assert similarity.distance(e, s) == pytest.approx(expected, rel=1e-6)


def test_distance_is_not_lost_to_rounding_near_the_target():
    s = pairs(WIDTH)
    e = np.asarray(s.vectors * jnp.sqrt(s.values)) + 1e-4 * table(0)
    expected = np.linalg.norm(e.astype(float) @ e.T - matrix(s))
    assert similarity.distance(e, s) == pytest.approx(expected, rel=1e-3)


def test_rotate_keeps_the_similarity_and_hides_the_table():
    e = table(0)
    found = similarity.rotate(e, jax.random.key(0))
    np.testing.assert_allclose(found @ found.T, e @ e.T, atol=1e-5)
    assert relative(found, e) > 0.5
    assert relative(found, np.asarray(similarity.rotate(e, jax.random.key(1)))) > 0.5


def test_rotate_is_uniform():
    """Over the orthogonal group the mean of Q is 0 and that of Q_ij Q_ik is 1/D where j = k."""
    count, width = 4000, 5
    keys = jax.random.split(jax.random.key(0), count)
    q = np.asarray(jax.vmap(lambda key: similarity.rotate(jnp.eye(width), key))(keys))
    error = 5 * np.sqrt(1 / (width * count))  # five standard errors of an entry's mean
    np.testing.assert_allclose(q.mean(0), 0, atol=error)
    second = np.einsum("nij,nik->ijk", q, q) / count
    np.testing.assert_allclose(second, np.tile(np.eye(width) / width, (width, 1, 1)), atol=error)


def test_stacked_is_the_weighted_sum_of_dense_similarities():
    wide = np.stack([table(seed) for seed in range(3)])
    narrow = np.stack([table(seed, 2) for seed in (7, 8)])
    weights = [np.float32([0.5, 0, 2]), np.float32([1, 0])]
    operator = similarity.stacked([wide, narrow], weights)
    dense = 0.5 * wide[0] @ wide[0].T + 2 * wide[2] @ wide[2].T + narrow[0] @ narrow[0].T
    right = table(9, 4)
    product, form = operator.apply(jnp.asarray(right))
    np.testing.assert_allclose(product, dense @ right, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(form, right.T @ dense @ right, rtol=1e-4, atol=1e-3)
    assert operator.trace == pytest.approx(np.trace(dense), rel=1e-5)
    wide[1], narrow[1] = 1e6, 1e6
    same, _ = similarity.stacked([wide, narrow], weights).apply(jnp.asarray(right))
    np.testing.assert_array_equal(same, product)


def test_operators_add():
    left, right, vectors = table(0) @ table(0).T, table(1) @ table(1).T, table(2, 3)
    found = similarity.add(similarity.dense(left), similarity.dense(right))
    product, form = found.apply(jnp.asarray(vectors))
    np.testing.assert_allclose(product, (left + right) @ vectors, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(form, vectors.T @ (left + right) @ vectors, rtol=1e-4, atol=1e-3)
    assert found.trace == pytest.approx(np.trace(left + right), rel=1e-5)


def test_top_eigenpairs_are_those_of_eigh():
    dense = matrix(pairs(ITEMS))
    values, vectors = np.linalg.eigh(dense)
    found, energy = similarity.top_eigenpairs(
        similarity.dense(jnp.float32(dense)), jnp.asarray(table(4, 5)), iterations=200
    )
    np.testing.assert_allclose(found.values, values[::-1][:5], rtol=1e-4)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(5), atol=1e-5)
    overlap = np.abs(np.sum(found.vectors * vectors[:, ::-1][:, :5], axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-4)
    assert energy == pytest.approx(values[::-1][:5].sum() / values.sum(), rel=1e-4)


def test_top_eigenpairs_hold_all_of_a_low_rank_operator():
    s = pairs(4)
    operator = similarity.stacked([(s.vectors * jnp.sqrt(s.values))[None]], [jnp.ones(1)])
    found, energy = similarity.top_eigenpairs(operator, jnp.asarray(table(4, 7)), iterations=2)
    assert relative(matrix(found), matrix(s)) < 1e-5
    assert energy == pytest.approx(1, abs=1e-5)
    assert (found.values >= 0).all()


@pytest.mark.parametrize("rank", [3, 7])
def test_nystrom_is_exact_up_to_its_rank(rank):
    s, basis = pairs(rank), np.linalg.qr(table(5, 7))[0]
    found = similarity.nystrom(jnp.float32(matrix(s) @ basis), basis)
    assert relative(matrix(found), matrix(s)) < 1e-3
    np.testing.assert_allclose(found.values[:rank], s.values, rtol=1e-3)
    np.testing.assert_allclose(found.vectors.T @ found.vectors, np.eye(7), atol=1e-5)


def test_procrustes_reaches_the_nearest_minimiser():
    e, s = table(0), pairs(12)
    found = similarity.procrustes(e, s, 1.0)
    rest = np.linalg.norm(np.asarray(s.values)[WIDTH:])  # Eckart-Young: no table comes closer
    assert similarity.distance(found, s) == pytest.approx(rest, rel=1e-4)
    near, rng = np.linalg.norm(found - e), np.random.default_rng(2)
    for size in (0.01, 0.1, 1.0, 10.0):  # from small turns to any
        for _ in range(50):
            turn = np.linalg.qr(np.eye(WIDTH) + size * rng.normal(size=(WIDTH, WIDTH)))[0]
            turn *= np.sign(np.diag(turn)) if size < 1 else 1
            assert np.linalg.norm(found @ turn - e) >= near * (1 - 1e-6)


def test_procrustes_moves_by_its_step():
    e, s = table(0), pairs(12)
    half, whole = (similarity.procrustes(e, s, step) for step in (0.5, 1.0))
    np.testing.assert_array_equal(similarity.procrustes(e, s, 0.0), e)
    np.testing.assert_allclose(half, (e + whole) / 2, atol=1e-5)


def test_procrustes_with_fewer_pairs_than_columns_reaches_the_target():
    e, s = table(0), pairs(3)
    assert similarity.distance(similarity.procrustes(e, s, 1.0), s) < 1e-4 * np.linalg.norm(
        s.values
    )

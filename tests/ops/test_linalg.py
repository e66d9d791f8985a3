"""Decompositions of a batch are those of its matrices, one by one."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops import linalg

BATCH = np.random.default_rng(0).normal(size=(3, 7, 4)).astype(np.float32)
SYMMETRIC = BATCH.swapaxes(1, 2) @ BATCH


@pytest.mark.parametrize(
    ("decompose", "batch"),
    [(linalg.orthonormal, BATCH), (linalg.svd, BATCH), (linalg.eigh, SYMMETRIC)],
    ids=["orthonormal", "svd", "eigh"],
)
def test_a_batch_is_its_matrices_one_by_one(decompose, batch):
    found = jax.jit(jax.vmap(decompose))(batch)
    one_by_one = [decompose(jnp.asarray(matrix)) for matrix in batch]
    expected = jax.tree.map(lambda *parts: jnp.stack(parts), *one_by_one)
    chex.assert_trees_all_close(found, expected, atol=1e-5)


def test_a_batch_of_equations_is_solved_one_by_one():
    right = BATCH[:, 0]
    found = jax.jit(jax.vmap(linalg.solve))(SYMMETRIC, right)
    expected = [np.linalg.solve(*each) for each in zip(SYMMETRIC, right, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_nested_batches_keep_their_axes():
    nested = np.stack([SYMMETRIC, 2 * SYMMETRIC])
    values, vectors = jax.vmap(jax.vmap(linalg.eigh))(nested)
    assert values.shape == (2, 3, 4)
    np.testing.assert_allclose(
        (vectors * values[..., None, :]) @ vectors.swapaxes(-1, -2), nested, atol=1e-4
    )


def test_factors_give_the_matrix_back():
    matrix = jnp.asarray(BATCH[0])
    left, values, right = linalg.svd(matrix)
    np.testing.assert_allclose(left * values @ right, matrix, atol=1e-5)
    basis = linalg.orthonormal(matrix)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-6)
    np.testing.assert_allclose(basis @ (basis.T @ matrix), matrix, atol=1e-5)
    values, _ = linalg.eigh(jnp.asarray(SYMMETRIC[0]))
    np.testing.assert_allclose(values, np.linalg.eigvalsh(SYMMETRIC[0]), rtol=1e-4, atol=1e-5)
    assert (jnp.diff(values) >= 0).all()


@pytest.mark.parametrize("shape", [(9, 9), (12, 5), (4, 11)])
@pytest.mark.parametrize("least", [1.0, 1e-2, 1e-5])
def test_polar_is_the_orthogonal_factor_of_the_svd(shape, least):
    rng = np.random.default_rng(1)
    rank = min(shape)
    left, _, right = np.linalg.svd(rng.normal(size=shape), full_matrices=False)
    matrix = left * np.geomspace(1, least, rank) @ right
    found = linalg.polar(jnp.asarray(7 * matrix, jnp.float32))
    # Two dozen products round; a small singular value's directions are known to that over its size.
    np.testing.assert_allclose(found, left @ right, atol=3e-6 / least)
    np.testing.assert_allclose(np.linalg.svd(found)[1], 1, atol=1e-5)


def test_polar_of_a_batch_with_a_zero_matrix():
    batch = jnp.asarray(BATCH).at[1].set(0)
    found = jax.jit(jax.vmap(linalg.polar))(batch)
    np.testing.assert_array_equal(found[1], 0)
    left, values, right = np.linalg.svd(BATCH[2].astype(float), full_matrices=False)
    np.testing.assert_allclose(found[2], left @ right, atol=3e-6 * values[0] / values[-1])


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_polar_does_not_depend_on_size(size):
    expected = linalg.polar(jnp.asarray(BATCH[0]))
    np.testing.assert_allclose(linalg.polar(jnp.float32(size) * BATCH[0]), expected, atol=1e-5)


def test_after_changes_no_value():
    inputs = {"a": jnp.arange(3), "b": (jnp.ones(2),)}
    found = jax.jit(linalg.after)(jnp.zeros(5), inputs)
    chex.assert_trees_all_equal(found, inputs)

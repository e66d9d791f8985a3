"""Residual k-means against loops, dense algebra and faiss."""

import collections
import itertools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.ops import quantize
from jaxrec.ops.quantize import Quantizer
from jaxrec.types import SettingError

# Compiled once for each shape: eager calls would trace and compile their loops every time.
fit = jax.jit(quantize.fit, static_argnames=("levels", "size", "iterations", "seeds", "block"))
encode = jax.jit(quantize.encode, static_argnames="block")
decode = jax.jit(quantize.decode)
refine = jax.jit(quantize.refine, static_argnums=2)
reexpress = jax.jit(quantize.reexpress, static_argnums=3)
diagnostics = jax.jit(quantize.diagnostics)
lloyd = jax.jit(quantize._lloyd, static_argnums=(3, 4))
seed_centres = jax.jit(quantize._seed, static_argnums=2)


def normals(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mixture(seed, items, width, clusters):
    """Centred Gaussian clusters whose columns shrink like principal components."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(clusters, width))
    points = means[rng.integers(0, clusters, items)] + 0.4 * rng.normal(size=(items, width))
    points *= np.geomspace(1, 0.1, width)
    return (points - points.mean(0)).astype(np.float32)


def distortion(vectors, codebooks, codes):
    """The mean square residual."""
    decoded = decode(np.asarray(codes), np.asarray(codebooks))
    return np.mean(np.sum((vectors - np.asarray(decoded, float)) ** 2, axis=1))


def fitted(vectors, levels, size, seed=0, **options):
    return fit(vectors, jax.random.key(seed), levels=levels, size=size, **options)


# The oracles, in float64 and one item at a time.


def slow_lloyd(points, weights, centres, iterations):
    centres = centres.astype(float)
    for _ in range(iterations):
        apart = [np.sum((centres - point) ** 2, axis=1) for point in points.astype(float)]
        codes, least = np.argmin(apart, axis=1), np.min(apart, axis=1) * (weights > 0)
        farthest = iter(np.argsort(-least, kind="stable"))
        for k in range(len(centres)):
            members = (codes == k) & (weights > 0)
            if members.any():
                centres[k] = np.average(points[members], axis=0, weights=weights[members])
            elif least[row := next(farthest)] > 0:
                centres[k] = points[row]
    return centres


def slow_encode(vectors, codebooks):
    codes = np.zeros((len(vectors), len(codebooks)), int)
    for i, residual in enumerate(vectors.astype(float)):
        for q, centres in enumerate(codebooks.astype(float)):
            codes[i, q] = np.argmin(np.sum((centres - residual) ** 2, axis=1))
            residual = residual - centres[codes[i, q]]
    return codes


def slow_decode(codes, codebooks):
    return np.array([sum(codebooks[q][k] for q, k in enumerate(row)) for row in codes])


@pytest.mark.parametrize("block", [7, 300])
@pytest.mark.parametrize("weighted", [False, True])
def test_lloyd_is_the_textbook_one(block, weighted):
    points = mixture(0, 200, 5, 12)
    weights = np.random.default_rng(1).integers(0, 4, 200) if weighted else np.ones(200)
    weights = weights.astype(np.float32)
    start = points[:12].copy()
    start[3:6] = 50 + np.arange(3)[:, None]  # nothing is near: three empty clusters at once
    for iterations in (1, 2, 20):
        found = lloyd(points, weights, start, iterations, block)
        expected = slow_lloyd(points, weights, start, iterations)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_centre_that_no_point_can_fill_stays():
    points = np.repeat(normals(0, 3, 4), 5, axis=0)
    start = np.concatenate([points[::5], np.full((2, 4), 9, np.float32)])
    empty = np.array([False, False, False, True, True])
    found = quantize._refill(start, empty, points, np.zeros(15, np.float32))
    np.testing.assert_array_equal(found, start)


def test_first_centres_are_points_of_different_clusters():
    means = 100 * normals(0, 8, 3)
    points = np.repeat(means, 40, axis=0) + normals(1, 320, 3)
    for seed in range(10):
        found = seed_centres(points, jnp.ones(320), 8, jax.random.key(seed))
        near = np.argmin(np.linalg.norm(np.asarray(found)[:, None] - means, axis=2), axis=1)
        assert sorted(near) == list(range(8))
        assert all((points == centre).all(1).any() for centre in np.asarray(found))


def test_a_sample_follows_the_weights():
    weights = np.random.default_rng(0).integers(0, 6, 500).astype(np.float32)
    points = np.arange(500, dtype=np.float32)[:, None]
    number = int(weights.sum() / 3)
    rows, mass = quantize._sample(points, weights, number, jax.random.key(0))
    counts = np.bincount(np.asarray(rows)[:, 0].astype(int), minlength=500)
    # A share of the total weight holds one point: within one of the expected count at either end.
    assert (np.abs(counts - weights / 3) < 2).all() and (counts[weights == 0] == 0).all()
    assert len(rows) == number and (np.asarray(mass) == 1).all()
    chex.assert_trees_all_equal(
        quantize._sample(points, weights, 500, jax.random.key(0)), (points, weights)
    )


def test_encode_and_decode_are_the_loops():
    vectors, codebooks = normals(0, 150, 6), normals(1, 3, 9, 6)
    codes = encode(vectors, codebooks)
    assert codes.dtype == jnp.int32 and codes.shape == (150, 3)
    np.testing.assert_array_equal(codes, slow_encode(vectors, codebooks))
    np.testing.assert_allclose(
        decode(codes, codebooks), slow_decode(np.asarray(codes), codebooks), atol=1e-5
    )


def test_blocks_change_nothing():
    vectors, codebooks = mixture(0, 300, 6, 20), normals(1, 2, 16, 6)
    whole = encode(vectors, codebooks)
    for block in (1, 64, 299):
        np.testing.assert_array_equal(encode(vectors, codebooks, block=block), whole)
    found, expected = fitted(vectors, 2, 16, block=64), fitted(vectors, 2, 16)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.codebooks, expected.codebooks, atol=1e-5)


def test_the_first_of_equal_codes_wins():
    centres = np.float32([[2, 0], [0, 1], [1, 0], [0, 1], [1, 0]])
    codes = encode(np.float32([[1, 0], [0, 1], [0, 0]]), centres[None])
    np.testing.assert_array_equal(codes[:, 0], [2, 1, 1])


def test_jit_changes_nothing_in_the_fit():
    vectors = mixture(0, 300, 6, 20)
    found = fitted(vectors, 2, 16)
    expected = quantize.fit(vectors, jax.random.key(0), levels=2, size=16)
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_allclose(found.codebooks, expected.codebooks, atol=1e-5)


def test_jit_changes_nothing_after_the_fit():
    vectors = mixture(0, 300, 6, 20)
    found = fitted(vectors, 2, 16)
    np.testing.assert_array_equal(encode(vectors, found[0]), quantize.encode(vectors, found[0]))
    np.testing.assert_allclose(
        refine(vectors, found.codes, 16), quantize.refine(vectors, found.codes, 16), atol=1e-4
    )
    together, apart = diagnostics(vectors, found), quantize.diagnostics(vectors, found)
    chex.assert_trees_all_close(together, apart, rtol=1e-5)


def test_vmap_over_keys_is_a_loop():
    vectors, keys = mixture(0, 300, 6, 20), jax.random.split(jax.random.key(0), 3)
    found = jax.vmap(lambda key: fit(vectors, key, levels=2, size=16))(keys)
    for n, key in enumerate(keys):
        expected = fit(vectors, key, levels=2, size=16)
        np.testing.assert_array_equal(found.codes[n], expected.codes)
        np.testing.assert_allclose(found.codebooks[n], expected.codebooks, atol=1e-5)


def test_vmap_over_catalogues_is_a_loop():
    vectors = np.stack([mixture(seed, 300, 6, 20) for seed in range(2)])
    codebooks = normals(1, 2, 2, 16, 6)
    codes = jax.vmap(encode)(vectors, codebooks)
    refined = jax.vmap(lambda v, c: refine(v, c, 16))(vectors, codes)
    for n in range(2):
        np.testing.assert_array_equal(codes[n], encode(vectors[n], codebooks[n]))
        np.testing.assert_allclose(refined[n], refine(vectors[n], codes[n], 16), atol=1e-4)


def test_the_best_seed_is_kept():
    vectors = mixture(0, 300, 6, 20)
    found = fitted(vectors, 2, 16, seeds=6)
    others = [distortion(vectors, *fitted(vectors, 2, 16, seed)) for seed in range(20)]
    assert distortion(vectors, *found) < np.median(others)


def faiss_distortion(faiss, vectors, levels, size, seed):
    """The mean square residual of faiss's k-means, level by level."""
    residual = vectors.copy()
    limits = {"min_points_per_centroid": 1, "max_points_per_centroid": quantize.POINTS}
    for level in range(levels):
        kmeans = faiss.Kmeans(vectors.shape[1], size, niter=25, seed=seed + level, **limits)
        kmeans.train(residual)
        residual -= kmeans.centroids[kmeans.index.search(residual, 1)[1][:, 0]]
    return np.mean(np.sum(residual.astype(float) ** 2, axis=1))


@pytest.mark.parametrize(
    ("items", "width", "levels", "size"), [(300, 6, 2, 16), (3000, 16, 3, 64), (6000, 32, 2, 20)]
)
def test_distortion_is_that_of_faiss(items, width, levels, size):
    """The last size is above 256 items a code: both learn from a sample."""
    faiss = pytest.importorskip("faiss", reason="faiss is not installed: no oracle here")
    vectors = mixture(0, items, width, 40)
    ours = [distortion(vectors, *fitted(vectors, levels, size, seed)) for seed in range(3)]
    theirs = [faiss_distortion(faiss, vectors, levels, size, seed) for seed in range(3)]
    assert np.mean(ours) < 1.02 * np.mean(theirs)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"levels": 0}, "levels = 0"),
        ({"size": 0}, "size = 0"),
        ({"size": 21}, "size = 21: a code count larger than the catalogue of 20 items, set 20"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, message):
    vectors, options = normals(0, 20, 3), {"levels": 2, "size": 4} | setting
    with pytest.raises(SettingError, match=message):
        quantize.fit(vectors, jax.random.key(0), **options)


def test_no_seeds_are_refused():
    with pytest.raises(SettingError, match="seeds = 0"):
        fitted(normals(0, 20, 3), 2, 4, seeds=0)


def test_as_many_codes_as_items_rebuild_them():
    vectors = normals(0, 30, 4)
    codebooks, codes = fitted(vectors, 2, 30)
    assert len(np.unique(codes[:, 0])) == 30
    np.testing.assert_allclose(decode(codes, codebooks), vectors, atol=1e-6)


def test_more_codes_than_distinct_vectors_leave_codes_that_no_item_uses():
    distinct = normals(0, 5, 6)
    vectors = np.repeat(distinct, 60, axis=0)
    codebooks, codes = fitted(vectors, 2, 16)
    assert np.isfinite(codebooks).all()
    np.testing.assert_allclose(decode(codes, codebooks), vectors, atol=1e-6)
    assert len(np.unique(codes[:, 0])) == 5
    gaps = np.linalg.norm(np.asarray(codebooks)[0][:, None] - distinct, axis=2)
    np.testing.assert_allclose(gaps.min(axis=1), 0, atol=1e-5)  # copies of codes in use
    refined = np.asarray(refine(vectors, codes, 16))
    unused = np.setdiff1d(np.arange(16), codes[:, 0])
    assert (refined[0, unused] == 0).all() and np.isfinite(refined).all()


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_one_distinct_vector_is_rebuilt(value):
    vectors = np.full((300, 6), value, np.float32)
    codebooks, codes = fitted(vectors, 2, 16)
    np.testing.assert_allclose(decode(codes, codebooks), vectors, atol=1e-6)
    found = diagnostics(vectors, Quantizer(codebooks, codes))
    assert all(np.isfinite(value).all() for value in found)


def test_an_item_without_weight_has_no_say_and_is_encoded():
    vectors, weights = mixture(0, 300, 6, 20), np.ones(300, np.float32)
    weights[::3] = 0
    codebooks, codes = map(np.asarray, fitted(vectors, 2, 16, weights=weights))
    vectors[::3] = 100 * normals(1, 100, 6)
    moved, moved_codes = map(np.asarray, fitted(vectors, 2, 16, weights=weights))
    np.testing.assert_array_equal(moved, codebooks)
    np.testing.assert_array_equal(moved_codes, encode(vectors, codebooks))
    kept = weights > 0
    np.testing.assert_array_equal(moved_codes[kept], codes[kept])
    refined = refine(vectors, moved_codes, 16, weights=weights)
    alone = refine(vectors[kept], moved_codes[kept], 16)
    assert distortion(vectors[kept], refined, codes[kept]) == pytest.approx(
        distortion(vectors[kept], alone, codes[kept]), rel=1e-4
    )


def test_fewer_weighted_items_than_codes_and_none_at_all_stay_finite():
    vectors = normals(0, 300, 6)
    few = (np.arange(300) < 3).astype(np.float32)
    codebooks, codes = fitted(vectors, 2, 16, weights=few)
    np.testing.assert_allclose(decode(codes, codebooks)[:3], vectors[:3], atol=1e-6)
    for weights in (few, 0 * few):
        codebooks, codes = fitted(vectors, 2, 16, weights=weights)
        assert np.isfinite(codebooks).all() and (np.asarray(codes) < 16).all()
        assert np.isfinite(refine(vectors, codes, 16, weights=weights)).all()


def test_a_weight_of_two_is_a_second_copy():
    points, weights = mixture(0, 60, 4, 8), 1 + np.arange(60, dtype=np.float32) % 2
    copies = np.repeat(points, weights.astype(int), axis=0)
    start = points[:8]
    found = lloyd(points, weights, start, 10, 64)
    expected = lloyd(copies, np.ones(90, np.float32), start, 10, 64)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def incidence(codes, size):
    dense = np.zeros((len(codes), codes.shape[1] * size))
    for q in range(codes.shape[1]):
        dense[np.arange(len(codes)), q * size + codes[:, q]] = 1
    return dense


@pytest.mark.parametrize(("items", "levels", "size"), [(200, 2, 8), (2000, 3, 32), (400, 4, 64)])
@pytest.mark.parametrize("weighted", [False, True])
def test_refine_is_least_squares(items, levels, size, weighted):
    vectors = mixture(0, items, 6, 30)
    codes = encode(vectors, 0.5 * normals(1, levels, size, 6))
    weights = np.random.default_rng(0).uniform(0.1, 5, items) if weighted else np.ones(items)
    root = np.sqrt(weights)[:, None]
    dense = incidence(np.asarray(codes), size)
    exact = np.linalg.lstsq(root * dense, root * vectors, rcond=None)[0]
    least = np.sum((root * (dense @ exact - vectors)) ** 2)
    scaled = weights.astype(np.float32) * 1000 if weighted else None
    found = refine(vectors, codes, size, weights=scaled, ridge=1e-5)
    rebuilt = np.asarray(decode(codes, found), float)
    total = np.sum((root * vectors) ** 2)
    assert np.sum((root * (rebuilt - vectors)) ** 2) < least + 1e-5 * total
    ridge = 1.0
    found = refine(vectors, codes, size, weights=scaled, ridge=ridge)
    mass = (weights / weights.mean())[:, None]
    expected = np.linalg.solve(
        dense.T @ (mass * dense) + ridge * np.eye(levels * size), dense.T @ (mass * vectors)
    )
    np.testing.assert_allclose(found.reshape(levels * size, -1), expected, atol=1e-3)


@pytest.mark.parametrize("levels", [1, 2])
def test_refine_is_never_worse_than_k_means(levels):
    for seed in range(3):
        vectors = mixture(seed, 300, 6, 50)
        codebooks, codes = fitted(vectors, levels, 16, seed)
        refined = refine(vectors, codes, 16)
        assert distortion(vectors, refined, codes) < distortion(vectors, codebooks, codes) * (
            1.0001 if levels == 1 else 0.999
        )


@pytest.mark.parametrize("seed", range(3))
def test_reexpress_in_renamed_codes_is_exact(seed):
    rng = np.random.default_rng(seed)
    codebooks, codes = normals(seed, 3, 16, 5), rng.integers(0, 16, (500, 3))
    names = np.stack([rng.permutation(16) for _ in range(3)])
    order = rng.permutation(3)
    renamed = np.stack([names[q][codes[:, q]] for q in order], axis=1)
    found = reexpress(codebooks, codes, renamed, 16, ridge=1e-6)
    expected = decode(codes, codebooks)
    np.testing.assert_allclose(decode(renamed, found), expected, atol=1e-4)


def test_reexpress_is_the_nearest_in_other_codes():
    rng = np.random.default_rng(0)
    codebooks, codes = normals(0, 3, 16, 5), rng.integers(0, 16, (500, 3))
    new = rng.integers(0, 20, (500, 2))
    target = slow_decode(codes, codebooks)
    dense = incidence(new, 20)
    exact = dense @ np.linalg.lstsq(dense, target, rcond=None)[0]
    found = reexpress(codebooks, codes, new, 20, ridge=1e-5)
    assert found.shape == (2, 20, 5)
    np.testing.assert_allclose(decode(new, found), exact, atol=1e-3)


def test_diagnostics_are_the_plain_counts():
    rng = np.random.default_rng(0)
    vectors, codebooks = normals(0, 200, 4) + 1, normals(1, 3, 6, 4)
    codes = np.minimum(rng.geometric(0.4, (200, 3)), 5).astype(np.int32)  # code 0 is never used
    found = diagnostics(vectors, Quantizer(codebooks, codes))
    counts = [collections.Counter(level.tolist()) for level in codes.T]
    lists = collections.Counter(map(tuple, codes.tolist()))
    entropy = [-sum(n / 200 * math.log2(n / 200) for n in c.values()) for c in counts]
    residual = vectors - slow_decode(codes, codebooks)
    expected = quantize.Diagnostics(
        coverage=sum(map(len, counts)) / 18,
        entropy=np.array(entropy),
        hub=max(max(c.values()) for c in counts) / 200,
        shared=sum(n for n in lists.values() if n > 1) / 200,
        unexplained=np.sum(residual**2) / np.sum((vectors - vectors.mean(0)) ** 2),
    )
    assert 0 < expected.shared < 1
    chex.assert_trees_all_close(found, expected, rtol=1e-5)


seeds = st.integers(0, 2**16)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_an_items_code_does_not_depend_on_the_others(seed):
    vectors, codebooks = normals(seed, 20, 3), normals(seed + 1, 2, 5, 3)
    order = np.random.default_rng(seed).permutation(20)
    codes = encode(vectors, codebooks)
    permuted = encode(vectors[order], codebooks)
    np.testing.assert_array_equal(permuted, np.asarray(codes)[order])
    np.testing.assert_array_equal(decode(permuted, codebooks), decode(codes, codebooks)[order])


@settings(max_examples=25, deadline=None)
@given(seed=seeds, scale=st.floats(1e-3, 1e3))
def test_encoding_a_decoded_vector_again_keeps_it_where_levels_are_apart(seed, scale):
    """With later levels far smaller than the gaps of the earlier ones greedy codes are unique."""
    codebooks = scale * normals(seed, 2, 5, 3)
    gap = min(np.linalg.norm(a - b) for a, b in itertools.combinations(codebooks[0], 2))
    codebooks[1] *= 0.2 * gap / np.linalg.norm(codebooks[1], axis=1).max()
    codes = np.random.default_rng(seed).integers(0, 5, (20, 2))
    decoded = decode(codes, codebooks)
    again = decode(encode(decoded, codebooks), codebooks)
    np.testing.assert_allclose(again, decoded, atol=1e-4 * scale)


@settings(max_examples=25, deadline=None)
@given(seed=seeds)
def test_the_nearest_code_of_one_level_is_never_beaten(seed):
    vectors, codebooks = normals(seed, 20, 3), normals(seed + 1, 1, 5, 3)
    codes = encode(vectors, codebooks)
    other = np.random.default_rng(seed).integers(0, 5, (20, 1))
    near, far = (np.asarray(decode(c, codebooks)) for c in (codes, other))
    gaps = np.sum((vectors - near) ** 2, axis=1) - np.sum((vectors - far) ** 2, axis=1)
    assert (gaps < 1e-5).all()


@settings(max_examples=15, deadline=None)
@given(seed=seeds, copies=st.integers(1, 4))
def test_a_level_more_never_distorts_more(seed, copies):
    vectors = np.repeat(normals(seed, 24, 3), copies, axis=0)[:24]
    codebooks, codes = map(np.asarray, fitted(vectors, 3, 6, seed))
    assert np.isfinite(codebooks).all()
    first = lambda q: codebooks * (np.arange(3) < q)[:, None, None]  # levels; the others add zero
    errors = [distortion(vectors, first(q), codes) for q in (0, 1, 2, 3)]
    assert all(later <= before + 1e-6 for before, later in itertools.pairwise(errors))

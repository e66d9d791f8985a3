"""Residual k-means, ours beside faiss: 3,706 x 32, 100,000 x 64 and 1,000,000 x 64 vectors.

    python -m benchmarks quantize [--quick]

Work counted: the distance products. K-means takes 2 P D K flop for each of its 25 iterations and
once more for the residual, on P = min(I, 256 K) points; encoding takes 2 I D K; all for each level.
faiss runs the same levels, iterations and number of points. The distortion is the
mean square residual over all items. `--quick` leaves the million out.
"""

from __future__ import annotations

import os
import time

# faiss and OpenBLAS each spin on all cores while the other works: passive waiting makes faiss
# up to seven times as fast, and has to be said before it is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import jax
import numpy as np

from benchmarks.common import Bench, Timing, Work, timed
from jaxrec.ops import quantize

LEVELS, ITERATIONS, CLUSTERS = 3, 25, 300
CASES = ((3706, 32, 64), (3706, 32, 256), (100_000, 64, 256), (1_000_000, 64, 256))


def mixture(items, width, rng):
    """Centred Gaussian clusters whose columns shrink like principal components."""
    means = rng.standard_normal((CLUSTERS, width), np.float32)
    vectors = means[rng.integers(0, CLUSTERS, items)]
    vectors += 0.5 * rng.standard_normal((items, width), np.float32)
    vectors *= np.geomspace(1, 0.1, width, dtype=np.float32)
    return vectors - vectors.mean(0)


def distortion(vectors, quantizer):
    codebooks, codes = jax.device_put(quantizer)
    return float(np.mean(np.sum((vectors - quantize.decode(codes, codebooks)) ** 2, axis=1)))


def fit_by_faiss(vectors, size):
    """The quantizer that faiss finds, level by level."""
    import faiss

    residual, codebooks, codes = vectors.copy(), [], []
    for level in range(LEVELS):
        kmeans = faiss.Kmeans(
            residual.shape[1],
            size,
            niter=ITERATIONS,
            seed=level,
            min_points_per_centroid=1,
            max_points_per_centroid=quantize.POINTS,
        )
        kmeans.train(residual)
        codes.append(kmeans.index.search(residual, 1)[1][:, 0].astype(np.int32))
        codebooks.append(kmeans.centroids)
        residual -= kmeans.centroids[codes[-1]]
    return quantize.Quantizer(np.stack(codebooks), np.stack(codes, axis=1))


def main(bench: Bench, quick: bool) -> None:
    rng = np.random.default_rng(0)
    for items, width, size in CASES[:-1] if quick else CASES:
        vectors, key = mixture(items, width, rng), jax.random.key(0)
        points = min(items, quantize.POINTS * size)
        encoding = 2.0 * items * width * size * LEVELS
        fitting = 2.0 * points * width * size * LEVELS * (ITERATIONS + 1) + encoding
        print(f"\n{items:,} x {width} vectors, {LEVELS} x {size} codes")

        def fit(vectors, key, size=size):
            return quantize.fit(vectors, key, levels=LEVELS, size=size, iterations=ITERATIONS)

        on_device = jax.device_put(vectors)
        found, ours = timed(fit, on_device, key)
        what = f"{items:,} x {width}, {LEVELS} x {size}"
        bench.report(f"fit (ours), {what}", ours, Work(flop=fitting))
        print(
            f"    distortion {distortion(vectors, found):.4f}, {vectors.nbytes / 1e6:,.0f} MB input"
        )

        start = time.perf_counter()
        theirs = fit_by_faiss(vectors, size)
        seconds = time.perf_counter() - start
        bench.report(f"fit (faiss), {what}", Timing(0.0, seconds, 0.0, 1), Work(flop=fitting))
        print(
            f"    distortion {distortion(vectors, theirs):.4f}; "
            f"ours is {seconds / ours.median:.1f} times as fast"
        )

        _, timing = timed(quantize.encode, on_device, found.codebooks)
        bench.report(f"encode, {what}", timing, Work(flop=encoding))
        refine = lambda vectors, codes, size=size: quantize.refine(vectors, codes, size)
        refined, timing = timed(refine, on_device, found.codes)
        bench.report(f"refine, {what}", timing)
        print(f"    distortion {distortion(vectors, found._replace(codebooks=refined)):.4f}")
        _, timing = timed(quantize.diagnostics, on_device, found)
        bench.report(f"diagnostics, {what}", timing)

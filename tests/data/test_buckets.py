"""The lengths of buckets against all that there are to choose from."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import buckets
from jaxrec.data.buckets import best_lengths


def cost(sizes, lengths, bucket):
    """Cells, padding included, and what the buckets cost."""
    return sum(min(n for n in lengths if n >= size) for size in sizes) + bucket * len(lengths)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 15), min_size=1, max_size=12),
    st.integers(0, 20),
    st.sampled_from([0.0, 0.15]),
)
def test_no_other_lengths_cost_less(rows, cells, share):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "CELLS", cells)
        patch.setattr(buckets, "SHARE", share)
        found = best_lengths(np.array(rows))
    sizes = np.maximum(rows, 1)
    bucket = max(cells, share * sizes.sum())
    other = sorted(set(sizes.tolist()))
    chosen = [[*c, other[-1]] for n in range(len(other)) for c in combinations(other[:-1], n)]
    least = min(cost(sizes, lengths, bucket) for lengths in chosen)
    assert list(found) == sorted(found)
    assert cost(sizes, found, bucket) == pytest.approx(least)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40))
def test_every_client_fits_and_rounding_pads_by_an_eighth_at_most(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "CELLS", 0)
        patch.setattr(buckets, "SHARE", 0)
        sizes = np.array(rows)
        lengths = np.array(best_lengths(sizes))
    padded = lengths[np.searchsorted(lengths, sizes)]
    assert (padded >= sizes).all() and (padded <= sizes * 9 / 8).all()


def test_small_federations_have_one_bucket_and_large_ones_several():
    sizes = np.tile([10, 40, 160], 40)
    assert best_lengths(sizes) == (160,)
    assert best_lengths(np.tile(sizes, 1000)) == (40, 160)

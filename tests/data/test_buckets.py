"""The lengths of buckets against all that there are to choose from."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import buckets
from jaxrec.data.buckets import best_lengths


def cost(sizes, users, lengths, bucket):
    """Cells and places for users, padding included, and what the buckets cost."""
    total, begin = 0, 0
    for length in lengths:
        own = [users[n] for n, size in enumerate(sizes) if begin < size <= length]
        total += len(own) * (length + buckets.USER * max(own)) + bucket
        begin = length
    return total


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(1, 3)), min_size=1, max_size=12),
    st.integers(0, 200),
    st.sampled_from([0.0, 0.15]),
)
def test_no_other_lengths_cost_less(clients, cells, share):
    rows, users = np.array(clients).T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "CELLS", cells)
        patch.setattr(buckets, "SHARE", share)
        found = best_lengths(rows, users)
    sizes = np.maximum(rows, 1)
    bucket = max(cells, share * sizes.sum())
    other = sorted(set(sizes.tolist()))
    chosen = [[*c, other[-1]] for n in range(len(other)) for c in combinations(other[:-1], n)]
    least = min(cost(sizes, users, lengths, bucket) for lengths in chosen)
    assert list(found) == sorted(found)
    assert cost(sizes, users, found, bucket) == pytest.approx(least)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40))
def test_every_client_fits_and_rounding_pads_by_an_eighth_at_most(rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "CELLS", 0)
        patch.setattr(buckets, "SHARE", 0)
        sizes = np.array(rows)
        lengths = np.array(best_lengths(sizes, np.ones_like(sizes)))
    padded = lengths[np.searchsorted(lengths, sizes)]
    assert (padded >= sizes).all() and (padded <= sizes * 9 / 8).all()


def test_small_federations_have_one_bucket_and_large_ones_several():
    sizes = np.tile([10, 40, 160], 40)
    assert best_lengths(sizes, np.ones_like(sizes)) == (160,)
    sizes = np.tile(sizes, 1000)
    assert best_lengths(sizes, np.ones_like(sizes)) == (40, 160)


def test_a_client_of_many_users_makes_no_places_for_them_in_all_the_others():
    sizes, users = np.array([20] * 500 + [60]), np.array([1] * 500 + [60])
    assert best_lengths(sizes, users) == (20, 60)
    assert best_lengths(sizes, np.ones_like(users)) == (60,)

"""Blocks bound memory and change nothing."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import blocks


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 70), st.booleans(), st.booleans())
def test_rows_come_in_the_order_of_one_sort(number, keys, size, real, chosen):
    rng = np.random.default_rng(number)
    key = rng.integers(0, keys, number).astype(np.int32)
    by = rng.integers(-3, 3, number)
    by = by / 2 if real else by
    where = rng.random(number) < 0.6 if chosen else None
    expected = np.lexsort((by, key))
    expected = expected if where is None else expected[where[expected]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "ROWS", size)
        found = list(blocks.sorted_blocks(key, keys, by, where))
        table = np.arange(keys) ** 2
        np.testing.assert_array_equal(blocks.gather(table, key), table[key])
        np.testing.assert_array_equal(
            blocks.count(key, keys, where),
            np.bincount(key if where is None else key[where], minlength=keys),
        )
    np.testing.assert_array_equal(np.concatenate([np.zeros(0, int), *found]), expected)
    of_blocks = [set(key[rows]) for rows in found]
    assert sum(map(len, of_blocks)) == len(set().union(*of_blocks)) if found else True
    many = [rows for rows in found if len(rows) > size]
    assert all(len(set(key[rows])) == 1 for rows in many)  # a key alone may take more


def test_a_key_without_rows_before_one_with_too_many_makes_no_empty_block(monkeypatch):
    monkeypatch.setattr(blocks, "ROWS", 1)
    key, by = np.array([2, 2, 0], np.int32), np.array([5, 4, 0])
    found = [rows.tolist() for rows in blocks.sorted_blocks(key, 3, by)]
    assert found == [[2], [1, 0]]


def test_values_too_wide_for_one_sort_are_sorted_by_two():
    key = np.array([1, 0, 1, 0, 1], np.int32)
    by = np.array([2**62, 5, -(2**62), 5, 0])
    found = np.concatenate(list(blocks.sorted_blocks(key, 2, by)))
    np.testing.assert_array_equal(found, [1, 3, 2, 4, 0])
    by = np.array([2**64 - 1, 5, 0, 5, 2**63], np.uint64)
    found = np.concatenate(list(blocks.sorted_blocks(key, 2, by)))
    np.testing.assert_array_equal(found, [1, 3, 2, 4, 0])

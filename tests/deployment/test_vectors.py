"""Parts of sums as integers: whole numbers stay whole, whatever their sign and their number."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrec.deployment import vectors
from jaxrec.types import DataError


def shapes_of(parts):
    return [SimpleNamespace(shape=part.shape, dtype=part.dtype) for part in parts]


def through(parts):
    """The sums of clients' parts by their vectors."""
    shapes = shapes_of(parts[0])
    each = [vectors.to_vector(own, len(parts)) for own in parts]
    assert all(len(vector) == vectors.length(shapes) for vector in each)
    return vectors.from_vector(np.sum(each, axis=0, dtype=np.uint32), shapes)


@given(st.integers(0, 2**32 - 1), st.integers(1, 20))
def test_sums_of_vectors_are_sums_of_parts(seed, clients):
    rng = np.random.default_rng(seed)
    whole = rng.integers(-(2**31), 2**31, (clients, 2, 3)).astype(np.int32)
    broken = (rng.normal(size=(clients, 4)) * 10 ** rng.uniform(-3, 6)).astype(np.float32)
    single = rng.integers(-(2**20), 2**20, clients).astype(np.float32)
    integers, floats, number = through(list(zip(whole, broken, single, strict=True)))
    np.testing.assert_array_equal(integers, whole.astype(np.int64).sum(0).astype(np.int32))
    exact, near = broken.astype(float).sum(0), clients * vectors.UNIT / 2
    np.testing.assert_allclose(floats, exact, rtol=2**-23, atol=near)
    assert (number.shape, float(number)) == ((), single.astype(float).sum())


def test_sums_in_clear_wrap_integers_and_add_floats_in_64_bits():
    parts = [
        [np.int32([2**31 - 1]), np.float32([2.0**24])],
        [np.int32([1]), np.float32([1.0])],
        [np.int32([0]), np.float32([1.0])],
    ]
    integers, floats = vectors.added(parts)
    assert (integers.dtype, int(integers[0])) == (np.int32, -(2**31))
    assert (floats.dtype, float(floats[0])) == (np.float32, 2.0**24 + 2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 2.0**30])
def test_a_part_that_no_sum_can_hold_is_refused_before_it_is_sent(value):
    with pytest.raises(DataError, match="not below 429,496,730; where"):
        vectors.to_vector([np.float32([1, value])], 5)


def test_more_parts_than_a_sum_can_hold_are_refused():
    with pytest.raises(DataError, match="65,537 clients: a secure sum adds at most 65,536"):
        vectors.to_vector([np.float32([1])], 65_537)

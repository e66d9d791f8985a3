"""The log as events: what is rejected is of the same domain, and nothing that the user has."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.methods.agentcf.events import check_domains, draw_negatives, has_taken
from jaxrec.types import DataError, History


def known(rows, users):
    """The History of pairs (user, item)."""
    user, item = (np.array(part) for part in zip(*sorted(rows, key=lambda r: r[0]), strict=True))
    start = np.searchsorted(user, np.arange(users + 1))
    return History(*(jnp.asarray(part, jnp.int32) for part in (user, item, start, user)))


def test_negatives_are_all_others_of_the_domain_alike():
    domain = jnp.array([0, 1, 0, 1, 0, 0, 0])
    item = jnp.asarray([0, 1, 2, 3, 4, 5] * 300)
    user = jnp.zeros_like(item)
    history = known([(0, 6)], 1)
    draw = jax.jit(draw_negatives)
    drawn = np.asarray(draw(jax.random.key(1), user, item, domain, history))
    assert (domain[drawn] == domain[item]).all()
    assert (drawn != np.asarray(item)).all()
    counts = Counter(drawn[::6].tolist())
    assert set(counts) == {2, 4, 5}  # item 6 is the user's own
    assert min(counts.values()) > 60  # of 300, 100 expected, standard deviation 8
    again = draw(jax.random.key(1), user[:7], item[:7], domain, history)
    np.testing.assert_array_equal(again, drawn[:7])


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=20, max_size=20, unique=True)
)
@settings(deadline=None, max_examples=20)
def test_who_has_what(rows):
    user, item = jnp.meshgrid(jnp.arange(5), jnp.arange(10), indexing="ij")
    found = jax.jit(has_taken)(known(rows, 5), user, item)
    expected = np.zeros((5, 10), bool)
    expected[tuple(np.array(rows).T)] = True
    np.testing.assert_array_equal(found, expected)


def test_the_only_item_of_a_domain_is_refused():
    with pytest.raises(DataError, match="item 2 is the only one of domain 1"):
        check_domains(np.array([0, 0, 1, 3, 3]))
    check_domains(np.array([0, 0, 3, 3]))
    item, domain = jnp.array([0, 2]), jnp.array([0, 0, 1])
    drawn = draw_negatives(jax.random.key(0), item * 0, item, domain, known([(0, 0)], 1))
    assert drawn.tolist() == [1, 2]

"""Rows that sequences share against each user's own list."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.rows import fill_rows, most_rows
from jaxrec.types import History

ITEMS, LENGTH = 50, 6
COUNTS = [3, 0, 1, 9, 6, 2, 7, 1, 5, 12, 1, 0]


def history(counts=COUNTS):
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(len(counts)), counts)
    start = np.append(0, np.cumsum(counts))
    item = rng.integers(ITEMS, size=len(user))
    arrays = History(user, item, start, np.arange(len(user)))
    return History(*(jnp.asarray(array, jnp.int32) for array in arrays))


def own(history, user):
    return np.asarray(history.item[history.start[user] : history.start[user + 1]])


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.parametrize("multiple", [1, 4])
def test_every_user_lies_whole_and_once_in_one_row(ahead, multiple):
    past = history()
    order = jax.random.permutation(jax.random.key(0), len(COUNTS))
    fill = jax.jit(
        lambda past: fill_rows(
            past, order, items=ITEMS, length=LENGTH, ahead=ahead, multiple=multiple
        )
    )
    rows, used = fill(past)
    assert rows.item.shape[0] % multiple == 0 and rows.item.shape[1] == LENGTH
    assert (rows.item[used:] == ITEMS).all() and (rows.item[:used] < ITEMS).any(1).all()
    assert ((rows.item == ITEMS) == (rows.user == len(COUNTS))).all()
    for user, count in enumerate(COUNTS):
        at = np.argwhere(np.asarray(rows.user) == user)
        sequence = own(past, user)
        expected = sequence[: max(0, count - ahead)][-LENGTH:]
        assert len(at) == len(expected)
        if len(at):
            assert len(set(at[:, 0])) == 1
            assert (np.diff(at[:, 1]) == 1).all()
            place = tuple(at.T)
            np.testing.assert_array_equal(rows.item[place], expected)
            np.testing.assert_array_equal(rows.position[place], np.arange(len(at)))
            following = np.append(sequence, ITEMS)[max(1, count + 1 - ahead - len(at)) :][: len(at)]
            np.testing.assert_array_equal(rows.target[place], following)


def test_rows_are_filled_in_the_given_order():
    order = jnp.array([9, 4, 0, 2, 7, 10, 5, 3, 8, 6, 1, 11])
    rows, used = fill_rows(history(), order, items=ITEMS, length=LENGTH, ahead=0)
    shown = [list(dict.fromkeys(row[row < len(COUNTS)].tolist())) for row in np.asarray(rows.user)]
    assert shown[:used] == [[9], [4], [0, 2, 7, 10], [5], [3], [8], [6]]


@pytest.mark.parametrize("counts", [[1], [LENGTH] * 5, [LENGTH // 2 + 1] * 7, [1] * 20, [0, 0]])
def test_there_are_rows_enough(counts):
    past, users = history(counts), len(counts)
    rows, used = fill_rows(past, jnp.arange(users), items=ITEMS, length=LENGTH, ahead=0)
    assert used <= len(rows.item) == most_rows(past, LENGTH)
    assert (rows.item < ITEMS).sum() == min(LENGTH, max(counts)) * users

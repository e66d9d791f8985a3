"""LightGCN against a loop over its layers and edges."""

import numpy as np
import pytest

from jaxrec.models.collaborative import Tables, encode, inverse_root, normalise

USERS, ITEMS, WIDTH = 5, 7, 3


def problem():
    rng = np.random.default_rng(0)
    rows = (rng.random((USERS, ITEMS)) < 0.4).astype(np.float32)
    rows[1], rows[:, 2] = 0, 0
    tables = [rng.normal(size=(n, WIDTH)).astype(np.float32) for n in (USERS, ITEMS)]
    return Tables(*tables), rows


def slow_encode(tables, rows, layers):
    user, item = (np.asarray(table, float) for table in (tables.user, tables.item))
    users, items = user.copy(), item.copy()
    for _ in range(layers):
        next_user, next_item = np.zeros_like(user), np.zeros_like(item)
        for u, i in zip(*np.nonzero(rows), strict=True):
            weight = 1 / np.sqrt(rows[u].sum() * rows[:, i].sum())
            next_user[u] += weight * item[i]
            next_item[i] += weight * user[u]
        user, item = next_user, next_item
        users, items = users + user, items + item
    return users / (layers + 1), items / (layers + 1)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_encode_is_the_loop_over_layers_and_edges(layers):
    tables, rows = problem()
    found = encode(tables, rows, layers=layers)
    user, item = slow_encode(tables, rows, layers)
    np.testing.assert_allclose(found.user, user, atol=1e-6)
    np.testing.assert_allclose(found.item, item, atol=1e-6)


def test_normalise_leaves_empty_rows_and_columns_zero():
    _, rows = problem()
    found = np.asarray(normalise(rows, rows.sum(0)))
    assert (found[1] == 0).all() and (found[:, 2] == 0).all()
    u, i = np.argwhere(rows)[0]
    assert found[u, i] == pytest.approx(1 / np.sqrt(rows[u].sum() * rows[:, i].sum()), rel=1e-6)
    assert np.linalg.norm(found, 2) <= 1 + 1e-6


def test_inverse_root_of_nothing_is_nothing():
    np.testing.assert_allclose(inverse_root(np.float32([0, 1, 4])), [0, 1, 0.5])

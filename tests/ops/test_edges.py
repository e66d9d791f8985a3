"""Edges sorted by owner, counted and solved for, beside plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.ops import co_occurrence, least_squares, linalg
from jaxrec.ops import edges as graph
from jaxrec.types import Clients

USERS, ITEMS = 40, 60


def matrix(seed=0, density=0.2):
    """Rows [U, I]; the last user has none, and one item has nearly all users."""
    found = np.random.default_rng(seed).random((USERS, ITEMS)) < density
    found[:, 3] = True
    found[-1] = False
    return found


def edges_of(rows, weights=None):
    """The rows as one client of many users, in random order, with padding among them."""
    user, item = np.nonzero(rows)
    order = np.random.default_rng(1).permutation(len(user))
    user, item = user[order], item[order]
    gaps = np.arange(0, len(user), 7)
    user, item = np.insert(user, gaps, 5), np.insert(item, gaps, 9)
    mask = np.insert(np.ones(len(order), bool), gaps, False)
    order = np.lexsort((item, user))  # rows of a client are in order of (user, item)
    users = np.arange(USERS)[None]
    client = Clients(
        *(jnp.asarray(each[order][None]) for each in (user, item, mask)),
        users=jnp.asarray(users), client=jnp.zeros(1, jnp.int32), weight=jnp.ones(1),
    )  # fmt: skip
    values = None if weights is None else [jnp.asarray(weights[user[order], item[order]][None])]
    return graph.edges((client,), values)


def test_owners_have_their_own_edges_and_no_others():
    rows = matrix()
    of_users = graph.of_users(edges_of(rows), USERS)
    of_items = graph.of_items(edges_of(rows), ITEMS)
    assert graph.counts(of_users).tolist() == rows.sum(1).tolist()
    assert graph.counts(of_items).tolist() == rows.sum(0).tolist()
    for user in range(USERS):
        mine = of_users.other[of_users.start[user] : of_users.start[user + 1]]
        assert mine.tolist() == np.flatnonzero(rows[user]).tolist()
    number = rows.sum()
    np.testing.assert_array_equal(graph.owner_of_each(of_users)[:number], np.nonzero(rows)[0])


def test_rows_are_read_back_whole_whoever_is_asked_for(monkeypatch):
    monkeypatch.setattr(graph, "TOGETHER", 50)
    rows, asked = matrix(), np.array([3, 3, USERS - 1, 0])
    weights = np.random.default_rng(2).random((USERS, ITEMS)).astype(np.float32) + 0.1
    owned = graph.of_users(edges_of(rows, weights), USERS)
    found = jax.jit(graph.dense, static_argnums=2)(owned, jnp.asarray(asked), ITEMS)
    np.testing.assert_allclose(found, np.where(rows, weights, 0)[asked], rtol=1e-6)


def test_an_edge_is_found_if_there_is_one():
    rows = matrix()
    owned = graph.of_users(edges_of(rows), USERS)
    user, item = (each.ravel() for each in np.indices(rows.shape))
    np.testing.assert_array_equal(graph.has(owned, user, item), rows.ravel())


@pytest.mark.parametrize("dense", [0, 10**6])
def test_items_that_share_users_are_counted(dense, monkeypatch):
    for name, value in {"DENSE": dense, "COLUMNS": 16, "EDGES": 40, "USERS": 8}.items():
        monkeypatch.setattr(co_occurrence, name, value)
    rows = matrix().astype(np.float32)
    found = jax.jit(lambda edges: co_occurrence.whole(edges, USERS, ITEMS))(edges_of(rows > 0))
    np.testing.assert_array_equal(found, rows.T @ rows)


@pytest.mark.parametrize("side", ["users", "items"])
def test_every_owner_stands_at_the_optimum_of_its_loss(side, monkeypatch):
    monkeypatch.setattr(least_squares, "OWNERS", 16)  # blocks, the last one not full
    monkeypatch.setattr(least_squares, "PIECES", 8)
    rng, rows = np.random.default_rng(3), matrix()
    weights = rng.uniform(0.2, 1, rows.shape).astype(np.float32)
    edges = edges_of(rows, weights)
    counts = np.where(rows, weights, 0).astype(float)
    if side == "items":
        owned, counts = graph.of_items(edges, ITEMS), counts.T
    else:
        owned = graph.of_users(edges, USERS)
    table = rng.normal(size=(counts.shape[1], 5))
    l2 = rng.uniform(0.5, 2, len(counts))
    solve = jax.jit(lambda table, owned, l2: least_squares.of_owners(
        table, owned, negative_weight=0.3, l2=l2
    ))  # fmt: skip
    found = solve(jnp.asarray(table, jnp.float32), owned, jnp.asarray(l2, jnp.float32))
    for own, mine, penalty in zip(found, counts, l2, strict=True):
        form = 0.3 * table.T @ table + 0.7 * (table.T * mine) @ table + penalty * np.eye(5)
        np.testing.assert_allclose(own, np.linalg.solve(form, table.T @ mine), atol=2e-5)


def test_the_weights_of_ease_leave_no_gradient_but_on_the_diagonal():
    rows = matrix().astype(float)
    found = np.asarray(linalg.ease(jnp.asarray(rows.T @ rows, jnp.float32), 20.0), float)
    slope = rows.T @ (rows @ found - rows) + 20 * found
    assert np.abs(np.diagonal(found)).max() == 0
    np.testing.assert_allclose(slope * (1 - np.eye(ITEMS)), 0, atol=2e-3)

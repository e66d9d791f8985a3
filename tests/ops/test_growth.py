"""Arrays of users, items and clients move to a larger federation against plain loops."""

import jax.numpy as jnp
import numpy as np

from jaxrec.ops.growth import clients_over, over, users_over
from jaxrec.types import Clients, Data, Earlier, Sizes

OLD = Sizes(users=5, items=3, clients=3)
NEW = Sizes(users=7, items=4, clients=4)


def federation(sizes, *buckets):
    """Buckets [(client, its users), ...]; what lacks a user or is no client is padding."""
    made = []
    for bucket in buckets:
        width = max(len(users) for _, users in bucket)
        users = [[*users, *[sizes.users] * (width - len(users))] for _, users in bucket]
        rows = jnp.zeros((len(bucket), 1), jnp.int32)
        client = jnp.array([client for client, _ in bucket])
        made.append(Clients(rows, rows, rows > 0, jnp.array(users), client, jnp.ones(len(bucket))))
    return Data(tuple(made))


# client 1 gets user 5 and moves to the larger bucket; client 3 is new; clients 5 and 6 only pad
WAS = federation(OLD, [(0, [0]), (1, [3]), (5, [])], [(2, [1, 2, 4])])
IS = federation(NEW, [(0, [0]), (3, [6])], [(1, [3, 5]), (2, [1, 2, 4]), (6, [])])


def test_users_take_their_rows_along():
    rng = np.random.default_rng(0)
    tables = [tuple(rng.normal(size=(*c.users.shape, 2)) for c in d.clients) for d in (WAS, IS)]
    found = users_over(tuple(map(jnp.asarray, tables[1])), IS, tables[0], Earlier(WAS, OLD))
    known = {}
    for clients, table in zip(WAS.clients, tables[0], strict=True):
        for place in np.ndindex(clients.users.shape):
            known[int(clients.users[place])] = table[place]
    del known[OLD.users]  # of padding
    for clients, fresh, table in zip(IS.clients, tables[1], found, strict=True):
        for place in np.ndindex(clients.users.shape):
            expected = known.get(int(clients.users[place]), fresh[place])
            np.testing.assert_allclose(table[place], expected, rtol=1e-6)


def test_clients_take_their_tables_along_which_new_items_lengthen():
    rng = np.random.default_rng(1)
    tables = [
        tuple(rng.normal(size=(len(c.client), sizes.items, 2)) for c in data.clients)
        for data, sizes in ((WAS, OLD), (IS, NEW))
    ]
    found = clients_over(tuple(map(jnp.asarray, tables[1])), IS, tables[0], Earlier(WAS, OLD))
    known = {}
    for clients, table in zip(WAS.clients, tables[0], strict=True):
        known |= {int(c): one for c, one in zip(clients.client, table, strict=True) if c < 3}
    for clients, fresh, table in zip(IS.clients, tables[1], found, strict=True):
        for line, client in enumerate(clients.client):
            expected = fresh[line].copy()
            if int(client) in known:
                expected[: OLD.items] = known[int(client)]
            np.testing.assert_allclose(table[line], expected, rtol=1e-6)


def test_what_was_learned_lies_in_front():
    fresh = {"item": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
    grown = over(fresh, {"item": jnp.ones((3, 2)), "bias": jnp.ones(2)})
    np.testing.assert_array_equal(grown["item"], [[1, 1]] * 3 + [[0, 0]])
    np.testing.assert_array_equal(grown["bias"], [1, 1])

"""Packing loses nothing and doubles nothing."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import pack, partition, split, synthetic
from jaxrec.data.buckets import POWERS_OF_TWO
from jaxrec.data.pack import history
from jaxrec.types import TEST, TRAIN, VALID, DataError, Dataset


def dataset(users: list[tuple[int, list[int]]], items: int) -> Dataset:
    """User u belongs to users[u][0] and has one row for each split value in users[u][1]."""
    rows = [
        (u, (7 * u + k) % items, c, s)
        for u, (c, own) in enumerate(users)
        for k, s in enumerate(own)
    ]
    return Dataset(
        "toy",
        pd.DataFrame(rows, columns=["user", "item", "client", "split"]),
        pd.DataFrame({"item": np.arange(items)}),
        pd.DataFrame({"user": np.arange(len(users))}),
    )


federations = st.lists(
    st.tuples(st.integers(0, 6), st.lists(st.integers(0, 2), min_size=1, max_size=12)),
    min_size=1,
    max_size=20,
)


@settings(deadline=None, max_examples=60)
@given(federations, st.sampled_from([1, 2, 4]), st.sampled_from([None, POWERS_OF_TWO, (3,)]))
def test_every_train_row_lies_in_its_clients_line_once(users, multiple, lengths):
    data = dataset(users, 12)
    packed, sizes = pack(data, multiple=multiple, lengths=lengths)
    assert sizes == (len(users), 12, len({c for c, _ in users}), 1)
    owner = {u: c for u, (c, _) in enumerate(users)}
    found, held, order, shorter = [], [], [], 0
    for bucket in packed.clients:
        b = jax.tree.map(np.asarray, bucket)
        assert b.user.shape == b.item.shape == b.mask.shape
        c, n = b.item.shape
        assert c % multiple == 0
        assert n in (lengths or ()) or n >= b.weight.max()
        assert (b.item[~b.mask] == 0).all()
        assert (b.user[~b.mask] == 0).all()
        np.testing.assert_array_equal(b.weight, b.mask.sum(1))
        real = (b.users < sizes.users).any(1)
        assert (b.client[~real] >= sizes.clients).all()
        assert (b.users < sizes.users).sum(1).max() == b.users.shape[1]
        assert (np.maximum(b.weight[real], 1) > shorter).all()  # none would fit the one before
        shorter = n
        for line in np.flatnonzero(real):
            own = b.users[line][b.users[line] < sizes.users]
            assert (np.diff(own) > 0).all()
            assert {owner[u] for u in own} == {b.client[line]}
            mask = b.mask[line]
            pairs = list(zip(b.users[line][b.user[line][mask]], b.item[line][mask], strict=True))
            assert pairs == sorted(pairs)
            found += pairs
            held += own.tolist()
            order.append((b.weight[line], b.client[line]))
    rows = data.interactions
    train = rows.loc[rows["split"] == TRAIN, ["user", "item"]]
    assert sorted(found) == sorted(map(tuple, train.to_numpy().tolist()))
    assert sorted(held) == list(range(len(users)))
    assert order == sorted(order)


@settings(deadline=None, max_examples=60)
@given(federations, st.sampled_from([1, 2]), st.sampled_from([None, POWERS_OF_TWO]))
def test_rows_of_later_splits_lie_in_the_same_clients_lines(users, multiple, lengths):
    data = dataset(users, 12)
    train, sizes = pack(data, multiple=multiple, lengths=lengths)
    whole, same = pack(data, multiple=multiple, before=TEST + 1, lengths=lengths)
    assert same == sizes
    found = []
    for bucket, wide in zip(train.clients, whole.clients, strict=True):
        for name in ("users", "client", "weight"):
            np.testing.assert_array_equal(getattr(bucket, name), getattr(wide, name))
        b = jax.tree.map(np.asarray, wide)
        line, column = np.nonzero(b.mask)
        found += zip(b.users[line, b.user[line, column]], b.item[line, column], strict=True)
    rows = data.interactions[["user", "item"]]
    assert sorted(found) == sorted(rows.itertuples(index=False, name=None))


def test_rows_in_any_order_pack_to_the_same_bits():
    data = partition(split(synthetic(60, 50, clients=6, length=20)), "given")
    mixed = data.interactions.sample(frac=1, random_state=0)
    first, second = pack(data), pack(Dataset("mixed", mixed, data.items, data.users))
    assert first[1] == second[1]
    for a, b in zip(first[0].clients, second[0].clients, strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_held_out_items_change_nothing_that_is_packed():
    dataset = split(synthetic(users=40, items=30, clients=6, length=14), "ratio", 0.2, 0.2, 0)
    rows = dataset.interactions
    held = rows["split"] > TRAIN
    changed = rows.assign(item=rows["item"].where(~held, (rows["item"] + 7) % 30))
    assert held.sum() > 100
    found, expected = (pack(replace(dataset, interactions=each)) for each in (changed, rows))
    assert expected[0].history is not None
    assert found[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, found[0], expected[0])
    later = [pack(replace(dataset, interactions=each), before=TEST)[0] for each in (changed, rows)]
    assert (later[0].history.item != later[1].history.item).any()  # so that the change is seen


def test_types_are_those_of_the_contract():
    packed, _ = pack(dataset([(0, [0, 0, 0]), (1, [0, 1, 2])], 12), lengths=POWERS_OF_TWO)
    small, large = packed.clients
    assert small.client.tolist() == [1]
    assert large.item.tolist() == [[0, 1, 2, 0]]
    assert large.mask.tolist() == [[True, True, True, False]]
    for bucket in packed.clients:
        assert bucket.age is None
        dtypes = {name: getattr(bucket, name).dtype for name in bucket._fields if name != "age"}
        integers = dict.fromkeys(["user", "item", "users", "client"], jnp.int32)
        assert dtypes == {**integers, "mask": jnp.bool_, "weight": jnp.float32}


def test_age_counts_the_later_train_rows_of_the_user():
    rows = pd.DataFrame(
        [
            # user, item, timestamp, split
            (0, 5, 30, 0),
            (0, 2, 10, 0),
            (0, 9, 40, 1),  # not a train row: it ages nobody
            (1, 5, 7, 0),
            (0, 7, 30, 0),  # as old as item 5, but later in the file
            (1, 1, 9, 0),
        ],
        columns=["user", "item", "timestamp", "split"],
    ).assign(client=0)
    items, users = pd.DataFrame({"item": np.arange(12)}), pd.DataFrame({"user": np.arange(2)})
    (bucket,) = pack(Dataset("toy", rows, items, users))[0].clients
    assert bucket.item.tolist() == [[2, 5, 7, 1, 5]]
    assert bucket.age.tolist() == [[2, 1, 0, 0, 1]]
    assert bucket.age.dtype == jnp.int32


def test_unprepared_data_is_refused():
    data = dataset([(0, [0, 0]), (1, [0])], 12)
    for column, step in (("split", "split"), ("client", "partition")):
        rows = data.interactions.drop(columns=column)
        with pytest.raises(DataError, match=rf"no column '{column}'; call {step}\("):
            pack(Dataset("toy", rows, data.items, data.users))
    users = pd.DataFrame({"user": np.arange(3)})
    with pytest.raises(DataError, match="user 2 has no interaction"):
        pack(Dataset("toy", data.interactions, data.items, users))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 2)), min_size=1),
    st.sampled_from([VALID, TEST]),
)
def test_history_is_each_users_rows_in_time_order_and_the_order_of_all(rows, before):
    frame = pd.DataFrame(rows, columns=["user", "timestamp", "split"])
    frame["item"] = np.arange(len(frame))
    data = Dataset("toy", frame, frame[["item"]], pd.DataFrame({"user": np.arange(6)}))
    found = jax.tree.map(np.asarray, history(data, before))
    known = [(u, t, i) for i, (u, t, s) in enumerate(rows) if s < before]
    for user in range(6):
        own = [i for _, i in sorted((t, i) for u, t, i in known if u == user)]
        assert found.item[found.start[user] : found.start[user + 1]].tolist() == own
        assert (found.user[found.start[user] : found.start[user + 1]] == user).all()
    assert found.item[found.order].tolist() == [
        i for _, _, i in sorted((t, u, i) for u, t, i in known)
    ]


def test_domains_below_zero_are_refused():
    data = dataset([(0, [0, 0])], 3)
    data.items["domain"] = [0, -1, 0]
    with pytest.raises(DataError, match="'domain': item 1 is of domain -1"):
        pack(data)


def test_rows_without_times_have_no_history():
    data, _ = pack(dataset([(0, [0, 0])], 3))
    assert data.history is None
    assert data.domain is None

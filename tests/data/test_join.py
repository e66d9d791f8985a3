"""Newer rows joined to data that were divided before: who is who, and what stays in train."""

import numpy as np
import pandas as pd
import pytest

from jaxrec.data import load, partition, split
from jaxrec.data.join import joined
from jaxrec.data.partition import partition_again
from jaxrec.data.split import NEW, split_again
from jaxrec.types import TEST, TRAIN, VALID, DataError


def frame(rows, names=("user", "item", "timestamp")):
    return pd.DataFrame(rows, columns=list(names))


def divided(how="leave-one-out", who="user"):
    rows = [(f"u{u}", f"i{i}", 10 * i + u) for u in range(4) for i in range(5)]
    return partition(split(load(frame(rows)), how, valid=0.2), who, clients=2)


def named(dataset, rows):
    """The rows by raw ids."""
    user, item = (
        table["raw_id"].to_numpy()[rows[name]]
        for name, table in (("user", dataset.users), ("item", dataset.items))
    )
    return list(zip(user, item, strict=True))


def test_new_users_and_items_come_after_the_old_ones():
    old = divided()
    newer = load(frame([("u2", "i9", 99), ("anna", "i0", 100), ("u2", "i1", 101)]))
    whole = joined(old, newer)
    assert whole.users["raw_id"].tolist() == ["u0", "u1", "u2", "u3", "anna"]
    assert whole.items["raw_id"].tolist() == ["i0", "i1", "i2", "i3", "i4", "i9"]
    pd.testing.assert_frame_equal(whole.interactions.head(20), old.interactions)
    more = whole.interactions.tail(-20)  # u2 has i1 already
    assert named(whole, more) == [("u2", "i9"), ("anna", "i0")]
    assert (more[["split", "client"]] == NEW).all(axis=None)


def test_ids_are_the_same_as_numbers_and_as_texts():
    rows = [(user, item, item) for user in range(3) for item in range(3)]
    old = partition(split(load(frame(rows)), "leave-one-out"), "user")
    whole = joined(old, load(frame([("2", "1", 9), ("2", "x", 9)])))
    assert whole.num_users == 3
    assert whole.items["raw_id"].tolist() == ["0", "1", "2", "x"]


def test_new_ones_need_enough_rows_and_old_ones_none():
    rows = [("u0", "a", 90), ("u1", "a", 91), ("u0", "b", 92), ("v", "i0", 93), ("w", "a", 94)]
    rows += [("v", "i1", 95)]
    whole = joined(divided(), load(frame(rows)), min_user=2, min_item=2)
    more = whole.interactions.tail(-20)
    assert sorted(named(whole, more)) == [("u0", "a"), ("u1", "a"), ("v", "i0"), ("v", "i1")]


@pytest.mark.parametrize(
    ("rows", "names", "problem"),
    [
        ([("u0", "x", 1)], ("user", "item", "timestamp"), "none of its 1 items is among the 5"),
        ([("u0", "i0", 1)], ("user", "item", "timestamp"), "nothing is new, in 1 rows"),
        ([("u9", "i0")], ("user", "item"), "no column 'timestamp', which the data of the run have"),
        ([("u9", "i0", 10**9)], ("user", "item", "timestamp"), "in another unit; write them alike"),
    ],
)
def test_what_does_not_fit_is_refused(rows, names, problem):
    with pytest.raises(DataError, match=problem):
        joined(divided(), load(frame(rows, names)))


def test_rows_that_are_not_newer_are_told_of():
    with pytest.warns(UserWarning, match="no row is later than the last one of the run"):
        joined(divided(), load(frame([("u9", "i0", 2)])))


def test_what_describes_and_is_not_there_is_missing():
    items = pd.DataFrame({"item": [f"i{n}" for n in range(5)], "title": list("abcde"), "price": 2})
    rows = [(f"u{u}", f"i{i}", 10 * i + u, 5.0) for u in range(4) for i in range(5)]
    old = load(frame(rows, ("user", "item", "timestamp", "rating")), items=items)
    old = partition(split(old, "leave-one-out"), "user")
    whole = joined(old, load(frame([("u0", "new", 90), ("u0", "i0", 91)])))
    assert whole.items["title"].tolist() == [*"abcde", ""]
    assert np.isnan(whole.items["price"].iloc[-1]) and whole.users is old.users
    assert np.isnan(whole.interactions["rating"].iloc[-1])


def test_a_split_of_newer_rows_counts_where_the_run_reads_it():
    rows = [("u0", "n", 90, "test"), ("u0", "i0", 91, "train")]
    newer = load(frame(rows, ("user", "item", "timestamp", "split")))
    assert joined(divided(), newer).interactions["split"].iloc[-1] == NEW
    assert joined(divided(), newer, splits=True).interactions["split"].iloc[-1] == TEST


@pytest.mark.parametrize("how", ["leave-one-out", "ratio", "time", "given"])
def test_what_was_trained_on_stays_in_train(how):
    old = divided("ratio") if how == "given" else divided(how)
    # the last is older than all others, so that a split by time alone would move its bounds back
    more = [("u0", "n1", 200), ("u0", "n2", 201), ("u1", "n1", 202), ("new", "i0", 203)]
    more += [("new", "i1", 204), ("new", "i2", 205), *[(f"u{n}", f"o{n}", -n) for n in range(4)]]
    whole = split_again(partition_again(joined(old, load(frame(more))), "user"), how)
    before, after = old.interactions["split"], whole.interactions["split"]
    assert (after[: len(before)][before == TRAIN] == TRAIN).all()
    assert set(after) == {TRAIN, VALID, TEST}
    if how == "leave-one-out":
        newest = named(whole, whole.interactions[after == TEST])
        assert ("u0", "n2") in newest and ("u2", "i4") in newest and ("new", "i2") in newest
    if how == "time":  # who comes late is trained on, and held out in a later update
        late = whole.interactions["user"] == whole.num_users - 1
        assert whole.users["raw_id"].iloc[-1] == "new" and (after[late] == TRAIN).all()
    if how in ("ratio", "given"):
        np.testing.assert_array_equal(after[: len(before)], before)


@pytest.mark.parametrize("who", ["user", "given", "blocks", "random"])
def test_a_new_user_gets_a_client(who):
    old = divided(who="user" if who == "given" else who)
    clients = old.interactions["client"].nunique()
    more = load(frame([("new", "i0", 1), ("u0", "n", 2), ("newer", "i0", 3)]))
    rows = partition_again(joined(old, more), who).interactions
    assert rows.groupby("user")["client"].nunique().max() == 1
    pd.testing.assert_series_equal(rows["client"].head(20), old.interactions["client"].head(20))
    expected = clients + 2 if who in ("user", "given") else clients
    assert sorted(rows["client"].unique()) == list(range(expected))

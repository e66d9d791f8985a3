"""Splits and cores against loops over users."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrec.data import core, split, synthetic
from jaxrec.data.split import with_random_positives
from jaxrec.types import TEST, TRAIN, VALID, DataError, Dataset, SettingError


def dataset(pairs, **columns) -> Dataset:
    rows = pd.DataFrame(pairs, columns=["user", "item"], dtype="int32").assign(**columns)
    users, items = (np.arange(rows[c].max() + 1) for c in ("user", "item"))
    return Dataset(
        "toy",
        rows,
        pd.DataFrame({"item": items, "title": [f"t{i}" for i in items], "raw_id": 10 + items}),
        pd.DataFrame({"user": users, "raw_id": 20 + users}),
    )


def parts(data: Dataset, user: int) -> list[int]:
    rows = data.interactions
    return rows.loc[rows["user"] == user, "split"].tolist()


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=40, unique=True),
    st.integers(0, 4),
    st.integers(0, 4),
)
def test_core_is_the_fixed_point_of_dropping(pairs, min_user, min_item):
    data = dataset(pairs)
    kept = list(pairs)
    while True:
        users, items = Counter(u for u, _ in kept), Counter(i for _, i in kept)
        fewer = [p for p in kept if users[p[0]] >= min_user and items[p[1]] >= min_item]
        if fewer == kept:
            break
        kept = fewer
    if not kept:
        with pytest.raises(DataError, match="no interaction is left"):
            core(data, min_user, min_item)
        return
    result = core(data, min_user, min_item)
    raw = zip(
        result.users["raw_id"].to_numpy()[result.interactions["user"]] - 20,
        result.items["raw_id"].to_numpy()[result.interactions["item"]] - 10,
        strict=True,
    )
    assert list(raw) == kept
    assert result.users["user"].tolist() == list(range(result.num_users))
    assert result.items["item"].tolist() == list(range(result.num_items))
    assert (result.items["title"] == [f"t{i - 10}" for i in result.items["raw_id"]]).all()
    if min_item > 0:
        assert result.num_items == len({i for _, i in kept})


def test_leave_one_out_takes_the_last_two_with_ties_in_file_order():
    pairs = [(0, i) for i in range(5)] + [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    data = dataset(pairs, timestamp=[9, 5, 9, 1, 9, 2, 1, 7, 7, 7])
    result = split(data, "leave-one-out")
    assert parts(result, 0) == [TRAIN, TRAIN, VALID, TRAIN, TEST]
    assert parts(result, 1) == [TRAIN, TRAIN]
    assert parts(result, 2) == [TRAIN, VALID, TEST]
    assert result.interactions["split"].dtype == np.int8


def test_ratio_gives_each_user_rounded_shares_and_one_train_row_at_least():
    data = synthetic(60, 80, clients=4, length=20)
    extra = dataset([(0, 0), (1, 0), (1, 1), *[(2, i) for i in range(30)]])
    for source, valid, test in ((data, 0.1, 0.2), (extra, 0.4, 0.5)):
        result = split(source, "ratio", valid, test, seed=3)
        for user in range(source.num_users):
            found = np.bincount(parts(result, user), minlength=3)
            total = found.sum()
            tests = min(round(total * test), total - 1)
            assert found.tolist()[1:] == [min(round(total * valid), total - 1 - tests), tests]
            assert found[TRAIN] >= 1


def test_ratio_depends_on_the_seed_only():
    data = synthetic(50, 60, clients=2, length=15)
    a, b, c = (split(data, "ratio", seed=s).interactions["split"].to_numpy() for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_ratio_is_even_over_items():
    data = dataset([(u, i) for u in range(300) for i in range(20)])
    rows = split(data, "ratio", 0.1, 0.2, seed=0).interactions
    share = (rows["split"] == TEST).groupby(rows["item"]).mean()
    assert np.abs(share - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / 300)


def test_time_cuts_all_users_at_the_same_moments_and_drops_the_late_ones():
    pairs = [(u, i) for u in range(3) for i in range(10)] + [(3, 0), (3, 1)]
    time = [10 * i + u for u in range(3) for i in range(10)] + [95, 96]
    data = dataset(pairs, timestamp=time, client=[0] * 10 + [1] * 20 + [2] * 2)
    with pytest.warns(UserWarning, match="1 of 4 users"):
        result = split(data, "time", 0.2, 0.2)
    rows = result.interactions
    edges = rows.groupby("split")["timestamp"].agg(["min", "max"])
    assert edges.loc[TRAIN, "max"] < edges.loc[VALID, "min"]
    assert edges.loc[VALID, "max"] < edges.loc[TEST, "min"]
    assert result.users["raw_id"].tolist() == [20, 21, 22]
    assert result.num_items == data.num_items
    assert sorted(rows["client"].unique()) == [0, 1]


def test_given_keeps_the_column():
    column = [TRAIN, VALID, TEST]
    result = split(dataset([(0, 0), (0, 1), (0, 2)], split=column), "given")
    assert parts(result, 0) == column


def test_the_default_is_the_given_split_else_by_time_else_by_ratio():
    ordered = dataset([(0, i) for i in range(10)], timestamp=range(10, 0, -1))
    given = replace(ordered, interactions=ordered.interactions.assign(split=[0, 1, 2] + [0] * 7))
    without = replace(ordered, interactions=ordered.interactions[["user", "item"]])
    assert parts(split(given), 0) == [TRAIN, VALID, TEST] + [TRAIN] * 7
    assert parts(split(ordered), 0) == [TEST, VALID] + [TRAIN] * 8
    assert parts(split(without), 0) == parts(split(without, "ratio"), 0)


def test_what_cannot_be_split_is_refused():
    plain = dataset([(0, 0), (0, 1), (0, 2), (1, 0)])
    for how, column in (("given", "split"), ("leave-one-out", "timestamp"), ("time", "timestamp")):
        with pytest.raises(DataError, match=f"toy.*'{how}' needs a column '{column}'"):
            split(plain, how)
    with pytest.raises(DataError, match=r"no row is valid \(1\)"):
        split(replace(plain, interactions=plain.interactions.assign(split=[0, 2, 2, 0])), "given")
    with pytest.raises(DataError, match=r"user 1 \(raw id 21\), first in row 3 .*no train row"):
        split(replace(plain, interactions=plain.interactions.assign(split=[0, 1, 2, 2])), "given")
    with pytest.raises(DataError, match="no row is valid"):
        split(replace(plain, interactions=plain.interactions.iloc[2:]), "ratio")
    for valid, test in ((0.5, 0.5), (0.0, 0.2), (0.1, -0.1)):
        with pytest.raises(SettingError, match=f"valid={valid} and test={test}"):
            split(plain, "ratio", valid, test)
    with pytest.raises(SettingError, match="unknown split 'ration'"):
        split(plain, "ration")


def test_a_user_without_rows_is_named_and_a_core_drops_it():
    data = dataset([(0, i) for i in range(10)] + [(2, i) for i in range(10)])
    with pytest.raises(DataError, match=r"user 1 \(raw id 21\) has no train row"):
        split(data, "ratio")
    result = split(core(data, 1, 0), "ratio")
    assert result.users["raw_id"].tolist() == [20, 22]


def noise_added(data: Dataset, share: float, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that were there and those that came; the former must be as they were."""
    rows = with_random_positives(data, share, seed).interactions
    before = data.interactions
    pd.testing.assert_frame_equal(rows.iloc[: len(before)], before)
    assert rows.index.tolist() == list(range(len(rows)))
    return before, rows.iloc[len(before) :]


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_random_positives_are_new_train_rows_in_proportion(share):
    data = split(synthetic(40, 60, clients=5, length=15), "ratio", 0.1, 0.2, seed=1)
    before, added = noise_added(data, share)
    assert (added["split"] == TRAIN).all()
    assert not added.duplicated(["user", "item"]).any()
    assert added["item"].between(0, data.num_items - 1).all()
    for user, own in before.groupby("user"):
        mine = added[added["user"] == user]
        assert len(mine) == round(share * (own["split"] == TRAIN).sum())
        assert not set(mine["item"]) & set(own["item"])  # valid and test items are held too
        train = own[own["split"] == TRAIN]
        others = [c for c in before if c not in ("user", "item")]
        likes = set(map(tuple, train[others].to_numpy().tolist()))
        assert set(map(tuple, mine[others].to_numpy().tolist())) <= likes


def test_random_positives_are_even_over_the_items_a_user_lacks():
    pairs = [(u, i) for u in range(400) for i in range(10)] + [(0, i) for i in range(10, 30)]
    split_column = [TRAIN] * 8 + [VALID, TEST]
    data = dataset(pairs, split=np.int8(split_column * 400 + [VALID] * 20))
    _, added = noise_added(data, 1.0)
    often = np.bincount(added["item"], minlength=30) / (399 * 8)
    assert (often[:10] == 0).all() and 0 not in added["user"].to_numpy()
    np.testing.assert_allclose(often[10:], 1 / 20, atol=5 * np.sqrt(0.05 * 0.95 / (399 * 8)))


def test_random_positives_depend_on_the_seed_only():
    data = split(synthetic(30, 50, clients=2, length=12), "ratio", seed=0)
    a, b, c = (noise_added(data, 0.5, seed)[1] for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(a, b)
    assert len(a) == len(c) and (a["item"].to_numpy() != c["item"].to_numpy()).any()
    assert (
        with_random_positives(data, 0.5, 1).interactions.dtypes == data.interactions.dtypes
    ).all()


def test_no_random_positives_change_nothing():
    data = split(synthetic(30, 50, clients=2, length=12), "ratio", seed=0)
    assert with_random_positives(data, 0.0) is data
    assert noise_added(data, 1e-6)[1].empty


def test_a_small_catalogue_gives_the_random_positives_that_it_has():
    pairs = [(0, i) for i in range(5)] + [(1, 0), (1, 1), (1, 2), (2, 0)]
    data = dataset(pairs, split=np.int8([0, 0, 0, 1, 2, 0, 0, 2, 0]))
    _, added = noise_added(data, 1.0)
    assert set(added.loc[added["user"] == 1, "item"]) == {3, 4}
    assert (added["user"] == 0).sum() == 0 and (added["user"] == 2).sum() == 1
    _, many = noise_added(data, 3.0)
    assert many.groupby("user").size().to_dict() == {1: 2, 2: 3}

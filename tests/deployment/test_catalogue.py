"""Clients that share no data number their items alike."""

import numpy as np
import pandas as pd
import pytest

from jaxrec.data.sources import load
from jaxrec.deployment.catalogue import digest_of, on_catalogue
from jaxrec.types import DataError

ITEMS = pd.DataFrame({"item": range(4), "raw_id": ["a", "b", "7", "d"], "title": list("ABCD")})


def client(rows):
    return load(pd.DataFrame(rows, columns=["user", "item"]))


def test_rows_are_laid_on_the_list_by_raw_ids():
    own = client([("x", "d"), ("x", "a"), ("y", "a"), ("y", "new"), ("z", "other")])
    data, unknown = on_catalogue(own, ITEMS)
    assert unknown == ["new", "other"]
    named = data.users["raw_id"].to_numpy()[data.interactions["user"]]
    items = ITEMS["raw_id"].to_numpy()[data.interactions["item"]]
    assert sorted(zip(named, items, strict=True)) == [("x", "a"), ("x", "d"), ("y", "a")]
    assert (data.num_users, data.num_items) == (2, 4)
    np.testing.assert_array_equal(data.users["user"], [0, 1])


def test_numbers_and_texts_are_the_same_ids():
    data, unknown = on_catalogue(client([(1, 7), (1, 8)]), ITEMS)
    assert (data.interactions["item"].tolist(), unknown) == ([2], ["8"])


def test_a_client_whose_items_nobody_knows_is_refused():
    with pytest.raises(DataError, match="none of its 2 items is among the 4 of the federation"):
        on_catalogue(client([(1, "p"), (1, "q")]), ITEMS)


def test_the_digest_is_of_ids_texts_and_their_order():
    same = ITEMS.assign(raw_id=["a", "b", 7, "d"])
    assert digest_of(ITEMS) == digest_of(same)
    others = [
        ITEMS.iloc[::-1],
        ITEMS.assign(title=list("ABCX")),
        ITEMS.drop(columns="title"),
        ITEMS.assign(raw_id=["a", "b", "7", "e"]),
        ITEMS.assign(raw_id=["ab", "", "7", "d"]),
    ]
    assert len({digest_of(each) for each in [ITEMS, *others]}) == 1 + len(others)

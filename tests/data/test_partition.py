"""Every user has one client, no client is empty, and the skewed partition is skewed."""

from dataclasses import replace

import numpy as np
import pytest

from jaxrec.data import load, partition, split, synthetic
from jaxrec.types import DataError, SettingError


@pytest.fixture(scope="module")
def data():
    full = synthetic(103, 90, clients=5, length=30)
    return split(replace(full, interactions=full.interactions.drop(columns="client")))


def client_of(data) -> np.ndarray:
    owners = data.interactions.groupby("user")["client"].agg(["min", "max"])
    assert (owners["min"] == owners["max"]).all()
    return owners["min"].to_numpy()


@pytest.mark.parametrize("how", ["blocks", "random", "dirichlet"])
@pytest.mark.parametrize("clients", [1, 7, 50, 103])
@pytest.mark.parametrize("seed", [0, 1])
def test_each_user_has_one_client_and_no_client_is_empty(data, how, clients, seed):
    result = partition(data, how, clients, alpha=0.05, seed=seed)
    assert result.interactions["client"].dtype == np.int32
    assert np.unique(client_of(result)).tolist() == list(range(clients))
    again = partition(data, how, clients, alpha=0.05, seed=seed)
    np.testing.assert_array_equal(client_of(result), client_of(again))


def test_blocks_are_contiguous_and_the_last_takes_the_remainder(data):
    assert np.bincount(client_of(partition(data, "blocks", 10))).tolist() == [10] * 9 + [13]
    assert (np.diff(client_of(partition(data, "blocks", 10))) >= 0).all()


def test_random_blocks_are_even_and_shuffled_by_seed(data):
    a, b = (client_of(partition(data, "random", 10, seed=s)) for s in (0, 1))
    assert sorted(np.bincount(a)) == [10] * 7 + [11] * 3
    assert (a != b).any()


def test_one_client_for_each_user(data):
    assert client_of(partition(data, "user")).tolist() == list(range(103))


def test_small_alpha_gathers_like_tastes(data):
    first = data.items["category"].str.split("|").str[0].to_numpy()
    rows = data.interactions[data.interactions["split"] == 0]
    genre = first[rows["item"]]
    names = np.unique(genre)
    counts = np.stack([np.bincount(rows["user"][genre == g], minlength=103) for g in names], 1)
    favourite = counts.argmax(1)

    def purity(alpha):
        client = client_of(partition(data, "dirichlet", 8, alpha=alpha, seed=0))
        mix = np.zeros((8, len(names)))
        np.add.at(mix, (client, favourite), 1)
        return mix.max(1).sum() / 103

    assert purity(0.05) > 0.6
    assert purity(0.05) > purity(100.0) + 0.2


def test_what_cannot_be_partitioned_is_refused(data):
    with pytest.raises(SettingError, match="clients=104: synthetic has 103 users"):
        partition(data, "blocks", 104)
    with pytest.raises(SettingError, match="clients=None"):
        partition(data, "random")
    with pytest.raises(SettingError, match="alpha=0"):
        partition(data, "dirichlet", 5, alpha=0)
    with pytest.raises(SettingError, match="unknown partition 'block'"):
        partition(data, "block", 5)
    with pytest.raises(DataError, match="needs a column 'client'"):
        partition(data, "given")
    with pytest.raises(DataError, match="needs a column 'category'"):
        partition(replace(data, items=data.items[["item", "title"]]), "dirichlet", 5)


@pytest.mark.realdata
def test_blocks_are_the_authors_clients(data_root):
    given = load("fedcia-ml100k")
    blocks = partition(given, "blocks", 100)
    assert blocks.interactions["client"].tolist() == given.interactions["client"].tolist()

"""The planted structure can be learnt, and its optimum is the best ranking there is."""

import numpy as np
import pytest

from jaxrec.data import load, optimum, split, synthetic
from jaxrec.types import TEST, SettingError


def ndcg(scores, train, test, k=10):
    """Mean NDCG@k of the scores with train items left out, over users with test items."""
    top = np.argsort(-np.where(train, -np.inf, scores), axis=1)[:, :k]
    gain = 1 / np.log2(np.arange(k) + 2)
    hits = np.take_along_axis(test, top, axis=1)
    some = test.any(1)
    ideal = np.cumsum(gain)[np.minimum(test.sum(1)[some], k) - 1]
    return ((hits * gain).sum(1)[some] / ideal).mean()


def dense(seed, how="ratio"):
    data = split(synthetic(seed=seed), how, seed=seed)
    rows = data.interactions
    seen = np.zeros((2, data.num_users, data.num_items), bool)
    seen[(rows["split"] == TEST).astype(int), rows["user"], rows["item"]] = True
    return seen


def item_model(train, ridge=100.0):
    """The linear item model with a zero diagonal: a strong method that sees train items only."""
    gram = train.T.astype(float) @ train
    inverse = np.linalg.inv(gram + ridge * np.eye(len(gram)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return train @ weights


@pytest.mark.parametrize("how", ["ratio", "leave-one-out"])
@pytest.mark.parametrize("seed", [0, 1])
def test_popularity_is_far_below_a_learner_and_a_learner_below_the_optimum(seed, how):
    train, test = dense(seed, how)
    popular = ndcg(np.broadcast_to(train.sum(0), train.shape), train, test)
    learnt = ndcg(item_model(train), train, test)
    best = ndcg(optimum(seed=seed), train, test)
    assert popular > 1.5 * ndcg(np.random.default_rng(0).random(train.shape), train, test)
    assert learnt > 1.8 * popular
    assert best > 1.3 * learnt


def test_no_bend_of_the_planted_odds_beats_them():
    """Mixing in popularity, dropping it, or noise: each loses to the optimum over three draws."""
    rng = np.random.default_rng(0)
    gaps = []
    for seed in range(3):
        train, test = dense(seed)
        odds = optimum(seed=seed)
        best = ndcg(odds, train, test)
        bends = [
            odds + 0.5 * np.log1p(train.sum(0)),
            odds - odds.mean(0),
            odds + 0.5 * rng.normal(size=odds.shape),
            odds + 0.05 * item_model(train),
        ]
        gaps.append([best - ndcg(bend, train, test) for bend in bends])
    assert (np.mean(gaps, axis=0) > 0).all()


def test_the_tables_are_complete_and_readable():
    data = synthetic()
    rows, items = data.interactions, data.items
    assert (data.num_users, data.num_items) == (400, 300)
    assert 36 < len(rows) / 400 < 44
    assert rows.groupby("user").size().min() >= 5
    assert not rows.duplicated(["user", "item"]).any()
    assert not rows.duplicated(["user", "timestamp"]).any()
    assert items["title"].is_unique
    for title, text, category in zip(items["title"], items["text"], items["category"], strict=True):
        assert all(word in title and word.lower() in text.lower() for word in category.split("|"))
    assert np.bincount(items["domain"]).tolist() == [150, 150]
    assert (rows["domain"] == items["domain"].to_numpy()[rows["item"]]).all()
    assert (rows.groupby("user")["domain"].nunique() == 2).mean() > 0.9
    assert rows.groupby("client")["user"].nunique().tolist() == [10] * 40
    assert "split" not in rows
    counts = np.sort(np.bincount(rows["item"], minlength=300))[::-1]
    assert counts[:30].sum() > 2.5 * counts[150:180].sum()


def test_tastes_are_shared_by_the_domains():
    """A user's liking for a genre in one domain tells of the other."""
    data = synthetic()
    genre = data.items["category"].str.split("|").str[0].astype("category").cat.codes.to_numpy()
    rows = data.interactions
    shares = np.zeros((2, 400, 8))
    np.add.at(shares, (rows["domain"], rows["user"], genre[rows["item"]]), 1)
    films, books = (s - s.mean(0) for s in shares)
    assert np.corrcoef(films.ravel(), books.ravel())[0, 1] > 0.5


def test_the_seed_decides_everything():
    assert synthetic(seed=5).digest == synthetic(seed=5).digest == synthetic(seed=5).digest
    assert synthetic(seed=5).digest != synthetic(seed=6).digest
    assert load("synthetic").digest == synthetic().digest
    np.testing.assert_array_equal(optimum(30, 40, seed=1), optimum(30, 40, seed=1))
    assert optimum(30, 40).shape == (30, 40)
    assert optimum(30, 40).dtype == np.float32


def test_other_sizes_work_and_impossible_ones_are_refused():
    data = synthetic(20, 1_200, clients=3, length=4)
    assert data.items["title"].is_unique
    assert data.interactions["client"].nunique() == 3
    with pytest.raises(SettingError, match="clients=21"):
        synthetic(20, 100, clients=21)
    with pytest.raises(SettingError, match="length=60"):
        synthetic(20, 100, clients=2, length=60)

"""Each attack recovers what it must from a planted example, and nothing from noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.sources import load
from jaxrec.federated import attacks
from jaxrec.federated.attacks import measure, membership, models, sums, uploads
from jaxrec.methods.fedcia import linear, similarity
from jaxrec.methods.fedcia.config import LinearConfig
from jaxrec.types import DataError

USERS, ITEMS, RIDGE = 40, 60, 20.0


@pytest.fixture(scope="module")
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def rows(rng):
    """Histories [U, I]: popular items first, each user 5 to 20 of them, the first 3 everybody's."""
    chance = 0.9 * (1 + np.arange(ITEMS) / 4.0) ** -0.8
    rows = (rng.random((USERS, ITEMS)) < chance).astype(np.int8)
    rows[:, :3] = 1
    return rows


def as_set(histories):
    return {np.asarray(row, np.int8).tobytes() for row in histories}


def ease(gram):
    config = LinearConfig(model="ease", ridge=RIDGE)
    gram = jnp.asarray(gram, jnp.float32)
    return np.asarray(linear._ease(gram, jnp.ones(len(gram)), config, jax.random.key(0)))


def test_the_row_of_an_item_with_count_one_is_its_users_history():
    planted = np.array([[1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [0, 1, 1, 0, 0]])  # item 3 is user 0's
    gram = planted.T @ planted
    assert as_set(sums.count_one(gram)) == as_set(planted[:1])
    # Without user 0, item 0 is user 1's alone; without user 1, the rest is user 2's.
    found, rest = sums.peel(gram)
    assert as_set(found) == as_set(planted) and not rest.any()
    assert not len(sums.count_one(sums.supported(gram, 2)))
    assert as_set(sums.peel(sums.difference(gram - np.outer(*planted[[1, 1]]), gram))[0]) == as_set(
        planted[1:2]
    )
    with pytest.raises(DataError, match="integers"):
        sums.count_one(gram / 2)


def test_few_and_pairs_solve_what_count_one_cannot(rows):
    gram = sums.supported(rows.T @ rows, 2)
    known = rows * (np.diagonal(gram) > 0)
    assert len(sums.count_one(gram)) == 0 and not sums.full_rank(gram)
    for found, _ in (sums.few(gram, 3), sums.pairs(gram)):
        assert len(found) and as_set(found) <= as_set(known)
    # With more users than items the range says nothing, and nothing is read.
    crowd = np.random.default_rng(1).integers(0, 2, (200, 30))
    assert sums.full_rank(crowd.T @ crowd)
    assert not len(sums.few(crowd.T @ crowd, 200)[0]) and not len(sums.pairs(crowd.T @ crowd)[0])


def test_a_real_sum_has_as_many_dimensions_as_users(data_root):
    """Its least eigenvalue is a millionth of its largest; who cuts that off reads nothing."""
    data = load(data_root / "fedcia-ml100k", progress=False)
    train = data.interactions[data.interactions["split"] == 0]
    rows = np.zeros((data.num_users, data.num_items), np.int8)
    rows[train["user"], train["item"]] = 1
    gram = sums.supported(rows.T.astype(np.int64) @ rows, 2)
    live, rest = sums._live(gram)
    assert sums._projector(rest)[1] == len(live) - len(rows)


def test_the_served_weights_of_ease_invert_to_the_sum(rows):
    gram = rows.T @ rows
    for sum_ in (gram, sums.supported(gram, 5)):
        found = models.ease_gram(ease(sum_), RIDGE)
        np.testing.assert_allclose(found, sum_, atol=1e-2)
        assert as_set(sums.count_one(found)) == as_set(sums.count_one(sum_))


def test_a_history_in_the_range_of_a_sum_was_in_training(rows):
    members, others = rows[: USERS // 2], rows[USERS // 2 :]
    gram = members.T @ members
    exact = measure.auc(membership.in_range(gram, members), membership.in_range(gram, others))
    assert exact == 1  # fewer users than items
    weights = ease(gram)
    for attack in (membership.reconstruction, membership.fit):
        score = lambda rows, attack=attack: attack(rows @ weights, rows)
        assert measure.auc(score(members), score(others)) > 0.6
    noise = np.random.default_rng(2).normal(size=gram.shape)
    private = gram + 100 * (noise + noise.T)
    score = lambda rows: membership.leverage(private, rows, RIDGE)
    assert abs(measure.auc(score(members), score(others)) - 0.5) < 0.2  # 4 deviations of 20 x 20


def test_one_upload_gives_its_items_away(rows, rng):
    held, width = rows[7] > 0, 16
    table = 0.1 * rng.normal(size=(ITEMS, width)) + 2.0 * held[:, None] * rng.normal(size=width)
    turned = np.asarray(similarity.rotate(jnp.asarray(table), jax.random.key(1)))
    basis = np.linalg.qr(rng.normal(size=(ITEMS, width)))[0]
    user = rng.normal(size=width)
    chances = rng.random(ITEMS)
    residual = held.sum() * chances / chances.sum() - held
    codes = rng.integers(0, 16, (ITEMS, 6))
    gradient = np.outer(residual, user)
    summed = np.stack(
        [[gradient[codes[:, level] == code].sum(0) for code in range(16)] for level in range(6)]
    )
    inverse = uploads.code_inverse(codes, 16)
    scores = {
        "factor": uploads.rows(turned),
        "sketch": uploads.sketch(table @ (table.T @ basis), basis),
        "gram": uploads.gram(np.outer(rows[7], rows[7])),
        "gradient": uploads.gradient(gradient),
        "codebooks": uploads.codebooks(summed, inverse),
    }
    np.testing.assert_allclose(scores["factor"], np.linalg.norm(table, axis=1), rtol=1e-4)
    np.testing.assert_allclose(scores["sketch"], np.sum(table**2, axis=1), rtol=1e-4)
    np.testing.assert_allclose(  # 96 codes tell 60 items apart
        uploads.item_gradient(summed, inverse), gradient, atol=1e-8
    )
    for name, score in scores.items():
        assert measure.auc(score[held], score[~held]) == 1, name
        assert measure.precision(score, held) == 1, name
    signs = np.sign(summed) * np.abs(summed).mean(-1, keepdims=True)
    for fit in (False, True):
        score = uploads.code_sums(signs, codes, fit=fit)
        assert measure.auc(score[held], score[~held]) > 0.8


def test_noise_says_no_more_than_popularity(rows, rng):
    held, counts = rows > 0, rows.sum(0)
    random = [rng.normal(size=(ITEMS, 16)) for _ in held]
    codes, change = rng.integers(0, 16, (ITEMS, 6)), rng.normal(size=(6, 16, 16))
    scores = [
        np.stack([attack(each) for each in random]) for attack in (uploads.rows, uploads.gradient)
    ]
    inverse = uploads.code_inverse(codes, 16)
    scores.append(np.broadcast_to(uploads.codebooks(change, inverse), held.shape))
    for score in scores:
        found = measure.guess(score, held, counts)
        assert found.advantage < 0 and found.precision < found.popularity_precision
    same = measure.guess(np.broadcast_to(counts, held.shape), held, counts)
    assert same.advantage == 0 and same.precision == same.popularity_precision


def test_measures_are_their_definitions(rng):
    members, others = rng.integers(0, 4, 30), rng.integers(0, 4, 20)
    wins = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    np.testing.assert_allclose(measure.auc(members, others), np.mean(wins))
    scores, held = np.array([3.0, 2, 2, 2, 1]), np.array([True, True, False, False, False])
    assert measure.precision(scores, held) == (1 + 1 / 3) / 2  # one of three tied items is held
    train, test = np.array([[True, False, False]]), np.array([[False, True, False]])
    assert measure.interactions(np.array([[2.0, 1.0, 5.0]]), train, test) == 1
    assert set(attacks.__all__) >= {"sums", "uploads"}

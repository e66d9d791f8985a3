"""Parameter-free FedCIA against the centralised models, computed densely in NumPy float64."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxrec
from jaxrec.data.buckets import POWERS_OF_TWO
from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import fedcia

K, LOW_PASS, RIDGE, GLOBAL = 6, 0.4, 15.0, 7.0


@cache
def problem():
    """Clients of several sizes in several buckets; the items without train rows stay."""
    dataset = split(synthetic(users=50, items=32, clients=7, length=12), "ratio", 0.1, 0.2, 0)
    dataset.interactions["client"] = (dataset.interactions["user"] ** 2) // 360  # 0 .. 6
    data, sizes = pack(dataset, multiple=2, lengths=POWERS_OF_TWO)
    assert len(data.clients) > 1
    train = dataset.interactions[dataset.interactions["split"] == 0]
    rows = np.zeros((sizes.users, sizes.items))
    rows[train["user"], train["item"]] = 1
    owner = dataset.interactions.groupby("user")["client"].first().to_numpy()
    return data, sizes, rows, owner


@cache
def scores(model, **settings):
    data, sizes, _, _ = problem()
    config = fedcia.Config(
        privacy="plain",
        model=model,
        singular_vectors=K,
        low_pass=LOW_PASS,
        ridge=RIDGE,
        global_weight=GLOBAL,
        **settings,
    )
    method = fedcia.make(config, sizes)

    def play(data, key):
        state, metrics = method.step(method.init(key, data), data, key)
        served = method.prepare(state, data)
        return method.score(served, jnp.arange(sizes.users)), metrics.energy

    play = jax.jit(play)
    return jax.tree.map(np.asarray, play(data, jax.random.key(0)))


def inverse_root(degree):
    return np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0)


def slow_gfcf(rows):
    """GF-CF's F [I, I] by the exact SVD."""
    user, item = inverse_root(rows.sum(1)), inverse_root(rows.sum(0))
    normalised = user[:, None] * rows * item
    _, values, right = np.linalg.svd(normalised, full_matrices=False)
    vectors = right[:K][values[:K] > 1e-6].T
    low_pass = item[:, None] * (vectors @ vectors.T) * np.sqrt(rows.sum(0))
    return normalised.T @ normalised + LOW_PASS * low_pass


def slow_ease(rows):
    inverse = np.linalg.inv(rows.T @ rows + RIDGE * np.eye(rows.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def assert_close(found, expected, where=True):
    gap = np.abs(found - expected) * where
    assert gap.max() < 1e-4 * np.abs(expected).max()


def test_gfcf_is_the_centralised_model():
    _, _, rows, _ = problem()
    assert_close(scores("gfcf")[0], rows @ slow_gfcf(rows))


def test_ease_is_the_centralised_model():
    _, _, rows, _ = problem()
    assert_close(scores("ease")[0], rows @ slow_ease(rows))


def test_the_published_form_is_the_loop_over_clients():
    _, sizes, rows, owner = problem()
    own = {client: slow_gfcf(rows[owner == client]) for client in np.unique(owner)}
    mean = np.mean(list(own.values()), axis=0)
    expected = np.zeros((sizes.users, sizes.items))
    for client, similarity in own.items():
        mine = owner == client
        expected[mine] = rows[mine] @ (GLOBAL * mean + similarity)
    assert_close(scores("gfcf", form="paper")[0], expected)


@pytest.mark.parametrize("model", ["gfcf", "ease"])
def test_a_sketch_of_full_rank_is_exact_on_unseen_items(model):
    """A user's own items are never ranked, so what they score is left open."""
    _, sizes, rows, _ = problem()
    found, energy = scores(model, sketch=sizes.items)
    assert_close(found, scores(model)[0], where=rows == 0)
    assert energy == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("model", ["gfcf", "ease"])
def test_a_longer_sketch_holds_more_and_comes_closer(model):
    _, _, rows, _ = problem()
    gaps, held = [], []
    for sketch in (8, 24):
        found, energy = scores(model, sketch=sketch, passes=12)
        gaps.append(np.linalg.norm((found - scores(model)[0]) * (rows == 0)))
        held.append(energy)
    assert gaps == sorted(gaps, reverse=True)
    assert held == sorted(held) and held[-1] < 1


def test_the_published_form_is_not_the_centralised_model():
    found, expected = scores("gfcf", form="paper")[0], scores("gfcf")[0]
    agreement = np.corrcoef(found.ravel(), expected.ravel())[0, 1]
    assert 0.5 < agreement < 0.999


@pytest.mark.parametrize(
    ("settings", "once", "up", "down"),
    [
        ({"model": "ease"}, 0, 2 * 32 * 33, 4 * 32**2),
        ({"model": "gfcf"}, 4 * 32, 2 * 32 * 33, 4 * 32**2),
        ({"model": "gfcf", "form": "paper"}, 0, 4 * 32**2, 4 * 32**2),
        (
            {"model": "gfcf", "sketch": 8, "passes": 3},
            4 * 32,
            4 * 32 * 8 * 3 + 4,
            4 * 32 * 8 * 3 + 4 * 8,
        ),
        ({"model": "ease", "sketch": 8}, 4 * 32, 4 * 32 * 8, 4 * 32 * 8 + 4 * 32),
    ],
)
def test_traffic_counts_what_travels(settings, once, up, down):
    config = fedcia.Config(singular_vectors=K, privacy="plain", **settings)
    method = fedcia.make(config, problem()[1])
    assert method.one_shot
    traffic = method.traffic
    assert (traffic.setup_up, traffic.setup_down) == (once, once)
    assert (traffic.up, traffic.down) == (up, down)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("settings", "f1", "ndcg"),
    [
        ({"model": "ease", "ridge": 500.0}, 0.2722, 0.5505),
        ({"model": "gfcf", "singular_vectors": 32, "low_pass": 0.3}, 0.2609, 0.5261),
    ],
    ids=["ease", "gfcf"],
)
def test_lossless_equals_the_centralised_ceiling_on_ml100k(data_root, settings, f1, ndcg):
    result = jaxrec.train(
        "fedcia",
        data_root / "fedcia-ml100k",
        privacy="plain",
        baselines=(),
        ks=(10,),
        progress=False,
        **settings,
    )
    assert result.values["test/F1@10"] == pytest.approx(f1, abs=1e-4)
    assert result.values["test/NDCG@10"] == pytest.approx(ndcg, abs=1e-4)

"""FedCIA against dense I x I matrices: what travels, what the server keeps, how clients align."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import fedcia

WIDTH, ROUNDS = 4, 2


@cache
def problem():
    dataset = split(synthetic(users=24, items=30, clients=6, length=14), "ratio", 0.1, 0.2, 0)
    return pack(dataset)


def player(**settings):
    """A function (key, data, rounds) -> state, metrics of the last round, what serves."""
    plain = {"privacy": "plain", "upload": "factor", "training": "steps"}
    settings = {"width": WIDTH, "rank": 30, "server_iterations": 12} | plain | settings
    method = fedcia.make(fedcia.Config(**settings), problem()[1])

    def play(key, data, rounds):
        step = lambda state, number: method.step(state, data, jax.random.fold_in(key, number))
        start = method.init(key, data)
        nothing = jax.tree.map(jnp.zeros_like, jax.eval_shape(step, start, 0)[1])
        state, metrics = jax.lax.fori_loop(
            0, rounds, lambda number, carry: step(carry[0], number), (start, nothing)
        )
        return state, metrics, method.prepare(state, data)

    return play


@cache
def program(**settings):
    return jax.jit(player(**settings))


def play(rounds=ROUNDS, **settings):
    return program(**settings)(jax.random.key(0), problem()[0], rounds)


def tables(state):
    """Every client's item table, a list over clients."""
    return [np.asarray(table, float) for group in state.tables for table in group.item]


def aligned(served):
    """Every client's item table as it serves, the same list."""
    return [np.asarray(table, float) for table in served.item]


def dense(similarity):
    return np.asarray(similarity.vectors * similarity.values @ similarity.vectors.T, float)


def mean_similarity(state, weights):
    return np.average([table @ table.T for table in tables(state)], axis=0, weights=weights)


def sizes():
    """Train interactions of each client, in the order of `tables`."""
    return np.concatenate([clients.weight for clients in problem()[0].clients])


def relative(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("weighting", ["uniform", "interactions"])
def test_the_server_holds_the_mean_similarity(weighting):
    state, _, _ = play(weighting=weighting)
    weights = np.ones(6) if weighting == "uniform" else sizes()
    assert relative(dense(state.shared.similarity), mean_similarity(state, weights)) < 1e-4
    assert state.shared.energy == pytest.approx(1, abs=1e-3)
    assert state.shared.rounds == ROUNDS
    assert relative(mean_similarity(state, sizes()), mean_similarity(state, np.ones(6))) > 1e-3


def test_the_server_keeps_the_leading_pairs_and_says_how_much_they_hold():
    state, _, _ = play(rank=5, server_iterations=60)
    values = np.linalg.eigvalsh(mean_similarity(state, np.ones(6)))[::-1]
    np.testing.assert_allclose(state.shared.similarity.values, values[:5], rtol=1e-3)
    assert state.shared.energy == pytest.approx(values[:5].sum() / values.sum(), rel=1e-3)
    assert state.shared.energy < 0.99


def test_a_sketch_of_full_rank_says_what_the_factors_say():
    factor, _, _ = play(rounds=1)
    sketch, metrics, _ = play(rounds=1, upload="sketch")
    assert relative(dense(sketch.shared.similarity), dense(factor.shared.similarity)) < 1e-3
    assert metrics.energy == pytest.approx(1, abs=1e-3)


def test_blocks_of_clients_change_nothing():
    whole, _, _ = play(upload="sketch")
    blocks, _, _ = play(upload="sketch", block=2)
    assert relative(dense(blocks.shared.similarity), dense(whole.shared.similarity)) < 1e-3


def test_clients_descend_on_the_dense_distance_before_they_serve():
    state, _, served = play(align="gradient", align_steps=40, align_rate=0.05, align_decay=0.1)
    target = jnp.float32(mean_similarity(state, np.ones(6)))
    objective = lambda e: jnp.linalg.norm(e @ e.T - target) + 0.05 * jnp.sum(e**2)
    gradient = jax.jit(jax.grad(objective))
    for start, found in zip(tables(state), aligned(served), strict=True):
        expected = jnp.float32(start)
        for _ in range(40):
            expected -= 0.05 * gradient(expected)
        assert relative(expected, start) > 0.01
        assert relative(found, np.asarray(expected)) < 1e-3


def test_clients_jump_to_the_nearest_minimiser_before_they_serve():
    state, _, served = play()
    values, vectors = np.linalg.eigh(mean_similarity(state, np.ones(6)))
    root = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :WIDTH]
    for start, found in zip(tables(state), aligned(served), strict=True):
        left, _, right = np.linalg.svd(root.T @ start)
        assert relative(found, root @ left @ right) < 5e-3


def test_nothing_is_aligned_before_the_first_round():
    state, _, served = play(rounds=0)
    for start, found in zip(tables(state), aligned(served), strict=True):
        np.testing.assert_array_equal(found, start)
        np.testing.assert_array_equal(found, tables(state)[0])


def test_the_reported_distance_is_the_dense_one():
    """Round two begins with the alignment that served after round one."""
    state, _, served = play(rounds=1)
    _, metrics, _ = play(rounds=2)
    target = dense(state.shared.similarity)
    gaps = [np.linalg.norm(e @ e.T - target) for e in aligned(served)]
    assert metrics.distance == pytest.approx(np.mean(gaps) / np.linalg.norm(target), rel=1e-3)
    assert metrics.participants == 6


def test_rebuilt_tables_are_made_of_the_server_similarity_and_kept_nowhere():
    state, _, served = play(tables="rebuilt")
    assert all(group.item.size == 0 for group in state.tables)
    assert jax.tree.leaves(state.moments) == []
    values, vectors = np.linalg.eigh(dense(state.shared.similarity))
    best = (vectors * np.maximum(values, 0))[:, -WIDTH:] @ vectors[:, -WIDTH:].T
    for table in aligned(served):
        assert relative(table @ table.T, best) < 1e-3


def test_a_mean_that_no_tables_have_leaves_the_server_what_it_had():
    lies = {"upload": "sketch", "attackers": 0.99, "attack": "scale", "attack_scale": -10.0}
    before, _, _ = play(rounds=0, **lies)
    state, metrics, served = play(rounds=3, **lies)
    assert dense(state.shared.similarity) == pytest.approx(dense(before.shared.similarity))
    assert state.shared.rounds == 0 and metrics.participants == 6
    chex.assert_tree_all_finite((metrics, served))


def test_noise_moves_the_similarity_by_its_scale():
    """The mean of C Laplace(b) matrices, made symmetric, has entries of variance b^2 / C."""
    scale = 0.01
    clean, noisy = (
        dense(play(rounds=1, **noise)[0].shared.similarity) for noise in ({}, {"noise": scale})
    )
    expected = 30 * scale / np.sqrt(6)  # its negative eigenvalues are cut off
    assert 0.4 * expected < np.linalg.norm(noisy - clean) < 1.1 * expected


@pytest.mark.slow
def test_a_mixed_federation_keeps_each_client_its_own_width():
    state, _, _ = play(model="mf:4,lightgcn:3,mf:2")
    widths = [group.item.shape[2] for group in state.tables]
    assert {4, 3, 2} == set(widths)
    assert sum(len(group.item) for group in state.tables) == 6
    assert relative(dense(state.shared.similarity), mean_similarity(state, np.ones(6))) < 1e-4


@pytest.mark.parametrize(
    ("settings", "up"),
    [({}, 4 * 30 * WIDTH), ({"upload": "sketch"}, 4 * 30 * 8 + 4), ({"model": "mf:6,mf:2"}, 480)],
)
def test_traffic_counts_what_travels(settings, up):
    config = fedcia.Config(
        **{"width": WIDTH, "rank": 8, "privacy": "plain", "upload": "factor", "training": "steps"}
        | settings
    )
    traffic = fedcia.make(config, problem()[1]).traffic
    assert traffic.up == up
    assert traffic.down == 4 * 8 * (30 + 1)


def test_seeds_on_a_vmapped_axis_are_the_seeds_one_by_one():
    data, _ = problem()
    keys = jax.random.split(jax.random.key(0), 2)
    batched = jax.vmap(lambda key: player()(key, data, ROUNDS)[2].item)
    together = jax.jit(batched)(keys)
    for key, found in zip(keys, together, strict=True):
        expected = program()(key, data, ROUNDS)[2].item
        assert relative(found, np.asarray(expected)) < 1e-3
    assert relative(together[0], np.asarray(together[1])) > 0.1

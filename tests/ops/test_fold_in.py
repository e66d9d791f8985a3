"""Fold-in against automatic differentiation and a general minimiser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from jaxrec.ops import fold_in
from jaxrec.ops.fold_in import Curvature

USERS, ITEMS, WIDTH = 4, 12, 3
SETTINGS = {"l2": 0.7, "damping": 0.5, "steps": 3}
run = jax.jit(fold_in.fold_in, static_argnames=("l2", "damping", "steps"))


def normals(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


FEATURES, PRIOR, START = normals(0, ITEMS, WIDTH), normals(1, WIDTH), normals(2, USERS, WIDTH)
SHARES = np.float32(np.random.default_rng(3).dirichlet(np.ones(ITEMS)))
OFFSET = 0.3 * normals(4, USERS, ITEMS)


def chosen():
    """Weights of what users chose; the last one chose nothing."""
    rng = np.random.default_rng(5)
    r = rng.uniform(0.5, 2, (USERS, ITEMS)) * (rng.random((USERS, ITEMS)) < 0.4)
    r[-1] = 0
    assert (r[:-1].sum(1) > 0).all()
    return r.astype(np.float32)


def curvature():
    return fold_in.curvature(jnp.asarray(FEATURES), jnp.asarray(SHARES))


def fitted(start=START, r=None, offset=OFFSET, features=FEATURES, **more):
    r = chosen() if r is None else r
    arrays = map(jnp.asarray, (start, features, r, offset, PRIOR))
    return run(*arrays, curvature(), **(SETTINGS | more))


def one_loss(x, r, offset, l2=SETTINGS["l2"], xp=jnp):
    """The docstring's loss of one user."""
    scores = FEATURES @ x + offset
    lse = xp.log(xp.sum(xp.exp(scores)))
    return xp.sum(r * (lse - scores)) + l2 / 2 * xp.sum((x - PRIOR) ** 2)


def test_curvature_is_the_hessian_of_logsumexp():
    """At x = 0 with the log shares as offsets the softmax is q."""
    hessian = jax.hessian(lambda x: jax.nn.logsumexp(FEATURES @ x + jnp.log(SHARES)))
    values, vectors = curvature()
    np.testing.assert_allclose(
        (vectors * values) @ vectors.T, hessian(jnp.zeros(WIDTH)), rtol=1e-4, atol=1e-5
    )
    mean = SHARES @ FEATURES
    centred = FEATURES - mean
    np.testing.assert_allclose(
        (vectors * values) @ vectors.T, (centred.T * SHARES) @ centred, rtol=1e-4, atol=1e-5
    )


def test_curvature_of_equal_items_is_zero_and_not_below():
    values, _ = fold_in.curvature(jnp.full((ITEMS, WIDTH), 7.3), jnp.asarray(SHARES))
    assert (values >= 0).all() and (values < 1e-3).all()


def test_residual_is_the_gradient_of_the_loss():
    scores, r = jnp.asarray(normals(6, USERS, ITEMS)), jnp.asarray(chosen())
    expected = jax.grad(lambda s: fold_in.loss(s, r).sum())(scores)
    np.testing.assert_allclose(fold_in.residual(scores, r), expected, rtol=1e-4, atol=1e-5)
    slow = [
        sum(r[u, j] * (np.log(np.exp(scores[u]).sum()) - scores[u, j]) for j in range(ITEMS))
        for u in range(USERS)
    ]
    np.testing.assert_allclose(fold_in.loss(scores, r), slow, rtol=1e-4)


@pytest.mark.parametrize("damping", [0.3, 1.0])
def test_a_step_is_newtons_with_the_common_curvature(damping):
    gradient = jax.vmap(jax.grad(one_loss))(START, chosen(), OFFSET)
    found = fitted(steps=1, damping=damping)
    mean = SHARES.astype(float) @ FEATURES
    common = (FEATURES.T * SHARES) @ FEATURES - np.outer(mean, mean)
    for user, r in enumerate(chosen()):
        hessian = r.sum() * common + SETTINGS["l2"] * np.eye(WIDTH)
        expected = START[user] - damping * np.linalg.solve(hessian, gradient[user])
        np.testing.assert_allclose(found[user], expected, rtol=1e-3, atol=1e-4)


def test_with_a_users_own_softmax_it_is_newtons_method():
    r, offset = chosen()[:1], OFFSET[:1]
    own = fold_in.curvature(jnp.asarray(FEATURES), jax.nn.softmax(FEATURES @ START[0] + offset[0]))
    found = run(START[:1], FEATURES, r, offset, PRIOR, own, l2=0.7, damping=1.0, steps=1)
    arguments = START[0], r[0], offset[0]
    step = jnp.linalg.solve(jax.hessian(one_loss)(*arguments), jax.grad(one_loss)(*arguments))
    np.testing.assert_allclose(found[0], START[0] - step, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("l2", [0.1, 5.0])
def test_many_steps_reach_the_minimum(l2):
    found = np.asarray(fitted(steps=200, damping=0.3, l2=l2))
    for user, r in enumerate(chosen()):
        loss = lambda x, r=r, user=user: one_loss(x, r, OFFSET[user], l2, np)
        best = minimize(loss, np.zeros(WIDTH), method="BFGS", options={"gtol": 1e-7})
        np.testing.assert_allclose(found[user], best.x, atol=2e-3)
    np.testing.assert_allclose(fitted(found, steps=1, l2=l2), found, atol=1e-4)


def test_steps_add_up():
    twice = fitted(fitted(steps=2), steps=3)
    np.testing.assert_allclose(twice, fitted(steps=5), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(fitted(steps=0), START)
    assert np.abs(fitted(steps=5) - fitted(steps=4)).max() > 1e-4


@pytest.mark.parametrize("value", [-1e9, -np.inf], ids=str)
def test_offsets_exclude_rivals(value):
    """As if those items did not exist, unless the user chose one."""
    r = chosen()
    out = np.array([1, 4, 9])
    r[:, out] = 0
    assert (r[:-1].sum(1) > 0).all()
    offset = OFFSET.copy()
    offset[:, out] = value
    garbled = FEATURES.copy()
    garbled[out] = 50
    found = fitted(r=r, offset=offset, features=garbled)
    rest = np.setdiff1d(np.arange(ITEMS), out)
    expected = fitted(r=r[:, rest], offset=OFFSET[:, rest], features=FEATURES[rest])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    scores = START @ FEATURES.T + offset
    losses = fold_in.loss(jnp.asarray(scores), jnp.asarray(r))
    alone = fold_in.loss(jnp.asarray(scores[:, rest]), jnp.asarray(r[:, rest]))
    np.testing.assert_allclose(losses, alone, rtol=1e-5)
    residual = np.asarray(fold_in.residual(jnp.asarray(scores), jnp.asarray(r)))
    assert (residual[:, out] == 0).all() and np.isfinite(residual).all()


def test_with_no_rival_at_all_nothing_becomes_nan():
    scores, r = jnp.full((1, ITEMS), -1e9), jnp.zeros((1, ITEMS))
    assert fold_in.loss(scores, r) == 0
    assert (fold_in.residual(scores, r) == 0).all()


def test_a_common_offset_is_that_of_every_user():
    found = fitted(offset=OFFSET[0])
    np.testing.assert_allclose(found, fitted(offset=np.tile(OFFSET[0], (USERS, 1))), rtol=1e-6)
    np.testing.assert_allclose(fitted(offset=OFFSET[0] + 5), found, rtol=1e-4, atol=1e-4)


def test_a_user_without_history_goes_to_the_prior_and_stays_there():
    last = fitted(steps=1, damping=0.3)[-1]
    np.testing.assert_allclose(last, START[-1] + 0.3 * (PRIOR - START[-1]), rtol=1e-5)
    np.testing.assert_allclose(fitted(steps=60)[-1], PRIOR, rtol=1e-5)
    start = START.copy()
    start[-1] = PRIOR
    found = np.asarray(fitted(start))
    np.testing.assert_array_equal(found[-1], PRIOR)
    assert np.abs(found[:-1] - start[:-1]).max() > 0.1


def test_jit_and_vmap_change_nothing():
    arrays = map(jnp.asarray, (START, FEATURES, chosen(), OFFSET, PRIOR))
    found = fold_in.fold_in(*arrays, curvature(), **SETTINGS)
    close = partial(np.testing.assert_allclose, found, rtol=1e-5, atol=1e-6)
    close(fitted())
    close(np.concatenate([fitted(START[[u]], chosen()[[u]], OFFSET[[u]]) for u in range(USERS)]))

    def client(start, r, offset):
        return fold_in.fold_in(start, FEATURES, r, offset, PRIOR, curve, **SETTINGS)

    curve = curvature()
    pairs = (leaf.reshape(2, 2, -1) for leaf in (START, chosen(), OFFSET))
    close(jax.jit(jax.vmap(client))(*pairs).reshape(USERS, WIDTH))


def test_nothing_is_in_float64_even_where_it_could_be():
    def whole(start, features, r, offset, prior, shares):
        curve = fold_in.curvature(features, shares)
        x = fold_in.fold_in(start, features, r, offset, prior, curve, **SETTINGS)
        scores = x @ features.T + offset
        return x, fold_in.loss(scores, r), fold_in.residual(scores, r)

    with jax.enable_x64(True):
        arrays = map(jnp.asarray, (START, FEATURES, chosen(), OFFSET, PRIOR, SHARES))
        trace = jax.make_jaxpr(whole)(*arrays)
    assert "f32" in str(trace) and "f64" not in str(trace)


def test_without_curvature_it_is_gradient_descent():
    nothing = Curvature(jnp.zeros(WIDTH), jnp.eye(WIDTH))
    arrays = map(jnp.asarray, (START, FEATURES, chosen(), OFFSET, PRIOR))
    found = run(*arrays, nothing, l2=2.0, damping=0.1, steps=1)
    gradient = jax.vmap(lambda *a: jax.grad(one_loss)(*a, 2.0))(START, chosen(), OFFSET)
    np.testing.assert_allclose(found, START - 0.05 * gradient, rtol=1e-4, atol=1e-5)

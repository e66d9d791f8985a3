"""The context of RQFedRec's users, against loops over users and rows."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.partition import partition
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.data.text import texts, tfidf
from jaxrec.methods import rqfedrec
from jaxrec.methods.rqfedrec import client, context, server
from jaxrec.ops import quantize
from jaxrec.types import Earlier, SettingError

WIDTH, TOLD = 4, 3
SMALL = {
    "width": WIDTH, "text_width": TOLD, "levels": 2, "codes": 5, "privacy": "plain",
    "participation": 1.0, "uplink": "float32", "downlink": "float32", "recency": 2.0,
}  # fmt: skip
NEXT = {"next_rows": 3, "context_recency": 0.5}


@cache
def problem(how="given"):
    dataset = split(synthetic(users=36, items=30, clients=6, length=12), "ratio", 0.1, 0.2, 0)
    data, sizes = pack(partition(dataset, how))
    return data._replace(text=jnp.asarray(tfidf(texts(dataset.items)), jnp.float32)), sizes


def make(how="given", **settings):
    return rqfedrec.make(rqfedrec.Config(**SMALL | NEXT | settings), problem(how)[1])


@cache
def first(how, **settings):
    return jax.jit(make(how, **settings).init)(jax.random.key(0), problem(how)[0])


@cache
def step(how, **settings):
    return jax.jit(make(how, **settings).step)


def played(rounds=1, how="given", refresh=0, **settings):
    """The states before and after each round."""
    states = [first(how, **settings)]  # which a later refresh does not change
    for number in range(rounds):
        state, _ = step(how, refresh=refresh, **settings)(
            states[-1], problem(how)[0], jax.random.key(number)
        )
        states.append(state)
    return states


@cache
def learned(how="given"):
    """A client of several users, codes and codebooks that say something, and what was sent."""
    data, _ = problem(how)
    config = rqfedrec.Config(**SMALL | NEXT)
    (state,) = played(0, "user")  # codes are the same however users are shared out
    said = jax.random.normal(jax.random.key(3), state.shared.context.shape)
    shared = state.shared._replace(context=said)
    one = jax.tree.map(lambda leaf: leaf[0], data.clients[-1])
    return config, shared, jax.jit(partial(server.broadcast, config))(shared), one


def by_time(one, row):
    """The items of a client's user, the oldest first."""
    own = np.flatnonzero(np.asarray(one.mask & (one.user == row)))
    return np.asarray(one.item)[own[np.argsort(-np.asarray(one.age)[own])]]


def context_of(said, items):
    """The mean of what `items` say, the last one counting most."""
    weights = 1 / (1 + np.arange(len(items))[::-1] / NEXT["context_recency"])
    return weights @ said[items] / weights.sum()


@pytest.mark.parametrize("how", ["given", "user"])
def test_a_context_is_the_mean_of_what_the_rows_say_the_newest_counting_most(how):
    config, shared, sent, one = learned(how)
    said = np.asarray(quantize.decode(shared.codes.table, sent.context))
    found = jax.jit(partial(context.of_users, config))(said, one)
    expected = [context_of(said, by_time(one, row)) for row in range(len(one.users))]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_that_of_a_loop_over_the_newest_rows():
    config, shared, sent, one = learned()
    older = jax.random.normal(jax.random.key(4), (len(one.users), WIDTH + TOLD + 1))

    @jax.jit
    def found(older):
        view = client.view(config, server.all_items(shared, sent), one)
        return context.gradient(config, sent.context, older, view, one)

    @jax.jit
    @jax.grad
    def of_row(codebooks, user, item, weights):
        """Of the loss of one row, where items count `weights` [I] in what the user reads."""
        items = server.all_items(shared, sent)
        said = quantize.decode(shared.codes.table, codebooks)
        reads = weights @ said / weights.sum()
        scores = items.features @ user.at[:WIDTH].add(reads)
        scores = jnp.where(weights > 0, -jnp.inf, scores)  # nobody chooses twice
        return -jax.nn.log_softmax(scores)[item]

    expected = 0.0
    for row in range(len(one.users)):
        chosen = by_time(one, row)
        for at in range(len(chosen) - min(3, len(chosen) // 2), len(chosen)):
            weights = np.zeros(30, np.float32)
            weights[chosen[:at]] = 1 / (1 + np.arange(at)[::-1] / NEXT["context_recency"])
            expected += np.asarray(of_row(sent.context, older[row], chosen[at], weights))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found(older), expected, atol=1e-4 * np.abs(expected).max())


def test_the_newest_rows_are_predicted_by_users_who_have_not_seen_them():
    """The fit reads the rows before the predicted ones, and counts their ages anew."""
    config, shared, sent, one = learned("user")
    seen = jax.jit(lambda: client.view(config, server.all_items(shared, sent), one))()
    fits = []
    follow = lambda *args, **given: fits.append(args[2].chosen) or jnp.zeros_like(args[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "follow", follow)
        client.context_gradient(config, seen, sent, one)
    chosen = by_time(one, 0)
    last = min(3, len(chosen) // 2)
    expected = np.zeros(30)
    expected[chosen[:-last]] = 1 / (1 + np.arange(len(chosen) - last)[::-1] / config.recency)
    np.testing.assert_allclose(fits[0][0], expected, rtol=1e-6)


def test_a_round_steps_on_the_mean_gradient_of_the_context():
    data, _ = problem("user")
    config = rqfedrec.Config(**SMALL | NEXT)
    before, after = played(how="user")

    @jax.jit
    def gradient(shared, one):
        sent = server.broadcast(config, shared)
        seen = client.view(config, server.all_items(shared, sent), one)
        return client.context_gradient(config, seen, sent, one)

    total = rows = 0.0
    for clients in jax.tree.map(np.asarray, data.clients):
        for line in range(len(clients.client)):
            one = jax.tree.map(lambda leaf, n=line: leaf[n], clients)
            total += np.asarray(gradient(before.shared, one))
            rows += one.weight
    np.testing.assert_allclose(after.shared.moments[0].mu[2], 0.1 * total / rows, atol=1e-6)
    moved = np.asarray(after.shared.context)
    clear = np.abs(total) > 1e-3
    assert clear.any()
    stepped = -config.context_learning_rate * np.sign(total)[clear]
    np.testing.assert_allclose(moved[clear], (1 - config.context_decay) * stepped, rtol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"negatives": 9},
        {"uplink": "sign"},
        pytest.param({"drop_loss": 0.2}, marks=pytest.mark.slow),
        pytest.param({"clip": 0.01}, marks=pytest.mark.slow),
        {"aggregate": "norm_bound"},
        {"privacy": "secure_sum", "uplink": "int8", "min_support": 2, "min_cohort": 2},
    ],
    ids=str,
)
def test_a_context_is_learned_whatever_the_uploads_are(settings):
    coded = {"channels": "random", "start": "cold"}  # which is compiled soonest
    before, after = played(how="user", **coded, **settings)
    assert np.isfinite(after.shared.context).all()
    assert (before.shared.context == 0).all() and (after.shared.context != 0).any()
    if settings.get("uplink") == "sign":
        assert after.error[0].shape[1:] == (4, 5, WIDTH)


def test_growth_keeps_what_the_rounds_learned_of_the_first_items():
    (data, sizes), method = problem("user"), make("user", codes=20)
    state = played(2, "user", codes=20)[-1]
    grown = jax.jit(method.grow, static_argnums=1)(
        state, Earlier(None, sizes), jax.random.key(1), data
    )
    was, kept = (
        np.asarray(quantize.decode(shared.codes.table, shared.context))
        for shared in (state.shared, grown.shared)
    )
    assert (grown.shared.codes.table != state.shared.codes.table).any()
    assert np.sum((kept - was) ** 2) < 0.02 * np.sum(was**2)


def test_what_users_chose_last_is_in_their_scores():
    data, sizes = problem("user")
    _, shared, sent, _ = learned("user")
    method = make("user")
    (state,) = played(0, "user")
    told, silent = state._replace(shared=shared), state

    @jax.jit
    def served(state):
        scores = method.score(method.prepare(state, data), jnp.arange(sizes.users))
        return scores, method.fold_in(state, data).user

    (scores, new), (without, known) = (map(np.asarray, served(each)) for each in (told, silent))
    said = np.asarray(quantize.decode(shared.codes.table, shared.context))
    vectors = np.asarray(quantize.decode(shared.codes.table, sent.codebooks))
    for clients in jax.tree.map(np.asarray, data.clients):
        for line, (user,) in enumerate(clients.users):
            one = jax.tree.map(lambda leaf, n=line: leaf[n], clients)
            expected = vectors @ context_of(said, by_time(one, 0))
            np.testing.assert_allclose((scores - without)[user], expected, rtol=1e-3, atol=1e-3)
    assert np.abs(new - known)[:, :WIDTH].max() > 0.1
    np.testing.assert_allclose(new[:, WIDTH:], known[:, WIDTH:], atol=1e-6)


def test_a_refresh_says_the_context_in_the_new_codes():
    states, without = (played(3, "user", refresh=n, codes=20) for n in (3, 0))
    assert (states[3].shared.codes.table != without[3].shared.codes.table).any()
    kept, was = (
        np.asarray(quantize.decode(shared.codes.table, shared.context))
        for shared in (states[3].shared, without[3].shared)
    )
    assert np.abs(was).max() > 0.01
    assert np.sum((kept - was) ** 2) < 0.01 * np.sum(was**2)


def test_without_order_there_is_no_context():
    data, _ = problem()
    timeless = data._replace(clients=tuple(c._replace(age=None) for c in data.clients))
    config, note = rqfedrec.TRAITS.settled(rqfedrec.Config(), timeless, True)
    assert config.next_rows == 0 and "no order" in note
    assert rqfedrec.TRAITS.settled(rqfedrec.Config(), data, True)[0].next_rows == 16
    with pytest.raises(SettingError, match=r"next_rows = 3.*no timestamps.*set next_rows = 0"):
        jax.eval_shape(make(recency=0.0).init, jax.random.key(0), timeless)


def test_a_run_with_a_budget_learns_no_context():
    data, _ = problem()
    private = rqfedrec.Config(privacy="central_dp", noise_multiplier=1.0, clip=1.0)
    config, note = rqfedrec.TRAITS.settled(private, data, True)
    assert config.next_rows == 0 and "noise" in note


def test_a_context_doubles_the_bytes_of_a_round_and_none_of_the_set_up():
    narrow = {"uplink": "int8", "downlink": "int8"}
    with_context, without = (make(**narrow, next_rows=n).traffic for n in (3, 0))
    assert (with_context.up, with_context.down) == (2 * without.up, 2 * without.down)
    assert with_context.setup_down == without.setup_down

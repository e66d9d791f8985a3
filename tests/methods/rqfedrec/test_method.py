"""RQFedRec against loops over users: what a round does to codebooks, gates, codes and users."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.partition import partition
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.data.text import texts, tfidf
from jaxrec.federated import catalogue
from jaxrec.federated.private_mean import first_bounds
from jaxrec.methods import rqfedrec
from jaxrec.methods.rqfedrec import client
from jaxrec.ops import quantize
from jaxrec.types import SettingError, Sizes

EXACT = {"uplink": "float32", "downlink": "float32", "sketch_bits": 32}
WIDTH, TOLD = 4, 3
SMALL = {
    "width": WIDTH, "text_width": TOLD, "levels": 2, "codes": 5, "privacy": "plain",
    "participation": 1.0, "sketch_participation": 1.0, "l2": 1.0, "start_decay": 0.0,
    "rare_code_steps": 0.0, "next_rows": 0, "text_scale": 2.0,
}  # fmt: skip
LINEAR = {"curriculum": "linear", "curriculum_rounds": 2, "curriculum_floor": 0.6}
MANY = {"codes": 26, "semantic_weight": 0.4}  # enough codes to say anything anew


@cache
def problem(how="given"):
    dataset = split(synthetic(users=36, items=30, clients=6, length=12), "ratio", 0.1, 0.2, 0)
    data, sizes = pack(partition(dataset, how))
    return data._replace(text=jnp.asarray(tfidf(texts(dataset.items)), jnp.float32)), sizes


def make(how="given", **settings):
    return rqfedrec.make(rqfedrec.Config(**SMALL | EXACT | settings), problem(how)[1])


# What the first state does not depend on, apart from the bound of uploads that comes with `clip`.
OF_ROUNDS = {
    "aggregate", "attack", "attack_scale", "attackers", "clip", "codebook_steps", "rare_code_steps",
    "refresh", "start_decay",
}  # fmt: skip


@cache
def _first(settings, how, undescribed):
    data, _ = problem(how)
    if undescribed:
        data = data._replace(text=data.text.at[jnp.array(undescribed)].set(0))
    return _init(settings, how)(jax.random.key(0), data)


@cache
def _init(settings, how):
    return jax.jit(make(how, **dict(settings)).init)


@cache
def _step(settings, how):
    return jax.jit(make(how, **dict(settings)).step)


@cache
def _score(settings, how):
    method, users = make(how, **dict(settings)), jnp.arange(problem(how)[1].users)
    return jax.jit(lambda state, data: method.score(method.prepare(state, data), users))


@cache
def _played(settings, rounds, how, undescribed):
    if rounds:
        states, metrics = _played(settings, rounds - 1, how, undescribed)
        state, found = _step(settings, how)(states[-1], problem(how)[0], jax.random.key(rounds - 1))
        return [*states, state], [*metrics, found]
    # The first state takes seconds to compile: runs that differ in their rounds alone share it.
    first = tuple(pair for pair in settings if pair[0] not in OF_ROUNDS)
    state = _first(first, how, undescribed)
    if "clip" in dict(settings):
        config = rqfedrec.Config(**SMALL | EXACT | dict(settings))
        bounds = first_bounds(config, *config.upload_reach)
        state = state._replace(shared=state.shared._replace(bounds=bounds))
    return [state], []


def played(rounds=1, how="given", undescribed=(), **settings):
    """The states before and after each round, and the rounds' metrics."""
    return _played(tuple(sorted(settings.items())), rounds, how, undescribed)


def scored(state, **settings):
    """The scores of all users [U, I]."""
    return _score(tuple(sorted(settings.items())), "given")(state, problem()[0])


def histories(data, users):
    """(fitted user vector [D + T + 1], its train items) of every user, by a loop."""
    for clients, fitted in zip(jax.tree.map(np.asarray, data.clients), users, strict=True):
        for line, ids in enumerate(clients.users):
            for row in range(len(ids)):
                own = clients.mask[line] & (clients.user[line] == row)
                if own.any():
                    yield np.asarray(fitted)[line, row], clients.item[line][own]


@jax.jit
@jax.grad
def gradient_of_one(codebooks, shared, user, chosen):
    """Of the loss of a user who chose each item so many times: `chosen` [I]."""
    table = sum(codebooks[p, shared.codes.table[:, p]] for p in range(len(codebooks)))
    scores = table @ user[:WIDTH] + shared.text @ user[WIDTH:-1] + user[-1] * shared.popularity
    return -jnp.sum(chosen * jax.nn.log_softmax(scores))


def mean_gradient(data, shared, users, codebooks):
    """As the method is described: code vectors gathered for each item, one user after another."""
    gradients = [
        gradient_of_one(codebooks, shared, user, np.bincount(items, minlength=30).astype("f4"))
        for user, items in histories(data, users)
    ]
    return sum(map(np.asarray, gradients)) / sum(np.sum(clients.weight) for clients in data.clients)


def stepped(shared, gradient, rate=0.006):
    optimizer = optax.adam(rate)
    parameters = shared.codebooks, shared.gates, shared.context
    gradient = gradient, jnp.zeros_like(shared.gates), jnp.zeros_like(shared.context)
    return optax.apply_updates(parameters, optimizer.update(gradient, shared.moments)[0])


def assert_moved_alike(found, expected, start, gradient):
    """Adam's first step is the sign of the gradient: where that is rounding, so is the sign."""
    clear = np.abs(gradient) > 1e-5
    assert clear.any() and (found != start).any()
    np.testing.assert_allclose(found[clear], expected[clear], atol=1e-5)


@pytest.mark.parametrize("uplink", ["float32", "int8"])
def test_a_round_is_the_loop_over_users_with_gathered_code_vectors(uplink):
    data, _ = problem()
    (before, after), _ = played(uplink=uplink)
    gradient = np.asarray(mean_gradient(data, before.shared, after.user, before.shared.codebooks))
    expected, *_ = stepped(before.shared, gradient)
    # int8 takes rounding of up to half a step of each row's largest entry into the sign.
    gradient = gradient * (
        np.abs(gradient) > (0.02 * np.abs(gradient).max() if uplink == "int8" else 0)
    )
    assert_moved_alike(
        np.asarray(after.shared.codebooks), np.asarray(expected),
        np.asarray(before.shared.codebooks), gradient,
    )  # fmt: skip


def test_rare_codes_take_larger_steps_and_all_go_back_towards_their_start():
    data, _ = problem()
    (_, before, after), _ = played(rounds=2, rare_code_steps=0.5, start_decay=0.25)
    gradient = mean_gradient(data, before.shared, after.user, before.shared.codebooks)
    expected = np.array(stepped(before.shared, gradient)[0] - before.shared.codebooks)
    rows = np.concatenate([items for _, items in histories(data, after.user)])
    codes = np.asarray(before.shared.codes.table)[rows]
    sizes = np.full(expected.shape[:2], 3.0)
    for level, code in np.ndindex(sizes.shape):
        if number := np.sum(codes[:, level] == code):
            sizes[level, code] = min(3, (number / (len(rows) / SMALL["codes"])) ** -0.5)
    assert sizes.min() < 0.9 and sizes.max() > 1.1
    moved = np.asarray(before.shared.codebooks) + sizes[..., None] * expected
    expected = 0.75 * moved + 0.25 * np.asarray(before.shared.start)
    np.testing.assert_allclose(after.shared.codebooks, expected, atol=2e-4)
    assert (np.asarray(after.shared.start) != np.asarray(after.shared.codebooks)).any()


def test_without_any_item_that_enough_users_have_codebooks_stay_finite():
    data, sizes = problem("user")
    settings = SMALL | {"privacy": "secure_sum", "rare_code_steps": 0.5, "start_decay": 0.2}
    method = rqfedrec.make(rqfedrec.Config(**settings, min_support=10**6), sizes)
    state = jax.jit(method.init)(jax.random.key(0), data)
    assert (state.shared.counts == 0).all()
    state, _ = jax.jit(method.step)(state, data, jax.random.key(1))
    assert np.isfinite(state.shared.codebooks).all()


def test_the_way_back_leads_to_what_was_served_whatever_the_gates_are_now():
    states, _ = played(rounds=3, **LINEAR, start_decay=1 - 1e-6)
    first, last = states[0].shared, states[-1].shared
    moved = np.repeat([0.6, 1.0], SMALL["levels"])  # the semantic channel's gate went down from 1
    np.testing.assert_allclose(moved[:, None, None] * last.codebooks, first.start, atol=1e-4)


def test_texts_in_scores_are_of_one_length_and_zero_where_there_are_none():
    bare = (3, 11, 20)
    (start,), _ = played(0, undescribed=bare)
    length = np.linalg.norm(start.shared.text, axis=1)
    assert start.shared.text.shape == (30, TOLD)
    assert (length[list(bare)] == 0).all()
    # 4 bits: each number is within half a step, a seventh of the largest one, and TOLD of them.
    described = np.delete(length, bare)
    np.testing.assert_allclose(described, 2.0, atol=2.0 * np.sqrt(TOLD) / 14)
    (start,), _ = played(0, channels="collaborative")
    assert start.shared.text.shape == (30, 0)


def test_the_product_of_all_users_equals_one_upload_a_client():
    (_, fast), _ = played()
    (_, dense), _ = played(clip=1e6)  # a bound that binds nobody, but each upload is made
    moments, others = (state.shared.moments[0].mu[0] for state in (fast, dense))
    np.testing.assert_allclose(moments, others, atol=1e-6)
    scores, expected = scored(fast), scored(dense, clip=1e6)
    np.testing.assert_allclose(scores, expected, atol=1e-2 * np.abs(expected).max())


def test_how_users_are_shared_out_among_clients_changes_nothing():
    moments = [played(how=how)[0][1].shared.moments[0].mu[0] for how in ("given", "user")]
    np.testing.assert_allclose(*moments, atol=1e-6)


def test_several_codebook_steps_are_the_loop_over_clients():
    data, _ = problem("user")
    steps, rate = 3, 0.1
    (before, after), _ = played(how="user", codebook_steps=steps)
    shared = before.shared
    changes, weights = [], []
    for clients, users in zip(data.clients, after.user, strict=True):
        for line in range(len(clients.client)):
            one = data._replace(
                clients=(jax.tree.map(lambda leaf, n=line: leaf[n : n + 1], clients),)
            )
            own = shared.codebooks
            for _ in range(steps):
                own -= rate * mean_gradient(one, shared, (users[line : line + 1],), own)
            changes.append((shared.codebooks - own) / (rate * steps))
            weights.append(clients.weight[line])
    mean = np.average(np.stack(changes), axis=0, weights=np.array(weights))
    np.testing.assert_allclose(after.shared.moments[0].mu[0], 0.1 * mean, atol=1e-6)


def test_learned_gates_follow_the_gradient_of_the_loss_in_the_gates():
    data, _ = problem()
    (before, after), _ = played(curriculum="learned", **MANY)
    shared = before.shared
    np.testing.assert_allclose(shared.gates, [0.4, 1.0])

    def gated(gates):
        return jnp.repeat(gates, 2)[:, None, None] * shared.codebooks

    codebooks, pull = jax.vjp(gated, shared.gates)
    gradient = mean_gradient(data, shared, after.user, codebooks)
    np.testing.assert_allclose(
        after.shared.moments[0].mu[1], 0.1 * pull(gradient)[0], rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize(
    "curriculum", ["constant", "linear", pytest.param("sigmoid", marks=pytest.mark.slow)]
)
def test_the_curriculum_moves_weight_from_text_to_collaboration(curriculum):
    _, metrics = played(3, **LINEAR | {"curriculum": curriculum})
    time = np.array([1, 2, 3]) / 2
    rise = {
        "constant": None,
        "linear": 0.4 * np.minimum(time, 1),
        "sigmoid": 0.4 / (1 + np.exp(-12 * (np.minimum(time, 1) - 0.5))),
    }[curriculum]
    expected = np.ones((3, 2)) if rise is None else np.stack([1 - rise, 0.6 + rise], axis=1)
    np.testing.assert_allclose(np.stack([m.gates for m in metrics]), expected, rtol=1e-5)


def test_a_refresh_renews_collaborative_codes_and_re_expresses_what_was_learned():
    states, metrics = played(4, uplink="sign", refresh=3)
    tables = [np.asarray(state.shared.codes.table) for state in states]
    assert (tables[0] == tables[1]).all() and (tables[1] == tables[2]).all()
    assert (tables[3][:, :2] == tables[0][:, :2]).all()
    assert (tables[3][:, 2:] != tables[0][:, 2:]).any()
    assert (tables[4] == tables[3]).all()
    assert [float(m.refreshed) for m in metrics] == [0, 0, 6, 0]
    assert (np.asarray(states[3].shared.moments[0].count) == 0).all()

    without, _ = played(4, uplink="sign")
    learned = quantize.decode(tables[2], without[3].shared.codebooks)
    kept = quantize.decode(tables[3], states[3].shared.codebooks)
    assert np.sum((kept - learned) ** 2) < 0.5 * np.sum((learned - learned.mean(0)) ** 2)


def test_sign_carries_over_what_it_rounds_off():
    (before, first, second), _ = played(2, uplink="sign")
    (_, plain), _ = played(clip=1e6)
    data, _ = problem()
    weights = np.concatenate([clients.weight for clients in data.clients])
    mean = lambda state: np.average(np.concatenate(state.error), axis=0, weights=weights)
    moment = lambda state: np.asarray(state.shared.moments[0].mu[0])
    entered = lambda old, new: (moment(new) - 0.9 * moment(old)) / 0.1  # into Adam's mean
    assert (mean(before) == 0).all()
    # Sent and kept add up to the change: their means, taken apart, to the mean change.
    np.testing.assert_allclose(
        entered(before, first) + mean(first), entered(before, plain), atol=1e-5
    )
    bare = first._replace(error=tuple(error[:, :0, 0, 0] for error in first.error))
    step = jax.jit(make(clip=1e6).step)
    exact, _ = step(bare, data, jax.random.key(1))
    np.testing.assert_allclose(
        entered(first, second) + mean(second), entered(first, exact) + mean(first), atol=1e-5
    )


def test_a_refresh_forgets_what_was_rounded_off_in_the_old_codes():
    states, _ = played(3, uplink="sign", refresh=3)
    assert all((error != 0).any() for error in states[2].error)
    assert all((error == 0).all() for error in states[3].error)


def test_a_refresh_keeps_the_table_as_it_is_served():
    gates = jnp.repeat(jnp.array([0.4, 1.0]), 2)[:, None, None]
    (_, _, _, after), _ = played(3, refresh=3, **MANY)
    (_, _, _, without), _ = played(3, **MANY)
    old, new = (
        quantize.decode(shared.codes.table, gates * shared.codebooks)
        for shared in (without.shared, after.shared)
    )
    assert (after.shared.codes.table != without.shared.codes.table).any()
    assert np.sum((new - old) ** 2) < 1e-4 * np.sum(old**2)


def test_what_noise_can_do_is_bounded_by_the_clip():
    (start, after), _ = played(attackers=0.5, attack_scale=1e4, clip=0.001)
    mean = (after.shared.moments[0].mu[0] - 0.9 * start.shared.moments[0].mu[0]) / 0.1
    assert 0 < np.linalg.norm(mean, axis=-1).max() <= 0.001 * (1 + 1e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_the_rows_left_out_are_those_of_the_highest_loss_rounded_down(share):
    data, _ = problem("user")
    (_, after), _ = played(how="user")
    shared, clients = after.shared, jax.tree.map(np.asarray, data.clients[-1])
    config = rqfedrec.Config(drop_loss=share)

    @jax.jit
    def kept_and_losses(shared, user, one):
        items = catalogue.describe(
            shared.codebooks, shared.codes.table, shared.text, shared.popularity
        )
        view = catalogue.whole(items, one, one.mask.astype(jnp.float32))
        kept = client.without_doubtful(config, user, view, one).chosen
        return kept, -jax.nn.log_softmax(user @ items.features.T)

    for line in range(3):
        one = jax.tree.map(lambda leaf, n=line: leaf[n], clients)
        user = np.asarray(after.user[-1])[line]
        kept, losses = map(np.asarray, kept_and_losses(shared, user, one))
        own = one.item[one.mask]
        losses = losses[0, own]
        left = np.argsort(losses)[: len(own) - int(share * len(own))]
        assert set(np.flatnonzero(kept[0])) == set(own[left])


def test_items_without_text_share_their_semantic_codes_and_nothing_else():
    bare = (3, 11, 20)
    (start, after), _ = played(undescribed=bare)
    table = np.asarray(start.shared.codes.table)[list(bare)]
    assert (table[:, :2] == table[0, :2]).all()
    assert len({tuple(code) for code in table}) == len(bare)
    assert np.isfinite(scored(after)).all()


def test_codes_that_no_item_uses_stay_zero():
    (before, after), metrics = played(**MANY)
    codes = np.asarray(before.shared.codes.table)
    unused = np.array([[code not in codes[:, p] for code in range(26)] for p in range(4)])
    assert unused.any()
    for state in (before, after):
        assert (np.asarray(state.shared.codebooks)[unused] == 0).all()
    assert (np.asarray(metrics[0].codes.coverage) < 1).all()
    assert np.isfinite(scored(after, **MANY)).all()


def test_scores_follow_the_formula():
    (_, after), _ = played()
    scores = scored(after)
    data, _ = problem()
    shared = after.shared
    table = np.array([
        sum(np.asarray(shared.codebooks)[p, code] for p, code in enumerate(codes))
        for codes in np.asarray(shared.codes.table)
    ])  # fmt: skip
    popularity = np.log(10 + np.bincount(
        np.concatenate([items for _, items in histories(data, after.user)]), minlength=30
    ))  # fmt: skip
    features = np.column_stack([table, shared.text, popularity - popularity.mean()])
    # Every row of scores is some user's vector on these features.
    solved, _, rank, _ = np.linalg.lstsq(features, np.asarray(scores).T, rcond=None)
    assert rank == WIDTH + TOLD + 1
    np.testing.assert_allclose(features @ solved, np.asarray(scores).T, atol=1e-4)


@pytest.mark.parametrize("setting", ["recency", "window"])
def test_the_order_of_rows_must_be_known_where_it_is_used(setting):
    data, _ = problem()
    timeless = data._replace(clients=tuple(c._replace(age=None) for c in data.clients))
    with pytest.raises(SettingError, match=f"{setting} = 3.0.*no timestamps.*set {setting} = 0"):
        jax.eval_shape(make(**{setting: 3.0}).init, jax.random.key(0), timeless)


def test_an_empty_semantic_channel_is_refused():
    data, _ = problem()
    with pytest.raises(SettingError, match=r"'auto'.*no item text.*channels = 'collaborative'"):
        make().init(jax.random.key(0), data._replace(text=None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": "semantic", "curriculum": "linear"}, "one channel has no curriculum"),
        ({"channels": "collaborative", "semantic_weight": 2.0}, "semantic_weight = 2.0 at 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(SettingError, match=message):
        make(**settings)


def test_what_the_set_up_costs():
    _, sizes = problem()
    codebook = 2 * 2 * 5 * (4 + 2)  # channels, levels, codes; a byte a number and a scale a row
    found = make(uplink="int8", downlink="int8", sketch_bits=8).traffic
    numbers = 4 * 30 * (4 + 1)  # passes, items, columns
    # A sum of up to 36 users' integers of 8 bits: 2 * 127 * 36 + 1 values, 14 bits.
    assert found.setup_up == 4 * 30 + numbers * 14 / 8
    text = 30 * (2 + 2)  # three numbers of 4 bits, and a scale an item
    assert found.setup_down == 4 * 30 + numbers + 4 * 2 * 30 + text + codebook
    assert (found.up, found.down) == (codebook, codebook)
    assert sizes.users == 36
    assert make(uplink="int8", downlink="int8", negatives=9).traffic.setup_down == (
        4 * 30 + 4 * numbers + text
    )
    weighed = make(uplink="int8", downlink="int8", sketch_bits=8, recency=1.0).traffic
    assert weighed.setup_up == found.setup_up + 4 * 30  # a second sum of counts
    assert weighed.setup_down == found.setup_down + 4 * 30


@pytest.mark.parametrize("uplink", [pytest.param("float32", marks=pytest.mark.slow), "int8"])
def test_who_flips_the_sign_of_a_gradient_is_left_out(uplink):
    """The others' gradients count as if the liars had sent nothing."""
    lies = {"attackers": 0.4, "aggregate": "norm_bound", "uplink": uplink}
    flipped, _ = played(2, "user", attack="sign_flip", **lies)
    silent, metrics = played(2, "user", attack="non_finite", **lies)
    assert 0 < metrics[-1].non_finite < 36
    np.testing.assert_array_equal(flipped[-1].shared.codebooks, silent[-1].shared.codebooks)
    assert np.abs(silent[-1].shared.codebooks - silent[0].shared.codebooks).max() > 1e-3


@pytest.mark.parametrize(
    ("users", "clients", "chance"),
    [(100, 100, 1.0), (4000, 4000, 0.3), (10**6, 10**6, 0.2), (10**6, 40, 0.5)],
)
def test_few_users_or_clients_are_all_in_the_sums_of_the_set_up(users, clients, chance):
    """What a client expects to download for a pass tells its chance to be in one."""
    sizes = Sizes(users=users, items=30, clients=clients)
    settings = SMALL | {"sketch_participation": 0.0}
    few, many = (
        rqfedrec.make(rqfedrec.Config(**settings, passes=passes), sizes).traffic
        for passes in (1, 2)
    )
    whole = [
        rqfedrec.make(rqfedrec.Config(**SMALL, passes=passes), sizes).traffic for passes in (1, 2)
    ]
    down = lambda pair: pair[1].setup_down - pair[0].setup_down
    assert down((few, many)) == pytest.approx(chance * down(whole))

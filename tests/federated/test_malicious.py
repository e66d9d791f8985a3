"""Clients that lie do what is stated, always the same ones, and nobody else does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.federated.aggregate import combine
from jaxrec.federated.cohort import CohortConfig
from jaxrec.federated.engine import federated_round
from jaxrec.federated.malicious import (
    AttackConfig,
    attackers,
    falsify,
    falsify_rows,
    with_attackers,
)
from jaxrec.training.settings import current_names
from jaxrec.types import Clients, Data, Method, SettingError, Sizes

ITEMS, IDS = 9, jnp.arange(40, 60)


def uploads():
    rng = np.random.default_rng(0)
    return {"large": rng.normal(size=(20, 300)), "one": rng.normal(size=20)}


@pytest.mark.parametrize(
    ("attack", "scale", "factor"),
    [
        ("sign_flip", 10.0, -1),
        ("scale", -10.0, -10),
        ("scale", 100.0, 100),
        ("promote", 2.0, 2),
        ("label_flip", 10.0, 1),
        ("non_finite", 10.0, np.nan),
    ],
)
def test_liars_send_a_multiple_and_others_what_they_have(attack, scale, factor):
    config = AttackConfig(attackers=0.4, attack=attack, attack_scale=scale)
    lies = np.asarray(attackers(config, IDS))
    assert 0 < lies.sum() < len(IDS)
    for key in (jax.random.key(0), jax.random.key(1)):
        sent = falsify(config, uploads(), IDS, key)
        for name, honest in uploads().items():
            scales = np.where(lies, factor, 1.0).reshape(-1, *(1,) * (honest.ndim - 1))
            np.testing.assert_allclose(sent[name], scales * honest, rtol=1e-6)


def test_who_lies_depends_on_the_id_alone_and_as_many_do_as_stated():
    config = AttackConfig(attackers=0.3)
    many = np.asarray(attackers(config, jnp.arange(3000)))
    assert many.mean() == pytest.approx(0.3, abs=4 * np.sqrt(0.3 * 0.7 / 3000))
    order = np.random.default_rng(0).permutation(3000)
    np.testing.assert_array_equal(attackers(config, jnp.asarray(order)), many[order])
    assert not attackers(AttackConfig(), IDS).any()


def buckets(age):
    """Two clients of two users and one of one; rows in order of user and item."""
    rows = [
        ([0, 0, 1, 1], [1, 4, 0, 7], 4),
        ([0, 1, 1, 0], [2, 3, 8, 0], 3),
        ([0] * 4, [5, 6, 0, 0], 2),
    ]
    clients = Clients(
        user=np.int32([user for user, _, _ in rows]),
        item=np.int32([item for _, item, _ in rows]),
        mask=np.int32([np.arange(4) < count for _, _, count in rows]) > 0,
        users=np.int32([[0, 1], [2, 3], [4, 5]]),
        client=np.int32([40, 41, 42]),
        weight=np.float32([count for _, _, count in rows]),
        age=np.int32([[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0]]) if age else None,
    )
    return jax.tree.map(jnp.asarray, clients)


@pytest.mark.parametrize("age", [False, True])
def test_rows_become_what_the_attack_says(age):
    clients = buckets(age)
    everyone = AttackConfig(attackers=0.999, attack="promote", target_item=8)
    assert attackers(everyone, clients.client).all()
    first, newest = [[0, 2], [0, 1], [0]], [[1, 2], [0, 2], [0]]
    expected = np.array(clients.item)
    for line, places in enumerate(newest if age else first):
        expected[line, places] = 8
    found = falsify_rows(everyone, clients, ITEMS)
    np.testing.assert_array_equal(found.item, expected)
    flipped = falsify_rows(AttackConfig(attackers=0.999, attack="label_flip"), clients, ITEMS)
    expected = np.where(clients.mask, ITEMS - 1 - clients.item, clients.item)
    np.testing.assert_array_equal(flipped.item, expected)
    honest = falsify_rows(AttackConfig(attackers=1e-9, attack="label_flip"), clients, ITEMS)
    np.testing.assert_array_equal(honest.item, clients.item)


def test_false_rows_are_trained_on_and_true_ones_served():
    items = lambda data: data.clients[0].item
    method = Method(
        init=lambda key, data: items(data),
        step=lambda state, data, key: (state + items(data), None),
        prepare=lambda state, data: (state, items(data)),
        score=lambda served, users: served,
    )
    config, sizes = AttackConfig(attackers=0.999, attack="label_flip"), Sizes(6, ITEMS, 3)
    data = Data((buckets(False),))
    false, true = items(Data((falsify_rows(config, data.clients[0], ITEMS),))), items(data)
    lying = with_attackers(config, sizes, method)
    state, _ = lying.step(lying.init(None, data), data, None)
    np.testing.assert_array_equal(state, 2 * false)
    np.testing.assert_array_equal(lying.prepare(state, data)[1], true)
    assert with_attackers(AttackConfig(attackers=0.4), sizes, method) is method
    far = AttackConfig(attackers=0.1, attack="promote", target_item=ITEMS)
    with pytest.raises(SettingError, match=f"target_item = {ITEMS}: there are {ITEMS} items"):
        with_attackers(far, sizes, method)


def lonely_round(cohort):
    """A round in which client c of 20 sends the vector [c, 1], and what the server learns."""
    clients = Clients(*(jnp.zeros((20, 1), jnp.int32) for _ in range(4)), IDS, jnp.ones(20))
    send = lambda shared, private, own, key: (jnp.stack([own.client * 1.0, 1.0]), private, 1.0)
    learn = lambda shared, uploads, weights, key: combine(
        cohort.rule, uploads, weights, cohort.malicious
    )
    return jax.jit(
        lambda: federated_round(
            (send,), learn, jnp.zeros(2), (jnp.zeros(20),), (clients,), jax.random.key(0),
            cohort=cohort, additive=cohort.rule == "mean",
        )
    )()  # fmt: skip


@pytest.mark.parametrize("rule", ["mean", "median", "norm_bound"])
def test_uploads_that_are_not_finite_are_dropped_and_counted(rule):
    cohort = CohortConfig(
        privacy="plain", attackers=0.4, attack="non_finite", aggregate=rule, malicious=0.2
    )
    lies = np.asarray(attackers(cohort, IDS))
    done = lonely_round(cohort)
    ids = np.asarray(IDS)[~lies].astype(float)
    lengths = np.hypot(ids, 1)
    expected = {
        "mean": ids.mean(),
        "median": np.median(ids),
        "norm_bound": (ids * np.minimum(1, np.median(lengths) / lengths)).mean(),
    }
    assert done.non_finite == lies.sum() > 0 and done.participants == 20
    np.testing.assert_allclose(done.shared[0], expected[rule], rtol=1e-5)


def test_a_rule_outvotes_liars_whom_the_mean_believes():
    lying = {"privacy": "plain", "attackers": 0.2, "attack": "scale", "attack_scale": -1e3}
    liars = attackers(CohortConfig(**lying), IDS).sum()
    believed = lonely_round(CohortConfig(**lying)).shared
    outvoted = lonely_round(CohortConfig(**lying, malicious=0.4)).shared
    np.testing.assert_allclose(believed[1], (20 - 1001 * liars) / 20, rtol=1e-5)
    np.testing.assert_allclose(outvoted[1], 1, rtol=1e-6)
    assert IDS.min() < outvoted[0] < IDS.max()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"malicious": 0.2},
            "malicious = 0.2: .*multi_krum looks at each upload.*privacy = 'plain'",
        ),
        (
            {"aggregate": "median"},
            "aggregate = 'median': .*clip, which bounds uploads at the clients",
        ),
        ({"aggregate": "trimmed_mean", "privacy": "plain"}, "malicious = 0.0: must be above 0"),
        ({"aggregate": "best"}, "aggregate = 'best'"),
        ({"attack": "bribe"}, "attack = 'bribe'"),
    ],
)
def test_rules_that_cannot_work_are_refused_with_what_does(settings, told):
    with pytest.raises(SettingError, match=told):
        CohortConfig(**settings)


@pytest.mark.parametrize("method", ["fedavg", "fedcia", "rqfedrec"])
def test_stored_runs_with_noisy_clients_are_read(method):
    stored, now = {"noisy": 0.2, "noise_scale": 3.0}, {"attackers": 0.2, "attack_scale": 3.0}
    if method == "rqfedrec":
        stored, now = stored | {"trim": 0.1}, now | {"malicious": 0.1}
    assert current_names(method, stored) == now
    assert AttackConfig().attack == "noise"

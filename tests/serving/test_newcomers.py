"""New users are served as if the method had known their rows, or not at all."""

import importlib
import io
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special

import jaxrec
from jaxrec import Model, recommend, recommend_from_items
from jaxrec.cli.command import command
from jaxrec.data.pack import history
from jaxrec.data.synthetic import synthetic
from jaxrec.serving.newcomers import newcomers
from jaxrec.types import DataError, SettingError, Unavailable

module = importlib.import_module("jaxrec.cli.recommend")
USERS, ITEMS = 60, 40
HISTORIES = {"ann": [3, 9, 27], "bob": ["5"], 7: [1, 2, 1]}
ROWS = [[3, 9, 27], [5], [1, 2]]


def trained(method, **settings):
    data = synthetic(users=USERS, items=ITEMS, clients=6, length=16)
    return jaxrec.train(method, data, progress=False, rounds=1, baselines=(), **settings)


@pytest.fixture(scope="module")
def ease():
    return trained("fedcia", model="ease")


def test_a_linear_model_adds_the_rows_of_what_they_have(ease):
    weights = np.asarray(ease.state.left)
    found = recommend_from_items(ease, HISTORIES, k=4)
    assert list(found["user"].unique()) == ["ann", "bob", 7]
    for user, own in zip(HISTORIES, ROWS, strict=True):
        scores = weights[own].sum(0)
        scores[own] = -np.inf
        lines = found[found["user"] == user]
        assert list(lines["item"]) == list(np.argsort(-scores, kind="stable")[:4])
        np.testing.assert_allclose(lines["score"], np.sort(scores)[:-5:-1], rtol=1e-5)


def test_an_old_users_history_is_served_as_the_old_user(ease):
    rows = ease.dataset.interactions.sort_values("timestamp", kind="stable")
    own = {f"new {user}": list(rows["item"][rows["user"] == user]) for user in (4, 31)}
    new, old = recommend_from_items(ease, own, k=5), recommend(ease, [4, 31], k=5)
    pd.testing.assert_frame_equal(new.drop(columns="user"), old.drop(columns="user"), rtol=1e-5)


def test_histories_keep_their_order(ease):
    reads = ease.data._replace(history=history(ease.dataset))
    packed = newcomers(reads, [np.array(own) for own in ([3, 9, 27], [5], [1, 2, 1])])
    past = packed.history
    np.testing.assert_array_equal(past.start, [0, 3, 4, 6, 8])  # the last user is padding
    np.testing.assert_array_equal(past.item[:6], [3, 9, 27, 5, 2, 1])  # a repeat stands last
    (clients,) = packed.clients
    assert clients.item.shape == (4, 8)
    for user, own in enumerate([[3, 9, 27], [5], [2, 1]]):
        held = np.asarray(clients.item[user])[np.asarray(clients.mask[user])]
        ages = np.asarray(clients.age[user])[np.asarray(clients.mask[user])]
        assert list(held) == sorted(own)
        assert [own[len(own) - 1 - age] for age in ages] == list(held)
    assert not clients.mask[3].any()


def test_a_method_that_cannot_says_why(ease):
    shut = ease._replace(method=ease.method._replace(fold_in=Unavailable("the door is shut")))
    with pytest.raises(SettingError, match="new users: the door is shut; train it again"):
        recommend_from_items(shut, HISTORIES)


def test_least_squares_finds_the_vector_of_the_least_loss():
    run = trained("fedavg", width=8, negative_weight=0.2, l2_user=0.7)
    item = np.asarray(run.state.shared.item, float)
    new = newcomers(run.data, list(map(np.array, ROWS)))
    served = jax.jit(run.method.fold_in)(run.state, new)
    for user, own in enumerate(ROWS):
        weight, target = np.full(ITEMS, 0.2), np.zeros(ITEMS)
        weight[own] = target[own] = 1
        lines = np.concatenate([np.sqrt(weight)[:, None] * item, np.sqrt(0.7) * np.eye(8)])
        expected = np.linalg.lstsq(lines, np.append(np.sqrt(weight) * target, np.zeros(8)))[0]
        found = served.user[served.slot[user]]
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "settings", "l2", "prior"),
    [
        ("fedavg", {"partition": "user", "l2_user": 2.0}, 4.0, 0.0),
        pytest.param(
            "rqfedrec",
            {"codes": 8, "levels": 2, "width": 8, "text": "tfidf", "next_rows": 0},
            1.0,
            1.0,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_softmax_comes_near_the_least_loss(method, settings, l2, prior):
    run, own = trained(method, **settings), ROWS[0]
    served = jax.jit(run.method.fold_in)(run.state, newcomers(run.data, [np.array(own)]))
    features = np.asarray(served.item, float)
    start = np.zeros(features.shape[1])
    start[-1] = prior  # RQFedRec's weight of popularity

    def loss(x):
        scores, away = features @ x, x - start
        return len(own) * special.logsumexp(scores) - scores[own].sum() + l2 / 2 * (away @ away)

    least = optimize.minimize(loss, start).fun
    assert loss(np.asarray(served.user[0], float)) < least + 1e-3 * (loss(start) - least)


def test_unknown_items_and_empty_histories_are_refused(ease):
    with pytest.raises(DataError, match=r"2 of 3 items are not among the 40 .*: 99, x; leave"):
        recommend_from_items(ease, {"ann": [3, 99, "x"], "bob": [99]})
    with pytest.raises(DataError, match="bob has no item"):
        recommend_from_items(ease, {"ann": [3], "bob": []})
    with pytest.raises(DataError, match="no histories given"):
        recommend_from_items(ease, {})


def test_the_command_reads_a_csv(ease, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(module, "open_run", lambda out, data, until: Model(ease))
    path = tmp_path / "new.csv"
    run = lambda: command(
        module.Options, module.act, ["run", "--k", "4", "--histories", str(path)], module.ABOUT
    )
    path.write_text(
        "user, item\n" + "".join(f"{u}, {i}\n" for u, own in HISTORIES.items() for i in own)
    )
    assert run() == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out))
    expected = recommend_from_items(ease, HISTORIES, k=4)
    assert list(found["item"]) == list(expected["item"])
    assert list(found["user"]) == [str(user) for user in expected["user"]]
    path.write_text("user,item\nann,3\nann,99\n")
    assert run() == 2
    out, err = capsys.readouterr()
    assert out == "" and "1 of 2 items are not among" in err
    path.write_text("user,film\nann,3\n")
    assert run() == 2
    assert "needs columns user and item; found ['user', 'film']" in capsys.readouterr().err


def test_one_new_user_comes_with_a_list_of_items(ease, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "open_run", lambda out, data, until: Model(ease))
    path = tmp_path / "basket.txt"
    path.write_text("3\n9\n27\n")
    assert command(module.Options, module.act, ["run", "--items", str(path)], module.ABOUT) == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out))
    expected = recommend_from_items(ease, [3, 9, 27])
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-5)
    assert set(expected["user"]) == {"new"}
    words = ["run", "--items", str(path), "--users", str(path)]
    assert command(module.Options, module.act, words, module.ABOUT) == 2
    assert "--items: serves one new user" in capsys.readouterr().err

"""New users are served as if the method had known their rows, or not at all."""

import importlib
import io
import warnings

import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec import newcomers, recommend
from jaxrec.commands import command
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import agentcf
from jaxrec.types import DataError, SettingError

module = importlib.import_module("jaxrec.recommend")
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
    found = recommend(newcomers(ease, HISTORIES), k=4)
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
    new, old = recommend(newcomers(ease, own), k=5), recommend(ease, [4, 31], k=5)
    pd.testing.assert_frame_equal(new.drop(columns="user"), old.drop(columns="user"), rtol=1e-5)


def test_histories_keep_their_order(ease):
    past = newcomers(ease, HISTORIES).data.history
    np.testing.assert_array_equal(past.start, [0, 3, 4, 6])
    np.testing.assert_array_equal(past.item, [3, 9, 27, 5, 2, 1])  # a repeated item stands last


@pytest.mark.parametrize("number", [3, USERS])
def test_a_method_with_users_of_its_own_is_refused(number):
    run = trained("fedavg", width=4, partition="user")
    own = dict(
        enumerate(np.unique(rows) for _, rows in run.dataset.interactions.groupby("user")["item"])
    )
    with pytest.raises(SettingError, match="learns something of each user"):
        newcomers(run, dict(list(own.items())[:number]))


def test_more_groups_than_users_are_refused_in_the_same_words(ease):
    with pytest.raises(SettingError, match="learns something of each user"):
        newcomers(ease._replace(config=agentcf.Config(groups=20)), HISTORIES)


def test_unknown_items_and_empty_histories_are_refused(ease):
    with pytest.raises(DataError, match=r"2 of 3 items are not among the 40 .*: 99, x; leave"):
        newcomers(ease, {"ann": [3, 99, "x"], "bob": [99]})
    with pytest.raises(DataError, match="bob has no item"):
        newcomers(ease, {"ann": [3], "bob": []})
    with pytest.raises(DataError, match="no histories given"):
        newcomers(ease, {})


def test_the_command_reads_a_csv(ease, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setattr(module, "reopen", lambda out: ease)
    path = tmp_path / "new.csv"
    run = lambda: command(
        module.Options, module.act, ["run", "--k", "4", "--histories", str(path)], module.ABOUT
    )
    path.write_text(
        "user,item\n" + "".join(f"{u},{i}\n" for u, own in HISTORIES.items() for i in own)
    )
    assert run() == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out))
    expected = recommend(newcomers(ease, HISTORIES), k=4)
    assert list(found["item"]) == list(expected["item"])
    assert list(found["user"]) == [str(user) for user in expected["user"]]
    path.write_text("user,film\nann,3\n")
    assert run() == 2
    assert "needs columns user and item; found ['user', 'film']" in capsys.readouterr().err

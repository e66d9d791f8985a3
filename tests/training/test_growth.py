"""A run goes on from another one: what it takes over, what it refuses, how it is resumed."""

import json
import shutil

import jax
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec.cli.train import main
from jaxrec.training.opening import reopen
from jaxrec.types import CheckpointError, DataError, SettingError

SMALL = {"baselines": (), "evaluate_every": 2, "patience": 0, "progress": False, "kept_data": 0.1}
STANDING = {"item_learning_rate": 0.0}  # the item table does not move


@pytest.fixture(autouse=True)
def no_curve(monkeypatch):
    """Drawing it is a good part of the time of so small a run; `test_curve.py` does."""
    monkeypatch.setattr("jaxrec.training.curve.write_curve", lambda *args: None)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with old.csv, newer.csv and `run`, a run of FedAvg on the first of them."""
    folder = tmp_path_factory.mktemp("growth")
    rng = np.random.default_rng(0)
    rows = [(user, item) for user in range(14) for item in rng.permutation(9)[:6]]
    rows += [(user, 9 + user % 2) for user in range(14)]
    rows = [(f"u{user}", f"i{item}", time) for time, (user, item) in enumerate(rows)]
    frame = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
    old = frame["user"].isin([f"u{n}" for n in range(12)]) & ~frame["item"].isin(["i9", "i10"])
    frame[old].to_csv(folder / "old.csv", index=False)
    frame[~old].to_csv(folder / "newer.csv", index=False)
    settings = SMALL | {"width": 4, "clients": 3, "min_support": 1, "split": "leave-one-out"}
    settings |= {"server": "average"}
    jaxrec.train("fedavg", folder / "old.csv", out=folder / "run", rounds=2, **settings)
    return folder


def test_it_begins_with_what_was_learned(place, tmp_path):
    more = {"rounds": 1, "progress": False, **STANDING}
    with pytest.raises(SettingError, match="of the state is float32"):
        jaxrec.train(from_run=place / "run", data=place / "newer.csv", width=5, **more)
    result = jaxrec.train(
        from_run=place / "run", data=place / "newer.csv", out=tmp_path / "more", **more
    )
    before = reopen(place / "run", progress=False)
    assert (before.sizes.users, before.sizes.items, before.sizes.clients) == (12, 9, 3)
    assert (result.sizes.users, result.sizes.items, result.sizes.clients) == (14, 11, 3)
    item = result.state.shared.item
    np.testing.assert_array_equal(item[:9], before.state.shared.item)
    assert result.dataset.users["raw_id"].tolist()[-2:] == ["u12", "u13"]
    record = json.loads((tmp_path / "more" / "config.json").read_text())
    assert record["from"] == {"run": str((place / "run").absolute()), "updates": 1}
    assert f"goes on from {place / 'run'}" in result.protocol
    assert jaxrec.open(tmp_path / "more").recommend(["u13"], 2)["user"].tolist() == ["u13"] * 2


def test_a_frame_may_follow_a_file_and_updates_follow_each_other(place, tmp_path):
    newer = pd.read_csv(place / "newer.csv")
    parts = [newer.iloc[:10], newer.iloc[10:]]
    run = place / "run"
    for number, part in enumerate(parts):
        before, run = run, tmp_path / str(number)
        jaxrec.train(from_run=before, data=part, out=run, rounds=2, progress=False)
    record = json.loads((run / "config.json").read_text())
    assert record["from"]["updates"] == 2 and record["data"]["users"] == 14


def test_it_is_resumed_to_the_same_bits_without_what_it_began_with(place, tmp_path):
    for name in ("run", "newer.csv"):
        copy = shutil.copytree if name == "run" else shutil.copy
        copy(place / name, tmp_path / name)
    given = {"from_run": tmp_path / "run", "data": str(tmp_path / "newer.csv"), "progress": False}
    whole = jaxrec.train(**given, rounds=4)
    jaxrec.train(**given, rounds=2, out=tmp_path / "cut")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "newer.csv").unlink()
    resumed = jaxrec.train(resume=tmp_path / "cut", rounds=4, progress=False)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    assert resumed.values["test/NDCG@10"] == whole.values["test/NDCG@10"]
    shutil.rmtree(tmp_path / "cut" / "data")
    with pytest.raises(
        CheckpointError, match=r"is not there, with the rows of .* begin the run anew with --from"
    ):
        jaxrec.train(resume=tmp_path / "cut", rounds=6, progress=False)


def test_counts_are_those_of_all_rows(place, tmp_path):
    rows = [pd.read_csv(place / f"{name}.csv") for name in ("old", "newer")]
    settings = SMALL | {"min_support": 1, "split": "leave-one-out"}
    jaxrec.train("popularity", rows[0], out=tmp_path / "run", **settings)
    grown = jaxrec.train(from_run=tmp_path / "run", data=rows[1], progress=False)
    anew = jaxrec.train("popularity", pd.concat(rows), **settings)
    by_id = lambda run: dict(zip(run.dataset.items["raw_id"], run.state.counts, strict=True))
    assert by_id(grown) == by_id(anew)


def test_the_command(place, tmp_path, capsys):
    words = ["--from", str(place / "run"), "--data", str(place / "newer.csv"), "--rounds", "2"]
    assert main([*words, "--out", str(tmp_path / "more")]) == 0
    said = capsys.readouterr()
    assert "newer: 26 interactions, 2 users, 2 items are new" in said.err
    assert (tmp_path / "more" / "result.json").exists()
    assert main(["fedcia", *words]) == 2
    assert "is a run of fedavg, not of fedcia" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            {"split": "ratio"},
            "split = 'ratio': the earlier run has 'leave-one-out', which holds for newer",
        ),
        ({"data": None}, "give the newer rows as data"),
        ({"random_positives": 0.1}, "is for tests of robustness; train anew"),
        ({"kept_data": 0.0, "out": "more"}, "must keep its data, and more does not hold them"),
        ({"resume": "elsewhere"}, "is resumed, and a run goes on from itself or from another"),
        ({"server_learning_rate": 0.1}, "is not read by server = 'average'"),
    ],
)
def test_what_does_not_fit_is_refused(place, settings, problem, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {"data": place / "newer.csv", "progress": False} | settings
    with pytest.raises(SettingError, match=problem):
        jaxrec.train(from_run=place / "run", **given)


def test_a_run_with_a_budget_is_not_gone_on_from(place, tmp_path):
    settings = SMALL | {"privacy": "central_dp", "epsilon": 8.0, "partition": "user"}
    jaxrec.train("popularity", place / "old.csv", out=tmp_path / "run", **settings)
    with pytest.raises(SettingError, match="run has spent its budget on rows that"):
        jaxrec.train(from_run=tmp_path / "run", data=place / "newer.csv", progress=False)


def test_a_method_that_cannot_go_on_says_so(place, tmp_path, toy):
    jaxrec.train("toy", place / "old.csv", out=tmp_path / "run", progress=False, rounds=2)
    with pytest.raises(SettingError, match="toy cannot go on from a run: it does not say how"):
        jaxrec.train(from_run=tmp_path / "run", data=place / "newer.csv", progress=False)


def test_nothing_new_is_an_error_and_leaves_no_run(place, tmp_path):
    given = {"from_run": place / "run", "out": tmp_path / "more", "progress": False}
    with pytest.raises(DataError, match="nothing is new, in 72 rows"):
        jaxrec.train(data=place / "old.csv", **given)
    assert not (tmp_path / "more" / "config.json").exists()

"""Lists are NumPy's top k of the scores, in raw ids, whatever they are asked through."""

import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

import jaxrec
from jaxrec import files
from jaxrec.cli.command import command
from jaxrec.data.pack import history
from jaxrec.data.synthetic import synthetic
from jaxrec.serving.model import Model
from jaxrec.serving.recommendation import recommend
from jaxrec.types import CheckpointError, DataError, SettingError

TOY = Path(__file__).parents[1] / "toy.py"
module = importlib.import_module("jaxrec.cli.recommend")
USERS, ITEMS = 60, 40


@pytest.fixture(scope="module")
def dataset():
    """Raw ids that are no indices: users by number from the last on, items by letters."""
    data = synthetic(users=USERS, items=ITEMS, clients=6, length=16)
    items = data.items.assign(raw_id=[f"i{7 * n % ITEMS}" for n in range(ITEMS)])
    return replace(data, items=items, users=data.users.assign(raw_id=1000 - np.arange(USERS)))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    """EASE and its baseline FedAvg."""
    out = tmp_path_factory.mktemp("run") / "run"
    settings = {"model": "ease", "baselines": ("fedavg",), "rounds": 1}
    return jaxrec.train("fedcia", dataset, out=out, progress=False, **settings)


def matrix(data, before=3):
    rows = data.interactions[data.interactions["split"] < before]
    found = np.zeros((data.num_users, data.num_items), np.float32)
    found[rows["user"], rows["item"]] = 1
    return found


def best(data, scores, k, seen):
    """Rows (user, rank, item, title, score) by a loop."""
    rows = []
    for user, own in enumerate(scores):
        order = [i for i in np.argsort(-own, kind="stable") if not seen[user, i]][:k]
        for place, item in enumerate(order):
            raw = data.users["raw_id"][user], data.items["raw_id"][item]
            rows.append((raw[0], place + 1, raw[1], data.items["title"][item], own[item]))
    return pd.DataFrame(rows, columns=["user", "rank", "item", "title", "score"])


def assert_same_lists(found, expected):
    pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-5)


@pytest.mark.parametrize("exclude_seen", [True, False])
@pytest.mark.parametrize("block", [None, 7, USERS])
def test_lists_are_the_top_k_of_all_rows_scores(trained, exclude_seen, block):
    data = trained.dataset
    rows = matrix(data)
    scores = rows @ np.asarray(trained.state.left)  # of what the user has in every split
    found = recommend(trained, k=5, exclude_seen=exclude_seen, block=block)
    assert_same_lists(found, best(data, scores, 5, rows * exclude_seen))


def test_a_history_goes_on_to_the_newest_row(trained):
    def prepare(state, data):
        past = data.history
        place = jnp.arange(len(past.item)) - past.start[past.user]
        return jnp.zeros((USERS, ITEMS)).at[past.user, past.item].set(1.0 + place)

    newest_first = trained.method._replace(prepare=prepare, score=lambda seen, users: seen[users])
    data = trained.data._replace(history=history(trained.dataset))
    found = recommend(trained._replace(method=newest_first, data=data), k=4, exclude_seen=False)
    rows = trained.dataset.interactions.sort_values("timestamp", kind="stable")
    for user, own in rows.groupby("user")["item"]:
        newest = trained.dataset.items["raw_id"][own[:-5:-1]]
        assert list(found["item"][found["user"] == 1000 - user]) == list(newest)


def test_a_folder_serves_as_its_result_does(trained, dataset):
    baseline = trained.out / "baselines" / "fedavg"
    for result, out in ((trained, trained.out), (trained.baselines["fedavg"], baseline)):
        expected = recommend(result, k=3)
        pd.testing.assert_frame_equal(recommend(out, k=3, data=dataset), expected)
        opened = jaxrec.reopen(out, dataset, progress=False)
        assert opened.values == json.loads((out / "result.json").read_text())
        pd.testing.assert_frame_equal(opened.users, result.users)
        assert (opened.protocol, opened.run, opened.config) == (
            result.protocol, result.run, result.config,
        )  # fmt: skip


def test_users_are_served_in_their_order_each_once(trained):
    everybody = recommend(trained, k=3)
    for users in ([1000, 941, 970], ["1000", "941", "970", "941"], np.array([1000, 941, 970])):
        found = recommend(trained, users, 3, block=2)
        parts = [everybody[everybody["user"] == user] for user in (1000, 941, 970)]
        pd.testing.assert_frame_equal(found, pd.concat(parts, ignore_index=True))
    assert set(recommend(trained, 941)["user"]) == {941}


def test_a_user_who_has_nearly_everything_has_a_short_list(trained):
    data = trained.dataset
    rest = data.interactions["user"] > 1
    own = pd.DataFrame({"user": 0, "item": np.arange(ITEMS - 2), "client": 0, "split": 0})
    all_of_them = pd.DataFrame({"user": 1, "item": np.arange(ITEMS), "client": 0, "split": 0})
    rows = pd.concat([own, all_of_them, data.interactions[rest]]).fillna(0)
    rows[["user", "item"]] = rows[["user", "item"]].astype("int32")
    held = trained._replace(dataset=replace(data, interactions=rows))
    found = recommend(held, [1000, 999, 998], k=5)
    assert found["user"].value_counts().to_dict() == {998: 5, 1000: 2}
    assert set(found["item"][found["user"] == 1000]) == set(data.items["raw_id"][-2:])


def test_what_cannot_be_served_is_refused(trained):
    with pytest.raises(DataError, match=r"6 of 7 users are not .* 60 .*: 0, 1, 2, 3, 4, \.\.\.;"):
        recommend(trained, [1000, *range(6)])
    with pytest.raises(DataError, match=r"1 of 1 users .*: nobody;"):
        recommend(trained, "nobody")
    with pytest.raises(DataError, match="no user ids given"):
        recommend(trained, [])
    with pytest.raises(SettingError, match="k = 0"):
        recommend(trained, k=0)
    with pytest.raises(SettingError, match="block = 0"):
        recommend(trained, block=0)
    method = trained.method
    with pytest.raises(SettingError, match="cannot score every item"):
        recommend(trained._replace(method=method._replace(rank=method.score)))
    nan = lambda served, users: (
        method.score(served, users).at[:, 3].set(jnp.where(users == 8, jnp.nan, 0)[:, None][:, 0])
    )
    with pytest.raises(FloatingPointError, match="scores of user 992 hold NaN"):
        recommend(trained._replace(method=method._replace(score=nan)))
    users = trained.dataset.users.assign(raw_id=1)
    with pytest.raises(DataError, match="1 is of two users"):
        recommend(trained._replace(dataset=replace(trained.dataset, users=users)), [1])


def test_what_is_no_run_of_these_data_is_refused(trained, dataset, tmp_path):
    with pytest.raises(CheckpointError, match=r"config.json: no run"):
        recommend(tmp_path)
    with pytest.raises(CheckpointError, match="the data have changed"):
        recommend(trained.out, data=synthetic(users=USERS, items=ITEMS, clients=6, length=16))
    record = (trained.out / "config.json").read_text()
    (tmp_path / "config.json").write_text(record)
    with pytest.raises(CheckpointError, match="nothing is saved yet"):
        recommend(tmp_path, data=dataset)


def test_a_run_of_a_version_with_fewer_settings_is_served_and_resumed(trained, dataset, tmp_path):
    out = shutil.copytree(trained.out, tmp_path / "old")
    record = json.loads((out / "config.json").read_text())
    del record["settings"]["catalogue"]
    index = json.loads((out / "checkpoint" / "index.json").read_text())
    del index["identity"]["catalogue"]
    files.write_json(out / "config.json", record)
    files.write_json(out / "checkpoint" / "index.json", index)
    pd.testing.assert_frame_equal(recommend(out, data=dataset), recommend(trained))
    resumed = jaxrec.train(resume=out, data=dataset, progress=False)
    assert resumed.values == trained.values


def test_a_run_on_two_devices_is_served_on_one(tmp_path, toy):
    words = "toy --rounds 1 --width 4 --clients 5 --partition blocks --mesh clients=2"
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    out = tmp_path / "run"
    words = [sys.executable, TOY, *words.split(), "--out", out]
    done = subprocess.run(words, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    opened = jaxrec.reopen(out, progress=False)
    data, state = opened.dataset, opened.state
    assert len(opened.data.clients[0].client) % 2 == 1  # 5 clients, which the mesh made 6
    scores = np.asarray(state.user) @ np.asarray(state.item).T
    assert_same_lists(recommend(out, k=3), best(data, scores, 3, matrix(data)))


@pytest.fixture
def say(trained, monkeypatch):
    """Runs the command in this process on the run's folder."""
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def say(*words):
        words = [str(word) for word in (trained.out, *words)]
        return command(module.Options, module.act, words, module.ABOUT)

    return say


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_files_hold_the_lists(say, trained, tmp_path, suffix):
    ids, out = tmp_path / "ids.txt", tmp_path / "new" / f"lists.{suffix}"
    ids.write_text("1000\n\n 941 \n970\n")
    assert say("--users", ids, "--k", 4, "--block", 2, "--out", out) == 0
    expected = recommend(trained, [1000, 941, 970], 4)
    if suffix == "csv":
        found = pd.read_csv(out)
    elif suffix == "parquet":
        found = pd.read_parquet(out)
        assert parquet.ParquetFile(out).num_row_groups == 2
    else:
        found = pd.read_json(out, lines=True)
        assert len(found) == 3
        found = found.explode(["item", "title", "score"], ignore_index=True)
        found.insert(1, "rank", [1, 2, 3, 4] * 3)
        found["score"] = found["score"].astype(float)
    assert_same_lists(found, expected)
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_parquet_has_the_types_of_the_data_whoever_comes_first(trained, tmp_path):
    data = trained.dataset
    rest = data.interactions["user"] > 0
    everything = pd.DataFrame({"user": 0, "item": np.arange(ITEMS), "client": 0, "split": 0})
    rows = pd.concat([everything, data.interactions[rest]]).fillna(0)
    rows[["user", "item"]] = rows[["user", "item"]].astype("int32")
    bare = data.items.assign(title=[None, *data.items["title"][1:]])
    names = data.users.assign(raw_id=[f"u{n}" for n in range(USERS)])
    for users, kind in ((data.users, "int64"), (names, "string")):
        held = trained._replace(dataset=replace(data, interactions=rows, items=bare, users=users))
        for asked, number in (([users["raw_id"][0]], 0), (users["raw_id"][:3].tolist(), 6)):
            model = Model(held)
            _, tables = model.recommend_in_blocks(asked, 3, block=1)
            path = tmp_path / "lists.parquet"
            module.write_parquet(path, tables, module.schema_of(model.columns()))
            found = parquet.read_table(path)
            assert {field.name: str(field.type) for field in found.schema} == {
                "user": kind, "rank": "int32", "item": "string", "title": "string",
                "score": "float",
            }  # fmt: skip
            assert found.num_rows == number


def test_seen_items_and_all_users_go_to_standard_output(say, trained, capsys):
    assert say("--include-seen") == 0
    found = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert_same_lists(found, recommend(trained, exclude_seen=False))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--users", "absent.txt"], "absent.txt"),
        (["--users", "EMPTY"], "no user ids given"),
        (["--k", "0"], "k = 0"),
        (["--k", "many"], "--k many: expected int"),
        (["--format", "parquet"], "--out"),
        (["--disarm", "--out", "lists.jsonl"], "--disarm: is for csv, not for jsonl"),
        (["another"], "2 run folders: one is served at a time"),
        (["--excluded"], "--excluded: no such setting of this command; the nearest"),
        (["--users", "EMPTY", "--out", "EMPTY/lists.csv"], "error: "),
    ],
)
def test_what_is_wrong_is_one_line(say, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "EMPTY").write_text("")
    assert say(*words) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == "" and line.startswith("error: ") and message in line


def test_the_first_table_decides_types_not_its_size(trained):
    number, tables = Model(trained).recommend_in_blocks(k=2, block=25)
    tables = list(tables)
    assert (number, len(tables)) == (3, 3)
    assert [len(table) for table in tables] == [50, 50, 20]
    assert list(tables[0].dtypes) == list(tables[2].dtypes)

"""A model serves many calls: each of its answers is what NumPy makes of the run's arrays."""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec.cli import similar
from jaxrec.data.synthetic import synthetic
from jaxrec.types import CheckpointError, DataError, SettingError, Unavailable

USERS, ITEMS = 60, 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """EASE with the baseline popularity, on data whose file is gone."""
    place = tmp_path_factory.mktemp("run")
    data = synthetic(users=USERS, items=ITEMS, clients=4, length=10)
    (place / "log").mkdir()
    items = data.items.assign(raw_id=[f"i{7 * n % ITEMS}" for n in range(ITEMS)])
    rows = data.interactions.drop(columns=["split", "client"], errors="ignore")
    rows = rows.assign(item=items["raw_id"].to_numpy()[rows["item"]])
    items = items.assign(item=items["raw_id"]).drop(columns="raw_id")
    rows.to_parquet(place / "log" / "interactions.parquet")
    items.to_parquet(place / "log" / "items.parquet")
    settings = {"model": "ease", "baselines": ("popularity",), "min_support": 1}
    jaxrec.train("fedcia", place / "log", out=place / "run", progress=False, **settings)
    shutil.rmtree(place / "log")
    return place / "run"


@pytest.fixture(scope="module")
def model(folder):
    return jaxrec.open(folder)


def held(model):
    """Items of each user, bool [U, I], in all splits."""
    rows = model.run.dataset.interactions
    found = np.zeros((USERS, ITEMS), bool)
    found[rows["user"], rows["item"]] = True
    return found


def scores(model):
    return held(model) @ np.asarray(model.run.state.left)


def compiled(act):
    """Programs that are compiled while `act` runs."""
    found = []
    listen = lambda name, *_, **__: found.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        act()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return found


def test_a_run_serves_anywhere_without_its_data(model, folder, tmp_path):
    away = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    for name in ("", "baselines/popularity"):
        expected = jaxrec.recommend(folder / name, k=4)
        pd.testing.assert_frame_equal(jaxrec.recommend(away / name, k=4), expected)
    opened = jaxrec.reopen(away, progress=False)
    assert opened.values == json.loads((folder / "result.json").read_text())
    assert opened.protocol == json.loads((folder / "config.json").read_text())["protocol"]
    with pytest.raises(DataError, match=r"trained on '.*log': no dataset '.*log'\. .* --data"):
        jaxrec.train(resume=away, progress=False)


def test_kept_data_that_are_damaged_are_refused(folder, tmp_path):
    away = shutil.copytree(folder, tmp_path / "copy")
    rows = pd.read_parquet(away / "data" / "interactions.parquet")
    rows.iloc[1:].to_parquet(away / "data" / "interactions.parquet")
    with pytest.raises(CheckpointError, match=r"interactions.parquet has changed\); remove it"):
        jaxrec.open(away)
    (away / "data" / "index.json").write_text("[" * 10_000)
    with pytest.raises(CheckpointError, match="data: damaged"):
        jaxrec.open(away)
    shutil.rmtree(away / "data")
    with pytest.raises(DataError, match="trained on"):
        jaxrec.open(away)


def test_a_second_call_compiles_nothing(model):
    def ask(users, k, histories, items):
        model.recommend(users, k, exclude=["i3"], filters={"domain": 0})
        model.recommend_from_items(histories, k)
        model.similar_items(items, k)
        model.score(users, items[0])
        model.explain(users[0], items[0])

    first = compiled(lambda: ask([3, 4, 5], 5, {"a": ["i1", "i2"], "b": ["i5"]}, ["i1", "i2"]))
    again = lambda: ask([4, 8, 7, 6], 9, {"c": ["i4", "i9", "i2"], "d": ["i5"]}, ["i7", "i8"])
    assert first and not compiled(again)


def test_lists_hold_what_is_asked_for_alone(model):
    allowed, exclude = [f"i{n}" for n in range(20)], ["i4", "i5"]
    found = model.recommend([0, 1], 30, allowed=allowed, exclude=exclude)
    where = np.isin(model.items.raw, allowed) & ~np.isin(model.items.raw, exclude)
    for user, own in found.groupby("user"):
        free = np.where(where & ~held(model)[user], scores(model)[user], -np.inf)
        order = np.argsort(-free, kind="stable")[: np.isfinite(free).sum()]
        assert list(own["item"]) == list(model.items.raw[order])
    items = model.run.dataset.items
    kind = items["category"].str.split("|").str[0].iloc[0]
    passing = items["category"].str.split("|").map(lambda names: kind in names)
    found = model.recommend(0, ITEMS, filters={"category": kind}, exclude_seen=False)
    assert set(found["item"]) == set(model.items.raw[passing])
    assert model.recommend(0, allowed=[]).empty
    with pytest.raises(SettingError, match=r"the items have no 'colour'; they have \['item'"):
        model.recommend(0, filters={"colour": "red"})
    with pytest.raises(SettingError, match="no item has category = 'Comdy'"):
        model.recommend(0, filters={"category": ["Comdy"]})
    with pytest.raises(DataError, match="1 of 1 items are not among"):
        model.recommend(0, exclude=["nothing"])


def test_one_unknown_id_does_not_fail_a_batch(model):
    asked = [2, "nobody", 1]
    with pytest.raises(DataError, match="1 of 3 users are not among"):
        model.recommend(asked)
    skipped = model.recommend(asked, 3, unknown="skip")
    pd.testing.assert_frame_equal(skipped, model.recommend([2, 1], 3))
    found = model.recommend(asked, 3, unknown="popularity", exclude=["i0"])
    counts = held(model).sum(0) * (model.items.raw != "i0")
    most = np.argsort(-counts, kind="stable")[:3]
    strange = found[found["user"] == "nobody"]
    assert list(strange["item"]) == list(model.items.raw[most])
    assert list(strange["score"]) == list(counts[most])
    assert list(found["by"]) == ["model"] * 3 + ["popularity"] * 3 + ["model"] * 3
    assert list(found["user"]) == [2] * 3 + ["nobody"] * 3 + [1] * 3
    new = {"ann": ["i3", "what"], "bob": ["what"]}
    known = model.recommend_from_items({"ann": ["i3"]}, 4)
    pd.testing.assert_frame_equal(model.recommend_from_items(new, 4, unknown="skip"), known)
    assert set(model.recommend_from_items(new, 4, unknown="popularity")["user"]) == {"ann", "bob"}
    assert model.recommend("nobody", unknown="skip").columns.tolist() == known.columns.tolist()
    with pytest.raises(SettingError, match="unknown = 'perhaps': must be error, skip"):
        model.recommend(0, unknown="perhaps")


def test_scores_are_of_pairs(model):
    users, items = [3, 0, 3], ["i5", "i6", "i7"]
    found = model.score(users, items)
    column = [list(model.items.raw).index(item) for item in items]
    np.testing.assert_allclose(found["score"], scores(model)[users, column], rtol=1e-5)
    pd.testing.assert_frame_equal(model.score(found[["user", "item"]]), found)
    assert len(model.score(3, items)) == 3
    assert list(model.score([3, "x"], "i5", unknown="skip")["user"]) == [3]
    with pytest.raises(SettingError, match="2 users and 3 items"):
        model.score([1, 2], items)
    with pytest.raises(SettingError, match="no items given"):
        model.score([1, 2])
    with pytest.raises(SettingError, match="scores have error and skip"):
        model.score([1, 2], "i5", unknown="popularity")


def test_similar_items_of_a_linear_model_are_its_weights(model):
    weights = np.asarray(model.run.state.left)
    found = model.similar_items(["i5", "i0"], 4)
    for item, own in found.groupby("to"):
        row = weights[list(model.items.raw).index(item)].copy()
        row[list(model.items.raw).index(item)] = -np.inf
        assert list(own["item"]) == list(model.items.raw[np.argsort(-row, kind="stable")[:4]])


def test_similar_items_of_vectors_are_by_cosine(model):
    item = np.random.default_rng(0).normal(size=(ITEMS, 5)).astype(np.float32)
    factors = model.run.method._replace(vectors=lambda served: (None, item))
    found = jaxrec.Model(model.run._replace(method=factors)).similar_items("i5", 4)
    unit = item / np.linalg.norm(item, axis=1, keepdims=True)
    place = list(model.items.raw).index("i5")
    cosine = unit @ unit[place]
    cosine[place] = -np.inf
    best = np.argsort(-cosine)[:4]
    assert list(found["item"]) == list(model.items.raw[best])
    np.testing.assert_allclose(found["score"], cosine[best], rtol=1e-4)


def test_no_item_is_like_another_for_popularity(folder):
    popular = jaxrec.open(folder / "baselines" / "popularity")
    with pytest.raises(SettingError, match="similar to another: every user has the same scores"):
        popular.similar_items("i5")


def test_reasons_of_a_linear_model_add_up_to_the_score(model):
    user, item = 7, "i5"
    own = np.flatnonzero(held(model)[user])
    column = list(model.items.raw).index(item)
    weights = np.asarray(model.run.state.left)[own, column]
    found = model.explain(user, item, k=ITEMS)
    expected = dict(zip(model.items.raw[own], weights, strict=True))
    assert set(found["item"]) == set(expected)
    np.testing.assert_allclose(
        found["contribution"], [expected[item] for item in found["item"]], atol=1e-6
    )
    assert found["contribution"].is_monotonic_decreasing
    total = model.score(user, item)["score"][0]
    assert found["contribution"].sum() == pytest.approx(total, abs=1e-5)
    shut = model.run.method._replace(fold_in=Unavailable("the door is shut"))
    with pytest.raises(SettingError, match="the door is shut"):
        jaxrec.Model(model.run._replace(method=shut)).explain(user, item)


def test_frames_come_in(model):
    frame = pd.DataFrame({"user": ["a", "a", "b"], "item": ["i1", "i2", "i5"]})
    found = model.recommend_from_items(frame, 3)
    expected = model.recommend_from_items({"a": ["i1", "i2"], "b": ["i5"]}, 3)
    pd.testing.assert_frame_equal(found, expected)
    asked = pd.DataFrame({"user": [4, 5, 4]})
    pd.testing.assert_frame_equal(model.recommend(asked, 3), model.recommend([4, 5], 3))
    with pytest.raises(DataError, match=r"no column 'user'; it has \['who'\]"):
        model.recommend(asked.rename(columns={"user": "who"}))


def test_items_that_nobody_sums_hide_no_likeness(model):
    weights = model.run.state.left.at[0].set(0).at[-1].set(0)
    cold = jaxrec.Model(model.run._replace(state=model.run.state._replace(left=weights)))
    assert len(cold.similar_items("i5", 4)) == 4


def test_ids_are_compared_as_they_are_read(model):
    expected = model.recommend([3, 4], 3)
    for asked in (["3", " 4 "], [3.0, 4.0], pd.DataFrame({"user": ["3 ", "4"]})):
        pd.testing.assert_frame_equal(model.recommend(asked, 3), expected)
    assert model.recommend([3, "x" * 100_000], 3, unknown="skip")["user"].unique().tolist() == [3]


def test_what_is_not_there_may_be_excluded_where_unknown_ids_are_no_error(model):
    found = model.recommend([3], 3, exclude=["nothing"], unknown="skip")
    pd.testing.assert_frame_equal(found, model.recommend([3], 3))


def test_a_frame_of_anything_is_kept_and_opened(tmp_path):
    data = synthetic(users=USERS, items=ITEMS, clients=4, length=10)
    odd = {
        "year": [1999, "n/a"] * (ITEMS // 2), "tags": [["a", "b"], None] * (ITEMS // 2),
        "seen": pd.Timestamp("2020-01-01"), "share": [0.5, np.nan] * (ITEMS // 2),
    }  # fmt: skip
    items = data.items.assign(**odd)
    run = jaxrec.train("popularity", replace(data, items=items), out=tmp_path / "run", baselines=())
    opened = jaxrec.open(tmp_path / "run")
    pd.testing.assert_frame_equal(opened.recommend(k=3), jaxrec.recommend(run, k=3))
    found = opened.recommend(0, ITEMS, filters={"year": 1999}, exclude_seen=False)
    assert set(found["item"]) == set(range(0, ITEMS, 2))


def test_a_baselines_data_are_those_of_its_run(folder, monkeypatch):
    monkeypatch.chdir(folder / "baselines")
    found = jaxrec.recommend("popularity", k=3)
    pd.testing.assert_frame_equal(found, jaxrec.recommend(folder / "baselines/popularity", k=3))


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_the_command_writes_similar_items(folder, tmp_path, form):
    asked, out = tmp_path / "ids.txt", tmp_path / f"similar.{form}"
    asked.write_text("\ufeffi5\r\n i0 \n", encoding="utf-8")
    words = [str(folder), "--items", str(asked), "--k", "3", "--out", str(out)]
    assert similar.main(words) == 0
    expected = jaxrec.open(folder).similar_items(["i5", "i0"], 3)
    read = {"csv": pd.read_csv, "jsonl": partial(pd.read_json, lines=True)}
    found = read.get(form, pd.read_parquet)(out)
    if form == "jsonl":
        found = found.explode("item")
    assert list(found["to"]) == list(expected["to"])
    assert list(found["item"]) == list(expected["item"])


def test_large_data_are_not_kept(tmp_path, capsys):
    data = synthetic(users=USERS, items=ITEMS, clients=4, length=10)
    out = tmp_path / "run"
    run = jaxrec.train("popularity", data, out=out, baselines=(), kept_data=1e-6)
    assert "the data take up to" in capsys.readouterr().err
    assert not (out / "data").exists()
    found = jaxrec.recommend(out, k=3, data=replace(data, name="again"))
    pd.testing.assert_frame_equal(found, jaxrec.recommend(run, k=3))

"""What is exported multiplies to the run's scores, and an index says what it finds."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

import jaxrec
from jaxrec.data.synthetic import synthetic
from jaxrec.types import SettingError, Unavailable

command = importlib.import_module("jaxrec.cli.export")
exporting = importlib.import_module("jaxrec.serving.export")
USERS, ITEMS = 60, 40


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = synthetic(users=USERS, items=ITEMS, clients=6, length=16)
    out = tmp_path_factory.mktemp("run") / "run"
    settings = {"rounds": 2, "width": 4, "baselines": (), "progress": False}
    return jaxrec.train("fedavg", data, out=out, **settings)


@pytest.mark.parametrize("to", ["npz", "safetensors"])
def test_rows_multiply_to_the_scores_and_are_named(trained, tmp_path, to):
    told = exporting.export(trained, tmp_path / "export", to)
    path = tmp_path / "export" / f"vectors.{to}"
    arrays = dict(np.load(path)) if to == "npz" else load_file(path)
    method = trained.method
    every = lambda *args: method.score(method.prepare(*args), jnp.arange(USERS))
    scores = jax.jit(every)(trained.state, trained.data)
    np.testing.assert_allclose(arrays["user"] @ arrays["item"].T, scores, rtol=1e-5, atol=1e-6)
    assert told == json.loads((tmp_path / "export" / "export.json").read_text())
    assert told == {"users": USERS, "items": ITEMS, "width": 4, "until": "test"}
    users, items = (
        pd.read_parquet(tmp_path / "export" / f"{n}.parquet") for n in ("users", "items")
    )
    assert list(users["user"]) == list(trained.dataset.users["raw_id"])
    assert list(items["title"]) == list(trained.dataset.items["title"])


@pytest.mark.parametrize("by", ["vectors", "lists"])
def test_the_test_value_of_a_run_is_made_again_from_what_it_serves(trained, tmp_path, by):
    rows, found = trained.dataset.interactions, []
    before = rows["split"] < 2
    if by == "vectors":
        exporting.export(trained, tmp_path, until="train")
        vectors = np.load(tmp_path / "vectors.npz")
        scores = vectors["user"] @ vectors["item"].T
        scores[rows["user"][before], rows["item"][before]] = -np.inf
        places = np.argsort(np.argsort(-scores, axis=1), axis=1)
        held = rows[rows["split"] == 2]
        found = places[held["user"], held["item"]]
    else:
        lists = jaxrec.recommend(trained, k=ITEMS, until="train", exclude_seen=False)
        raw = trained.dataset.users["raw_id"], trained.dataset.items["raw_id"]
        for user, item in rows.loc[rows["split"] == 2, ["user", "item"]].to_numpy():
            own = lists.loc[lists["user"] == raw[0][user], "item"]
            mine = rows.loc[before & (rows["user"] == user), "item"]
            left = own[~own.isin(raw[1][mine])]
            found.append(left.tolist().index(raw[1][item]))
    gain = np.where(np.array(found) < 10, 1 / np.log2(2 + np.array(found)), 0)
    assert gain.mean() == pytest.approx(trained.values["test/NDCG@10"], abs=1e-6)
    with pytest.raises(SettingError, match="until = 'now': must be train, valid or test"):
        exporting.export(trained, tmp_path, until="now")


def test_a_score_that_is_no_inner_product_is_refused(trained):
    words = trained.method._replace(vectors=Unavailable("a score is a mood"))
    with pytest.raises(SettingError, match="nothing to export: a score is a mood; jaxrec"):
        exporting.vectors(trained._replace(method=words))


@pytest.mark.parametrize("kind", ["flat", "hnsw", "ivfpq"])
def test_recall_is_the_share_of_the_best_that_an_index_finds(kind):
    rng = np.random.default_rng(0)
    user, item = (rng.normal(size=(n, 12)).astype(np.float32) for n in (150, 400))
    index = pytest.importorskip("faiss") and exporting.faiss_index(item, kind)
    found = index.search(user, 20)[1]
    shares = [
        len(set(np.argsort(-(item @ one))[:20]) & set(own)) / 20
        for one, own in zip(user, found, strict=True)
    ]
    assert exporting.recall(index, user, item) == pytest.approx(np.mean(shares))
    assert (np.mean(shares) == 1) == (kind != "ivfpq")
    assert np.mean(shares) > 0.4


def test_an_index_is_written_with_its_recall(trained, tmp_path):
    faiss = pytest.importorskip("faiss")
    told = exporting.export(trained, tmp_path, "faiss", "hnsw")
    assert told["recall@20"] == pytest.approx(1)
    index = faiss.read_index(str(tmp_path / "items.faiss"))
    user, item = exporting.vectors(trained)
    _, (first,) = index.search(user[7:8], 1)
    assert first[0] == np.argmax(item @ user[7])
    with pytest.raises(SettingError, match="40 items are fewer than its 256 codes"):
        exporting.export(trained, tmp_path, "faiss", "ivfpq")
    with pytest.raises(SettingError, match="index = 'tree'"):
        exporting.export(trained, tmp_path, "faiss", "tree")
    for to, kind in (("onnx", "flat"), ("npz", "hnsw")):
        with pytest.raises(SettingError, match=f"to = '{to}', index = '{kind}'"):
            exporting.export(trained, tmp_path, to, kind)


@pytest.mark.parametrize(
    ("to", "file"), [("safetensors", "vectors.safetensors"), ("faiss", "items.faiss")]
)
def test_a_full_disk_is_one_line_whatever_writes(trained, tmp_path, monkeypatch, to, file):
    resource = pytest.importorskip("resource")
    if to == "faiss":
        pytest.importorskip("faiss")
        monkeypatch.setattr(exporting, "_write_vectors", lambda *args: None)
        monkeypatch.setattr(exporting, "_write_names", lambda *args: None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        with pytest.raises(OSError, match=f"{file}: cannot be written: File too large; ") as told:
            exporting.export(trained, tmp_path / "new", to)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(told.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_the_command_writes_beside_the_run(trained, monkeypatch, capsys):
    monkeypatch.setattr(command, "reopen", lambda out, data=None: trained)
    command.act([trained.out], command.Options())
    assert capsys.readouterr().out.startswith("users 60, items 40, width 4, until test\n")
    names = {path.name for path in (trained.out / "export").iterdir()}
    assert names == {"vectors.npz", "users.parquet", "items.parquet", "export.json"}
    with pytest.raises(SettingError, match="2 run folders"):
        command.act([trained.out, trained.out], command.Options())

"""A run picks the best state, stops, saves, and resumes with the same bits."""

import contextlib
import functools
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import chex
import jax
import numpy as np
import pandas as pd
import pytest

from jaxrec.data.buckets import POWERS_OF_TWO
from jaxrec.data.synthetic import synthetic
from jaxrec.files import in_use
from jaxrec.methods import METHODS
from jaxrec.training import curve
from jaxrec.training.checkpoint import to_arrays
from jaxrec.training.opening import reopen
from jaxrec.training.prepared import prepare
from jaxrec.training.run import train
from jaxrec.training.run_folder import check_record, read_record
from jaxrec.training.settings import RunConfig
from jaxrec.types import CheckpointError, SettingError

pytestmark = pytest.mark.usefixtures("toy")
TOY = Path(__file__).parents[1] / "toy.py"
WRITE_CURVE = curve.write_curve


@pytest.fixture(autouse=True)
def no_curve(monkeypatch):
    """Drawing it is half the time of a toy's run; `test_what_a_run_folder_holds` does."""
    monkeypatch.setattr(curve, "write_curve", lambda *args: None)


@pytest.fixture(scope="module")
def dataset():
    return synthetic(users=60, items=40, clients=6, length=16)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """The same data as a dataset folder, for other processes."""
    folder = tmp_path_factory.mktemp("data") / "small"
    folder.mkdir()
    dataset.interactions.to_parquet(folder / "interactions.parquet")
    return folder


def fit(dataset, **settings):
    return train("toy", dataset, progress=False, **settings)


@pytest.fixture(scope="module")
def finished(dataset, tmp_path_factory):
    """Runs of the toy in folders, each trained when it is first asked for; nobody writes there."""
    found = {}

    def get(**settings):
        name = repr(settings)
        if name not in found:
            found[name] = fit(dataset, out=tmp_path_factory.mktemp("runs") / "run", **settings)
        return found[name]

    return get


def copied(result, folder):
    """A copy of a run's folder, to go on in or to spoil."""
    return shutil.copytree(result.out, folder)


@pytest.mark.slow  # the methods' own tests say what is settled
def test_what_the_data_settle_is_said_and_recorded(dataset, tmp_path, capsys):
    """RQFedRec takes its codes from texts too, where there are any."""
    settings = {"codes": 8, "rounds": 1, "evaluate_every": 1, "baselines": (), "text": "tfidf"}
    bare = replace(dataset, items=dataset.items[["item", "raw_id"]])
    channels = {}
    for name, data in (("titled", dataset), ("bare", bare)):
        train("rqfedrec", data, out=tmp_path / name, **settings)
        assert ("no texts" in capsys.readouterr().err) == (name == "bare")
        channels[name] = read_record(tmp_path / name)["settings"]["channels"]
    assert channels == {"titled": "dual", "bare": "collaborative"}
    again = train(resume=tmp_path / "bare", data=bare, rounds=2)
    assert again.values["rounds"] == 2


def command(*words):
    return [sys.executable, str(TOY), "toy", *map(str, words)]


def resume(out):
    words = [sys.executable, str(TOY), "--resume", str(out)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def timeless(values):
    return {name: value for name, value in values.items() if not name.startswith("seconds")}


def assert_same_state(left, right):
    left, right = to_arrays(left), to_arrays(right)
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def assert_same_folder(left, right):
    """Bit for bit, apart from seconds."""
    left_values, right_values = (json.loads((f / "result.json").read_text()) for f in (left, right))
    assert timeless(left_values) == timeless(right_values)
    left_rows, right_rows = (
        [timeless(json.loads(line)) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (left, right)
    )
    assert left_rows == right_rows
    users = [pd.read_parquet(f / "users.parquet") for f in (left, right)]
    pd.testing.assert_frame_equal(*users, check_exact=True)


@pytest.fixture(scope="module")
def by_hand(dataset):
    """The toy's states after each of 7 rounds, by a plain loop."""

    @functools.cache
    def states():
        prepared, toy = prepare(RunConfig(), dataset), METHODS["toy"]
        method = toy.make(toy.Config(), prepared.sizes)
        init_key, key = jax.random.split(jax.random.key(0))
        found, step = [jax.jit(method.init)(init_key, prepared.data)], jax.jit(method.step)
        for number in range(7):
            state, _ = step(found[-1], prepared.data, jax.random.fold_in(key, number))
            found.append(state)
        return found

    return states


def test_the_best_state_by_validation_is_the_one_tested(by_hand, finished):
    result = finished(rounds=7)
    assert [row["round"] for row in result.rows] == [2, 4, 6, 7]
    values = [row["valid/NDCG@10"] for row in result.rows]
    best = result.rows[int(np.argmax(values))]
    assert result.values["best_round"] == best["round"]
    assert result.values["valid/NDCG@10"] == max(values)
    assert result.values["rounds"] == 7
    expected = by_hand()[best["round"]]
    for name, array in to_arrays(expected).items():
        np.testing.assert_allclose(to_arrays(result.state)[name], array, rtol=1e-5, err_msg=name)


def test_a_row_holds_means_over_its_rounds(by_hand, finished):
    items = [np.asarray(state.item) for state in by_hand()]
    losses = [np.abs(b - a).mean() for a, b in itertools.pairwise(items)]
    *pairs, last = finished(rounds=7).rows
    for row, *both in zip(pairs, losses[:6:2], losses[1:6:2], strict=True):
        assert row["train/loss"] == pytest.approx(np.mean(both), rel=1e-4)
        assert row["train/participants"] == 5.5  # 6 clients, one of them out every other round
    assert last["train/loss"] == pytest.approx(losses[6], rel=1e-4)


def test_bytes_count_the_clients_that_took_part(finished):
    """6 clients, one of them out every other round; a refresh by 4 in round 3."""
    result = finished(rounds=4)
    (best,) = (row for row in result.rows if row["round"] == result.values["best_round"])
    up, down = (5 + 6 + 5 + 6) * 4 + 6 * 100 + 4 * 2, (5 + 6 + 5 + 6) * 8 + 2 * 6 * 50 + 4 * 1
    assert {name: value for name, value in result.values.items() if name.startswith("bytes")} == {
        "bytes/up_per_client_round": 4, "bytes/down_per_client_round": 8,
        "bytes/setup_per_client": 100, "bytes/per_client": (up + down) / 6,
        "bytes/total": up + down, "bytes/up_total": up, "bytes/down_total": down,
        "bytes/setup_total": 6 * 100, "bytes/codes_total": 2 * 6 * 50,
        "bytes/refresh_total": 4 * (2 + 1), "bytes/best_per_client": best["bytes"] / 6,
    }  # fmt: skip
    by_row = [
        tuple(row[name] for name in ("bytes", "bytes/up", "bytes/down")) for row in result.rows
    ]
    first = (5 + 6) * 4 + 6 * 100, (5 + 6) * 8 + 6 * 50
    assert by_row == [(sum(first), *first), (up + down, up, down)]


def test_the_ledger_survives_a_checkpoint(dataset, finished, tmp_path):
    out = copied(finished(rounds=4), tmp_path / "run")
    path = out / "checkpoint" / "index.json"
    index = json.loads(path.read_text())
    ledger = {
        "rounds_up": 88, "rounds_down": 176, "setup_up": 600, "setup_down": 0,
        "codes_down": 600, "refresh_up": 8, "refresh_down": 4,
    }  # fmt: skip
    assert index["memory"]["ledger"] == ledger
    resumed = train(resume=out, data=dataset, rounds=7, progress=False)
    assert timeless(resumed.values) == timeless(finished(rounds=7).values)
    index["memory"]["bytes"] = index["memory"].pop("ledger")
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json: of another version"):
        train(resume=out, data=dataset, progress=False)


def test_a_sampled_metric_is_monitored_under_its_own_name(dataset):
    result = fit(dataset, candidates=5)
    values = [row["valid/NDCG@10(5 negatives)"] for row in result.rows]
    assert result.values["best_round"] == result.rows[int(np.argmax(values))]["round"]


def test_items_a_user_already_has_are_ranked_on_request(dataset, finished):
    masked, whole = finished(), fit(dataset, mask_history=False)
    assert "40 items, with those the user already has" in whole.protocol
    # The toy learns what users chose, so that those items stand in front.
    assert whole.values["test/HR@10"] < masked.values["test/HR@10"]


def test_patience_ends_a_run(dataset):
    result = fit(dataset, rounds=200, evaluate_every=1, patience=3, noise=1e3)
    values = [row["valid/NDCG@10"] for row in result.rows]
    assert len(values) < 200
    assert len(values) - 1 - int(np.argmax(values)) == 3


def test_a_one_shot_method_takes_one_step(dataset):
    result = fit(dataset, shots="one", rounds=50)
    assert (result.values["rounds"], len(result.rows), int(result.state.round)) == (1, 1, 1)


def test_a_method_on_the_host_is_stepped_in_python(dataset, finished):
    compiled, stepped = finished(rounds=4), fit(dataset, rounds=4, on_host=True)
    assert stepped.values["test/NDCG@10"] == pytest.approx(compiled.values["test/NDCG@10"])
    assert stepped.rows[0]["train/loss"] == pytest.approx(compiled.rows[0]["train/loss"])


def test_the_seed_decides_every_bit(dataset, finished):
    (first, again), other = (fit(dataset, seed=1) for _ in range(2)), finished()
    assert timeless(first.values) == timeless(again.values)
    assert_same_state(first.state, again.state)
    assert not np.array_equal(first.state.item, other.state.item)


def test_items_of_few_train_rows_are_reported_by_themselves():
    few = synthetic(users=40, items=60, clients=4, length=8)
    result = train("popularity", few, baselines=(), cold=3, ranking="rows", progress=False)
    rows = result.dataset.interactions
    number = np.bincount(rows.loc[rows["split"] == 0, "item"], minlength=result.sizes.items)
    of_test = number[rows.loc[rows["split"] == 2, "item"]]
    expected = {
        "cold": (of_test <= 3).sum(),
        "no train rows": (of_test == 0).sum(),
        "1-5 train rows": ((of_test >= 1) & (of_test <= 5)).sum(),
        "6-20 train rows": ((of_test >= 6) & (of_test <= 20)).sum(),
    }
    found = {name: result.values.get(f"test/rows/{name}", 0) for name in expected}
    assert found == expected and min(expected["cold"], expected["6-20 train rows"]) > 0


def test_baselines_stand_beside_the_method(dataset, finished):
    result = finished(baselines=["popularity", "toy"])
    assert list(result.baselines) == ["popularity"]
    alone = train("popularity", dataset, baselines=(), progress=False)
    beside = result.baselines["popularity"]
    assert timeless(beside.values) == timeless(alone.values)
    assert beside.out == result.out / "baselines" / "popularity"
    assert json.loads((beside.out / "result.json").read_text()) == beside.values


def test_without_a_folder_nothing_is_written(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert fit(dataset, rounds=2).out is None
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_a_run_folder_holds(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "write_curve", WRITE_CURVE)
    out = tmp_path / "run"
    result = fit(dataset, out=out, width=4)
    assert sorted(path.name for path in out.iterdir()) == [
        "checkpoint", "config.json", "curve.png", "data", "metrics.jsonl", "result.json",
        "result.sha256", "users.parquet",
    ]  # fmt: skip
    config = json.loads((out / "config.json").read_text())
    assert config["method"] == "toy"
    assert (config["settings"]["width"], config["settings"]["rounds"]) == (4, 6)
    assert config["data"]["digest"] == result.dataset.digest
    assert config["data"]["users"] == 60
    counts = [config["data"][name] for name in ("train", "valid", "test")]
    assert sum(counts) == config["data"]["interactions"] == len(dataset.interactions)
    assert config["versions"]["jax"] == jax.__version__
    assert "full ranking over 40 items, without those the user already has" in config["protocol"]
    assert json.loads((out / "result.json").read_text()) == result.values
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert rows == result.rows
    users = pd.read_parquet(out / "users.parquet")
    pd.testing.assert_frame_equal(users, result.users, check_exact=True)
    assert users["NDCG@10"].mean() == pytest.approx(result.values["test/NDCG@10"])
    owner = result.dataset.interactions.groupby("user")["client"].first()
    np.testing.assert_array_equal(users["client"], owner[users["user"]])
    raw = result.dataset.users.set_index("user")["raw_id"]
    np.testing.assert_array_equal(users["raw_id"], raw[users["user"]])


def test_a_folder_that_holds_a_run_is_not_overwritten(dataset, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SettingError, match="holds a run"):
        fit(dataset, out=tmp_path)
    assert (tmp_path / "config.json").read_text() == "{}"


def test_one_process_at_a_time_works_in_the_folder_of_a_run(dataset, tmp_path):
    baseline = tmp_path / "run" / "baselines" / "popularity"
    baseline.mkdir(parents=True)
    (tmp_path / "run" / "config.json").write_text("{}")
    owner = f"run: is in use by process {os.getpid()} on "
    with in_use(tmp_path / "run"):
        for place in (
            {"out": tmp_path / "run"},
            {"resume": tmp_path / "run"},
            {"resume": baseline},
        ):
            with pytest.raises(CheckpointError, match=owner):
                train("toy", dataset, progress=False, **place)
    with pytest.raises(SettingError, match="nonsense"):
        fit(dataset, out=tmp_path / "new", nonsense=1)
    assert not (tmp_path / "new").exists()


def test_nan_names_its_round_and_loses_nothing(dataset, finished, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FloatingPointError, match=r"round 11: loss is nan.*round \d+ is saved"):
        fit(dataset, out=out, rounds=20, nan_at=11)
    rows = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["round"] for row in rows] == [2, 4, 6, 8, 10]
    result = train(resume=out, data=dataset, rounds=10, progress=False)
    assert_same_state(result.state, finished(rounds=10).state)


def test_nan_in_scores_or_state_is_named(dataset):
    with pytest.raises(FloatingPointError, match=r"rounds 1 to 2: .*score"):
        fit(dataset, nan_score=True)
    with pytest.raises(FloatingPointError, match=r"round 2 at the latest: item of the state"):
        fit(dataset, nan_state_at=2)


def test_a_finished_run_just_reports(dataset, finished, tmp_path):
    result = finished(baselines=["popularity", "toy"])
    out = copied(result, tmp_path / "run")
    stamps = {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")}
    again = train(resume=out, data=dataset, progress=False)
    assert again.values == result.values
    assert again.baselines["popularity"].values == result.baselines["popularity"].values
    assert_same_state(again.state, result.state)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("*.parquet")} == stamps


def test_more_rounds_continue_a_finished_run(dataset, finished, tmp_path):
    short, long = copied(finished(rounds=4), tmp_path / "short"), finished(rounds=10).out
    train(resume=short, data=dataset, rounds=10, progress=False)
    assert_same_folder(short, long)
    assert json.loads((short / "config.json").read_text())["settings"]["rounds"] == 10
    with pytest.raises(SettingError, match=r"rounds = 4.*already taken 10"):
        train(resume=short, data=dataset, rounds=4, progress=False)
    with pytest.raises(SettingError, match=r"goes on in its own folder; give no out"):
        train(resume=short, data=dataset, out=long, progress=False)


def test_finished_baselines_are_not_trained_again(dataset, finished, tmp_path):
    whole = finished(baselines=["popularity", "toy"])
    out = copied(whole, tmp_path / "run")
    baseline = out / "baselines" / "popularity"
    before = (baseline / "users.parquet").stat().st_mtime_ns
    for name in ("result.json", "users.parquet"):  # as if killed before these were written
        (out / name).unlink()
    again = train(resume=out, data=dataset, progress=False)
    assert timeless(again.values) == timeless(whole.values)
    assert (baseline / "users.parquet").stat().st_mtime_ns == before


def test_a_resumed_run_refuses_what_does_not_fit(dataset, finished, tmp_path):
    out = copied(finished(), tmp_path / "run")
    again = lambda data=dataset, **settings: train(
        resume=out, data=data, progress=False, **settings
    )
    with pytest.raises(SettingError, match=r"width = 9: .*trained with 8.*rounds and patience"):
        again(width=9)
    with pytest.raises(SettingError, match="run of toy, not of popularity"):
        again(method="popularity")
    with pytest.raises(CheckpointError, match="data have changed"):
        again(synthetic(users=60, items=40, clients=6, length=16, seed=1))
    with pytest.raises(CheckpointError, match="no run \\("):
        train(resume=tmp_path / "absent", progress=False)
    config = json.loads((out / "config.json").read_text())
    config["settings"]["width"] = 4
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="run with other width"):
        again()
    config["settings"]["width"] = "eight"
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match=r"config\.json: width = 'eight'"):
        again()
    (out / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
        again()


def test_a_lost_checkpoint_or_row_is_named(dataset, finished, tmp_path):
    for lost, message in [
        ("checkpoint", r"index\.json: missing"),
        ("metrics.jsonl", r"metrics\.jsonl: damaged"),
    ]:
        out = copied(finished(), tmp_path / lost)
        shutil.rmtree(out / lost) if (out / lost).is_dir() else (out / lost).unlink()
        with pytest.raises(CheckpointError, match=message):
            train(resume=out, data=dataset, progress=False)


@contextlib.contextmanager
def running(words, out, rows):
    """A run in another process that has written `rows` evaluations."""
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") >= rows):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    yield process
    process.communicate()


def test_killed_at_random_moments_and_resumed_it_has_the_same_bits(folder, tmp_path):
    out, settings = tmp_path / "run", {"rounds": 240, "baselines": ("popularity",)}
    words = command("--data", folder, "--rounds", 240, "--baselines", "popularity", "--out", out)
    chance = random.Random(0)
    for rows in (1, 30, 60):
        with running(words, out, rows) as process:
            time.sleep(chance.uniform(0, 0.1))
            process.kill()
        assert not (out / "result.json").exists()
        words = [sys.executable, str(TOY), "--resume", str(out)]
    resume(out)
    whole = train("toy", folder, out=tmp_path / "whole", progress=False, **settings)
    assert_same_folder(out, tmp_path / "whole")
    assert_same_folder(out / "baselines" / "popularity", tmp_path / "whole/baselines/popularity")
    assert_same_state(train(resume=out, progress=False).state, whole.state)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(number, folder, tmp_path):
    out = tmp_path / "run"
    words = command("--data", folder, "--rounds", 4000, "--evaluate-every", 1, "--out", out)
    with running(words, out, 3) as process:
        process.send_signal(number)
        printed = process.communicate()[1]
    assert process.returncode == 130
    assert f"--resume {out}" in printed
    assert "Traceback" not in printed
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    memory = json.loads((out / "checkpoint" / "index.json").read_text())["memory"]
    assert memory["round"] == rows[-1]["round"] < 4000


def test_a_run_of_when_the_default_was_a_ratio_is_opened_and_goes_on_as_it_was(dataset, tmp_path):
    told = lambda name: json.loads((tmp_path / name).read_text())
    fit(dataset, out=tmp_path, rounds=2, split="ratio", baselines=("popularity",))
    for name in ("config.json", "baselines/popularity/config.json"):
        record = told(name)
        record["settings"]["split"] = "auto"
        del record["data"]["split"]
        (tmp_path / name).write_text(json.dumps(record))
    index = told("checkpoint/index.json")
    index["identity"]["split"] = '"auto"'
    (tmp_path / "checkpoint/index.json").write_text(json.dumps(index))
    for kept in (True, False):
        opened = reopen(tmp_path, None if kept else dataset, progress=False)
        assert (opened.run.split, "ratio split" in opened.protocol) == ("ratio", True)
    resumed = train(data=dataset, resume=tmp_path, rounds=4, progress=False)
    assert_same_state(resumed.state, fit(dataset, rounds=4, split="ratio").state)
    for folder in (tmp_path, tmp_path / "baselines" / "popularity"):
        assert read_record(folder)["settings"]["split"] == "ratio"


def test_a_run_of_when_buckets_were_powers_of_two_keeps_them(dataset, tmp_path, monkeypatch):
    rows = dataset.interactions
    number = rows.groupby("user").cumcount()
    uneven = replace(dataset, interactions=rows[(rows["client"] > 2) | (number < 5)])
    with monkeypatch.context() as before:
        before.setattr(sys.modules["jaxrec.data.pack"], "best_lengths", lambda *_: POWERS_OF_TWO)
        old, whole = fit(uneven, out=tmp_path, rounds=2), fit(uneven, rounds=4)
    record = json.loads((tmp_path / "config.json").read_text())
    lengths = record["data"].pop("lengths")
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert len(lengths) > 1 and set(lengths) <= set(POWERS_OF_TWO)
    assert len(prepare(RunConfig(), uneven).data.clients) == 1
    assert_same_state(reopen(tmp_path, progress=False).state, old.state)
    resumed = train(data=uneven, resume=tmp_path, rounds=4, progress=False)
    assert_same_state(resumed.state, whole.state)
    assert read_record(tmp_path)["data"]["lengths"] == lengths


def test_a_run_by_default_says_how_its_data_were_split(dataset, finished):
    result = finished()
    assert "leave-one-out split" in result.protocol
    record = json.loads((result.out / "config.json").read_text())
    assert (record["settings"]["split"], record["data"]["split"]) == ("auto", "leave-one-out")
    assert reopen(result.out, progress=False).protocol == result.protocol
    with pytest.raises(SettingError, match=r"test = 0.3: .*set split = 'ratio' or 'time'"):
        fit(dataset, test=0.3)
    fit(dataset, test=0.3, split="ratio", rounds=2, hold_test=True)


def test_a_run_goes_on_with_its_own_text_vectors_only():
    record = {"data": {"digest": "a", "encoder": "MiniLM", "vectors": "1"}, "versions": {}}
    check_record(record, SimpleNamespace(record=record), Path("run"))
    other = record | {"data": record["data"] | {"encoder": "hashed TF-IDF"}}
    with pytest.raises(CheckpointError, match="encoder MiniLM and now with hashed TF-IDF"):
        check_record(record, SimpleNamespace(record=other), Path("run"))


def test_a_run_stored_under_older_names_of_settings_is_opened_and_goes_on(tmp_path):
    dataset = synthetic(users=24, items=30, clients=4, length=12)
    given = {"width": 4, "rounds": 1, "evaluate_every": 1, "baselines": (), "dropped": 0.25}
    trained = train("fedavg", dataset, out=tmp_path, progress=False, **given)
    for name in ("config.json", "checkpoint/index.json"):
        path = tmp_path / name
        record = json.loads(path.read_text())
        settings = record["settings" if name == "config.json" else "identity"]
        settings["dropout"] = settings.pop("dropped")
        settings["memory"] = 16.0 if name == "config.json" else "16.0"
        path.write_text(json.dumps(record))
    opened = reopen(tmp_path, dataset, progress=False)
    assert opened.config == trained.config
    resumed = train(data=dataset, resume=tmp_path, rounds=2, progress=False)
    whole = train("fedavg", dataset, progress=False, **given | {"rounds": 2})
    chex.assert_trees_all_equal(resumed.state, whole.state)
    with pytest.raises(SettingError, match=r"dropped = 0.5: .* was trained with 0.25"):
        train(data=dataset, resume=tmp_path, dropped=0.5, progress=False)

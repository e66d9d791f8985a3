"""A search finds the best by validation, shows the test split of the winner only, and goes on."""

import importlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import jaxrec
from jaxrec.cli.sweep import Options, main, parse
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import METHODS
from jaxrec.search.space import MAY_DIFFER, Interval, draw, grid, read_space, space_of_words
from jaxrec.search.trials import plan_trials
from jaxrec.training.run import train
from jaxrec.training.settings import RunConfig, read_toml, settings_of
from jaxrec.types import CheckpointError, DataError, SettingError

searching = importlib.import_module("jaxrec.search.sweep")
TOY = Path(__file__).parents[1] / "toy.py"
QUICK = {"rounds": 4, "evaluate_every": 2}


@pytest.fixture(autouse=True)
def toy(toy, monkeypatch):
    monkeypatch.setattr(
        "jaxrec.training.curve.write_curve", lambda *args: None
    )  # half the time of a toy's run
    return toy


@pytest.fixture(scope="module")
def dataset():
    return synthetic(users=60, items=40, clients=6, length=16)


@pytest.fixture(scope="module")
def folder(dataset, tmp_path_factory):
    """The same data as a dataset folder."""
    folder = tmp_path_factory.mktemp("data") / "small"
    folder.mkdir()
    dataset.interactions.to_parquet(folder / "interactions.parquet")
    return folder


@pytest.fixture
def trained(monkeypatch):
    """The folders that `sweep` trains or resumes, in order."""
    folders = []

    def watched(*args, out=None, resume=None, **rest):
        folders.append(Path(out or resume).name)
        return train(*args, out=out, resume=resume, **rest)

    monkeypatch.setattr(searching, "train", watched)
    return folders


def run(dataset, out, **settings):
    return jaxrec.sweep("toy", dataset, out=out, progress=False, **QUICK | settings)


@pytest.fixture(scope="module")
def searched(dataset, tmp_path_factory):
    """Puts a search that has ended into a folder: each is done once and copied from then on."""
    found = {}

    def get(out, **settings):
        name = repr(settings)
        if name not in found:
            place = tmp_path_factory.mktemp("searches") / "search"
            found[name] = run(dataset, place, **settings)
        shutil.copytree(found[name].out, out, dirs_exist_ok=True)
        return found[name]

    return get


def timeless(row):
    return {name: value for name, value in row.items() if "seconds" not in name}


def files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


FOUR = {"space": {"width": [2, 8], "noise": [0.1, 3]}, "seeds": (0, 1)}
ONE = {"space": {"width": [2]}}


def test_the_best_mean_over_seeds_on_validation_wins_and_is_a_run_like_any_other(
    dataset, searched, tmp_path
):
    found = searched(tmp_path / "sweep", **FOUR)
    values = {}
    for path in (tmp_path / "sweep" / "trials").glob("*/metrics.jsonl"):
        config = json.loads((path.parent / "config.json").read_text())["settings"]
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        key = config["width"], config["noise"]
        values.setdefault(key, []).append(max(row["valid/NDCG@10"] for row in rows))
    by_hand = {key: np.mean(each) for key, each in values.items()}
    assert len(by_hand) == 4
    order = sorted(by_hand, key=by_hand.get, reverse=True)
    assert [tuple(choice.settings.values()) for choice in found.choices] == order
    assert [choice.mean for choice in found.choices] == pytest.approx([by_hand[k] for k in order])
    first = found.choices[0]
    assert first.sd == pytest.approx(np.std(values[order[0]], ddof=1))
    assert (first.seeds, first.error) == ((0, 1), "")

    assert [won.run.seed for won in found.runs] == [0, 1]
    alone = train("toy", dataset, progress=False, seed=1, **QUICK, **first.settings)
    assert timeless(found.runs[1].values) == timeless(alone.values)
    winner = json.loads((tmp_path / "sweep" / "winner.json").read_text())
    assert winner["settings"] == first.settings
    tests = [won.values["test/NDCG@10"] for won in found.runs]
    assert winner["test/NDCG@10"] == pytest.approx(np.mean(tests))
    assert winner["test/NDCG@10/sd"] == pytest.approx(np.std(tests, ddof=1))
    assert [found.out / name for name in winner["runs"]] == [won.out for won in found.runs]


def test_no_test_value_of_a_loser_is_computed_or_shown(folder, tmp_path, capsys):
    words = ["toy", "--data", str(folder), "--rounds", "4", "--evaluate-every", "2"]
    words += ["--split", "ratio"]  # values of several rows a user, which are not alike by chance
    out = tmp_path / "sweep"
    assert main([*words, "--grid", "width=2,3,8", "--out", str(out)]) == 0
    shown = capsys.readouterr()
    written = "".join(path.read_text() for path in out.glob("*.*"))
    tested = [path.parent for path in out.glob("trials/*/result.json")]
    winner = out / json.loads((out / "winner.json").read_text())["runs"][0]
    assert tested == [winner]
    values = json.loads((winner / "result.json").read_text())
    assert f"{values['test/NDCG@10']:.4f}" in shown.out
    losers = [path for path in out.glob("trials/*") if path != winner]
    assert len(losers) == 2
    for loser in losers:
        assert not (loser / "users.parquet").exists()
        result = train(resume=loser, progress=False)
        for name in ("NDCG@10", "F1@10", "MRR"):
            value = f"{result.values[f'test/{name}']:.4f}"
            assert value not in shown.out + shown.err
            assert value not in written
    assert "width=2" in shown.err  # of progress
    assert shown.err.count("valid NDCG@10") == 3


@pytest.mark.slow
def test_a_trial_that_diverges_ends_only_itself(dataset, tmp_path, monkeypatch):
    broken = []

    def fails(*args, **rest):
        if rest.get("width") == 5:
            broken.append(rest)
            raise MemoryError("no more of it")
        return train(*args, **rest)

    monkeypatch.setattr(searching, "train", fails)
    space = {"width": [2, 5], "item_learning_rate": [1.0, 1e9]}
    quick = {"rounds": 4, "evaluate_every": 2}
    found = jaxrec.sweep("fedavg", dataset, out=tmp_path, space=space, progress=False, **quick)
    errors = {tuple(row["settings"].values()): row["error"] for row in found.trials}
    assert list(errors) == [(w, r) for w in (2, 5) for r in (1.0, 1e9)]
    assert "fedavg, rounds 1 to 2: round " in errors[2, 1e9]
    assert errors[5, 1.0] == errors[5, 1e9] == "MemoryError: no more of it"
    assert errors[2, 1.0] is None
    finished = [
        choice.settings["item_learning_rate"] for choice in found.choices if not choice.error
    ]
    assert finished == [1.0]
    assert len(found.runs) == 1
    assert len(broken) == 2


def test_what_failed_for_a_seed_cannot_win_and_is_tried_again_when_asked(
    dataset, searched, tmp_path, trained
):
    found = searched(tmp_path, **FOUR)
    best = found.choices[0]
    rows = [dict(row) for row in found.trials]
    failed = next(row for row in rows if row["settings"] == best.settings and row["seed"] == 1)
    failed |= {"valid": None, "error": "the lights went out"}
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained.clear()
    again = run(dataset, tmp_path, **FOUR)
    assert again.choices[0].settings == found.choices[1].settings
    assert again.choices[-1].error == "seed 1: the lights went out"
    assert failed["trial"] not in trained
    retried = run(dataset, tmp_path, **FOUR, retry=True)
    assert retried.choices[0].mean == best.mean
    assert retried.runs[1].values == found.runs[1].values


def test_where_all_fail_nothing_wins(folder, tmp_path, capsys):
    words = ["toy", "--data", str(folder), "--nan-at", "1", "--grid", "width=2,3"]
    assert main([*words, "--out", str(tmp_path / "sweep")]) == 2
    shown = capsys.readouterr()
    assert shown.out.count("round 1: loss is nan") == 2
    assert "test" not in shown.out
    assert shown.err.endswith("error: no choice finished with every seed, so none is best\n")
    assert not (tmp_path / "sweep" / "winner.json").exists()


@pytest.mark.slow
def test_a_killed_search_goes_on_with_what_is_missing(folder, tmp_path, trained):
    space, long = {"width": [2, 3, 8]}, {"rounds": 40, "evaluate_every": 10, "on_host": True}
    out = tmp_path / "killed"
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("toy", {str(TOY)!r})
toy = importlib.util.module_from_spec(spec)
sys.modules["toy"] = toy
spec.loader.exec_module(toy)
import jaxrec
jaxrec.METHODS["toy"] = toy
jaxrec.sweep("toy", {str(folder)!r}, out={str(out)!r}, space={space!r}, **{long!r})
"""
    rows = lambda: out / "trials.jsonl"
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        begun = lambda: len(list(out.glob("trials/width=3*/checkpoint/index.json")))
        while not (rows().exists() and rows().read_text().count("\n") == 1 and begun()):
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with rows().open("a") as file:
        file.write('{"trial": "cut sho')
    (first,) = out.glob("trials/width=2*")
    before = files(first / "checkpoint")

    found = jaxrec.sweep("toy", str(folder), out=out, space=space, progress=False, **long)
    assert [name.partition("_")[0] for name in trained[:2]] == ["width=3", "width=8"]
    assert files(first / "checkpoint") == before
    assert [json.loads(line) for line in rows().read_text().splitlines()] == found.trials
    quiet = {"progress": False, **long}
    whole = jaxrec.sweep("toy", str(folder), out=tmp_path / "whole", space=space, **quiet)
    assert list(map(timeless, found.trials)) == list(map(timeless, whole.trials))
    assert timeless(found.runs[0].values) == timeless(whole.runs[0].values)

    trained.clear()
    again = jaxrec.sweep("toy", str(folder), out=out, space=space, progress=False, **long)
    assert trained == [found.runs[0].out.name]  # read, not trained
    assert again.choices == found.choices
    wider = jaxrec.sweep(
        "toy", str(folder), out=out, space={"width": [2, 3, 8, 9]}, progress=False, **long
    )
    assert trained[1].startswith("width=9")
    assert wider.trials[:3] == found.trials


def test_another_space_finds_the_trials_that_it_shares(dataset, tmp_path, trained):
    out = tmp_path / "sweep"
    first = run(dataset, out, space={"width": [2, 3]}, noise=0.1)
    trained.clear()
    other = run(dataset, out, space={"noise": [0.1, 3.0], "width": [2]})
    assert trained[0].startswith("noise=3_width=2")
    assert not [name for name in trained if name.startswith("noise=0.1")]
    assert (other.trials[0]["trial"], other.trials[0]["valid"]) == (
        first.trials[0]["trial"],
        first.trials[0]["valid"],
    )
    assert other.trials[0]["settings"] == {"noise": 0.1, "width": 2}


def test_a_winner_that_went_on_since_is_refused(dataset, searched, tmp_path):
    out = tmp_path / "sweep"
    found = searched(out, **ONE)
    winner = out / found.runs[0].out.relative_to(found.out)
    train(data=dataset, resume=winner, rounds=6, progress=False)
    with pytest.raises(CheckpointError, match="has taken 6 rounds, and 4 when it won"):
        run(dataset, out, **ONE)
    assert not (out / "winner.json").exists()


@pytest.mark.parametrize(
    ("file", "bad", "message"),
    [
        ("sweep.json", "{}", "sweep.json: damaged"),
        ("sweep.json", '{"method": "toy", "data": 3}', "sweep.json: damaged .*data = 3"),
        ("trials.jsonl", '{"trial": "x"}\n', "trials.jsonl, line 1: damaged, lacks "),
        ("trials.jsonl", "{\n{}\n", "trials.jsonl, line 1: damaged"),
    ],
)
def test_a_damaged_search_is_refused_and_left_as_it_is(
    file, bad, message, dataset, searched, tmp_path
):
    searched(tmp_path, **ONE)
    (tmp_path / file).write_text(bad)
    with pytest.raises(CheckpointError, match=message):
        run(dataset, tmp_path, **ONE)
    assert (tmp_path / file).read_text() == bad


def test_a_refused_command_leaves_the_folder_it_was_given(tmp_path):
    (tmp_path / "mine").mkdir()
    for out, kept in (("mine", True), ("new", False)):
        words = ["toy", "--grid", "width=0,1", "--out", str(tmp_path / out)]
        assert main(words) == 2
        assert (tmp_path / out).exists() == kept


def test_ctrl_c_says_how_to_go_on(folder, tmp_path, monkeypatch, capsys):
    def interrupted(*args, **rest):
        raise KeyboardInterrupt("toy: stopped after round 2")

    monkeypatch.setattr(searching, "train", interrupted)
    out = tmp_path / "sweep"
    words = ["toy", "--data", str(folder), "--rounds", "2", "--grid", "width=2,3"]
    assert main([*words, "--seeds", "0", "1", "--out", str(out)]) == 130
    stopped, hint = capsys.readouterr().err.splitlines()
    assert stopped == "toy: stopped after round 2"
    assert hint == f"continue with: python -m jaxrec.sweep --resume {out}"
    monkeypatch.setattr(searching, "train", train)
    assert main(["--resume", str(out), "--json", "--quiet"]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert json.loads(shown.out) == json.loads((out / "winner.json").read_text())
    assert len(list(out.glob("trials/*"))) == 4
    assert main(["--resume", str(out), "--width", "3"]) == 2
    assert "goes on as it was asked for" in capsys.readouterr().err


def test_a_folder_of_other_data_or_of_a_run_is_refused(dataset, searched, tmp_path):
    searched(tmp_path / "sweep", **ONE)
    other = synthetic(users=61, items=40, clients=6, length=16)
    with pytest.raises(CheckpointError, match="the data have changed"):
        run(other, tmp_path / "sweep", **ONE)
    (trial,) = (tmp_path / "sweep" / "trials").iterdir()
    with pytest.raises(SettingError, match="holds a run"):
        run(dataset, trial, **ONE)
    with pytest.raises(CheckpointError, match="no search"):
        searching.read_sweep(tmp_path)


@pytest.mark.parametrize("name", sorted(RunConfig.__dataclass_fields__))
def test_a_setting_of_the_run_is_searched_only_where_it_changes_no_measure(name):
    value = getattr(RunConfig(), name)
    if name in MAY_DIFFER:
        assert read_space("toy", {name: [value]}) == {name: (value,)}
    else:
        with pytest.raises(SettingError, match=f"^{name}: "):
            read_space("toy", {name: [value]})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "widht=2,3"], "widht: no such setting of toy; the nearest is 'width'"),
        (["--grid", "width=2,x"], "width = 'x': expected int"),
        (["--grid", "width=0,1"], "width = 0: must be at least 1"),
        (["--grid", "width=2,3,2"], "width: 2 is listed twice"),
        (["--grid", "width"], "width: write NAME=VALUE,VALUE"),
        (["--grid", "width=2", "width=3"], "width is given twice"),
        (["--grid", "width=log(1,8)"], "a grid needs its values one by one"),
        (["--grid", "seed=0,1"], "--seeds 0 1 2"),
        (["--grid", "monitor=MRR,HR@5"], "decides what is measured"),
        (["--grid", "baselines=[],[]"], "trains none"),
        (["--grid", "width=2", "--width", "3"], "width = 3: is searched too"),
        (["--grid", "width=2", "--noize", "3"], "--noize: no such setting of toy"),
        (["--grid", "width=2", "--seeds", "0,x"], "--seeds x: expected whole numbers"),
        (["--grid", "width=2", "--seeds", "1,1"], "seeds = [1, 1]"),
        (["--grid", "width=2", "--random", "2", "width=2"], "choose one of them"),
        (["--random", "width=2"], "--random width=2: expected whole numbers"),
        (["--random", "3", "width=2,3"], "only 2 different settings"),
        (["--random", "3", "width=normal(0,1)"], "no range 'normal'"),
        (["--random", "3", "width=log(0,1)"], "width = 0: must be at least 1"),
        (["--random", "3", "noise=log(0,1)"], "must begin above 0"),
        (["--random", "3", "width=log(8,1)"], "the lower one first"),
        (["--random", "3", "width=uniform(1.5,2.5)"], "width = 1.5: expected int"),
        (["--random", "3", "width=uniform(1)"], "two numbers"),
        ([], "nothing to try"),
    ],
)
def test_what_is_wrong_is_refused_before_any_trial(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(searching, "train", lambda *args, **rest: pytest.fail("a trial ran"))
    assert main(["toy", "--data", "synthetic", *words]) == 2
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert shown.out == ""
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"] or not list(tmp_path.iterdir())


def test_absent_data_are_refused_before_any_trial(tmp_path):
    with pytest.raises(DataError, match="no dataset 'absent'"):
        jaxrec.sweep("toy", "absent", out=tmp_path / "sweep", space={"width": [2]}, progress=False)
    assert not (tmp_path / "sweep").exists()


def test_words_of_a_space():
    words = ["width=2,3 noise=.5,1e-3", "on-host=true,false", "shots=one,'two'", "noise2=log(1, 2)"]
    assert space_of_words(words) == {
        "width": [2, 3], "noise": [0.5, 0.001], "on-host": [True, False], "shots": ["one", "two"],
        "noise2": "log(1, 2)",
    }  # fmt: skip
    space = read_space("toy", {"on-host": [True, False], "width": [2, 3]})
    assert grid(space) == [
        {"on_host": True, "width": 2},
        {"on_host": True, "width": 3},
        {"on_host": False, "width": 2},
        {"on_host": False, "width": 3},
    ]


def test_draws_keep_to_the_space_and_a_longer_search_begins_like_a_shorter_one():
    given = {"noise": "log(1e-4, 0.1)", "width": "uniform(1, 4)", "shots": ["one", "two"]}
    space = read_space("toy", given)
    assert space["noise"] == Interval(1e-4, 0.1, log=True, whole=False)
    assert space["width"] == Interval(1, 4, log=False, whole=True)
    drawn = draw(space, 400, 0)
    assert drawn[:20] == draw(space, 20, 0)
    assert drawn[:20] != draw(space, 20, 1)
    noise = np.array([one["noise"] for one in drawn])
    assert (noise >= 1e-4).all()
    assert (noise <= 0.1).all()
    decades = np.histogram(np.log10(noise), 3, (-4, -1))[0]
    assert decades.min() > 100  # 133 expected, sd 9.4
    widths = np.bincount([one["width"] for one in drawn], minlength=5)
    assert widths[0] == 0
    assert widths[1:].min() > 65  # 100 expected, sd 8.7
    assert {one["shots"] for one in drawn} == {"one", "two"}
    log = Interval(1, 64, log=True, whole=True)
    random = np.random.default_rng(0)
    assert {log.draw(random) for _ in range(3000)} >= {1, 2, 3, 63, 64}


def test_a_toml_file_may_hold_the_search_and_words_win(folder, tmp_path, capsys):
    path = tmp_path / "toy.toml"
    path.write_text(
        f'method = "toy"\ndata = "{folder}"\nrounds = 2\nwidth = 7\n'
        '[sweep]\nwidth = [2, 3]\nnoise = "log(0.01, 1)"\nrandom = 1\nseeds = [0, 1]\n'
    )
    assert read_toml(path)[1] == {"data": str(folder), "rounds": 2, "width": 7}
    drawn, listed = tmp_path / "drawn", tmp_path / "listed"
    assert main([str(path), "--quiet", "--out", str(drawn)]) == 0
    assert len((drawn / "trials.jsonl").read_text().splitlines()) == 2
    assert main([str(path), "--grid", "width=2", "--seeds", "3", "--out", str(listed)]) == 0
    (row,) = map(json.loads, (listed / "trials.jsonl").read_text().splitlines())
    assert (row["settings"], row["seed"], row["rounds"]) == ({"width": 2}, 3, 2)
    assert (listed / "trials.csv").read_text().startswith("trial,seed,")
    assert f"run folder: {listed}" in capsys.readouterr().out
    path.write_text(path.read_text().replace("random = 1", 'random = "1"'))
    assert main([str(path)]) == 2
    assert "[sweep] random = '1': expected int" in capsys.readouterr().err


def test_no_option_hides_a_setting():
    own = {field.name for field in fields(Options)}
    for method in METHODS:
        assert not own & set(settings_of(method))


class Trial:
    """Stands for Optuna's: takes the first of what is suggested."""

    def suggest_categorical(self, name, choices):
        return choices[0]

    def suggest_float(self, name, low, high, *, log):
        return low


class Study:
    def optimize(self, objective, n_trials, catch):
        self.values = [objective(Trial())]


@pytest.mark.slow
def test_the_python_of_the_guide_runs(tmp_path, monkeypatch):
    guide = (Path(__file__).parents[2] / "docs" / "search.md").read_text()
    optuna = ModuleType("optuna")
    optuna.create_study = lambda direction: Study()
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(block, names)
    best = names["found"].choices[0]
    assert (len(names["found"].choices), len(best.seeds)) == (2, 1)
    assert names["found"].runs[0].out == best.folders[0]
    (value,) = names["study"].values
    assert 0 < value < best.mean


def test_the_commands_of_the_guides_are_understood(tmp_path):
    pages = [Path(__file__).parents[2] / name for name in ("README.md", "docs/search.md")]
    text = "\n".join(page.read_text() for page in pages)
    lines = re.findall(r"^python -m jaxrec.sweep (.*?)(?: #.*)?$", text, re.MULTILINE)
    asked = [parse(shlex.split(line))[1] for line in lines if "--resume" not in line]
    assert len(asked) == 3
    for arguments in asked:
        method, space = arguments.pop("method"), arguments.pop("space")
        drawing = {name: arguments.pop(name) for name in ("random", "seeds") if name in arguments}
        trials = plan_trials(method, space, arguments, **drawing)
        assert len(trials) == (20 if drawing["random"] else 12)


def test_a_search_stored_under_older_names_of_settings_trains_nothing_anew(tmp_path):
    dataset = synthetic(users=24, items=30, clients=4, length=12)
    given = {"width": 4, "rounds": 1, "evaluate_every": 1, "progress": False}
    out = tmp_path / "search"
    before = jaxrec.sweep("fedavg", dataset, space={"dropped": [0.0, 0.25]}, out=out, **given)
    trials = sorted((out / "trials").iterdir())
    for number, trial in enumerate(trials):  # as an older version named and knew them
        record = json.loads((trial / "config.json").read_text())
        record["settings"]["dropout"] = record["settings"].pop("dropped")
        (trial / "config.json").write_text(json.dumps(record))
        old = trial.name.replace("dropped", "dropout")[:-8] + f"{number:08x}"
        rows = (out / "trials.jsonl").read_text().replace(trial.name, old)
        (out / "trials.jsonl").write_text(rows)
        trial.rename(trial.with_name(old))
    with pytest.warns(UserWarning, match="dropout: is called dropped now"):
        after = jaxrec.sweep("fedavg", dataset, space={"dropout": [0.0, 0.25]}, out=out, **given)
    assert len(list((out / "trials").iterdir())) == 2
    assert [choice.mean for choice in after.choices] == [choice.mean for choice in before.choices]


def test_a_search_of_when_the_default_was_a_ratio_goes_on_as_it_was(folder, tmp_path, trained):
    out = tmp_path / "search"
    words = ["toy", "--data", str(folder), "--grid", "width=2,3", "--rounds", "2"]
    assert main([*words, "--split", "ratio", "--out", str(out)]) == 0
    asked = json.loads((out / "sweep.json").read_text())
    del asked["settings"]["split"]
    (out / "sweep.json").write_text(json.dumps(asked))
    for number, trial in enumerate(sorted((out / "trials").iterdir())):
        record = json.loads((trial / "config.json").read_text())
        record["settings"]["split"] = "auto"
        del record["data"]["split"]
        (trial / "config.json").write_text(json.dumps(record))
        old = trial.name[:-8] + f"{number:08x}"
        rows = (out / "trials.jsonl").read_text().replace(trial.name, old)
        (out / "trials.jsonl").write_text(rows)
        trial.rename(trial.with_name(old))
    trained.clear()
    assert main(["--resume", str(out)]) == 0
    assert len(trained) == 1  # the winner, which is read
    trained.clear()
    assert main([*words, "--out", str(out)]) == 0  # asked for today, it is by time
    assert len(trained) == 3
    assert len(list((out / "trials").iterdir())) == 4

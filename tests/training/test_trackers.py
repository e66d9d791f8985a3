"""Trackers get the rows of metrics.jsonl; without their package, or without luck, a run says so."""

import importlib.util
import json
import sys
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from jaxrec.cli.help import Files, Output
from jaxrec.cli.train import main
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import METHODS
from jaxrec.training.settings import settings_of
from jaxrec.training.trackers import TRACKERS


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).parents[1] / "toy.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "toy", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "toy", module)
    monkeypatch.setattr("jaxrec.training.curve.write_curve", lambda *args: None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    folder.mkdir()
    rows = synthetic(users=60, items=40, clients=6, length=16).interactions
    rows.to_parquet(folder / "interactions.parquet")
    return folder


@pytest.fixture
def libraries(monkeypatch):
    """What stand-ins for the three libraries were given: (round, values) each, and settings."""
    seen = SimpleNamespace(tensorboard=[], wandb=[], mlflow=[], settings={}, closed=[], where={})

    class Writer:
        def __init__(self, folder):
            seen.where["tensorboard"], self.values = folder, {}

        def add_scalar(self, name, value, step):
            self.values[name], self.step = value, step

        def flush(self):
            seen.tensorboard.append((self.step, dict(self.values)))
            self.values.clear()

        def close(self):
            seen.closed.append("tensorboard")

    @contextmanager
    def begin(name, **given):
        seen.where[name] = given
        defined = []

        def log(values):
            assert defined == ["*"]
            seen.wandb.append((values.pop("round"), values))

        define = lambda name, step_metric: defined.append(name)
        yield SimpleNamespace(log=log, define_metric=define)
        seen.closed.append(name)

    modules = {
        "tensorboard": {},
        "tensorboard.summary": {"Writer": Writer},
        "wandb": {"init": lambda name, **given: begin("wandb", run_name=name, **given)},
        "mlflow": {
            "start_run": lambda run_name: begin("mlflow", run_name=run_name),
            "log_params": lambda params: seen.settings.update(mlflow=params),
            "log_metrics": lambda values, step: seen.mlflow.append((step, values)),
        },
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def words(folder, out, *more):
    given = ["--data", folder, "--rounds", "4", "--evaluate-every", "2", "--out", out]
    return ["toy", *map(str, given), "--baselines", "popularity", *more]


def rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_each_tracker_gets_every_row_and_json_is_all_there_is_on_stdout(
    folder, tmp_path, libraries, capsys
):
    out = tmp_path / "run"
    options = ["--track", "tensorboard,wandb", "mlflow", "--json", "--quiet"]
    assert main(words(folder, out, *options)) == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    (line,) = shown.out.splitlines()
    printed = json.loads(line)
    assert printed["run"] == str(out)
    stored = {"toy": out, "popularity": out / "baselines" / "popularity"}
    read = lambda path: json.loads((path / "result.json").read_text())
    assert printed["values"] == {name: read(path) for name, path in stored.items()}

    expected = [
        (row["round"], {f"{name}/{key}": value for key, value in row.items() if key != "round"})
        for name, path in stored.items()
        for row in rows(path)
    ]
    assert [step for step, _ in expected] == [2, 4, 1]
    assert libraries.tensorboard == expected
    assert libraries.wandb == expected
    renamed = lambda name: name.replace("/", ".").translate(str.maketrans("@%()", "____"))
    assert libraries.mlflow == [
        (step, {renamed(name): value for name, value in values.items()})
        for step, values in expected
    ]
    assert sorted(libraries.closed) == sorted(TRACKERS)
    config = json.loads((out / "config.json").read_text())["settings"]
    assert libraries.settings["mlflow"] == libraries.where["wandb"]["config"] == config
    assert libraries.where["tensorboard"] == str(out / "tensorboard")


def test_a_tracker_that_fails_is_told_of_and_the_run_goes_on(
    folder, tmp_path, libraries, monkeypatch, capsys
):
    def fails(values, step):
        raise ConnectionError("no server")

    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", fails)
    out = tmp_path / "run"
    assert main(words(folder, out, "--track", "mlflow,tensorboard")) == 0
    shown = capsys.readouterr()
    assert shown.err.count("warning: mlflow: no server; the run goes on without it") == 1
    assert len(libraries.tensorboard) == 3
    assert f"run folder: {out}" in shown.out


def test_a_tracker_that_fails_at_its_end_takes_nothing_with_it(
    folder, tmp_path, libraries, monkeypatch, capsys
):
    def fails(writer):
        raise OSError("disk full")

    monkeypatch.setattr(sys.modules["tensorboard.summary"].Writer, "close", fails)
    out = tmp_path / "run"
    assert main(words(folder, out, "--track", "tensorboard", "wandb", "--quiet")) == 0
    assert "warning: tensorboard: disk full" in capsys.readouterr().err
    assert libraries.closed == ["wandb"]
    assert (out / "result.json").exists()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("tensorbord", "no such tracker; the nearest is 'tensorboard'"),
        ("wandb", "pip install wandb"),
        ("mlflow", "pip install mlflow"),
        ("tensorboard", "pip install tensorboard"),
    ],
)
def test_what_is_not_there_is_refused_before_training(
    names, message, folder, tmp_path, monkeypatch, capsys
):
    for name in ("tensorboard", "tensorboard.summary", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails
    assert main(words(folder, tmp_path / "run", "--track", names)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: track = {names!r}: ")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_without_track_no_tracker_is_imported(folder, tmp_path, monkeypatch):
    for name in ("tensorboard", "tensorboard.summary", "wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(words(folder, tmp_path / "run", "--no-quiet")) == 0


def test_no_option_hides_a_setting():
    own = {field.name for options in (Files, Output) for field in fields(options)}
    for method in METHODS:
        assert not own & set(settings_of(method))

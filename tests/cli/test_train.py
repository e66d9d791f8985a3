"""The command: one table at the end, one line for what is wrong, never a traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrec.cli.train import main
from jaxrec.data.synthetic import synthetic

TOY = Path(__file__).parents[1] / "toy.py"
QUICK = ["--baselines", "--rounds", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "small"
    folder.mkdir()
    rows = synthetic(users=60, items=40, clients=6, length=16).interactions
    rows.to_csv(folder / "interactions.csv", index=False)
    return folder


def command(*words, cwd=None):
    words = [sys.executable, str(TOY), *map(str, words)]
    env = os.environ | {"COLUMNS": "100"}
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=env)


def test_a_run_ends_with_a_table_and_a_folder(data, tmp_path):
    toml = tmp_path / "toy.toml"
    toml.write_text(f'method = "toy"\ndata = "{data}"\nrounds = 4\nwidth = 3\nbaselines = []\n')
    done = command("--config", toml, "--width", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "runs").iterdir()
    assert out.name.startswith("toy-small-")
    settings = json.loads((out / "config.json").read_text())["settings"]
    assert (settings["rounds"], settings["width"]) == (4, 5)
    result = json.loads((out / "result.json").read_text())
    assert f"{result['test/NDCG@10']:.4f}" in done.stdout
    assert f"{result['test/NDCG@10/se']:.4f}" in done.stdout
    assert "full ranking over 40 items" in done.stdout
    assert str(Path("runs") / out.name) in done.stdout
    assert "toy: round 4/4" in done.stderr

    again = command("toy", "--resume", out)
    assert again.returncode == 0, again.stderr
    assert f"{result['test/NDCG@10']:.4f}" in again.stdout
    assert "round" not in again.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tooy"], "no method 'tooy'"),
        (["toy", "--widht", "3"], "--widht: no such setting of toy; the nearest is 'width'"),
        (["toy", "--width", "0"], "width = 0: must be at least 1"),
        (["toy", "--config", "absent.toml"], "absent.toml: cannot be read"),
        (["toy", "--data", "absent"], "absent"),
        (["--resume", "absent"], "config.json: no run ("),
        (["toy", "--mesh", "clients=99"], "mesh = 'clients=99'"),
        (["toy", "--nan-at", "1", *QUICK], "round 1: loss is nan"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_what_is_wrong_is_one_line_and_status_2(words, message, tmp_path, monkeypatch, capfd):
    """In this process, and where it is wrong from the first word or in the midst of a run, also in
    one of its own."""
    monkeypatch.chdir(tmp_path)
    told = [(main(words), *capfd.readouterr())]
    if words[0] == "tooy" or "--nan-at" in words:
        (apart := tmp_path / "apart").mkdir()
        done = command(*words, cwd=apart)
        told.append((done.returncode, done.stdout, done.stderr))
    for status, out, err in told:
        assert (status, out) == (2, "")
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        assert message in line
    leftover = [path for path in tmp_path.rglob("runs/*") if not (path / "config.json").exists()]
    assert leftover == []


def test_help_needs_no_data(tmp_path):
    done = command("toy", "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("--width", "--monitor", "--resume", "--config"))
    assert list(tmp_path.iterdir()) == []

"""Settings come in layers, and what is wrong in any of them is named."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from jaxrec import config
from jaxrec.config import RunConfig, coerce, read_settings, read_toml, read_words
from jaxrec.methods import METHODS
from jaxrec.types import SettingError

pytestmark = pytest.mark.usefixtures("toy")


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_each_layer_wins_over_the_one_before(tmp_path):
    run, method = read_settings("toy")
    assert (run.rounds, run.clients, method.width) == (6, 100, 8)  # the module's RUN, the defaults
    toml = write(tmp_path, "rounds = 7\nwidth = 16\nks = [5, 10]\nnoise = 1\n")
    run, method = read_settings("toy", toml)
    assert (run.rounds, run.ks, method.width, method.noise) == (7, (5, 10), 16, 1.0)
    assert isinstance(method.noise, float)
    run, method = read_settings("toy", toml, ["--width", "32", "--ks", "10", "--split=ratio"])
    assert (run.rounds, run.ks, run.split, method.width) == (7, (10,), "ratio", 32)
    run, method = read_settings("toy", toml, {"width": 4, "baselines": ["popularity"]})
    assert (run.rounds, run.baselines, method.width) == (7, ("popularity",), 4)


def test_a_toml_file_may_name_its_method(tmp_path):
    path = write(tmp_path, 'method = "toy"\nwidth = 3\n')
    assert read_toml(path) == ("toy", {"width": 3})
    with pytest.raises(SettingError, match=r"settings\.toml.*'toy'.*'popularity'"):
        read_toml(path, "popularity")


def test_words_of_every_kind():
    words = ["--on-host", "--min_user", "3", "--evaluate-every=4", "--baselines", "--shots", "one"]
    assert read_words("toy", words) == {
        "on_host": True, "min_user": 3, "evaluate_every": 4, "baselines": (), "shots": "one",
    }  # fmt: skip
    assert read_words("toy", ["--no-on-host", "--noise", "-1e-3"]) == {
        "on_host": False,
        "noise": -1e-3,
    }


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--widht", "3"], ["--widht", "'width'"]),
        (["--rounds", "many"], ["--rounds many", "int"]),
        (["--rounds", "3.5"], ["--rounds 3.5", "int"]),
        (["--rounds"], ["--rounds", "int"]),
        (["--split", "magic"], ["--split magic", "leave-one-out"]),
        (["--ks", "5", "x"], ["--ks 5 x", "list of int"]),
        (["--on-host", "yes"], ["--on-host yes", "bool"]),
        (["30"], ["30", "--name value"]),
    ],
)
def test_a_wrong_word_is_named_with_what_was_expected(words, parts, capfd):
    with pytest.raises(SettingError) as error:
        read_words("toy", words)
    assert all(part in str(error.value) for part in parts)
    assert "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("widht = 3", ["widht", "'width'"]),
        ('rounds = "30"', ["rounds", "'30'", "int"]),
        ("rounds = 30.0", ["rounds", "30.0", "int"]),
        ("rounds = true", ["rounds", "True", "int"]),
        ("noise = false", ["noise", "False", "float"]),
        ("on_host = 1", ["on_host", "1", "bool"]),
        ("ks = 10", ["ks", "10", "list of int"]),
        ("ks = [5, 'x']", ["ks", "x", "list of int"]),
        ("split = 'magic'", ["split", "'magic'", "leave-one-out"]),
        ("shots = 3", ["shots", "3", "str or none"]),
        ("rounds = ", ["not TOML"]),
    ],
)
def test_a_wrong_line_is_named_with_its_file(line, parts, tmp_path):
    with pytest.raises(SettingError) as error:
        read_toml(write(tmp_path, line), "toy")
    assert all(part in str(error.value) for part in ["settings.toml", *parts])


def test_a_missing_toml_file_is_named(tmp_path):
    with pytest.raises(SettingError, match=r"absent\.toml: cannot be read"):
        read_toml(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    "wrong",
    [
        {"rounds": 0}, {"evaluate_every": 0}, {"patience": -1}, {"clients": 0}, {"alpha": 0.0},
        {"valid": 0.0}, {"test": 1.0}, {"valid": 0.5, "test": 0.5}, {"ks": ()}, {"ks": (0,)},
        {"monitor": "NDCG@11"}, {"monitor": "Gini@10"}, {"min_user": -1}, {"seed": -1},
        {"candidates": -1}, {"baselines": ("fedavgg",)}, {"mesh": "clients"}, {"mesh": "clients=0"},
        {"width": 0}, {"mask_history": False, "candidates": 9},
    ],
)  # fmt: skip
def test_what_is_out_of_range_is_named_with_its_value(wrong):
    with pytest.raises(SettingError) as error:
        read_settings("toy", None, wrong)
    name, value = next(iter(wrong.items()))
    named = value[0] if name == "baselines" else name
    assert named in str(error.value)
    assert name in ("valid", "baselines") or repr(value) in str(error.value)


def test_an_unknown_method_gets_the_nearest_name():
    with pytest.raises(SettingError, match=r"'popularty'.*nearest is 'popularity'"):
        read_settings("popularty")


def test_names_of_a_run_and_of_a_method_do_not_collide(toy, monkeypatch):
    clash = dataclasses.make_dataclass("Config", [("rounds", int, 3)], frozen=True)
    monkeypatch.setattr(toy, "Config", clash)
    with pytest.raises(SettingError, match=r"toy.*rounds"):
        config.settings("toy")


def test_defaults_of_a_method_must_exist(toy, monkeypatch):
    monkeypatch.setattr(toy, "RUN", {"round": 3})
    with pytest.raises(SettingError, match="round"):
        config.settings("toy")


@pytest.mark.parametrize("method", METHODS)
def test_settings_survive_json(method):
    configs = read_settings(method)
    flat = json.loads(json.dumps({k: v for c in configs for k, v in dataclasses.asdict(c).items()}))
    assert read_settings(method, None, flat) == configs


def test_a_baseline_shares_data_and_evaluation_but_not_the_length_of_training():
    run = RunConfig(data="d", seed=3, clients=7, ks=(5, 10), rounds=99, patience=9)
    shared, _ = config.baseline_settings("toy", run)
    expected = {"rounds": 6, "evaluate_every": 2, "patience": 0, "baselines": ()}
    assert shared == dataclasses.replace(run, **expected)


def test_coerce_of_nested_tuples():
    hint = tuple[tuple[str, int], ...]
    assert coerce([["a", 1], ["b", 2]], hint) == (("a", 1), ("b", 2))
    with pytest.raises(TypeError):
        coerce([["a", 1, 2]], hint)
    assert coerce("x", Literal["x", "y"]) == "x"


@pytest.mark.parametrize("method", [None, "toy"])
def test_help_lists_every_setting_with_default_and_meaning(method, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "260")
    with pytest.raises(SystemExit) as stop:
        config.print_help(method, "program")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    names = [field.name for field in dataclasses.fields(RunConfig)]
    own = [field.name for field in dataclasses.fields(METHODS["toy"].Config)]
    for name in [*names, *(own if method else ())]:
        assert f"--{name.replace('_', '-')}" in shown
    assert "Validation metric that picks the best state" in shown
    assert "(default: NDCG@10)" in shown
    if method:
        assert "(default: 6)" in shown  # of the method's own RUN
        assert "Numbers a user or item has." in shown
    else:
        assert all(f"{name}: " in shown for name in METHODS)


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_of_every_method_has_a_meaning(method, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        config.print_help(method, "program")
    shown = capsys.readouterr().out
    bare = [line for line in shown.splitlines() if "│ (default:" in line.replace("  ", "")]
    assert bare == []


def test_settings_need_no_command_line_parser():
    code = (
        "import sys; sys.modules['tyro'] = None\n"
        "from jaxrec.config import read_settings\n"
        "print(read_settings('popularity', None, {'rounds': 3})[0].rounds)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_method_without_run_defaults_uses_those_of_a_run(toy, monkeypatch):
    monkeypatch.setitem(METHODS, "plain", SimpleNamespace(Config=toy.Config))
    assert read_settings("plain")[0] == RunConfig()

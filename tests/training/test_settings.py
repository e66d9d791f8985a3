"""Settings come in layers, and what is wrong in any of them is named."""

import ast
import dataclasses
import inspect
import itertools
import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest

from jaxrec.cli import help
from jaxrec.methods import METHODS
from jaxrec.settings.fields import coerce, fields
from jaxrec.training import settings
from jaxrec.training.settings import RunConfig, read_settings, read_toml, read_words
from jaxrec.types import SettingError, Traits

CONFIGS = {"run": RunConfig, "files": help.Files, "output": help.Output} | {
    name: module.Config for name, module in METHODS.items()
}
pytestmark = pytest.mark.usefixtures("toy")


def write(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_each_layer_wins_over_the_one_before(tmp_path):
    run, method = read_settings("toy")
    assert (run.rounds, run.clients, method.width) == (6, 100, 8)  # the method's own, the defaults
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
        settings.settings_of("toy")


def test_defaults_of_a_method_must_exist(toy, monkeypatch):
    monkeypatch.setattr(toy, "TRAITS", Traits(run={"round": 3}))
    with pytest.raises(SettingError, match="round"):
        settings.settings_of("toy")


@pytest.mark.parametrize("method", METHODS)
def test_settings_survive_json(method):
    configs = read_settings(method)
    flat = json.loads(json.dumps({k: v for c in configs for k, v in dataclasses.asdict(c).items()}))
    assert read_settings(method, None, flat, stored=True) == configs


def test_a_baseline_shares_data_and_evaluation_but_not_the_length_of_training():
    run = RunConfig(data="d", seed=3, clients=7, ks=(5, 10), rounds=99, patience=9)
    shared, _ = settings.baseline_settings("toy", run)
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
        help.print_help(method, "program")
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    names = [field.name for field in dataclasses.fields(RunConfig)]
    own = [field.name for field in dataclasses.fields(METHODS["toy"].Config)]
    for name in [*names, *(own if method else ())]:
        assert f"--{name.replace('_', '-')}" in shown
    assert "Validation metric that picks the best state" in shown
    assert "(default: NDCG@10)" in shown
    if method:
        assert "(default: 6)" in shown  # the method's own
        assert "Numbers a user or item has." in shown
    else:
        assert all(f"{name}: " in shown for name in METHODS)


def meanings(cls):
    """The text below each field of a dataclass and its bases, by the field's name."""
    found = {}
    for base in reversed(cls.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        for node, after in itertools.pairwise([*body.body, ast.Pass()]):
            if isinstance(node, ast.AnnAssign):
                text = after.value.value if isinstance(after, ast.Expr) else ""
                found[node.target.id] = text or found.get(node.target.id, "")
    return found


def test_a_setting_without_a_meaning_is_seen():
    @dataclasses.dataclass
    class Bare:
        told: int = 1
        """What it is."""
        untold: int = 2

    assert meanings(Bare) == {"told": "What it is.", "untold": ""}


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_every_setting_has_a_meaning(cls):
    assert [name for name, text in meanings(cls).items() if not text.strip()] == []
    assert set(meanings(cls)) >= set(fields(cls))


@pytest.mark.parametrize("cls", CONFIGS.values(), ids=CONFIGS)
def test_every_number_has_a_range(cls):
    numbers = {name: each for name, each in fields(cls).items() if each.hint in (int, float)}
    assert [name for name, each in numbers.items() if each.range is None] == []


def outside(each):
    """Values that a setting must refuse: beyond each bound of its range, and NaN."""
    step = 1 if each.hint is int else 1e-9
    low, above, high, below = each.range
    found = [None if low is None else low - step, above, None if high is None else high + step]
    found += [below, None if each.hint is int else math.nan]
    return [each.hint(value) for value in found if value is not None]


@pytest.mark.parametrize("method", ["run", *METHODS])
def test_a_number_out_of_range_is_refused_in_the_same_words_everywhere(method, tmp_path):
    cls, method = CONFIGS[method], "toy" if method == "run" else method
    for name, each in fields(cls).items():
        for value in outside(each) if each.hint in (int, float) else ():
            said = f"{name} = {value!r}: must be {each.range}"
            with pytest.raises(SettingError) as error:
                read_words(method, [f"--{name}", repr(value)])
            assert str(error.value) == f"--{said}"
            path = write(tmp_path, f"{name} = {value!r}\n")
            with pytest.raises(SettingError) as error:
                read_toml(path, method)
            assert str(error.value) == f"{path}: {said}"
            with pytest.raises(SettingError) as error:
                read_settings(method, None, {name: value})
            assert str(error.value) == said
            with pytest.raises(SettingError) as error:
                cls(**{name: value})
            assert str(error.value) == said


def test_a_value_of_another_type_is_refused_in_python_too(toy):
    with pytest.raises(SettingError, match=r"^width = '8': expected int$"):
        toy.Config(width="8")
    with pytest.raises(SettingError, match=r"^width = True: expected int$"):
        toy.Config(width=True)
    assert toy.Config(noise=1).noise == 1.0
    assert isinstance(toy.Config(noise=1).noise, float)


def test_a_setting_that_has_another_name_now_is_still_read(toy, monkeypatch):
    traits = Traits(renamed={"breadth": "width"}, retired=("colour",))
    monkeypatch.setattr(toy, "TRAITS", traits)
    assert settings.current_names("toy", {"breadth": 4, "colour": 1, "noise": 0.2}) == {
        "width": 4,
        "noise": 0.2,
    }
    with pytest.warns(UserWarning, match="--breadth: is called width now"):
        assert read_words("toy", ["--breadth", "4"]) == {"width": 4}
    with pytest.warns(UserWarning, match="--colour: is read no more"):
        assert read_words("toy", ["--colour", "red"]) == {}
    with pytest.raises(SettingError, match=r"breadth.*width"):
        read_settings("toy", None, {"breadth": 4, "width": 8})


def test_settings_need_no_command_line_parser():
    code = (
        "import sys; sys.modules['tyro'] = None\n"
        "from jaxrec.training.settings import read_settings\n"
        "print(read_settings('popularity', None, {'rounds': 3})[0].rounds)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_a_method_without_defaults_of_its_own_uses_those_of_a_run(toy, monkeypatch):
    monkeypatch.setitem(METHODS, "plain", SimpleNamespace(Config=toy.Config, TRAITS=Traits()))
    assert read_settings("plain")[0] == RunConfig()

"""`all`: every method that the data allow, in one run."""

from dataclasses import replace

import jax.numpy as jnp
import pytest

import jaxrec
from jaxrec import files
from jaxrec.cli import train as command
from jaxrec.data.synthetic import synthetic
from jaxrec.methods import METHODS, ease
from jaxrec.training import every_method
from jaxrec.training.result import seconds_of
from jaxrec.types import SettingError

FEW = ("sequential", "llmd4rec", "agentcf_text", "ease", "itemknn", "popularity")


@pytest.fixture
def few(monkeypatch):
    """As if there were few methods, and data without an order and without texts."""
    monkeypatch.setattr(every_method, "METHODS", {name: METHODS[name] for name in FEW})
    monkeypatch.setattr(every_method, "QUICKEST", ("itemknn", "ease"))
    data = synthetic(users=40, items=30, clients=4, length=12)
    rows = data.interactions.drop(columns="timestamp")
    return replace(data, interactions=rows, items=data.items[["item", "raw_id"]])


def test_methods_that_the_data_allow_are_trained_and_the_others_say_why(few, tmp_path, capsys):
    result = jaxrec.train("all", few, out=tmp_path / "run", seed=3)
    assert list(result.baselines) == ["itemknn", "ease"]
    assert result.run.baselines == ("itemknn", "ease")
    assert {one.run.seed for one in (result, *result.baselines.values())} == {3}
    assert {one.run.split for one in result.baselines.values()} == {"auto"}
    said = capsys.readouterr().err
    assert "sequential is left out: the data have no order" in said
    assert "llmd4rec is left out: the data have no order and no text" in said
    assert "agentcf_text is left out: it asks a language model" in said
    for method in ("all", None):
        again = jaxrec.train(method, few, resume=tmp_path / "run", progress=False)
        assert again.baselines["ease"].values == result.baselines["ease"].values
    with pytest.raises(SettingError, match=r"from_run = .*: all begins anew"):
        jaxrec.train("all", few, from_run=tmp_path / "run")
    assert list(jaxrec.compare([tmp_path / "run"]).table.index) == ["popularity", "ease", "itemknn"]


def test_a_method_that_cannot_run_is_left_out_and_not_the_others(few, monkeypatch, capsys):
    monkeypatch.setattr(ease, "MOST_ITEMS", 10)
    assert list(jaxrec.train("all", few).baselines) == ["itemknn"]
    assert "ease is left out: 30 items" in capsys.readouterr().err
    with pytest.raises(SettingError, match=r"30 items.*leave ease out of baselines"):
        jaxrec.train("popularity", few, baselines=("ease",), progress=False)


@pytest.mark.parametrize("name", ["rounds", "baselines", "width"])
def test_settings_of_one_method_are_refused(few, name):
    with pytest.raises(SettingError, match=f"{name}: with all, every method has its own"):
        jaxrec.train("all", few, **{name: 3})


def test_the_command_prints_one_table_quickest_first(few, monkeypatch, tmp_path, capsys):
    (tmp_path / "few").mkdir()
    few.interactions.to_parquet(tmp_path / "few" / "interactions.parquet")
    monkeypatch.setattr(every_method, "METHODS", {name: METHODS[name] for name in FEW[3:]})
    monkeypatch.setattr(every_method, "QUICKEST", ())
    words = ["all", "--quiet", "--split", "ratio", "--out", str(tmp_path / "run")]
    assert command.main([*words, "--data", str(tmp_path / "few")]) == 0
    lines = filter(None, (line.split() for line in capsys.readouterr().out.splitlines()))
    shown = [line[0] for line in lines if line[0] in FEW][:3]
    taken = {
        name: seconds_of(files.read_json(tmp_path / "run" / place / "result.json", {}))
        for name, place in [
            ("popularity", "."),
            *((n, f"baselines/{n}") for n in ("ease", "itemknn")),
        ]
    }
    assert shown == sorted(taken, key=taken.get)


def test_a_baseline_that_fails_ends_only_itself(few, monkeypatch, capsys):
    module = METHODS["itemknn"]
    make = module.make

    def broken(config, sizes):
        method = make(config, sizes)
        return method._replace(score=lambda *args: method.score(*args) * jnp.nan)

    monkeypatch.setattr(module, "make", broken)
    assert list(jaxrec.train("all", few).baselines) == ["ease"]
    assert "itemknn is left out" in capsys.readouterr().err

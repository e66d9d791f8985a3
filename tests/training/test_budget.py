"""A run solves for its noise, keeps within its budget, and says what it has spent."""

import json
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import pytest

from jaxrec.data.synthetic import synthetic
from jaxrec.federated.accountant import epsilon
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.methods import METHODS
from jaxrec.report.comparison import read_run
from jaxrec.report.result_tables import metrics_table
from jaxrec.training import budget
from jaxrec.training.opening import reopen
from jaxrec.training.run import train
from jaxrec.types import Method, Release, SettingError

DP = {"privacy": "central_dp", "clip": 1.0, "delta": 1e-6}


def releases(noise, rounds):
    """Counts at the start with twice the noise, and a sum a round."""
    return Release("counts", 2 * noise), Release("rounds", noise, rounds)


def method(config, one_shot=False, silent=False):
    each = lambda rounds: releases(config.noise_multiplier, rounds)
    nothing = lambda *args: None
    return Method(
        nothing, nothing, nothing, nothing, one_shot=one_shot, releases=None if silent else each
    )


@pytest.fixture(autouse=True)
def no_curve(monkeypatch):
    """Drawing it is a good part of the time of so small a run; `test_curve.py` does."""
    monkeypatch.setattr("jaxrec.training.curve.write_curve", lambda *args: None)


@pytest.fixture
def private(toy, monkeypatch):
    """The toy as a method with settings of privacy, and the names of what it was made with."""

    @dataclass(frozen=True)
    class Config(PrivacyConfig, toy.Config):
        __post_init__ = PrivacyConfig.__post_init__

    def make(config, sizes):
        made = toy.make(config, sizes)
        return made._replace(releases=lambda rounds: releases(config.noise_multiplier, rounds))

    module = SimpleNamespace(**vars(toy) | {"Config": Config, "make": make})
    monkeypatch.setitem(METHODS, "private", module)
    return module


@pytest.fixture(scope="module")
def dataset():
    return synthetic(users=60, items=40, clients=6, length=16)


def fit(dataset, **settings):
    return train("private", dataset, progress=False, **settings)


def read(path):
    return json.loads(path.read_text())


def test_the_noise_is_solved_for_all_rounds_of_a_run():
    config = PrivacyConfig(**DP, epsilon=4.0)
    solved = budget.solved(config, 20, method)
    assert asdict(solved) == asdict(config) | {"noise_multiplier": solved.noise_multiplier}
    assert 3.98 < epsilon(releases(solved.noise_multiplier, 20), 1e-6) <= 4
    one = budget.solved(config, 20, lambda config: method(config, one_shot=True))
    assert 3.98 < epsilon(releases(one.noise_multiplier, 1), 1e-6) <= 4
    given = PrivacyConfig(**DP, epsilon=4.0, noise_multiplier=3.0)
    for other in (given, PrivacyConfig(), PrivacyConfig(privacy="plain"), object()):
        assert budget.solved(other, 20, method) is other


def test_no_round_goes_past_the_budget():
    config = PrivacyConfig(**DP, epsilon=4.0, noise_multiplier=3.0)
    spent = lambda rounds: epsilon(releases(3.0, rounds), 1e-6)
    fit = max(rounds for rounds in range(40) if spent(rounds) <= 4)
    budget.check(config, method(config), fit)
    message = rf"rounds = 40: epsilon {spent(40):.4g} .* budget of 4; {fit} rounds fit"
    with pytest.raises(SettingError, match=message):
        budget.check(config, method(config), 40)
    small = PrivacyConfig(**DP, epsilon=0.5, noise_multiplier=3.0)
    for made in (method(small), method(small, one_shot=True)):
        with pytest.raises(SettingError, match=rf"no number of rounds .* epsilon {spent(1):.4g}"):
            budget.check(small, made, 40)
    # without an epsilon there is nothing to keep within
    budget.check(PrivacyConfig(**DP, noise_multiplier=3.0), method(config), 10_000)


def test_a_method_that_adds_no_noise_has_no_budget():
    config = PrivacyConfig(**DP, epsilon=4.0)
    silent = lambda config: method(config, silent=True)
    with pytest.raises(SettingError, match="adds no noise"):
        budget.solved(config, 20, silent)
    with pytest.raises(SettingError, match="adds no noise"):
        budget.check(PrivacyConfig(**DP, noise_multiplier=1.0), silent(config), 20)


def test_a_run_keeps_its_noise_and_its_budget_when_it_is_resumed(private, dataset, tmp_path):
    out = tmp_path / "run"
    settings = {"rounds": 6, "epsilon": 4.0, "patience": 1, "noise": 0.0, "split": "ratio"}
    fit(dataset, out=out, hold_test=True, **settings, **DP)
    noise = read(out / "config.json")["settings"]["noise_multiplier"]
    with pytest.raises(SettingError, match=r"rounds = 8: epsilon .* budget of 4; 6 rounds fit"):
        train(data=dataset, resume=out, rounds=8, patience=0, progress=False)
    result = train(data=dataset, resume=out, progress=False)
    values = result.values
    assert values["rounds"] < 6  # it lost its patience, and what was left is not spent
    assert result.config.noise_multiplier == noise
    spent = epsilon(releases(noise, values["rounds"]), 1e-6)
    assert 3.98 < epsilon(releases(noise, 6), 1e-6) <= 4
    assert {n: v for n, v in values.items() if n.startswith("privacy")} == {
        "privacy": "central_dp", "privacy/clip": 1.0, "privacy/min_cohort": 3,
        "privacy/epsilon": spent,
        "privacy/epsilon/rdp": epsilon(releases(noise, values["rounds"]), 1e-6, "rdp"),
        "privacy/delta": 1e-6, "privacy/unit": "user", "privacy/adjacency": "add or remove one",
        "privacy/noise_multiplier": noise, "privacy/accountant": "analytic Gaussian",
    }  # fmt: skip
    assert [row["privacy/epsilon/rdp"] for row in result.rows] == [
        epsilon(releases(noise, row["round"]), 1e-6, "rdp") for row in result.rows
    ]
    promise = "privacy: (4, 1e-06) for each user, by add or remove one, central_dp, analytic"
    assert promise in result.protocol == read(out / "config.json")["protocol"]
    (cell,) = metrics_table({"private": values}).columns[-1].cells
    assert cell == f"({spent:.3g}, 1e-06)"


def test_a_run_of_fedcia_from_before_there_were_newton_steps_goes_on_by_steps(dataset, tmp_path):
    out = tmp_path / "run"
    settings = {"width": 4, "privacy": "plain", "baselines": (), "progress": False}
    train("fedcia", dataset, out=out, rounds=2, training="steps", **settings)
    record, index = (read(path) for path in (out / "config.json", out / "checkpoint/index.json"))
    del record["settings"]["training"], index["identity"]["training"], record["checksums"]
    (out / "config.json").write_text(json.dumps(record))
    (out / "checkpoint/index.json").write_text(json.dumps(index))
    assert reopen(out, dataset, progress=False).config.training == "steps"
    result = train(data=dataset, resume=out, rounds=4, progress=False)
    assert result.config.training == "steps" and result.values["rounds"] == 4


def test_a_run_from_before_there_was_privacy_was_plain(private, dataset, tmp_path):
    """Its folder lacks the settings, the values and checksums; so does that of its baseline."""
    out = tmp_path / "run"
    fit(dataset, out=out, rounds=2, baselines=("popularity",), privacy="plain", hold_test=True)
    record, index = (read(path) for path in (out / "config.json", out / "checkpoint/index.json"))
    for name in PrivacyConfig.__dataclass_fields__:
        del record["settings"][name], index["identity"][name]
    del record["checksums"]
    (out / "config.json").write_text(json.dumps(record))
    (out / "checkpoint/index.json").write_text(json.dumps(index))
    assert reopen(out, dataset, progress=False).config.privacy == "plain"
    result = train(data=dataset, resume=out, rounds=4, progress=False)
    assert result.config.privacy == "plain" == result.values["privacy"]
    assert "privacy: the server sees every upload (plain)" in result.protocol
    values = read(out / "result.json")
    del values["privacy"]
    (out / "result.json").write_text(json.dumps(values))
    (out / "config.json").write_text(json.dumps(record))
    assert read_run(out).values["privacy"] == "plain"
    assert reopen(out, dataset, progress=False).values["privacy"] == "plain"

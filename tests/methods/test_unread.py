"""A setting that a model does not read is refused, and what is declared unread changes nothing."""

import copy
from functools import cache
from typing import Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.data.text import texts, tfidf
from jaxrec.methods import METHODS
from jaxrec.search.trials import plan_trials
from jaxrec.settings.fields import fields
from jaxrec.training.settings import read_settings, refuse_unread
from jaxrec.types import SettingError

SHORT = {"batch": 64, "length": 16, "width": 8}
TAUGHT = SHORT | {"llm": "random", "llm_width": 8}
CODED = {"codes": 8, "width": 8}
CASES = {
    "fedcia": [
        {},
        {"privacy": "plain", "upload": "factor", "model": "mf:8,mf:4", "loss": "bpr",
         "align": "gradient"},
        {"model": "gfcf", "singular_vectors": 8}, {"model": "ease"}, {"model": "gram"},
        {"model": "gfcf", "singular_vectors": 8, "form": "paper", "privacy": "plain"},
    ],
    "fedavg": [{"upload": "change", "server": "average"}, {"upload": "gradient"}],
    "local_only": [{}, {"loss": "softmax"}],
    "popularity": [{}],
    "sequential": [SHORT | {"model": "gru4rec"}],
    "rqfedrec": [CODED | {"channels": "semantic", "start": "cold"},
                 CODED | {"channels": "collaborative"}],
    "agentcf": [{"groups": 4, "memory": memory} for memory in ("single", "private")],
    "llmd4rec": [SHORT | {"mode": "none"}, TAUGHT | {"mode": "none", "serve": "llm"},
                 TAUGHT | {"mode": "crm_to_llm", "serve": "llm", "tune": "frozen"},
                 TAUGHT | {"mode": "llm_to_crm", "model": "gru4rec"}],
}  # fmt: skip
EACH = [(method, number) for method, cases in CASES.items() for number in range(len(cases))]


@cache
def problem():
    dataset = split(synthetic(users=40, items=40, clients=8, length=16), "ratio", 0.1, 0.2, 0)
    data, sizes = pack(dataset, by_time=True)
    return data._replace(text=jnp.asarray(tfidf(texts(dataset.items)), jnp.float32)), sizes


def config_of(method, settings):
    few = {"min_cohort": 1, "min_support": 1}
    known = fields(METHODS[method].Config)
    return METHODS[method].Config(**{n: v for n, v in few.items() if n in known} | settings)


def program(method, config):
    """What a round and the vectors that serve are computed by, as text and constants."""
    data, sizes = problem()
    made, key = METHODS[method].make(config, sizes), jax.random.key(0)

    def once(key):
        state = made.init(key, data)
        state, metrics = made.step(state, data, key)
        return state, metrics, made.score(made.prepare(state, data), jnp.arange(2))

    closed = jax.make_jaxpr(once)(key)
    return str(closed), [np.asarray(one) for one in closed.consts], made.traffic, made.one_shot


def another(each, value):
    """A value that a setting may have, and has not."""
    if get_origin(each.hint) is Literal:
        return next(one for one in get_args(each.hint) if one != value)
    if isinstance(value, str | bool):
        return f"{value} else" if isinstance(value, str) else not value
    return value / 2 if value and isinstance(value, float) else value + 1


@pytest.mark.parametrize(("method", "number"), EACH)
def test_what_is_unread_changes_no_program_and_is_refused(method, number):
    settings = CASES[method][number]
    config = config_of(method, settings)
    unread = METHODS[method].TRAITS.unread(config)
    changed, known = copy.copy(config), fields(type(config))
    for choice, names in unread.items():
        assert {choice, *names} <= set(known)
        assert choice not in names
        for name in names:
            value = another(known[name], getattr(config, name))
            object.__setattr__(changed, name, value)
            with pytest.raises(SettingError, match=f"{name} is not read by "):
                refuse_unread(method, config, {name: getattr(config, name)})
    if any(unread.values()):
        texts, constants, *rest = program(method, config)
        again, others, *same = program(method, changed)
        assert (texts, rest) == (again, same)
        assert all(map(np.array_equal, constants, others))


def test_only_what_is_given_is_refused_wherever_it_is_given(tmp_path):
    said = r"width = 7: width is not read by model = 'ease'; its settings are .*\bridge\b"
    path = tmp_path / "ease.toml"
    path.write_text('model = "ease"\nwidth = 7\n')
    given = {"model": "ease", "width": 7}
    for ask in (
        lambda: read_settings("fedcia", None, ["--model", "ease", "--width", "7"]),
        lambda: read_settings("fedcia", path),
        lambda: read_settings("fedcia", None, given),
        lambda: plan_trials("fedcia", {"ridge": [1.0, 2.0]}, given),
        lambda: plan_trials("fedcia", {"model": ["mf", "ease"], "width": [7]}, {}),
    ):
        with pytest.raises(SettingError, match=said):
            ask()
    assert read_settings("fedcia", None, {"model": "ease"})[1].width == 32
    assert read_settings("fedcia", None, given, stored=True)[1].width == 7


def test_a_local_decoder_reads_nothing_of_a_server():
    with pytest.raises(SettingError, match="timeout is not read by llm = 'local'"):
        read_settings("agentcf_text", None, {"llm": "local", "timeout": 1.0})
    assert read_settings("agentcf_text", None, {"timeout": 1.0})[1].timeout == 1

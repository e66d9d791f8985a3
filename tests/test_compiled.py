"""What runs of compiled methods compile, and that nothing crosses to the host unasked meanwhile."""

import itertools
from collections import Counter

import jax
import pytest

from jaxrec.data.synthetic import synthetic
from jaxrec.evaluate import evaluator, make_plan
from jaxrec.methods import METHODS
from jaxrec.rounds import advancer
from jaxrec.run import train

SHORT = {"width": 8, "length": 8, "batch": 32, "layers": 1, "text": "tfidf"}
SETTINGS = {
    "fedcia": {"width": 4, "rank": 8, "local_steps": 2},
    "rqfedrec": {"width": 4, "codes": 8, "levels": 2, "participation": 1.0, "text": "tfidf"},
    "agentcf": {"groups": 2, "rank": 4, "width": 8, "candidates": 4, "text": "tfidf"},
    "fedavg": {"width": 4, "local_steps": 2},
    "local_only": {"width": 4, "local_steps": 2},
    "sequential": SHORT,
    "llmd4rec": SHORT | {"llm": "random", "llm_width": 16, "llm_layers": 1, "pretrain": 1},
    "popularity": {},
}
HOSTED = {"agentcf_text"}  # steps in Python and talks to a host
every_method = pytest.mark.parametrize("name", SETTINGS)


def test_every_compiled_method_is_tested():
    assert set(SETTINGS) == set(METHODS) - HOSTED


@pytest.fixture(autouse=True, scope="module")
def compiled_quickly(programs):
    """These programs are compiled more than run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def dataset():
    return synthetic(users=24, items=40, clients=4, length=12)


@pytest.fixture
def compiled():
    """The names of the programs compiled so far, as a list that grows."""
    names = []

    def note(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name.removeprefix("jit").strip("()_"))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def fit(name, dataset, **more):
    settings = {"rounds": 5, "evaluate_every": 2, "patience": 0, "baselines": ()} | SETTINGS[name]
    return train(name, dataset, progress=False, **settings | more)


@every_method
def test_a_run_compiles_each_program_once(name, dataset, compiled):
    at = []
    result = fit(name, dataset, track=lambda *_: at.append(len(compiled)))
    one_shot, values = result.method.one_shot, result.values
    later = [compiled[begin:end] for begin, end in itertools.pairwise(at)]
    assert later == ([] if one_shot else [[], ["chunk"]])  # chunks of 2, 2 and 1 rounds
    parts = sum(name.startswith(f"test/{result.run.ranking}/") for name in values)
    number = Counter(compiled)
    assert number["init"] == 1
    assert number["chunk"] == (1 if one_shot else 2)
    assert number["run"] == 2 + parts  # evaluations: a plan for valid, one for test, and its parts


@every_method
def test_nothing_is_copied_unasked_while_rounds_and_evaluations_run(name, dataset, monkeypatch):
    made = []
    keep = lambda *args: made.append(advancer(*args)) or made[-1]
    monkeypatch.setattr("jaxrec.run.advancer", keep)
    run = fit(name, dataset, rounds=2)
    shared = {"candidates": run.run.candidates, "ranking": run.run.ranking, "ks": run.run.ks}
    evaluate = evaluator(run.method, make_plan(run.dataset, **shared))
    advance = made[-1]
    state, *_ = advance(run.state, 0, 2)
    expected = evaluate(state, run.data).means  # and both are compiled
    with jax.transfer_guard("disallow"):
        found = evaluate(state, run.data).means
        state, metrics, seconds, _ = advance(state, 2, 4)
    assert found == expected
    assert seconds == 0  # of compiling
    assert all(len(values) == 2 for values in metrics.values())

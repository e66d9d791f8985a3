"""What runs of compiled methods compile, and that nothing crosses to the host unasked meanwhile."""

import itertools
from collections import Counter
from functools import cache

import jax
import pytest

from jaxrec.data.synthetic import synthetic
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.methods import METHODS
from jaxrec.training.compiled_rounds import advancer
from jaxrec.training.run import train

SHORT = {"width": 8, "length": 8, "batch": 32, "layers": 1, "text": "tfidf"}
SETTINGS = {
    "fedcia": {"width": 4, "rank": 8, "local_steps": 2},
    "rqfedrec": {"width": 4, "codes": 8, "levels": 2, "participation": 1.0, "text": "tfidf"},
    "agentcf": {"groups": 2, "rank": 4, "candidates": 4, "text": "tfidf"},
    "fedavg": {"width": 4, "local_steps": 2},
    "local_only": {"width": 4, "local_steps": 2},
    "sequential": SHORT,
    "llmd4rec": SHORT | {"llm": "random", "llm_width": 16, "llm_layers": 1, "pretrain": 1},
    "popularity": {},
    "als": {"width": 4},
    "ease": {},
    "itemknn": {},
    "bpr": {"width": 4},
    "lightgcn": {"width": 4},
    "fedals": {"width": 4},
}
HOSTED = {"agentcf_text"}  # steps in Python and talks to a host
SLOW = set(SETTINGS) - {"fedavg", "popularity", "als"}  # compiled alike
every_method = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in SETTINGS]
)


def test_every_compiled_method_is_tested():
    assert set(SETTINGS) == set(METHODS) - HOSTED


@pytest.fixture(scope="module")
def dataset():
    return synthetic(users=24, items=40, clients=4, length=12)


@pytest.fixture(scope="module")
def ran(dataset):
    """By a method's name: its run of 5 rounds, the programs it compiled, how many there were at
    each evaluation, and what advances its rounds."""

    @cache
    def get(name):
        compiled, at, made = [], [], []

        def note(event, seconds, fun_name="", **_):
            if event == "/jax/core/compile/backend_compile_duration":
                compiled.append(fun_name.removeprefix("jit").strip("()_"))

        keep = lambda *args: made.append(advancer(*args)) or made[-1]
        jax.monitoring.register_event_duration_secs_listener(note)
        settings = {"rounds": 5, "evaluate_every": 2, "patience": 0, "baselines": ()}
        settings |= SETTINGS[name] | {"track": lambda *_: at.append(len(compiled))}
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("jaxrec.training.loop.advancer", keep)
                run = train(name, dataset, progress=False, **settings)
        finally:
            jax.monitoring.unregister_event_duration_listener(note)
        return run, compiled, at, made[-1]

    return get


@every_method
def test_a_run_compiles_each_program_once(name, ran):
    run, compiled, at, _ = ran(name)
    one_shot = run.method.one_shot
    later = [compiled[begin:end] for begin, end in itertools.pairwise(at)]
    assert later == ([] if one_shot else [[], ["chunk"]])  # chunks of 2, 2 and 1 rounds
    parts = sum(value.startswith(f"test/{run.run.ranking}/") for value in run.values)
    number = Counter(compiled)
    assert number["init"] == 1
    assert number["chunk"] == (1 if one_shot else 2)
    assert number["measure"] == 2 + parts  # plans of valid, of test, and of its parts


@every_method
def test_nothing_is_copied_unasked_while_rounds_and_evaluations_run(name, ran):
    run, _, _, advance = ran(name)
    shared = {"candidates": run.run.candidates, "ranking": run.run.ranking, "ks": run.run.ks}
    evaluate = evaluator(run.method, make_plan(run.dataset, **shared))
    state, *_ = advance(run.state, 0, 2)
    expected = evaluate(state, run.data).means  # and both are compiled
    with jax.transfer_guard("disallow"):
        found = evaluate(state, run.data).means
        state, metrics, _, seconds = advance(state, 2, 4)
    assert found == expected
    assert seconds.compiling == 0
    assert all(len(values) == 2 for values in metrics.values())

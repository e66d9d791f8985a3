"""LLMD4Rec's table: who learns from whom, over seeds, with each phase trained once for all rows.

    python -m benchmarks.phases llmd4rec-beauty [--seeds 3] [--pretrain 9] [--alone 12]

Of a file of `configs/` for llmd4rec, with `cold` and 10 among its `ks`.

For each seed C is trained alone for `pretrain` epochs, then L once beside
C and once without a teacher, then C beside either L and, on the same schedule, beside nobody. Each
row keeps its best epoch by validation NDCG@10, as a run of `jaxrec.train` does; "C alone" that of
`alone` epochs. A seed's rows go to a file of --out as soon as it ends; the table is of all files.

Masked: items a user already has are no rivals; whole: all items are. Cold: masked, users whose next
item has few train rows (`cold`). Differences of NDCG@10, masked, to the first row are paired by
user: the mean over seeds, its standard error over users, and Wilcoxon's p.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pandas as pd

import jaxrec
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.evaluation.significance import paired_test
from jaxrec.methods import llmd4rec
from jaxrec.training.prepared import Prepared, prepare
from jaxrec.training.settings import build, read_toml
from jaxrec.types import TEST, Method, Reads

CONFIGS = Path(__file__).parents[1] / "configs"
FORMS = {  # the settings of each method that is needed
    "alone": {"mode": "none"},
    "mutual": {"mode": "mutual"},
    "one way": {"mode": "llm_to_crm"},
    "not taught": {"mode": "mutual", "lambda_up": 0.0},
}
SHOWN = ("HR@10", "NDCG@10", "whole HR@10", "whole NDCG@10", "cold NDCG@10")


class Setting(NamedTuple):
    """What all seeds have in common."""

    config: llmd4rec.Config
    prepared: Prepared
    steps: dict[str, Callable]  # compiled
    methods: dict[str, Method]
    validate: dict[str, Callable]  # by the model that serves
    tests: dict[str, dict[str, Callable]]


def setting(name: str, given: dict[str, Any]) -> Setting:
    """Read the data and compile all programs, several at once."""
    method, values = read_toml(CONFIGS / f"{name}.toml")
    run, config = build(method, values | given)
    prepared = prepare(run, reads=Reads(text=True, history=True))
    methods = {
        form: llmd4rec.make(replace(config, serve="crm", **own), prepared.sizes)
        for form, own in FORMS.items()
    }
    whole = make_plan(prepared.dataset, TEST, ks=run.ks, mask_history=False)
    plans = {"": prepared.test, "whole ": whole, "cold ": prepared.apart["cold"]}
    serving = {
        "crm": methods["alone"],
        "llm": llmd4rec.make(replace(config, mode="llm_to_crm", serve="llm"), prepared.sizes),
    }
    ranked = lambda plan: {s: evaluator(m, plan, lists=False) for s, m in serving.items()}
    by_plan = {prefix: ranked(plan) for prefix, plan in plans.items()}
    tests = {s: {prefix: by_plan[prefix][s] for prefix in plans} for s in serving}
    state = {form: jax.jit(methods[form].init)(jax.random.key(0), prepared.data) for form in FORMS}
    compiled = lambda form: (
        jax.jit(methods[form].step).lower(state[form], prepared.data, jax.random.key(0)).compile()
    )
    with ThreadPoolExecutor() as pool:
        steps = dict(zip(FORMS, pool.map(compiled, FORMS), strict=True))
    return Setting(config, prepared, steps, methods, ranked(prepared.valid), tests)


def epochs(own: Setting, form: str, state: Any, number: int, key: jax.Array) -> Iterator[Any]:
    """The states after each of the next `number` epochs."""
    for _ in range(number):
        epoch = int(state.epoch)
        state, _ = own.steps[form](state, own.prepared.data, jax.random.fold_in(key, epoch))
        yield state


class Best:
    """The test values, and each user's NDCG@10, of the best state by validation so far."""

    def __init__(self, own: Setting, serve: str, since: Best | None = None):
        self.own, self.serve = own, serve
        self.value, self.state = (since.value, since.state) if since else (-1.0, None)
        self.curve = list(since.curve) if since else []

    def see(self, state: Any) -> None:
        found = self.own.validate[self.serve](state, self.own.prepared.data).means["NDCG@10"]
        self.curve.append(round(found, 5))
        if found > self.value:
            self.value, self.state = found, state

    def tested(self) -> dict[str, Any]:
        found = {
            prefix: test(self.state, self.own.prepared.known)
            for prefix, test in self.own.tests[self.serve].items()
        }
        values = {
            f"{prefix}{name}": one.means[name]
            for prefix, one in found.items()
            for name in ("HR@10", "NDCG@10")
        }
        users = found[""].per_user
        each = {"user": users["user"].tolist(), "each": users["NDCG@10"].round(6).tolist()}
        return {"valid": self.value, "curve": self.curve, **values, **each}


def table_of(own: Setting, seed: int, alone: int) -> dict[str, dict[str, Any]]:
    """The rows of one seed."""
    config, data = own.config, own.prepared.data
    init_key, key = jax.random.split(jax.random.key(seed))
    first = {form: jax.jit(one.init)(init_key, data) for form, one in own.methods.items()}
    go = partial(epochs, own, key=key)

    c, start = Best(own, "crm"), None
    for state in go("alone", first["alone"], max(alone, config.pretrain)):
        c.see(state)
        if state.epoch == config.pretrain:
            start = first["mutual"]._replace(crm=state.crm, epoch=state.epoch)
            pretrained = Best(own, "crm", since=c)
    best = {"C alone": c}
    for form, l_name, c_name in (
        ("one way", "L alone", "C taught by an L that C has not taught (`llm_to_crm`)"),
        ("mutual", "L taught by C", "C taught by L (`mutual`)"),
    ):
        best[l_name] = Best(own, "llm")
        for learnt in go(form, start, config.epochs_down):
            best[l_name].see(learnt)
        ups = {c_name: (form, learnt)}
        if form == "mutual":  # a C that nobody teaches has no teacher's vectors
            kept = learnt._replace(teacher=first["not taught"].teacher)
            ups["C, same schedule, not taught (`lambda_up 0`)"] = "not taught", kept
        for name, (up, state) in ups.items():
            best[name] = Best(own, "crm", since=pretrained)
            for later in go(up, state, config.epochs_up):
                best[name].see(later)
    return {name: one.tested() for name, one in best.items()}


def markdown(seeds: list[dict[str, dict[str, Any]]]) -> str:
    """Mean and standard deviation over seeds, and the paired difference to the first row."""
    lines = ["| | " + " | ".join(SHOWN) + " | valid NDCG@10 | over the first | p |"]
    lines.append("|---" * (len(SHOWN) + 4) + "|")
    each = lambda name: pd.DataFrame(
        {n: pd.Series(rows[name]["each"], rows[name]["user"]) for n, rows in enumerate(seeds)}
    )
    first = each(next(iter(seeds[0])))
    for name in seeds[0]:
        values = pd.DataFrame([rows[name] for rows in seeds])
        cells = [f"{values[m].mean():.4f} ± {values[m].std(ddof=1):.4f}" for m in SHOWN]
        gain = (each(name) - first).mean(axis=1)
        test = paired_test(gain.rename_axis("user"), resamples=99)
        error = gain.std(ddof=1) / len(gain) ** 0.5
        cells += [f"{values['valid'].mean():.4f}", f"{gain.mean():+.4f} ± {error:.4f}"]
        lines.append(" | ".join([f"| {name}", *cells, f"{test.p:.0e} |"]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="a file of configs/, without .toml")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N - 1")
    parser.add_argument("--alone", type=int, default=12, help="epochs of C alone")
    for name in ("pretrain", "epochs_down", "epochs_up"):
        parser.add_argument(f"--{name}", type=int, help="in place of the config's")
    parser.add_argument("--out", type=Path, default=Path("runs/phases"))
    options = vars(parser.parse_args())
    seeds, alone, out, name = (options.pop(o) for o in ("seeds", "alone", "out", "config"))
    given = {option: value for option, value in options.items() if value is not None}
    out.mkdir(parents=True, exist_ok=True)
    own, found = None, []
    method, values = read_toml(CONFIGS / f"{name}.toml")
    settings = [asdict(part) for part in build(method, values | given)]
    key = json.dumps([jaxrec.__version__, alone, settings], sort_keys=True)
    label = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"
    for seed in range(seeds):
        file = out / f"{label}-{seed}.json"
        if not file.exists():
            begin = time.perf_counter()
            own = own or setting(name, given)
            rows = table_of(own, seed, alone)
            file.write_text(json.dumps(rows))
            print(f"seed {seed}: {time.perf_counter() - begin:.0f} s", flush=True)
        found.append(json.loads(file.read_text()))
    for name in found[0]:
        print(f"{name}: validation by epoch {[rows[name]['curve'] for rows in found]}")
    print(markdown(found))


if __name__ == "__main__":
    main()

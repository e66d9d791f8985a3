"""Accuracy against epsilon: FedCIA's one-shot model under a budget, EASE and popularity beside it.

    JAXREC_DATA=... python -m benchmarks privacy_curve [--quick]

Three seeds a budget, which change the noise; `--quick` takes one seed and `fedcia-ml100k` alone.
Test F1@10, delta 1e-6, one user more or less. The lines, EASE, popularity and the model without a
budget, are not private.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np

import jaxrec
from benchmarks.common import Bench
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.federated.accountant import noise_multiplier_for
from jaxrec.training.prepared import Prepared, prepare
from jaxrec.training.settings import read_settings, reads
from jaxrec.types import Release

DATA = "fedcia-ml100k", "fedcia-ml1m"
BUDGETS = 1.0, 2.0, 4.0, 8.0, 16.0
DELTA, SEEDS = 1e-6, 3
STYLES = "-.", "--", ":"
LINES = {
    "gram, no budget": ("fedcia", {"model": "gram", "privacy": "plain"}),
    "EASE": ("fedcia", {"model": "ease", "privacy": "plain"}),
    "popularity": ("popularity", {"privacy": "plain"}),
}


class Curve(NamedTuple):
    """Test F1@10: of each seed by epsilon, and of what is not private."""

    private: dict[float, list[float]]
    lines: dict[str, float]


def load(name: str) -> Prepared:
    """The data with vectors of the items' texts."""
    run, config = read_settings("fedcia", None, {"data": name, "model": "gram"})
    return prepare(run, reads=reads({"fedcia": config}), progress=False)


def accuracies(prepared: Prepared, name: str, settings: dict, seeds: int) -> Iterator[float]:
    """Test F1@10 of each seed, as a run with that seed has it."""
    module = jaxrec.METHODS[name]
    method = module.make(module.Config(**settings), prepared.sizes)
    step = jax.jit(lambda data, key: method.step(method.init(key, data), data, key)[0])
    evaluate = evaluator(method, prepared.test, lists=False)
    for seed in range(seeds):
        _, key = jax.random.split(jax.random.key(seed))
        state = step(prepared.data, jax.random.fold_in(key, 0))
        yield evaluate(state, prepared.data).means["F1@10"]


def measured(name: str, seeds: int) -> Curve:
    """A data set's accuracies, printed as they come."""
    prepared, private = load(name), {}
    for epsilon in BUDGETS:
        noise = noise_multiplier_for(epsilon, DELTA, lambda z: (Release("both sums", z),))
        settings = {"model": "gram", "privacy": "central_dp", "noise_multiplier": noise}
        found = private[epsilon] = list(accuracies(prepared, "fedcia", settings, seeds))
        spread = np.std(found, ddof=seeds > 1)
        print(f"{name}, epsilon {epsilon:g}: F1@10 {np.mean(found):.4f} ± {spread:.4f}", flush=True)
    lines = {}
    for label, (method, settings) in LINES.items():
        lines[label] = next(accuracies(prepared, method, settings, 1))
        print(f"{name}, {label}: F1@10 {lines[label]:.4f}", flush=True)
    return Curve(private, lines)


def draw(curves: dict[str, Curve], file: Path) -> None:
    """The data sets side by side."""
    size = (4.5 * len(curves), 3.8)
    figure, panels = plt.subplots(1, len(curves), figsize=size, layout="constrained", squeeze=False)
    for axes, (name, curve) in zip(panels[0], curves.items(), strict=True):
        budgets, found = list(curve.private), list(curve.private.values())
        spread = np.std(found, axis=1, ddof=len(found[0]) > 1)
        axes.errorbar(budgets, np.mean(found, 1), spread, fmt="o-", capsize=3, label="gram")
        for style, (label, value) in zip(STYLES, curve.lines.items(), strict=True):
            axes.axhline(value, color="gray", linestyle=style, label=label)
        axes.set(xscale="log", xlabel="epsilon (delta 1e-6, one user)", ylabel="test F1@10")
        axes.set_xticks(budgets, [f"{epsilon:g}" for epsilon in budgets])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.set_title(name)
        axes.legend(fontsize="small", loc="lower right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    plt.close(figure)


def main(bench: Bench, quick: bool) -> None:
    names, seeds = (DATA[:1], 1) if quick else (DATA, SEEDS)
    draw({name: measured(name, seeds) for name in names}, bench.out / "privacy.png")

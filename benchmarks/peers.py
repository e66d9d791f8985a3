"""jaxrec's centralised methods beside implicit, RecTools and RecBole, each tuned on validation.

    python -m benchmarks.peers [DATA ...] [--split ratio] [--only als,ease] [--seeds 0 1 2]

All train on the same rows, which are divided with seed 0, and all are measured by jaxrec's
evaluation. Each side tries the settings of `SIDES` with the first seed, stage by stage: a stage
changes the best of the stages before. The settings of the best validation NDCG@10 are trained with
every seed. The last column is jaxrec's test NDCG@10 over that of the peer with the highest one.

What trains in epochs is looked at every `EVERY` of them, until `PATIENCE` looks find nothing
better: jaxrec's own defaults. jaxrec's `recency` is 0, as peers know no order of rows. Seconds are
those of one fit of the settings shown, without looks, jaxrec's compiling apart (without a cache of
programs); peers use one thread, so begin with `taskset -c 0` to compare them. RecBole's models are
its own; the loop that trains them is here, and their graph is CSR, faster than its COO on CPU.

    pip install implicit "torch>=2.4" && pip install --no-deps rectools recbole
    pip install attrs pydantic typeguard colorlog colorama pandas tqdm
"""

from __future__ import annotations

import argparse
import collections
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy.sparse as sparse

import jaxrec
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.training.prepared import divide
from jaxrec.training.settings import RunConfig
from jaxrec.types import TEST, TRAIN, VALID, Data, Dataset, Method

EPOCHS, EVERY, PATIENCE, BATCH = 200, 5, 4, 2048
METRICS = ("NDCG@10", "Recall@10")
GIVEN = Method(None, None, lambda scores, data: scores, lambda scores, users: scores[users])

Settings = dict[str, Any]
Fit = Callable[..., Iterator[np.ndarray]]  # train [U, I], seed, settings -> scores [U, I], often


class Side(NamedTuple):
    """A library's form of a model, and the settings that are tried."""

    model: str
    library: str
    fit: Fit | None  # of peers
    random: bool
    stages: tuple[list[Settings], ...]


class Trial(NamedTuple):
    """What one fit reached."""

    valid: float  # NDCG@10
    test: tuple[float, float] | None  # METRICS
    seconds: float
    compiling: float = 0.0


class Problem(NamedTuple):
    """The rows that all train on, and what measures them."""

    dataset: Dataset
    train: sparse.csr_matrix  # [U, I]
    measure: dict[int, Callable]  # by split: (scores, Data) -> Evaluation


def problem(data: str, split: str) -> Problem:
    """A data set, divided with seed 0."""
    divided = divide(RunConfig(data=data, split=split, seed=0), progress=False)
    measure = {
        part: evaluator(GIVEN, make_plan(divided.dataset, part), lists=False)
        for part in (VALID, TEST)
    }
    rows = divided.dataset.interactions
    rows = rows[rows["split"] == TRAIN]
    shape = divided.dataset.num_users, divided.dataset.num_items
    ones = np.ones(len(rows), np.float32)
    train = sparse.csr_matrix((ones, (rows["user"], rows["item"])), shape)
    return Problem(divided.dataset, train, measure)


def grid(**choices: Any) -> list[Settings]:
    """Every combination of the choices."""
    return [dict(zip(choices, each, strict=True)) for each in itertools.product(*choices.values())]


def fit_als(train: sparse.csr_matrix, seed: int, **settings: Any) -> Iterator[np.ndarray]:
    """implicit's ALS."""
    from implicit.cpu.als import AlternatingLeastSquares

    model = AlternatingLeastSquares(**settings, num_threads=1, random_state=seed)
    model.fit(train, show_progress=False)
    yield model.user_factors @ model.item_factors.T


def fit_bpr(train: sparse.csr_matrix, seed: int, **settings: Any) -> Iterator[np.ndarray]:
    """implicit's BPR, which learns slowly; another call of its `fit` goes on from the last."""
    from implicit.cpu.bpr import BayesianPersonalizedRanking

    draw = np.random.default_rng(seed)
    model = BayesianPersonalizedRanking(
        **settings, iterations=4 * EVERY, num_threads=1, random_state=draw
    )
    while True:
        model.fit(train, show_progress=False)
        yield model.user_factors @ model.item_factors.T


def fit_neighbours(
    train: sparse.csr_matrix, seed: int, weighting: str, **settings: Any
) -> Iterator[np.ndarray]:
    """implicit's ItemKNN, of which it has three."""
    from implicit import nearest_neighbours

    model = getattr(nearest_neighbours, f"{weighting}Recommender")(**settings, num_threads=1)
    model.fit(train, show_progress=False)
    yield (train @ model.similarity.tocsr()).toarray()


def fit_recbole_neighbours(
    train: sparse.csr_matrix, seed: int, **settings: Any
) -> Iterator[np.ndarray]:
    """RecBole's ItemKNN."""
    from recbole.model.general_recommender.itemknn import ComputeSimilarity

    weights = ComputeSimilarity(train, method="item", **settings).compute_similarity()[1]
    yield (train @ weights.tocsr()).toarray()


def fit_ease(train: sparse.csr_matrix, seed: int, regularization: float) -> Iterator[np.ndarray]:
    """RecTools' EASE, to which items without a train row are unknown."""
    from rectools.dataset import Dataset as Rows
    from rectools.models import EASEModel

    row = train.tocoo()
    columns = {"user_id": row.row, "item_id": row.col, "weight": row.data}
    rows = Rows.construct(pd.DataFrame(columns).assign(datetime=pd.Timestamp("2020-01-01")))
    model = EASEModel(regularization=regularization).fit(rows)
    known = rows.item_id_map.external_ids.astype(int)
    scores = np.zeros(train.shape, np.float32)
    scores[:, known] = train[:, known] @ model.weight.astype(np.float32)
    yield scores


def fit_recbole(
    name: str, train: sparse.csr_matrix, seed: int, lr: float, weight_decay: float = 0, **settings
) -> Iterator[np.ndarray]:
    """One of RecBole's pairwise models, trained by a loop of the form of its trainer's."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    names_of_row = "user", "item", "not_item"
    names = {"USER_ID_FIELD": "user", "ITEM_ID_FIELD": "item", "NEG_PREFIX": "not_"}
    config = collections.defaultdict(lambda: None, names, device="cpu", **settings)
    sizes = dict(zip(("user", "item"), train.shape, strict=True))
    data = SimpleNamespace(num=sizes.get, inter_matrix=lambda form: train.asformat(form))
    model = recbole_model(name)(config, data)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, weight_decay=weight_decay)
    draw, known, row = np.random.default_rng(seed), train.toarray() > 0, train.tocoo()
    for epoch in itertools.count(1):
        other = draw.integers(train.shape[1], size=train.nnz)
        while (bad := known[row.row, other]).any():
            other[bad] = draw.integers(train.shape[1], size=bad.sum())
        triples = torch.tensor(np.stack([row.row, row.col, other])[:, draw.permutation(train.nnz)])
        for batch in triples.long().split(BATCH, dim=1):
            optimizer.zero_grad()
            model.calculate_loss(dict(zip(names_of_row, batch, strict=True))).backward()
            optimizer.step()
        if epoch % EVERY == 0:
            with torch.no_grad():
                users, items = model.forward(*map(torch.arange, train.shape))
                yield (users @ items.T).numpy()


def recbole_model(name: str) -> Callable:
    """A model class of RecBole."""
    module = importlib.import_module(f"recbole.model.general_recommender.{name.lower()}")
    return lightgcn(module.LightGCN) if name == "LightGCN" else getattr(module, name)


def lightgcn(original: Any) -> Callable:
    """RecBole's LightGCN with a CSR graph: its own needs a part of scipy that is gone."""
    import torch

    class Product(torch.autograd.Function):
        """A symmetric CSR matrix times a table, whose gradient torch makes slowly."""

        @staticmethod
        def forward(ctx, table, graph):
            ctx.graph = graph
            return graph @ table.detach()

        @staticmethod
        def backward(ctx, gradient):
            return ctx.graph @ gradient.contiguous(), None

    class Faster(original):
        def get_norm_adj_mat(self):
            rows = self.interaction_matrix
            graph = sparse.bmat([[None, rows], [rows.T, None]], format="csr")
            root = sparse.diags((np.ravel(graph.sum(axis=1)) + 1e-7) ** -0.5)
            graph = (root @ graph @ root).tocsr().astype(np.float32)
            parts = map(torch.from_numpy, (graph.indptr, graph.indices, graph.data))
            return torch.sparse_csr_tensor(*parts, size=graph.shape)

        def forward(self, *everyone):
            layers = [self.get_ego_embeddings()]
            for _ in range(self.n_layers):
                layers.append(Product.apply(layers[-1], self.norm_adj_matrix))
            mean = torch.stack(layers, dim=1).mean(dim=1)
            return torch.split(mean, [self.n_users, self.n_items])

    return Faster


RIDGES = [70.0, 100.0, 150.0, 200.0, 300.0, 450.0]
ALS = [  # the weight of what is not there, the penalty: they are best along a ridge
    (1 / 4, 5.6), (1 / 4, 8.0), (1 / 4, 11.0), (1 / 8, 4.0), (1 / 8, 5.6), (1 / 16, 2.8),
    (1 / 16, 4.0), (1 / 32, 2.8), (1 / 32, 4.0),
]  # fmt: skip
SIDES = (
    Side("als", "jaxrec", None, True, (
        [{"recency": 0, "rounds": 16, "evaluate_every": 16, "negative_weight": weight, "l2": l2}
         for weight, l2 in ALS],
        grid(width=[32, 128]),
    )),
    Side("als", "implicit", fit_als, True, (
        [{"factors": 64, "iterations": 16, "alpha": alpha, "regularization": alpha * l2}
         for alpha in (2.0, 4.0, 8.0, 16.0, 32.0) for l2 in (3.5, 5.0, 7.0, 10.0, 14.0)],
        grid(factors=[32, 128]),
    )),
    Side("ease", "jaxrec", None, False, (grid(recency=[0], ridge=RIDGES),)),
    Side("ease", "rectools", fit_ease, False, (grid(regularization=RIDGES),)),
    Side("itemknn", "jaxrec", None, False, (
        grid(recency=[0], user_exponent=[0.25, 0.5, 0.75], item_exponent=[0.3, 0.4, 0.5]),
        grid(nearest=[20, 50, 200, 500]),
        grid(shrink=[0.3, 1.0, 3.0]),
    )),
    Side("itemknn", "implicit", fit_neighbours, False, (
        grid(weighting=["Cosine", "TFIDF"], K=[10, 20, 50, 100, 200, 500, 1000])
        + grid(weighting=["BM25"], K=[50, 100, 150], K1=[0.15, 0.3, 0.6, 1.2], B=[0.5, 0.75, 0.9]),
    )),
    Side("itemknn", "recbole", fit_recbole_neighbours, False, (
        grid(topk=[50, 100, 200], shrink=[2.0, 10.0, 20.0]),
    )),
    Side("bpr", "jaxrec", None, True, (
        grid(weight_decay=[1e-5, 3e-5, 1e-4], learning_rate=[0.004, 0.006]), grid(width=[64]),
    )),
    Side("bpr", "implicit", fit_bpr, True, (
        grid(factors=[64], learning_rate=[0.002, 0.03], regularization=[1e-5, 0.01]),
    )),
    Side("bpr", "recbole", partial(fit_recbole, "BPR"), True, (
        grid(embedding_size=[64], lr=[0.002, 0.004, 0.008], weight_decay=[1e-5, 3e-5]),
        grid(embedding_size=[128]),
    )),
    Side("lightgcn", "jaxrec", None, True, (
        grid(l2=[3e-4, 1e-3, 3e-3]), grid(learning_rate=[0.01]),
    )),
    Side("lightgcn", "recbole", partial(fit_recbole, "LightGCN"), True, (
        grid(n_layers=[3], require_pow=[True], embedding_size=[64], lr=[0.016],
             reg_weight=[3e-4, 1e-3, 3e-3]),
        grid(lr=[0.008]),
    )),
)  # fmt: skip


def trial(side: Side, given: Problem, settings: Settings, seed: int, test: bool) -> Trial:
    """One fit, its test values only where they are asked for."""
    if side.fit:
        return peer_trial(side.fit(given.train, seed, **settings), given, test)
    result = jaxrec.train(
        side.model, given.dataset, split="given", seed=seed, baselines=(), progress=False,
        hold_test=not test, **settings,
    )  # fmt: skip
    columns = ["user", "item", "split"]
    assert result.dataset.interactions[columns].equals(given.dataset.interactions[columns])
    tested = tuple(result.values[f"test/{name}"] for name in METRICS) if test else None
    seconds, compiling = (result.values[f"seconds/{name}"] for name in ("train", "compile"))
    return Trial(result.values["valid/NDCG@10"], tested, seconds, compiling)


def peer_trial(fitting: Iterator[np.ndarray], given: Problem, test: bool) -> Trial:
    """What the best of a fit's states reaches, by validation."""
    best, chosen, since, seconds = -1.0, None, 0, 0.0
    looks = itertools.count()
    while since < PATIENCE and next(looks) < EPOCHS // EVERY:
        began = time.perf_counter()
        if (scores := next(fitting, None)) is None:
            break
        seconds += time.perf_counter() - began
        scores = jnp.asarray(scores, jnp.float32)
        valid = given.measure[VALID](scores, Data(())).means["NDCG@10"]
        since += 1
        if valid > best:
            best, chosen, since = valid, scores, 0
    if not test:
        return Trial(best, None, seconds)
    found = given.measure[TEST](chosen, Data(())).means
    return Trial(best, tuple(found[name] for name in METRICS), seconds)


def tuned(side: Side, given: Problem, seeds: list[int]) -> tuple[Settings, list[Trial]]:
    """The settings of the best validation NDCG@10, and what they reach with each seed."""
    best, reached = {}, -1.0
    for stage in side.stages:
        start = best
        for change in stage:
            settings = start | change
            valid = trial(side, given, settings, seeds[0], test=False).valid
            print(f"    {side.library} {side.model} {settings}: {valid:.4f}", file=sys.stderr)
            if valid > reached:
                best, reached = settings, valid
    seeds = seeds if side.random else seeds[:1]
    return best, [trial(side, given, best, seed, test=True) for seed in seeds]


def spread(values: list[float]) -> str:
    """The mean, and the standard deviation of what varies."""
    deviation = f" +- {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def report(data: str, found: list[tuple[Side, Settings, list[Trial]]]) -> None:
    """Print the rows of one model; jaxrec's comes first."""
    means = [statistics.mean(trial.test[0] for trial in trials) for _, _, trials in found]
    for place, (side, settings, trials) in enumerate(found):
        shown = ", ".join(f"{name} {value}" for name, value in settings.items())
        seconds = f"{statistics.mean(each.seconds for each in trials):.2f}"
        if side.library == "jaxrec":
            seconds += f" + {statistics.mean(each.compiling for each in trials):.1f}"
        first = place == 0 and side.library == "jaxrec" and len(found) > 1
        cells = (
            data, side.model, side.library, shown,
            spread([each.valid for each in trials]),
            *(spread([each.test[i] for each in trials]) for i in range(len(METRICS))),
            seconds,
            f"{means[0] / max(means[1:]):.3f}" if first else "",
        )  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="*", default=["movielens-100k"])
    parser.add_argument("--split", default="ratio")
    models = list(dict.fromkeys(side.model for side in SIDES))
    parser.add_argument("--only", default=",".join(models), help="models, between commas")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    libraries = dict.fromkeys(side.library for side in SIDES)
    missing = {name for name in libraries if not importlib.util.find_spec(name)}
    for name in sorted(missing):
        print(f"{name} is not installed and left out")
    print(
        "| data | model | library | settings | valid NDCG@10 | test NDCG@10 | test Recall@10 "
        "| seconds (+ compile) | to best peer |"
    )
    print("|" + "---|" * 9)
    for data in options.data:
        given = problem(data, options.split)
        for model in options.only.split(","):
            sides = [s for s in SIDES if s.model == model and s.library not in missing]
            report(data, [(side, *tuned(side, given, options.seeds)) for side in sides])


if __name__ == "__main__":
    main()

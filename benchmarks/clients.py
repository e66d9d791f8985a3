"""What a federation is worth to each of its clients, beside what each could do alone.

    python -m benchmarks.clients personal [--clients 50] [--alpha 0.1] [--seeds 3]
    python -m benchmarks.clients mixed [--data fedcia-ml100k] [--seeds 3]

`personal`: movielens-1m with clients of skewed tastes. Each row is the mean over clients of
NDCG@10 (of their users' mean) and how many tenths of the clients, by their number of users, are
worse off than alone. Every model is served with the same recency; `alone` is EASE of a client's own
rows with its own transitions, its ridge the best on validation.

`mixed`: mf:64,lightgcn:64,mlp:32 dealt out to the clients in turn, against each kind alone: each
client by itself, and the third of the clients of that kind as a federation of its own.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import jaxrec
from jaxrec.data.pack import pack
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.methods import fedcia
from jaxrec.types import TEST, VALID, Data, Dataset, Method

RECENCY, RIDGES = 1.0, (100.0, 300.0)
SERVED = {"recency": RECENCY, "monitor": "NDCG@10", "baselines": (), "progress": False}
GLOBAL = {
    "EASE": {"model": "ease", "ridge": 1000.0},
    "EASE with transitions": {"model": "ease", "ridge": 1000.0, "transitions": 1.0},
    "MF": {},
    "MF with transitions": {"transitions": 4.0},
}
MIXED = "mf:64,lightgcn:64,mlp:32"


def personal(clients: int, alpha: float, seeds: int) -> pd.DataFrame:
    """A row a model and a seed: NDCG@10 over users and over clients, tenths worse than alone."""
    rows = []
    for seed in range(seeds):
        skewed = {"partition": "dirichlet", "clients": clients, "alpha": alpha, "seed": seed}
        results = {}
        for name, settings in GLOBAL.items():
            result = jaxrec.train("fedcia", "movielens-1m", **skewed, **SERVED, **settings)
            results[name] = result.users
        results = {"alone": alone(result.dataset)} | results
        each = {name: by_client(users) for name, users in results.items()}
        size = result.users.groupby("client").size()
        tenths = np.array_split(size.sort_values(kind="stable").index, 10)
        for name, values in each.items():
            worse = sum(values[t].mean() < each["alone"][t].mean() for t in tenths)
            users = results[name]["NDCG@10"].mean()
            rows.append((name, seed, users, values.mean(), worse))
            print(*rows[-1], sep="  ", flush=True)
    return pd.DataFrame(rows, columns=["model", "seed", "users", "clients", "worse tenths"])


def by_client(users: pd.DataFrame) -> pd.Series:
    """NDCG@10 of each client: the mean over its users."""
    return users.groupby("client")["NDCG@10"].mean()


def alone(dataset: Dataset) -> pd.DataFrame:
    """Per-user test values where each client has its own EASE and transitions."""
    data, sizes = pack(dataset)
    found: list[tuple[float, jax.Array]] = []
    for ridge in RIDGES:
        config = fedcia.Config(
            model="ease", ridge=ridge, recency=RECENCY, transitions=1.0,
            privacy="plain", min_support=1, min_cohort=1,
        )  # fmt: skip
        method = fedcia.make(config, sizes)
        scores = np.zeros((sizes.users, sizes.items), np.float32)
        score = jax.jit(lambda own, m=method: _scores(m, own, sizes.users))
        for bucket in data.clients:
            for number in range(len(bucket.client)):
                own = Data((jax.tree.map(lambda leaf, n=number: leaf[n : n + 1], bucket),))
                members = np.asarray(own.clients[0].users)
                members = members[members < sizes.users]
                scores[members] = np.asarray(score(own))[members]
        valid = _evaluated(dataset, scores, VALID)["NDCG@10"].mean()
        found.append((valid, scores))
    best = max(found, key=lambda pair: pair[0])[1]
    return _evaluated(dataset, best, TEST)


def _scores(method: Method, own: Data, users: int) -> jax.Array:
    state = method.init(jax.random.key(0), own)
    state, _ = method.step(state, own, jax.random.key(0))
    return method.score(method.prepare(state, own), jnp.arange(users))


def _evaluated(dataset: Dataset, scores: Any, split: int) -> pd.DataFrame:
    """Per-user values of scores [U, I]."""
    given = Method(None, None, lambda state, data: state, lambda served, users: served[users])
    found = evaluator(given, make_plan(dataset, split), lists=False)(jnp.asarray(scores), Data(()))
    owner = dataset.interactions.groupby("user")["client"].first()
    return found.per_user.assign(client=found.per_user["user"].map(owner))


def mixed(data: str, seeds: int) -> pd.DataFrame:
    """A row a kind and a seed: F1@10 and NDCG@10 in the mix, of its own third, of clients alone."""
    quiet = {"monitor": "F1@10", "baselines": (), "progress": False}
    steps = quiet | {"training": "steps"}
    rows = []
    for seed in range(seeds):
        whole = jaxrec.train("fedcia", data, model=MIXED, rank=64, seed=seed, **steps)
        models = fedcia.method.client_models(whole.config)
        parts = fedcia.method.groups(whole.data, models, "uniform")
        for model in models:
            ids = [clients.client for own, clients in parts if own is model]
            third = of_clients(whole.dataset, np.concatenate(ids))
            kind = {"seed": seed, "width": model.width, "model": model.name}
            own = jaxrec.train("fedcia", third, rank=64, **kind, **steps, partition="given")
            local = jaxrec.train("local_only", third, **kind, **quiet, partition="given")
            inside = whole.users[whole.users["client"].isin(np.concatenate(ids))]
            values = (f1(inside), inside["NDCG@10"].mean())
            for result in (own, local):
                values += (result.values["test/F1@10"], result.values["test/NDCG@10"])
            rows.append((f"{model.name}:{model.width}", seed, *values))
            print(*rows[-1], sep="  ", flush=True)
        print("all", seed, whole.values["test/F1@10"], whole.values["test/NDCG@10"], flush=True)
    where = ("mixed", "own third", "alone")
    columns = [f"{metric}, {place}" for place in where for metric in ("F1@10", "NDCG@10")]
    return pd.DataFrame(rows, columns=["model", "seed", *columns])


def f1(users: pd.DataFrame) -> float:
    """F1@10 of averaged precision and recall."""
    precision, recall = users["Precision@10"].mean(), users["Recall@10"].mean()
    return 2 * precision * recall / (precision + recall)


def of_clients(dataset: Dataset, clients: np.ndarray) -> Dataset:
    """The rows of some clients, their users and themselves numbered anew."""
    rows = dataset.interactions
    rows = rows[rows["client"].isin(clients)]
    kept, user = np.unique(rows["user"], return_inverse=True)
    client = np.unique(rows["client"], return_inverse=True)[1]
    rows = rows.assign(user=user.astype("int32"), client=client.astype("int32"))
    users = dataset.users.iloc[kept].assign(user=np.arange(len(kept), dtype="int32"))
    return replace(
        dataset,
        interactions=rows.reset_index(drop=True),
        users=users.reset_index(drop=True),
        candidates=None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("personal", "mixed"))
    parser.add_argument("--data", default="fedcia-ml100k")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--seeds", type=int, default=3)
    words = parser.parse_args()
    if words.what == "personal":
        table = personal(words.clients, words.alpha, words.seeds)
    else:
        table = mixed(words.data, words.seeds)
    means = table.drop(columns="seed").groupby("model", sort=False)
    print(means.mean().round(4).to_string())
    print("standard deviation over seeds")
    print(means.std().round(4).to_string())


if __name__ == "__main__":
    main()

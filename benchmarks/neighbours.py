"""ItemKNN and EASE, centralised and tuned on validation, on a config's leave-one-out split.

    python -m benchmarks.neighbours rqfedrec-ml1m [rqfedrec-movietweetings ...] [--ease]
    python -m benchmarks.neighbours rqfedrec-ml1m --data lastfm     # another data set, split alike

Both score with rows weighed as the methods may weigh them, 1 / (1 + newer rows / recency), and rank
all items but a user's own, ties against the target. Settings that are tried: `RECENCY`, `SHRINK`,
`NEAREST` (0: all) and, for EASE (Steck, 2019), `RIDGE`. EASE inverts a matrix of I x I in float64,
so it is made on request.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sparse

from jaxrec.training.prepared import Divided, divide
from jaxrec.training.settings import build, read_toml
from jaxrec.types import TEST, TRAIN, VALID

CONFIGS = Path(__file__).parents[1] / "configs"
RECENCY = (0.5, 1.0, 3.0)  # where the data have an order
SHRINK, NEAREST, RIDGE = (0.0, 20.0), (0, 100), (100.0, 300.0, 1000.0)
USERS = 512  # scored at once

Scores = Callable[[np.ndarray], np.ndarray]  # users [B] -> [B, I]


def matrix(divided: Divided, before: int, weights: np.ndarray | float = 1.0) -> sparse.csr_matrix:
    """The rows of the splits before `before`, [U, I]."""
    dataset = divided.dataset
    rows = dataset.interactions[dataset.interactions["split"] < before]
    values = np.broadcast_to(weights, len(rows)).astype(np.float32)
    shape = dataset.num_users, dataset.num_items
    return sparse.csr_matrix((values, (rows["user"], rows["item"])), shape)


def recent(divided: Divided, recency: float) -> sparse.csr_matrix:
    """The train rows [U, I], the newest of a user counting most."""
    rows = divided.dataset.interactions
    rows = rows[rows["split"] == TRAIN]
    by_time = rows.sort_values("timestamp", kind="stable")
    newer = by_time.groupby("user").cumcount(ascending=False).reindex(rows.index).to_numpy()
    return matrix(divided, VALID, 1 / (1 + newer / recency))


def neighbours(train: sparse.csr_matrix, shrink: float, nearest: int) -> sparse.csr_matrix:
    """Cosines of items [I, I], those of few common users shrunk; of each item the nearest ones."""
    common = (train.T @ train).tocoo()
    length = np.sqrt(np.bincount(train.indices, minlength=train.shape[1]))
    apart = common.row != common.col
    row, column = common.row[apart], common.col[apart]
    values = common.data[apart] / (length[row] * length[column] + shrink)
    if nearest:
        order = np.lexsort((-values, row))
        place = np.arange(len(row)) - np.searchsorted(row[order], row[order])
        kept = order[place < nearest]
        row, column, values = row[kept], column[kept], values[kept]
    return sparse.csr_matrix((values, (row, column)), common.shape)


def ease(train: sparse.csr_matrix, ridge: float) -> np.ndarray:
    """The item weights [I, I] of EASE."""
    gram = (train.T @ train).toarray().astype(float)
    inverse = np.linalg.inv(gram + ridge * np.eye(len(gram)))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def measure(divided: Divided, scores: Scores, split: int) -> tuple[float, float]:
    """HR@10 and NDCG@10 of held-out rows, one a user."""
    rows = divided.dataset.interactions
    held = rows[rows["split"] == split].sort_values("user")
    users, items = held["user"].to_numpy(), held["item"].to_numpy()
    own, rank = matrix(divided, split), []
    for start in range(0, len(users), USERS):
        line, target = users[start : start + USERS], items[start : start + USERS]
        found = np.array(scores(line), np.float32)
        wanted = found[np.arange(len(line)), target]
        found[own[line].toarray() > 0] = -np.inf
        rank += np.maximum((found >= wanted[:, None]).sum(1), 1).tolist()
    hit = np.array(rank) <= 10
    return float(hit.mean()), float(np.where(hit, 1 / np.log2(np.array(rank) + 1), 0).mean())


def best(divided: Divided, made: dict[str, Scores]) -> str:
    """The one that is best on validation, with its values on the test split."""
    name = max(made, key=lambda name: measure(divided, made[name], VALID)[1])
    valid, test = (measure(divided, made[name], split) for split in (VALID, TEST))
    return f"{name}: valid NDCG@10 {valid[1]:.4f}, test HR@10 {test[0]:.4f}, NDCG@10 {test[1]:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", nargs="+", help="files of configs/, without .toml")
    parser.add_argument("--ease", action="store_true", help="also EASE")
    parser.add_argument("--data", help="a data set in place of the configs' own")
    options = parser.parse_args()
    for name in options.config:
        method, settings = read_toml(CONFIGS / f"{name}.toml")
        data = {"data": options.data} if options.data else {}
        divided = divide(build(method, dict(settings) | data)[0])
        train, made = matrix(divided, VALID), {}
        if "timestamp" in divided.dataset.interactions:
            weighed = {recency: recent(divided, recency) for recency in RECENCY}
        else:
            weighed = {0.0: train}
        for shrink, nearest in itertools.product(SHRINK, NEAREST):
            alike = neighbours(train, shrink, nearest)
            for recency, own in weighed.items():
                key = f"ItemKNN, recency {recency}, shrink {shrink}, nearest {nearest}"
                made[key] = lambda users, own=own, alike=alike: (own[users] @ alike).toarray()
        print(f"{name}: {best(divided, made)}", flush=True)
        if options.ease:
            made = {}
            for ridge in RIDGE:
                weights = ease(train, ridge)
                for recency, own in weighed.items():
                    key = f"EASE, recency {recency}, ridge {ridge}"
                    made[key] = lambda users, own=own, weights=weights: own[users] @ weights
            print(f"{name}: {best(divided, made)}", flush=True)


if __name__ == "__main__":
    main()

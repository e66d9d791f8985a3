"""What clients that lie do to a federation: python -m benchmarks.robustness NAME [--seeds 3].

Each attack at 10, 20 and 40 % of the clients, by each rule of the server. Of honest users alone:
their test NDCG@10 without attackers and with, and exposure@10, the share of those who do not have
the promoted item to whom it is shown among ten. That item is the median one by popularity.
Attackers' users are left out of the clean run too. Runs are in privacy = plain, go to a JSONL file
as soon as they end, and are not made twice.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxrec
from jaxrec.data.pack import owners
from jaxrec.federated.malicious import AttackConfig, attackers
from jaxrec.files import append_row, read_rows
from jaxrec.training.result import Result

ONE_USER = {"partition": "user", "participation": 0.25}
FEDERATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedavg": ("fedavg", {}),
    "fedmf": ("fedavg", ONE_USER),
    "fedcia": ("fedcia", {"training": "steps", "width": 64}),
    "fedcia-factor": ("fedcia", {"upload": "factor", "width": 64}),
    "rqfedrec": ("rqfedrec", ONE_USER),
}
ATTACKS: dict[str, dict[str, Any]] = {
    "none": {"attackers": 0.0},
    "noise": {"attack": "noise"},
    "sign flip": {"attack": "sign_flip"},
    "x 10": {"attack": "scale"},
    "x -10": {"attack": "scale", "attack_scale": -10.0},
    "x 100": {"attack": "scale", "attack_scale": 100.0},
    "not finite": {"attack": "non_finite"},
    "label flip": {"attack": "label_flip"},
    "promote": {"attack": "promote", "attack_scale": 1.0},
    "promote, x 10": {"attack": "promote"},
}
RULES = ("mean", "norm_bound", "median", "trimmed_mean", "multi_krum")
SHARES = (0.1, 0.2, 0.4)
SHOWN, AT_ONCE = 10, 256


def promoted(data: str) -> int:
    """The median item by popularity."""
    dataset = jaxrec.load(data)
    counts = np.bincount(dataset.interactions["item"], minlength=dataset.num_items)
    return int(np.argsort(counts, kind="stable")[len(counts) // 2])


def shown_to(result: Result, target: int) -> np.ndarray:
    """Which users who do not have the target get it among ten: 1, 0, or -1 for those who have."""
    rows, users = result.dataset.interactions, result.sizes.users
    served = result.method.prepare(result.state, result.data)
    found = np.zeros(users, int)
    known = rows[rows["split"] < 2]
    for begin in range(0, users, AT_ONCE):
        block = np.arange(begin, min(begin + AT_ONCE, users))
        scores = np.array(result.method.score(served, jnp.asarray(block)))
        seen = known[known["user"].isin(block)]
        scores[seen["user"] - begin, seen["item"]] = -np.inf
        found[block] = (scores > scores[:, [target]]).sum(axis=1) < SHOWN
    found[rows["user"][rows["item"] == target]] = -1
    return found


def run(name: str, data: str, settings: dict[str, Any], target: int) -> dict[str, Any]:
    """What is kept of one run: by user, NDCG@10, whether the target is shown, and the client."""
    method, own = FEDERATIONS[name]
    given = {"split": "ratio", "privacy": "plain", "baselines": (), "target_item": target}
    given |= own | settings
    result = jaxrec.train(method, data, progress=False, **given)
    table = result.users.set_index("user")["NDCG@10"]
    return {
        "ndcg": table.reindex(range(result.sizes.users)).round(5).tolist(),
        "shown": shown_to(result, target).tolist(),
        "client": owners(result.dataset).tolist(),
    }


def of_honest(row: dict[str, Any], share: float) -> tuple[float, float]:
    """Mean NDCG@10 and exposure@10 of the users whose clients do not lie at this share."""
    client = np.asarray(row["client"])
    lies = attackers(AttackConfig(attackers=share), jnp.arange(client.max() + 1))
    honest, shown = ~np.asarray(lies)[client], np.asarray(row["shown"])
    ndcg = np.asarray(row["ndcg"], float)[honest]
    return float(np.nanmean(ndcg)), float((shown[honest] == 1).sum() / (shown[honest] >= 0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=FEDERATIONS)
    parser.add_argument("--data", default="synthetic")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N - 1")
    parser.add_argument("--rules", nargs="+", choices=RULES, default=RULES)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--out", type=Path, default=Path("runs/robustness"))
    options = parser.parse_args()
    path = options.out / f"{options.name}-{options.data}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    target = promoted(options.data)

    def kept(settings: dict[str, Any]) -> dict[str, Any]:
        key = json.dumps([jaxrec.__version__, settings], sort_keys=True)
        for row in read_rows(path, {"key": str}):
            if row["key"] == key:
                return row
        row = {"key": key} | run(options.name, options.data, settings, target)
        append_row(path, row)
        return row

    print("| rule | attack | share | NDCG@10 clean | attacked | exposure@10 clean | attacked |")
    print("|---|---|---|---|---|---|---|")
    for rule in options.rules:
        for share in options.shares:
            wary = {} if rule in ("mean", "norm_bound", "median") else {"malicious": share}
            believed = {"aggregate": rule} | wary
            for attack in options.attacks:
                lying = {"attackers": share} | ATTACKS[attack]
                values = []
                for seed in range(options.seeds):
                    clean, attacked = {"seed": seed}, believed | lying | {"seed": seed}
                    pair = (of_honest(kept(settings), share) for settings in (clean, attacked))
                    values.append(np.concatenate(list(pair)))
                mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=len(values) > 1)
                cells = [f"{mean[n]:.4f} ± {spread[n]:.4f}" for n in (0, 2, 1, 3)]
                print(f"| {rule} | {attack} | {share:.0%} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Tables of settings that differ in one thing: python -m benchmarks.ablations TABLE [--seeds 3].

Every run is one of `jaxrec.train`; its test values go to a JSONL file as soon as it ends, so that a
table that was cut short goes on where it stopped. The last column is the difference to the first
variant, with its standard error over users or rows of the test split, paired by seed. Needs
JAXREC_DATA.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

import jaxrec
from jaxrec.files import append_row, read_rows
from jaxrec.methods import METHODS
from jaxrec.training.settings import TRAINING_LENGTH, RunConfig, build, read_toml

CONFIGS = Path(__file__).parents[1] / "configs"


class Table(NamedTuple):
    """Variants of the settings in a file of `configs/`; one may name another file or method."""

    config: str
    metrics: tuple[str, ...]
    variants: dict[str, dict[str, Any]]


NEW_TO_DOMAIN = "test/MRR(9 negatives)/new to domain"
FULL = ("test/HR@10", "test/NDCG@10")
FEDMF = {"config": "fedmf-ml1m"}
NOISE = {f"{share:.0%}": share for share in (0.0, 0.2, 0.4)}
AGENTS = {
    "AgentCF++ (dual, groups, popularity)": {},
    "AgentCF (single)": {"memory": "single", "groups": 0, "popularity": False},
    "single, popularity": {"memory": "single", "groups": 0},
    "single, groups, popularity": {"memory": "single"},
    "dual": {"groups": 0, "popularity": False},
    "dual, popularity": {"groups": 0},
    "dual, groups": {"popularity": False},
    "private only, groups, popularity": {"memory": "private"},
    "dual, groups, popularity, items frozen": {"item_rate": 0.0},
    "minibatch": {"minibatch": True},
    "mean of history texts": {
        "memory": "single", "groups": 0, "popularity": False, "item_rate": 0.0, "surprise": 0.0,
        "newest_weight": 0.0,
    },
    "training popularity": {"method": "popularity"},
    "BPR-MF": {
        "method": "fedavg", "loss": "bpr", "layers": 0, "clients": 1, "partition": "blocks",
        "rounds": 60,
    },
    "SASRec": {"method": "sequential", "rounds": 15, "evaluate_every": 3},
}  # fmt: skip
OF_ROWS = ("test/MRR(9 negatives)", "test/NDCG@10(9 negatives)", NEW_TO_DOMAIN)
COLD = {"start": "cold", "rounds": 60}
GUARDED = {"clip": 0.02, "drop_loss": 0.1, "semantic_weight": 1.5}

TABLES = {
    "rqfedrec": Table(
        "rqfedrec-ml1m",
        FULL,
        {
            "dual": {},
            "warm start, not trained": {
                "rounds": 1,
                "server_learning_rate": 1e-9,
                "context_learning_rate": 1e-9,
            },
            "no context": {"next_rows": 0},
            "codebooks stay, the context is learned": {"server_learning_rate": 1e-9},
            "context of the newest row alone": {"context_recency": 0.01},
            "codebooks do not go back to their start": {"start_decay": 0.0},
            "all codes take the same steps": {"rare_code_steps": 0.0},
            "no text in scores": {"text_scale": 0.0},
            "no shrinkage": {"shrinkage": 0.0},
            "semantic only": {"channels": "semantic"},
            "collaborative only": {"channels": "collaborative"},
            "random codes": {"channels": "random"},
            "no popularity": {"popularity": False},
            "curriculum linear": {"curriculum": "linear"},
            "curriculum sigmoid": {"curriculum": "sigmoid"},
            "curriculum learned": {"curriculum": "learned"},
            "refresh every 10 rounds": {"refresh": 10},
            "cold start": COLD,
            "cold start, semantic only": COLD | {"channels": "semantic"},
            "cold start, curriculum linear": COLD | {"curriculum": "linear"},
            "no order (recency, window, context)": {
                "recency": 0.0,
                "window": 0.0,
                "l2": 3.0,
                "next_rows": 0,
            },
            "FedAvg, 3 codebook steps": {"codebook_steps": 3},
            "1,024 sampled negatives": {"negatives": 1024},
        },
    ),
    "codecs": Table(
        "rqfedrec-ml1m",
        (*FULL, "bytes/up_per_client_round"),
        {
            f"{codes} codes, {codec}": {"codes": codes, "uplink": codec, "downlink": downlink}
            for codes in (64, 256)
            for codec, downlink in (
                ("float32", "float32"),
                ("int8", "int8"),
                ("int4", "int8"),
                ("sign", "int8"),
            )
        },
    ),
    "positives": Table(
        "rqfedrec-ml1m",
        FULL,
        {
            f"{name}, {noise} random positives": settings | {"random_positives": share}
            for noise, share in NOISE.items()
            for name, settings in (
                ("FedMF", FEDMF),
                ("RQFedRec", {}),
                ("RQFedRec guarded", GUARDED),
            )
        },
    ),
}


TWO_DOMAINS = ("movies-toys", "food-kitchen")
TABLES |= {f"agents-{data}": Table(f"agentcf-{data}", OF_ROWS, AGENTS) for data in TWO_DOMAINS}
TABLES |= {
    f"agents-{data}-full": Table(
        f"agentcf-{data}",
        ("test/NDCG@10", "test/Recall@10", "test/Recall@10/new to domain"),
        {name: variant | {"candidates": 0} for name, variant in AGENTS.items()},
    )
    for data in TWO_DOMAINS
}
TABLES |= {
    f"agents-{data}-known": Table(
        f"agentcf-{data}",
        OF_ROWS,
        {
            name: variant
            | {"catalogue": "known"}
            | ({} if "method" in variant else {"new_items": False})
            for name, variant in AGENTS.items()
        },
    )
    for data in TWO_DOMAINS
}
TABLES |= {
    f"agents-{data}": Table(
        f"agentcf-{data}",
        tuple(f"test/{name}(9 negatives)" for name in ("MRR", "NDCG@1", "NDCG@5", "NDCG@10")),
        {name: one for name, one in AGENTS.items() if not name.startswith(("dual", "private"))},
    )
    for data in ("cds100-dense", "cds100-sparse")
}

TWO_LOOPS = {"loops": 2, "rounds": 25}
TABLES["llmd4rec"] = Table(
    "llmd4rec-beauty",
    ("test/NDCG@10", "test/HR@10", "test/NDCG@10/cold"),
    {
        name: {"mode": "mutual"} | settings
        for name, settings in {
            "mutual": {},
            "two loops": TWO_LOOPS,
            "two loops, the first item table injected": TWO_LOOPS | {"inject": "fixed"},
            "no weights by rank": {"weights": "none"},
            "weights by rank once a phase": {"weights": "per_round"},
            "C is not taught": {"lambda_up": 0.0},
            "L is not taught": {"mode": "llm_to_crm"},
        }.items()
    },
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=TABLES)
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 .. N - 1")
    parser.add_argument("--only", default="", help="variants whose name contains this")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"))
    options = parser.parse_args()
    table = TABLES[options.table]
    path = options.out / f"{options.table}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    keys = set()
    for seed in range(options.seeds):
        for name, variant in table.variants.items():
            method, settings = resolved(table.config, variant, seed)
            key = json.dumps([jaxrec.__version__, method, settings], sort_keys=True)
            keys.add(key)
            kept = {row["key"] for row in read_rows(path, {"key": str})}
            if options.only in name and key not in kept:
                values, each = run(method, settings, table.metrics[0])
                named = {"round": 0, "key": key, "variant": name, "seed": seed, "each": each}
                append_row(path, named | values)
                print(f"{name}, seed {seed}: {values[table.metrics[0]]:.4f}", flush=True)
    names = [name for name in table.variants if options.only in name]
    rows = [row for row in read_rows(path, {"key": str}) if row["key"] in keys]
    print(markdown(rows, names, table.metrics))


def resolved(config: str, variant: dict[str, Any], seed: int) -> tuple[str, dict[str, Any]]:
    """The method of a variant and all settings that are not defaults."""
    settings = dict(variant)
    method, given = read_toml(CONFIGS / f"{settings.pop('config', config)}.toml")
    if other := settings.pop("method", None):  # of the config, what any method has
        run = {field.name for field in fields(RunConfig)} - {*TRAINING_LENGTH, "baselines"}
        every = dict(METHODS[method].TRAITS.run) | given
        method, given = other, {name: value for name, value in every.items() if name in run}
    _, config = build(method, given | settings)
    unread = {name for names in METHODS[method].TRAITS.unread(config).values() for name in names}
    given = {name: value for name, value in given.items() if name not in unread}
    return method, given | settings | {"seed": seed, "baselines": ()}


def run(method: str, settings: dict[str, Any], metric: str) -> tuple[dict[str, Any], list[float]]:
    """The test values and bytes of one run, and `metric` of each user or row."""
    result = jaxrec.train(method, progress=False, **settings)
    kept = {n: v for n, v in result.values.items() if n.startswith(("test/", "bytes/"))}
    each = result.users[metric.removeprefix("test/")].round(6).tolist()
    return kept | {"best_round": result.values["best_round"]}, each


def markdown(rows: list[dict[str, Any]], names: list[str], metrics: tuple[str, ...]) -> str:
    """A table of mean and standard deviation over seeds, a row for each variant."""
    frame = pd.DataFrame(rows).set_index("variant")
    shown = [*metrics, "bytes/per_client", "best_round"]
    titles = [name.removeprefix("test/") for name in metrics]
    ends = ["MB per client", "best round", "seeds", f"{titles[0]} over the first |"]
    lines = [" | ".join(["| variant", *titles, *ends])]
    lines.append("|---" * (len(shown) + 3) + "|")
    first = frame.loc[[names[0]]].set_index("seed")["each"] if names[0] in frame.index else {}
    for name in (name for name in names if name in frame.index):
        runs = frame.loc[[name]]
        cells = [f"{runs[m].mean():.4f} ± {runs[m].std(ddof=1):.4f}" for m in shown[:-2]]
        cells = [
            f"{runs[m].mean():,.0f}" if m.startswith("bytes") else cell
            for m, cell in zip(metrics, cells, strict=True)
        ]
        cells.append(f"{runs['bytes/per_client'].mean() / 1e6:.2f}")
        cells.append(f"{runs['best_round'].mean():.0f}")
        paired = [
            np.subtract(each, first[seed])
            for seed, each in zip(runs["seed"], runs["each"], strict=True)
            if seed in first
        ]
        gain = np.mean(paired, axis=0) if paired else np.zeros(2)
        error = gain.std(ddof=1) / len(gain) ** 0.5
        cells += [f"{len(runs)}", f"{gain.mean():+.4f} ± {error:.4f} |"]
        lines.append(" | ".join([f"| {name}", *cells]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Tables of settings that differ in one thing: python -m benchmarks.ablations TABLE [--seeds 3].

Every run is one of `jaxrec.train`; its test values go to a JSONL file as soon as it ends, so that a
table that was cut short goes on where it stopped. Needs JAXREC_DATA.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

import jaxrec
from jaxrec.config import read_toml
from jaxrec.report import append_row, read_rows

CONFIGS = Path(__file__).parents[1] / "configs"


class Table(NamedTuple):
    """Variants of the settings in one file of `configs/`; a variant may name another file."""

    config: str
    metrics: tuple[str, ...]
    variants: dict[str, dict[str, Any]]


FULL = ("test/HR@10", "test/NDCG@10")
FEDMF = {"config": "fedmf-ml1m"}
NOISE = {f"{share:.0%}": share for share in (0.0, 0.2, 0.4)}
GUARDED = {"clip": 0.02, "drop_loss": 0.1, "semantic_weight": 1.5}

TABLES = {
    "rqfedrec": Table(
        "rqfedrec-ml1m",
        FULL,
        {
            "dual": {},
            "semantic only": {"channels": "semantic"},
            "collaborative only": {"channels": "collaborative"},
            "random codes": {"channels": "random"},
            "no popularity": {"popularity": False},
            "curriculum linear": {"curriculum": "linear"},
            "curriculum sigmoid": {"curriculum": "sigmoid"},
            "curriculum learned": {"curriculum": "learned"},
            "refresh every 10 rounds": {"refresh": 10},
            "cold start": {"start": "cold"},
            "cold start, semantic only": {"start": "cold", "channels": "semantic"},
            "cold start, curriculum linear": {"start": "cold", "curriculum": "linear"},
            "no order (recency, window)": {"recency": 0.0, "window": 0.0, "l2": 3.0},
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
    "clients": Table(
        "rqfedrec-ml1m",
        FULL,
        {
            f"{name}, {share:.0%} of clients send noise": settings | {"noisy": share}
            for share in (0.0, 0.05, 0.2)
            for name, settings in (
                ("FedMF", FEDMF | {"block": 32}),
                ("RQFedRec", {}),
                ("RQFedRec clipped", {"clip": 0.02}),
                ("RQFedRec trimmed", {"trim": 0.25, "codes": 64}),
            )
        },
    ),
}


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
            if options.only in name and key not in {row["key"] for row in read_rows(path)}:
                values = run(method, settings)
                append_row(path, {"round": 0, "key": key, "variant": name, "seed": seed} | values)
                print(f"{name}, seed {seed}: {values['test/NDCG@10']:.4f}", flush=True)
    names = [name for name in table.variants if options.only in name]
    rows = [row for row in read_rows(path) if row["key"] in keys]
    print(markdown(rows, names, table.metrics))


def resolved(config: str, variant: dict[str, Any], seed: int) -> tuple[str, dict[str, Any]]:
    """The method of a variant and all settings that are not defaults."""
    settings = dict(variant)
    method, given = read_toml(CONFIGS / f"{settings.pop('config', config)}.toml")
    return method, given | settings | {"seed": seed, "baselines": ()}


def run(method: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The test values and bytes of one run."""
    values = jaxrec.train(method, progress=False, **settings).values
    return {n: v for n, v in values.items() if n.startswith(("test/", "bytes/"))} | {
        "best_round": values["best_round"]
    }


def markdown(rows: list[dict[str, Any]], names: list[str], metrics: tuple[str, ...]) -> str:
    """A table of mean and standard deviation over seeds, a row for each variant."""
    frame = pd.DataFrame(rows).set_index("variant")
    shown = [*metrics, "bytes/per_client", "best_round"]
    titles = [name.removeprefix("test/") for name in metrics]
    lines = [" | ".join(["| variant", *titles, "MB per client", "best round", "seeds |"])]
    lines.append("|---" * (len(shown) + 2) + "|")
    for name in (name for name in names if name in frame.index):
        runs = frame.loc[[name]]
        cells = [f"{runs[m].mean():.4f} ± {runs[m].std(ddof=0):.4f}" for m in shown[:-2]]
        cells = [
            f"{runs[m].mean():,.0f}" if m.startswith("bytes") else cell
            for m, cell in zip(metrics, cells, strict=True)
        ]
        cells.append(f"{runs['bytes/per_client'].mean() / 1e6:.2f}")
        cells.append(f"{runs['best_round'].mean():.0f}")
        lines.append(" | ".join([f"| {name}", *cells, f"{len(runs)} |"]))
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""What a run ends with, as a value and as the flat content of result.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxrec.data.pack import owners
from jaxrec.federated import byte_ledger
from jaxrec.training.job import Job, Progress
from jaxrec.training.settings import RunConfig
from jaxrec.types import Data, Dataset, Method, Sizes


class Result(NamedTuple):
    """What a run ends with."""

    values: dict[str, Any]  # flat: "test/NDCG@10", "bytes/total", ... as in result.json
    rows: list[dict[str, Any]]  # one for each evaluation, as in metrics.jsonl
    users: pd.DataFrame  # per-user test values: user, raw_id, client, one column a metric
    state: Any  # of the best round by the monitored validation metric
    method: Method
    run: RunConfig
    config: Any  # the method's
    dataset: Dataset  # split and partitioned
    data: Data
    sizes: Sizes
    protocol: str
    baselines: dict[str, Result]
    out: Path | None


def result_values(
    job: Job, reached: Progress, rows: list[dict[str, Any]], tested: dict[str, float]
) -> dict[str, Any]:
    """The flat content of result.json."""
    best = next(row for row in rows if row["round"] == reached.best_round)
    return {
        **{name: value for name, value in best.items() if name.startswith("valid/")},
        **{f"test/{name}": value for name, value in tested.items()},
        "best_round": reached.best_round,
        "rounds": reached.round,
        **byte_ledger.values(reached.ledger, job.traffic(reached), job.clients),
        "bytes/best_per_client": best["bytes"] / job.clients,
        **job.privacy(reached.round),
        **({"seconds/text": job.prepared.text_seconds} if job.reads_text else {}),
        "seconds/compile": reached.compile,
        "seconds/train": reached.train,
        "seconds/evaluate": reached.evaluate,
    }


def seconds_of(values: Mapping[str, Any]) -> float:
    """All that a run has taken: texts read, programs compiled, rounds and evaluations."""
    return sum(value for name, value in values.items() if name.startswith("seconds/"))


def users_with_ids(per_user: pd.DataFrame, dataset: Dataset) -> pd.DataFrame:
    """Per-user values with each user's client and, where the data have one, raw id."""
    users = per_user.copy()
    users.insert(1, "client", owners(dataset)[users["user"]].astype(np.int32))
    if "raw_id" in dataset.users:
        users.insert(1, "raw_id", users["user"].map(dataset.users.set_index("user")["raw_id"]))
    return users


def result_of(
    job: Job, values: dict[str, Any], users: pd.DataFrame, rows: list[dict[str, Any]], state: Any
) -> Result:
    """The result of a job."""
    prepared = job.prepared
    if values and "privacy" not in values:  # stored by an older version
        values = job.privacy(values["rounds"]) | values
    return Result(
        values, rows, users, state, job.method, job.run, job.config, prepared.dataset,
        prepared.data, prepared.sizes, job.protocol, {}, job.out,
    )  # fmt: skip

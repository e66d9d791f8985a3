"""A run whose clients are on machines of their own: the ordinary loop, around a coordinator.

The server writes an ordinary run folder: settings, metrics by round, the ledger, checkpoints and
the result. It holds no rows and no users, so nothing is served from it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from jaxrec import files
from jaxrec.deployment.coordinator import Coordinator
from jaxrec.evaluation.evaluator import Evaluation
from jaxrec.federated.secure_aggregation import ProtocolError
from jaxrec.training.job import Job
from jaxrec.training.prepared import Divided, Prepared, environment
from jaxrec.training.progress import say
from jaxrec.training.result import Result
from jaxrec.training.run import run_job
from jaxrec.training.settings import RunConfig
from jaxrec.types import Dataset, SettingError

VALID: Any = "valid"  # in place of plans: the names of the nodes' splits
TEST: Any = "test"


def train_together(
    coordinator: Coordinator,
    nodes: Callable[[], Iterable[str]],
    run: RunConfig,
    out: str | Path | None = None,
    *,
    items: pd.DataFrame | None = None,
    tries: int = 3,
    wait: float = 10.0,
    progress: bool = True,
) -> Result:
    """Train with the clients that are there, and measure on what they hold out.

    A run whose folder `out` holds a checkpoint goes on from it, at the round after the newest one
    that a client has begun.

    Args:
      nodes: gives the names of the nodes that can be reached now. New ones may join at each round.
      run: rounds, evaluations, patience, monitor, ks and seed; what is about data is the nodes'.
      items: the common list of items, for the run's folder.
      tries: how often a round may fail, for too few clients, before the run ends.
      wait: seconds before the next try.

    Raises ProtocolError where too few clients are left, FloatingPointError where training diverges.
    """
    terms = coordinator.terms
    if run.seed != terms.seed:
        raise SettingError(f"seed = {run.seed}: the terms have seed = {terms.seed}; give the same")
    enrol = partial(_enrol, coordinator, nodes, progress)
    enrol(everyone=True)

    def together(what: Callable[[], Any]) -> Any:
        for left in reversed(range(tries)):
            try:
                return _told(coordinator, what(), progress)
            except ProtocolError as error:
                if not left:
                    raise
                say(f"{error}; the next try is in {wait:g} s", shown=progress)
                time.sleep(wait)
                enrol(everyone=True)

    def step(state: Any, data: Any, key: Any) -> tuple[Any, Any]:
        enrol()
        return together(lambda: coordinator.step(state, coordinator.begun + 1))

    def evaluator(method: Any, split: str, **_: Any) -> Callable[[Any, Any], Evaluation]:
        measure = lambda state: coordinator.evaluate(state, coordinator.begun + 1, split, run.ks)
        return lambda state, data: together(lambda: measure(state))

    party = coordinator.party
    method = party.method._replace(compiled=False, step=step)
    job = Job(
        terms.method, method, run, party.config, _prepared(coordinator, run, items),
        lambda: together(coordinator.init), party.programs.like, party.key,
        Path(out) if out else None, progress,
        evaluator=evaluator,
    )  # fmt: skip
    if out is None:
        return run_job(job, hold_test=False)
    with files.in_use(Path(out)):
        return run_job(job, hold_test=False)


def _enrol(
    coordinator: Coordinator,
    nodes: Callable[[], Iterable[str]],
    progress: bool,
    *,
    everyone: bool = False,
) -> None:
    """Offer the terms to nodes that are new, or to everyone."""
    there = set(nodes())
    if new := there if everyone else there - set(coordinator.members):
        coordinator.enrol(new)
        _told(coordinator, None, progress)


def _told(coordinator: Coordinator, result: Any, progress: bool) -> Any:
    """Say who was left out, and why."""
    for name, why in coordinator.left_out.items():
        say(f"{name} is left out: {why}", shown=progress)
    return result


def _prepared(coordinator: Coordinator, run: RunConfig, items: pd.DataFrame | None) -> Prepared:
    """What a run knows of its data, where these are the clients'."""
    terms = coordinator.terms
    table = pd.DataFrame({"item": range(terms.items)}) if items is None else items
    rows = pd.DataFrame({n: pd.Series(dtype="int32") for n in ("user", "item", "split", "client")})
    dataset = Dataset("federation", rows, table, pd.DataFrame({"user": pd.Series(dtype="int32")}))
    clients, users = len(coordinator.members), sum(coordinator.users.values())
    told = f"federation: {users:,} users, {clients:,} clients (on machines of their own)"
    ranked = f"full ranking over {terms.items:,} items, ties against the target"
    best = f"best round by valid {run.monitor}; seed {run.seed}"
    record = {
        "data": {
            "name": "federation",
            "digest": hashlib.sha256(terms.to_json().encode()).hexdigest(),
            "split": "each client's own",
            **terms.sizes._asdict(),
            "clients": clients,
            "users": users,
        },
        "protocol": f"{told}; split by each client; {ranked}; {best}",
        **environment(),
    }
    data = coordinator.party.data
    return Prepared(
        Divided(dataset, "each client's own", "given"), data, data, terms.sizes, VALID, TEST, {},
        None, False, clients, {}, 0.0, record,
    )  # fmt: skip

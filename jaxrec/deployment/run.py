"""A run whose clients are on machines of their own: the ordinary loop, around a coordinator.

The server writes an ordinary run folder: settings, metrics by round, the ledger, checkpoints and
the result. It holds no rows and no users, so nothing is served from it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec import files
from jaxrec.deployment.coordinator import Coordinator
from jaxrec.deployment.newest import Newest
from jaxrec.deployment.party import on_host
from jaxrec.evaluation import names
from jaxrec.evaluation.evaluator import Evaluation
from jaxrec.federated.byte_ledger import Ledger
from jaxrec.federated.secure_aggregation import ProtocolError
from jaxrec.training import checkpoint
from jaxrec.training.job import Job
from jaxrec.training.prepared import Divided, Prepared, environment
from jaxrec.training.progress import say
from jaxrec.training.result import Result
from jaxrec.training.run import run_job
from jaxrec.training.settings import RunConfig
from jaxrec.types import Dataset, SettingError

VALID: Any = "valid"  # in place of plans: the names of the nodes' splits
TEST: Any = "test"
MEMBERS = "members.json"  # beside a run's other files
KEPT: files.Kinds = {"members": dict, "users": dict, "begun": int, "bests": list}
NEWEST = "newest.safetensors"


def train_together(
    coordinator: Coordinator,
    nodes: Callable[[], Iterable[str]],
    run: RunConfig,
    out: str | Path | None = None,
    *,
    items: pd.DataFrame | None = None,
    participation: float = 1.0,
    tries: int = 3,
    wait: float = 10.0,
    progress: bool = True,
) -> Result:
    """Train with the clients that are there, and measure on what they hold out.

    A run whose folder `out` holds a checkpoint goes on from it, at the round after the newest one
    that a client has begun. Each evaluation is of the users as they then are; the test values are
    of the best round's shared state with each client's users of that round.

    Args:
      nodes: gives the names of the nodes that can be reached now. New ones may join at each round.
      run: rounds, evaluations, patience, monitor, ks and seed; the nodes have read their own data.
      items: the common list of items, for the run's folder.
      participation: the share of the clients that are there to draw for each round, and one more
        than a sum needs at least. All are asked after a try that failed.
      tries: how often a round may fail, for too few clients, before the run ends.
      wait: seconds before the next try.

    Raises ProtocolError where too few clients are left, or too few send finite numbers.
    """
    terms = coordinator.terms
    if run.seed != terms.seed:
        raise SettingError(f"seed = {run.seed}: the terms have seed = {terms.seed}; give the same")
    if items is not None and len(items) != terms.items:
        raise SettingError(f"items: the list has {len(items)} and the terms have {terms.items}")
    if not 0 < participation <= 1:
        raise SettingError(f"participation = {participation!r}: must be above 0 and at most 1")
    together = _Together(
        coordinator, nodes, run, Path(out) if out else None, participation, tries, wait, progress
    )
    together.enrol(everyone=True)
    party = coordinator.party
    method = party.method._replace(compiled=False, step=together.step)
    job = Job(
        terms.method, method, replace(run, data="federation"), party.config,
        _prepared(coordinator, run, items), together.init, party.programs.like, party.key,
        together.out, progress, evaluator=together.evaluator, counted=together.counted,
    )  # fmt: skip
    if out is None:
        return run_job(job, hold_test=False)
    with files.in_use(Path(out)):
        return run_job(job, hold_test=False)


class _Together:
    """The loop's three calls, init, step and evaluate, with the clients that are there."""

    def __init__(
        self,
        coordinator: Coordinator,
        nodes: Callable[[], Iterable[str]],
        run: RunConfig,
        out: Path | None,
        participation: float,
        tries: int,
        wait: float,
        progress: bool,
    ):
        self.coordinator, self.nodes, self.run, self.out = coordinator, nodes, run, out
        self.participation, self.tries, self.wait = participation, tries, wait
        self.progress = progress
        self.there: set[str] = set()
        self.charged = dict(coordinator.sent)  # bytes that the ledger has
        self.bests: list[tuple[float, int]] = []  # each value above those before, and its round
        self.told: dict[str, str] = {}  # why nodes are left out
        self.failed = False  # whether the last try has
        self.newest = Newest(out and out / NEWEST)
        if out and (out / MEMBERS).exists():
            kept = files.read_json(out / MEMBERS, KEPT)
            coordinator.members, coordinator.users = kept["members"], kept["users"]
            coordinator.begun = kept["begun"]
            self.bests = [tuple(each) for each in kept["bests"]]
            if remembered := checkpoint.read_progress(out / "checkpoint", {}):
                self.bests = [each for each in self.bests if each[0] <= remembered["best"]]

    def enrol(self, *, everyone: bool = False) -> None:
        """See who is there, and offer the terms to who is new or was left out, or to everyone."""
        self.there = set(self.nodes())
        coordinator = self.coordinator
        known = set() if everyone else set(coordinator.members) - set(coordinator.left_out)
        if offered := self.there - known:
            coordinator.enrol(offered)
            self._tell()

    def init(self) -> Any:
        """The set-up. It is not tried again: nodes begin it once."""
        state = self.coordinator.init(self.there)
        self._tell()
        self._keep()
        return state

    def step(self, state: Any, data: Any, key: Any) -> tuple[Any, Any]:
        """The next round; the coordinator knows its number and its key."""
        self.enrol()
        party, step = self.coordinator.party, self.coordinator.party.programs.step(False)
        before = party.leaves(state, own=False)
        if (left := self.newest.after(before)) is not None:
            say("goes on from the newest round, which a checkpoint lacks", shown=self.progress)
            return step.finish([jnp.asarray(array) for array in left])
        done = self._tried(lambda: self._round(state))
        self.newest.write(before, on_host(jax.tree.leaves(done)))
        self._keep()
        return done

    def _round(self, state: Any) -> tuple[Any, Any]:
        """A round with the clients that are drawn for it."""
        coordinator, number = self.coordinator, self.coordinator.begun + 1
        there = coordinator.present(self.there)
        most = max(math.ceil(self.participation * len(there)), coordinator.least + 1)
        if most < len(there) and not self.failed:  # who fails may be drawn again: all are asked
            seed = (coordinator.terms.seed, number)
            there = np.random.default_rng(seed).choice(there, most, replace=False).tolist()
        return coordinator.step(state, number, there)

    def evaluator(self, method: Any, split: str, **_: Any) -> Callable[[Any, Any], Evaluation]:
        """What measures a state in a split; in the test split, the best one of the other."""

        def measure(state: Any, data: Any) -> Evaluation:
            at, best = self.coordinator.begun + 1, self.bests[-1][1] if self.bests else None
            at = best if split == TEST and best is not None else at
            ask = partial(self.coordinator.evaluate, state, at, split, self.run.ks, best=best)
            found = self._tried(lambda: ask(among=self.there))
            if split == VALID:
                value = found.means[names.measured(self.run.monitor, found.means)]
                if not self.bests or value > self.bests[-1][0]:
                    self.bests.append((value, at))
                self._keep()
            return found

        return measure

    def counted(self) -> Ledger:
        """Bytes of the set-up and of rounds since the last call, those of failed ones too."""
        now = self.coordinator.sent
        setup, rounds = (
            (now[name].up - self.charged[name].up, now[name].down - self.charged[name].down)
            for name in ("setup", "rounds")
        )
        self.charged = dict(now)
        return Ledger(*map(float, (*rounds, *setup)))

    def _tried(self, take: Callable[[], Any]) -> Any:
        """What a call returns, once enough clients are there for it."""
        for left in reversed(range(self.tries)):
            try:
                result = take()
            except ProtocolError as error:
                if not left:
                    raise
                self.failed = True
                say(f"{error}; the next try is in {self.wait:g} s", shown=self.progress)
                time.sleep(self.wait)
                self.enrol(everyone=True)
            else:
                self.failed = False
                self._tell()
                return result

    def _tell(self) -> None:
        """Say who is left out, and why, where that is new."""
        for name, why in self.coordinator.left_out.items():
            say(f"{name} is left out: {why}", shown=self.progress and self.told.get(name) != why)
        self.told = dict(self.coordinator.left_out)

    def _keep(self) -> None:
        """Remember who is which client, and how far nodes have come."""
        if self.out:
            own = self.coordinator
            kept = {"members": own.members, "users": own.users, "begun": own.begun}
            files.write_json(self.out / MEMBERS, kept | {"bests": self.bests})


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
            "digest": terms.digest,
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

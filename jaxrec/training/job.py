"""One method to train on prepared data, and how far it has come."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrec import files
from jaxrec.evaluation.evaluator import Evaluation, evaluator
from jaxrec.federated import byte_ledger, privacy_ledger
from jaxrec.federated.byte_ledger import Ledger
from jaxrec.methods import method_module
from jaxrec.training.budget import rounds_of
from jaxrec.training.prepared import Prepared
from jaxrec.training.settings import RunConfig
from jaxrec.types import Method, Traffic

RESUMABLE = ("rounds", "patience", "mesh", "kept_data", "items_file")
"""The settings that may change when a run is resumed; a method's `TRAITS.resumable` names more."""

SUMS = "result.sha256"
"""The file of the checksums of a result, as the program sha256sum writes and checks them."""


class Progress(NamedTuple):
    """What a run remembers from one evaluation to the next, beside its states."""

    round: int = 0
    best: float | None = None
    best_round: int = 0
    stale: int = 0  # evaluations since the best one
    ledger: Ledger = Ledger()
    compile: float = 0.0  # seconds
    train: float = 0.0  # seconds
    evaluate: float = 0.0  # seconds


class Job(NamedTuple):
    """One method to train on prepared data."""

    name: str
    method: Method
    run: RunConfig
    config: Any
    prepared: Prepared
    start: Callable[[], Any]  # makes the first state, where it lies on the mesh
    like: Any  # the shapes of a state
    key: jax.Array  # of the rounds
    out: Path | None
    progress: bool = True
    track: Callable[[str, files.Row], None] | None = None
    origin: dict[str, Any] | None = None  # the run that it goes on from, for config.json
    evaluator: Callable[..., Callable[[Any, Any], Evaluation]] = evaluator
    counted: Callable[[], Ledger] | None = None  # bytes since the last call, where they are real

    @property
    def clients(self) -> int:
        """Clients of the federation that have interactions."""
        return self.prepared.members

    @property
    def reads_text(self) -> bool:
        """Whether it reads vectors of the items' texts."""
        reads = method_module(self.name).TRAITS.reads(self.config)
        return bool(self.prepared.divided.text) and (reads.text or reads.any_text)

    @property
    def rounds(self) -> int:
        """Rounds of training at most."""
        return rounds_of(self.method, self.run.rounds)

    def charged(self, ledger: Ledger, attendance: Any, rounds: int) -> Ledger:
        """The ledger so many rounds later; see `byte_ledger.charged`."""
        if self.counted:
            return Ledger(*map(sum, zip(ledger, self.counted(), strict=True)))
        return byte_ledger.charged(ledger, self.method.traffic, self.clients, attendance, rounds)

    def traffic(self, reached: Progress) -> Traffic:
        """What a client sends and gets: as the method states it, or on average as counted."""
        if self.counted is None:
            return self.method.traffic
        return byte_ledger.averaged(reached.ledger, self.clients, reached.round)

    @property
    def record(self) -> dict[str, Any]:
        """config.json: the settings, data, protocol, versions and device."""
        settings = asdict(self.run) | asdict(self.config)
        record = {"method": self.name, "settings": settings, **self.prepared.record}
        began = {"from": self.origin} if self.origin else {}
        return record | began | {"protocol": self.protocol, "checksums": SUMS}

    @property
    def protocol(self) -> str:
        """What was measured and how, and what the run promises of privacy."""
        told, seed, number = self.prepared.record["protocol"].rpartition("; seed")
        made = (self.config, self.method, self.rounds)
        promise = privacy_ledger.promise(*made, method_module(self.name).TRAITS.privacy)
        if self.origin:
            told += f"; goes on from {self.origin['run']}"
        return f"{told}; privacy: {promise}{seed}{number}"

    def privacy(self, rounds: int) -> dict[str, Any]:
        """The privacy in result.json after so many rounds."""
        otherwise = method_module(self.name).TRAITS.privacy
        return privacy_ledger.values(self.config, self.method, rounds, otherwise)

    @property
    def identity(self) -> dict[str, str]:
        """What a checkpoint must share with the run that continues it."""
        settings = asdict(self.run) | asdict(self.config)
        return identity_of(self.name, settings, self.prepared.record["data"]["digest"])

    def next_evaluation(self, reached: Progress) -> int:
        """The round after which the run is evaluated next."""
        every = self.run.evaluate_every
        return min(self.rounds, (reached.round // every + 1) * every)

    def done(self, reached: Progress) -> bool:
        """Whether the rounds, or the patience, have run out."""
        patience = self.run.patience
        return reached.round >= self.rounds or bool(patience and reached.stale >= patience)


def identity_of(method: str, settings: dict[str, Any], data: str) -> dict[str, str]:
    """What a checkpoint of a method with these settings on this data is known by."""
    apart = (*resumable(method), "split")  # the digest of the data is of the split data
    kept = {name: json.dumps(v) for name, v in settings.items() if name not in apart}
    return kept | {"method": method, "data": data}


def resumable(method: str) -> tuple[str, ...]:
    """The settings of a method that may change when a run is resumed."""
    return RESUMABLE + method_module(method).TRAITS.resumable

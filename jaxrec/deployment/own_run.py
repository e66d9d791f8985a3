"""A client's own rows, and its folder: an ordinary run that recommends to the client's users.

    own data -> laid on the common list, split -> Node          each evaluation -> checkpoint

`python -m jaxrec.recommend FOLDER` serves the client's users, on its own machine, with what the
federation has learned. Nothing in the folder is for other machines.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pandas as pd

from jaxrec import files
from jaxrec.data.sources import load
from jaxrec.data.split import split
from jaxrec.data.text import vectors
from jaxrec.deployment.catalogue import digest_of, on_catalogue
from jaxrec.deployment.memory import Memory
from jaxrec.deployment.node import Evaluated, Limits, Node
from jaxrec.deployment.terms import Terms
from jaxrec.evaluation.plan import Plan, make_plan
from jaxrec.training import checkpoint, kept_data
from jaxrec.training.job import SUMS, identity_of
from jaxrec.training.prepared import Divided, Prepared, prepare, split_of
from jaxrec.training.progress import say
from jaxrec.training.settings import RunConfig, reads
from jaxrec.types import TEST, TRAIN, VALID, DataError, SettingError

SPLITS = {"valid": VALID, "test": TEST}


class OwnRun:
    """A client's rows and its run folder.

    Raises DataError for data that cannot be read, of which the list knows no item, or that leave
    nothing to train on.
    """

    def __init__(self, run: RunConfig, items: pd.DataFrame, out: Path, *, progress: bool = True):
        """`run` says where the rows are and how they are read and split.

        Raises SettingError where the folder holds a run that is no client's.
        """
        if (out / "config.json").exists() and not _federation_of(out):
            raise SettingError(f"{out}: holds a run that is no client's; choose another folder")
        self.run, self.out, self.progress = run, out, progress
        own = load(run.data, unread=("client",), progress=progress, **run.reading())
        own, unknown = on_catalogue(own, items)
        if unknown:
            some = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
            say(
                f"{own.name}: rows of {len(unknown):,} items are left out, which are not in the "
                f"federation's list: {some}",
                shown=progress,
            )
        how = split_of(run, own)
        own = split(own, how, run.valid, run.test, run.seed)
        # All parties of a federation have rows without an order, or some would run other programs.
        rows = own.interactions.assign(client=0).drop(columns="timestamp", errors="ignore")
        if not (rows["split"] == TRAIN).any():
            raise DataError(f"{own.name}: no row is left to train on")
        described = items.drop(columns="domain", errors="ignore")
        self.dataset = replace(own, interactions=rows, items=described)
        self.how, self.catalogue = how, digest_of(items)
        self._last: Evaluated | None = None
        self._began = time.perf_counter()

    def node(self, limits: Limits) -> Node:
        """The client, which remembers where it stands in this folder."""
        data = prepare(self.run, divided=self._divided(), progress=False).data
        return Node(
            data,
            self.dataset.num_items,
            limits,
            self.plan,
            self.catalogue,
            texts=self._texts,
            rows=self.dataset.digest,
            memory=Memory(self.out / "memberships"),
        )

    def plan(self, split: str, ks: tuple[int, ...]) -> Plan:
        """This client's held-out users; DataError where there are none."""
        if split not in SPLITS:
            raise DataError(f"split {split!r}: this client has the splits {', '.join(SPLITS)}")
        return make_plan(self.dataset, SPLITS[split], ks=ks)

    def keep(self, node: Node) -> None:
        """Write what the node has evaluated last, where that is new, as an ordinary run.

        Its best state is that of the round that the server has called best.
        """
        found = node.evaluated
        if found is None or found is self._last:
            return
        self._last, terms = found, found.party.terms
        config = replace(found.party.config, min_cohort=1)  # one client serves, and sums nothing
        run = replace(self.run, text=terms.text or self.run.text)
        prepared = prepare(
            run, None, reads({terms.method: config}), divided=self._divided(terms), progress=False
        )
        if _federation_of(self.out) not in ("", terms.digest):  # what another one has taught
            for name in ("checkpoint", "data"):
                shutil.rmtree(self.out / name, ignore_errors=True)
            (self.out / "metrics.jsonl").unlink(missing_ok=True)
        settings, (row, rows) = asdict(run) | asdict(config), self._rows(found)
        best = found.round if found.best is None else found.best
        if not (self.out / "checkpoint" / f"round-{best}").is_dir():
            best = found.round  # this client was not in the evaluation of that round
        files.write_rows(self.out / "metrics.jsonl", sorted([*rows, row], key=lambda r: r["round"]))
        files.write_json(self.out / "config.json", self._record(terms, settings, prepared))
        state = checkpoint.to_arrays(found.state)
        checkpoint.save(
            self.out / "checkpoint",
            (found.round, state),
            (best, state),  # written already, if it is another round's
            {"round": found.round, "best_round": best},
            identity_of(terms.method, settings, prepared.record["data"]["digest"]),
        )
        kept_data.keep(self.out, prepared, run.kept_data, shown=self.progress)

    def _rows(self, found: Evaluated) -> tuple[files.Row, list[files.Row]]:
        """The line of metrics.jsonl for a round, and those of the other rounds."""
        rows = files.read_rows(self.out / "metrics.jsonl")
        before = next((row for row in rows if row["round"] == found.round), {})
        told = {f"{found.split}/{name}": value for name, value in found.means.items()}
        others = [row for row in rows if row["round"] != found.round]
        row = {"round": found.round, "seconds": time.perf_counter() - self._began}
        return row | before | told, others

    def _record(self, terms: Terms, settings: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
        """config.json of this client's run."""
        told, seed, number = prepared.record["protocol"].rpartition("; seed")
        sums = "secure sums" if settings["privacy"] == "secure_sum" else "sums in clear"
        told += f"; learned in a federation of {terms.clients} clients, by {sums}"
        record = {"method": terms.method, "settings": settings, **prepared.record}
        record |= {"protocol": told + seed + number, "checksums": SUMS}
        return record | {"federation": terms.digest}

    def _divided(self, terms: Terms | None = None) -> Divided:
        text = vectors(self.dataset, terms.text, progress=False) if terms and terms.text else None
        return Divided(self.dataset, self.how, "given", text)

    def _texts(self, encoder: str) -> jax.Array:
        return jnp.asarray(vectors(self.dataset, encoder, progress=self.progress).vectors)


def _federation_of(out: Path) -> str:
    """The federation that a client's run is of; nothing where there is none."""
    path = out / "config.json"
    return files.read_json(path, {}).get("federation", "") if path.exists() else ""

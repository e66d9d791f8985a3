"""From a dataset's name to what every method of a run shares: packed arrays, plans, a record.

load -> core -> split -> partition (-> item text) -> pack

The first half, `Divided`, is what a run keeps in its folder to serve without its files.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jax.sharding import Mesh

from jaxrec import mesh
from jaxrec.data.blocks import count
from jaxrec.data.pack import history as by_time
from jaxrec.data.pack import pack
from jaxrec.data.partition import partition
from jaxrec.data.sources import load, located
from jaxrec.data.split import How, core, forward, settled, split, with_random_positives
from jaxrec.data.text import ItemText, texts, titled, vectors
from jaxrec.evaluation.plan import Plan, held_out, make_plan
from jaxrec.federated import byte_ledger
from jaxrec.ops import strings
from jaxrec.training import launch
from jaxrec.training.settings import RunConfig
from jaxrec.types import TEST, TRAIN, VALID, Data, Dataset, Reads, SettingError, Sizes
from jaxrec.version import __version__

NOTHING = Reads()
RARE = ("no train rows", 0, 0), ("1-5 train rows", 1, 5), ("6-20 train rows", 6, 20)
TITLED = 1024  # bytes that are kept of an item's title, category and text


class Divided(NamedTuple):
    """A dataset that is split and partitioned, and how."""

    dataset: Dataset
    split: str
    partition: str
    text: ItemText | None = None  # vectors of the items' texts, where a method reads them
    path: Path | None = None  # the file or folder that was read
    digest: str | None = None  # of the dataset that was divided, where this is a copy of it


class Prepared(NamedTuple):
    """What the methods of one run have in common."""

    divided: Divided
    data: Data
    known: Data  # the same at test time: the history goes on through the validation rows
    sizes: Sizes
    valid: Plan
    test: Plan
    apart: dict[str, Plan]  # parts of the test split that are also reported by themselves
    mesh: Mesh | None
    forward: bool  # whether held-out rows are newer than their users' train rows
    members: int  # clients of the federation that have interactions
    buckets: dict[int, int]  # by a bucket's length: its clients, to which the mesh adds padding
    text_seconds: float  # that the items' texts took to read
    record: dict[str, Any]  # for config.json: data, protocol, versions, device

    @property
    def dataset(self) -> Dataset:
        """The tables, split and partitioned."""
        return self.divided.dataset

    def shardings(self, tree: Any) -> Any:
        """How each array of a state, or of what describes one, lies on the mesh; None without."""
        return mesh.shardings(tree, self.data, self.sizes, self.mesh)


def prepare(
    run: RunConfig,
    dataset: Dataset | pd.DataFrame | None = None,
    reads: Reads = NOTHING,
    *,
    divided: Divided | None = None,
    lengths: Sequence[int] | None = None,
    progress: bool = True,
) -> Prepared:
    """Load the data of a run, unless a `dataset` is given, and make it ready for any method.

    `reads` says what the methods read beside the clients' rows; `divided` are the data of an
    earlier session of the run, which need no other, and `lengths` those of its buckets.

    Raises DataError for bad data, SettingError for settings that do not fit it.
    """
    devices = mesh.make(run.mesh)
    divided = divided or divide(run, dataset, progress=progress)
    dataset = divided.dataset
    began = time.perf_counter()
    wanted = reads.text or (reads.any_text and any(texts(dataset.items)))
    if wanted and not divided.text:
        divided = divided._replace(text=vectors(dataset, run.text, progress=progress))
    text_seconds = time.perf_counter() - began
    layout = {"multiple": run.client_devices, "lengths": lengths}
    data, sizes = pack(dataset, by_time=reads.history, **layout)
    members = byte_ledger.members(data)
    real = [(len(b.client), int((b.client < sizes.clients).sum())) for b in data.clients]
    buckets = dict(sorted(real, reverse=True))  # of one length, the one with the fewest
    if (reads.text or reads.any_text) and divided.text:
        data = data._replace(text=jnp.asarray(divided.text.vectors))
    if reads.titles:
        written = strings.pack(titled(dataset.items), TITLED)
        data = data._replace(written=jax.tree.map(jnp.asarray, written))
    known = data._replace(history=by_time(dataset, TEST) if reads.history else None)
    launch.barrier("packed")
    if devices:
        place = lambda tree: jax.device_put(tree, mesh.shardings(tree, data, sizes, devices))
        past = place(known.history)
        data = place(data)
        known = data._replace(history=past)
    plan = partial(
        make_plan,
        dataset,
        ks=run.ks,
        candidates=run.candidates,
        listed=run.listed,
        seed=run.seed,
        ranking=run.ranking,
        mask_history=run.mask_history,
        catalogue=run.catalogue,
        multiple=devices.size if devices else 1,
    )
    apart = {name: plan(TEST, only=only) for name, only in _apart(dataset, run).items()}
    record = _record(divided, data, sizes, run)
    plans = plan(VALID), plan(TEST), apart
    return Prepared(
        divided, data, known, sizes, *plans, devices, forward(dataset), members, buckets,
        text_seconds, record,
    )  # fmt: skip


def divide(
    run: RunConfig, dataset: Dataset | pd.DataFrame | None = None, *, progress: bool = True
) -> Divided:
    """The data of a run, loaded unless a `dataset` is given: their core, split and partitioned."""
    path = None
    with launch.all_or_none("reading data"):
        if dataset is None and run.data != "synthetic":
            path = located(run.data, progress=progress)[0]
        if not isinstance(dataset, Dataset):  # a DataFrame, or nothing
            given = run.data if dataset is None else dataset
            dataset = load(given, unread=run.unread, progress=progress, **run.reading())
    dataset = core(dataset, run.min_user, run.min_item)
    how = split_of(run, dataset)
    dataset = split(dataset, how, run.valid, run.test, run.seed)
    dataset = with_random_positives(dataset, run.random_positives, run.seed)
    who = run.partition
    if who == "auto":
        who = "given" if "client" in dataset.interactions else "blocks"
    clients = min(run.clients, dataset.num_users)
    dataset = partition(dataset, who, clients, run.alpha, run.seed)
    return Divided(dataset, how, who, path=path and path.absolute())


def split_of(run: RunConfig, dataset: Dataset) -> How:
    """How a run splits a dataset; SettingError for fractions that the default does not read."""
    how = settled(run.split, dataset)
    if run.split == "auto" and how == "leave-one-out":
        for name in ("valid", "test"):
            if (part := getattr(run, name)) != getattr(RunConfig, name):
                raise SettingError(
                    f"{name} = {part!r}: is read by a ratio or time split, and these data, which "
                    "have a time, are split leave-one-out by default; set split = 'ratio' or 'time'"
                )
    return how


def _apart(dataset: Dataset, run: RunConfig) -> dict[str, np.ndarray]:
    """Rows to report by themselves, bool [R]: of rare items, of users new to the row's domain."""
    rows = dataset.interactions
    train = rows["split"] == TRAIN
    found = {}
    if run.cold:
        number = np.bincount(rows.loc[train, "item"], minlength=dataset.num_items)
        of_row = number[rows["item"]]
        found["cold"] = of_row <= run.cold
        for name, low, high in RARE:
            found[name] = (of_row >= low) & (of_row <= high)
    if run.ranking == "domains" and "domain" in dataset.items:
        domain = dataset.items["domain"].to_numpy()[rows["item"]]
        pair = rows["user"].to_numpy() * (domain.max() + 1) + domain
        found["new to domain"] = ~np.isin(pair, pair[train])
    held = held_out(dataset, TEST, run.catalogue)
    return {name: only for name, only in found.items() if (only & held).any()}


def _record(divided: Divided, data: Data, sizes: Sizes, run: RunConfig) -> dict[str, Any]:
    dataset, how, who, text, path, digest = divided
    rows = dataset.interactions
    parts = count(rows["split"].to_numpy(), 3).tolist()
    shares = "/".join(f"{100 * part / len(rows):.0f}" for part in parts)
    notes = [f"best round by valid {run.monitor}", f"seed {run.seed}"]
    if run.random_positives:
        notes.insert(0, f"{run.random_positives:.0%} random positives added to train")
    if text:
        bare = f", {text.missing:,} items without text" if text.missing else ""
        notes.insert(0, f"item text by {text.encoder}{bare}")
    each = {"users": "", "rows": " of each row", "domains": " of each row within its domain"}
    against = (
        f"sampled ranking{each[run.ranking]} against {run.candidates} negatives"
        + " of the data's own lists" * run.listed
        if run.candidates
        else f"full ranking{each[run.ranking]} over {sizes.items:,} items, "
        f"{'without' if run.mask_history else 'with'} those the user already has"
    )
    if run.catalogue == "known":
        against += ", items without an earlier row left out"
    return {
        "data": {
            "name": dataset.name,
            **({"path": str(path)} if path else {}),
            "digest": digest or dataset.digest,
            "split": how,
            **({"encoder": text.encoder, "vectors": text.digest} if text else {}),
            **sizes._asdict(),
            "interactions": len(rows),
            "lengths": [bucket.item.shape[1] for bucket in data.clients],
            **dict(zip(("train", "valid", "test"), parts, strict=True)),
        },
        "protocol": (
            f"{dataset.name}: {sizes.users:,} users, {sizes.clients:,} clients ({who}); "
            f"{how} split {shares}; {against}, ties against the target; "
            f"{'; '.join(notes)}"
        ),
        **environment(),
    }


def environment() -> dict[str, Any]:
    """What a number depends on beside its settings: versions, and the devices."""
    return {
        "versions": {
            "jaxrec": __version__,
            "jax": jax.__version__,
            "jaxlib": version("jaxlib"),
            "numpy": np.__version__,
            "pandas": pd.__version__,
            "python": platform.python_version(),
        },
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    }

"""A run that goes on from another one: on its data and newer rows, from what it has learned.

earlier run -> its settings -> its data with the newer rows -> its state, grown -> rounds
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast
from warnings import warn

import jax
import pandas as pd

from jaxrec.data.join import joined
from jaxrec.data.partition import partition_again
from jaxrec.data.reading import Reading
from jaxrec.data.sources import load
from jaxrec.data.split import split_again
from jaxrec.data.text import extended
from jaxrec.methods import method_module
from jaxrec.settings.fields import fields
from jaxrec.training import checkpoint
from jaxrec.training.job import Job
from jaxrec.training.opening import opened
from jaxrec.training.prepared import Divided
from jaxrec.training.progress import say
from jaxrec.training.settings import RunConfig, read_values
from jaxrec.types import Data, Dataset, Earlier, SettingError, Unavailable

OF_THE_DATA = ("split", "partition", "clients", "alpha", "min_user", "min_item")
"""Settings that decide what the rows of the earlier run became, and so hold for newer ones too."""
PRIVATE = ("central_dp", "distributed_dp")


class Origin(NamedTuple):
    """The run that another one goes on from."""

    folder: Path
    method: str
    updates: int  # how many runs, with the one that goes on from it, went on from another

    @property
    def record(self) -> dict[str, Any]:
        """What config.json says of it."""
        return {"run": str(self.folder.absolute()), "updates": self.updates}


class Learned(NamedTuple):
    """What the earlier run has learned, and on what."""

    divided: Divided
    was: Earlier  # without the clients' rows
    shapes: Any  # of all its data
    state: Any  # on the host


def origin_of(folder: Path, record: Mapping[str, Any]) -> Origin:
    """A recorded run, as one to go on from."""
    updates = record.get("from", {}).get("updates", 0) + 1
    return Origin(folder, record["method"], updates)


def recorded_origin(record: Mapping[str, Any]) -> Origin | None:
    """The run that a recorded one went on from; None where it began by itself."""
    if (began := record.get("from")) is None:
        return None
    return Origin(Path(began["run"]), record["method"], began["updates"])


def learned_by(origin: Origin) -> Learned:
    """What the run has learned; CheckpointError where it, or its data, cannot be read."""
    job, result = opened(origin.folder, progress=False)
    bare = dict.fromkeys(("user", "item", "mask", "age"))
    clients = tuple(bucket._replace(**bare) for bucket in result.data.clients)
    was = Earlier(Data(clients), result.sizes)
    shapes = jax.eval_shape(lambda: result.data)
    return Learned(job.prepared.divided, was, shapes, jax.device_get(result.state))


def settings_from(
    record: Mapping[str, Any], given: Mapping[str, Any], *, read: bool
) -> dict[str, Any]:
    """The settings of a recorded run with those `given` anew; no baselines unless they are.

    Options of reading are left out where no file or frame is `read`. SettingError for a setting
    that must stay, and for runs that cannot go on.
    """
    method = record["method"]
    old = read_values(method, record["settings"], "the earlier run: ")
    old["split"] = record["data"].get("split", old["split"])
    new = read_values(method, given)
    fixed = (*OF_THE_DATA, *(() if old["split"] in ("ratio", "time") else ("valid", "test")))
    if changed := [name for name in fixed if new.get(name, old[name]) not in (old[name], "auto")]:
        name = changed[0]
        raise SettingError(
            f"{name} = {new[name]!r}: the earlier run has {old[name]!r}, which holds for newer "
            "rows too; train anew to change it"
        )
    for name, why in (
        ("random_positives", "a run with random rows is for tests of robustness"),
        ("listed", "lists of candidates are of the data that they came with"),
    ):
        if old[name] or new.get(name):
            raise SettingError(f"{name} = {new.get(name, old[name])!r}: {why}; train anew")
    if old.get("privacy") in PRIVATE:
        raise SettingError(
            f"privacy = {old['privacy']!r}: the earlier run has spent its budget on rows that "
            "the next run would read again; train anew, with a budget for all rows"
        )
    if new.get("privacy") in PRIVATE:
        raise SettingError(
            f"privacy = {new['privacy']!r}: the earlier run was trained without a budget, and what "
            "it has learned would be covered by none; train anew"
        )
    settings = old | {"baselines": ()} | new
    if not read:
        settings = {name: settings[name] for name in settings if name not in fields(Reading)}
    return settings


def divided_with(
    run: RunConfig,
    learned: Learned,
    newer: pd.DataFrame | Dataset | None = None,
    *,
    progress: bool = True,
) -> Divided:
    """The data of the earlier run and newer rows, split and partitioned as it was.

    Newer rows are read where the run's setting `data` says unless they are given. Raises DataError
    where they do not fit, or have nothing new.
    """
    if not isinstance(newer, Dataset):
        given = run.data if newer is None else newer
        newer = load(given, unread=run.unread, progress=progress, **run.reading())
    earlier = learned.divided
    old, splits = earlier.dataset, earlier.split == "given"
    if earlier.partition == "given" and "client" in newer.interactions:
        warn(
            f"{newer.name}: its clients are not those of the run; each new user is one",
            stacklevel=2,
        )
    whole = joined(old, newer, run.min_user, run.min_item, splits=splits)
    whole = partition_again(whole, cast(Any, earlier.partition), run.seed)
    whole = split_again(whole, cast(Any, earlier.split), run.valid, run.test, run.seed)
    tables = ("interactions", "users", "items")
    more = [f"{len(getattr(whole, t)) - len(getattr(old, t)):,} {t}" for t in tables]
    say(f"{newer.name}: {', '.join(more)} are new", shown=progress)
    text = earlier.text and extended(earlier.text, whole, run.text, progress=progress)
    return Divided(whole, earlier.split, earlier.partition, text)


def growing(job: Job, origin: Origin, learned: Learned | None = None) -> Job:
    """The job as one that begins with what the earlier run has `learned`, which is read where it is
    not given and is needed.

    Raises SettingError where the method's state cannot grow, or would have another form.
    """
    update = jax.random.fold_in(jax.random.key(job.run.seed), 1 + origin.updates)  # 0, 1: a run's
    begin, key = jax.random.split(update)
    job = job._replace(key=key, origin=origin.record)
    if job.method.one_shot:
        return job  # its one step takes all rows
    if isinstance(job.method.grow, Unavailable):
        raise SettingError(f"{job.name} cannot go on from a run: {job.method.grow.reason}")
    if learned:
        _check_form(job, origin, learned)
    return job._replace(start=lambda: _grown(job, begin, learned or learned_by(origin)))


def _check_form(job: Job, origin: Origin, learned: Learned) -> None:
    """SettingError where the job's settings make another state of the earlier data."""
    method = method_module(job.name).make(job.config, learned.was.sizes)
    like = jax.eval_shape(method.init, job.key, learned.shapes)
    forms = [checkpoint.forms(each) for each in (like, learned.state)]
    for name in sorted(set(forms[0]) | set(forms[1])):
        new, old = (form.get(name, "absent") for form in forms)
        if new != old:
            raise SettingError(
                f"{name} of the state is {old} in {origin.folder} and would be {new}: settings "
                "that the state's form depends on must be those of that run"
            )


def _grown(job: Job, key: jax.Array, learned: Learned) -> Any:
    """The first state of a job, where it lies on the mesh."""
    assert callable(job.method.grow)
    grow, (was, sizes) = job.method.grow, learned.was
    place = job.prepared.shardings(job.like)
    grown = jax.jit(
        lambda state, was, data: grow(state, Earlier(was, sizes), key, data),
        **({} if place is None else {"out_shardings": place}),
    )
    return jax.block_until_ready(grown(learned.state, was, job.prepared.data))

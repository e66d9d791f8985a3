"""A run at work: lists, similar items, scores and reasons, in raw ids, from programs kept compiled.

What `prepare` serves lies on the device once. Users are asked for in blocks whose shapes are powers
of two, and so are lists and histories: few programs serve every request, and each is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from jaxrec.data.pack import pack
from jaxrec.serving.lists import NOTHING_SEEN, Lists, SeenItems, best_items
from jaxrec.serving.names import Names, Unknown, as_texts, check_unknown, listed, passing
from jaxrec.serving.newcomers import newcomers, power_of_two
from jaxrec.training.opening import reopen
from jaxrec.training.result import Result
from jaxrec.types import EVER, Data, DataError, Dataset, SettingError, Unavailable

SCORES = 2**24  # of a block
TRIED = 16  # items that show whether any is similar to another
SHORTEST = 16  # list that is taken from the device: a shorter one is its beginning

Until = Literal["train", "valid", "test"]
Histories = Mapping[Any, Sequence[Any]] | Sequence[Any] | pd.DataFrame


class Model:
    """A run that recommends. `jaxrec.open` makes it of a folder.

    Ids are raw ids, as in the data that were loaded, and looked up as texts. Wherever users, items
    or histories are asked for, a frame with the columns `user` and `item` will do too.

    Raises SettingError for a method that ranks short lists that it is given and no others.
    """

    def __init__(self, run: Result):
        if run.method.rank:
            raise SettingError(
                "this method ranks short lists that it is given and cannot score every item: "
                "there is nothing to recommend from; train another one"
            )
        self.run = run
        self.users = Names(run.dataset.users, "user")
        self.items = Names(run.dataset.items, "item")
        self._best = jax.jit(partial(best_items, run.method.score), static_argnums=0)
        self._score = jax.jit(run.method.score)
        fold_in = run.method.fold_in
        self._fold_in = fold_in if isinstance(fold_in, Unavailable) else jax.jit(fold_in)

    def recommend(
        self,
        users: Any = None,
        k: int = 20,
        *,
        exclude_seen: bool = True,
        allowed: Any = None,
        exclude: Any = None,
        filters: Mapping[str, Any] | None = None,
        unknown: Unknown = "error",
        block: int | None = None,
    ) -> pd.DataFrame:
        """The `k` best items of each user.

        The rows of all splits count, valid and test too, unless the model was opened `until` an
        earlier one: they are left out of the lists, and what a method reads when it serves (a
        history, a client's own rows) has them. What the method learnt in training it learnt from
        the train rows alone.

        Args:
          users: each is served once, in the order asked for. None: all users.
          k: items a user.
          exclude_seen: leave out the items the user has.
          allowed: the items that may be listed; None: all.
          exclude: items that are not to be listed.
          filters: values of the items' columns, such as {"category": "Comedy"} or
            {"domain": [0, 2]}: an item is listed if it has one of them in each column.
          unknown: what a user whom the run does not know gets: an error, no list, or the items that
            most rows have.
          block: users at a time; by default as many as keep a block's scores below 64 MB.

        Returns:
          Rows user and item (raw ids), rank (from 1), title (where the data have titles) and score,
          best first; with unknown = "popularity" also `by`, "model" or "popularity", whose score is
          a number of rows. A user with fewer than `k` items left has a shorter list.

        Raises:
          DataError: unknown users or items; the message names the first few.
          SettingError: an argument is out of range.
          FloatingPointError: a score is NaN or +inf.
        """
        given = {"exclude_seen": exclude_seen, "allowed": allowed, "exclude": exclude}
        given |= {"filters": filters, "unknown": unknown, "block": block}
        return _joined(self.recommend_in_blocks(users, k, **given)[1], self, unknown)

    def recommend_in_blocks(
        self,
        users: Any = None,
        k: int = 20,
        *,
        exclude_seen: bool = True,
        allowed: Any = None,
        exclude: Any = None,
        filters: Mapping[str, Any] | None = None,
        unknown: Unknown = "error",
        block: int | None = None,
    ) -> tuple[int, Iterator[pd.DataFrame]]:
        """The tables of `recommend`, a block of users at a time, and how many blocks there are.

        What is wrong with the arguments is said at once, a broken score when its block is reached.
        """
        check_unknown(unknown)
        closed = self._closed(allowed, exclude, filters, unknown)
        if users is None:
            names, index = self.users.raw, np.arange(len(self.users.raw), dtype=np.int32)
        else:
            names = _once(listed(users, "user"))
            if not names.size:
                raise DataError("no user ids given; leave `users` out to serve all users")
            names, index = self.users.found(names, unknown)
        seen = self._seen if exclude_seen else NOTHING_SEEN
        lists = Lists(self._served, index, names, seen, closed)
        return self._in_blocks(lists, k, unknown, block)

    def recommend_from_items(
        self,
        histories: Histories,
        k: int = 20,
        *,
        exclude_seen: bool = True,
        allowed: Any = None,
        exclude: Any = None,
        filters: Mapping[str, Any] | None = None,
        unknown: Unknown = "error",
    ) -> pd.DataFrame:
        """The `k` best items of new users, whom the run knows by the items they chose alone.

        Args:
          histories: the items of each new user, oldest first, by any name of the user; or a frame
            with the columns `user` and `item`; or a sequence of items, of one user called "new". An
            item that a history repeats counts where it stands last.
          unknown: what happens to items that the run does not know: an error, or they are left out.
            A user who has no other gets no list with "skip", and popular items with "popularity".

        The other arguments, the table and the errors are those of `recommend`.

        Raises SettingError for a method that cannot take in new users; the message says why.
        """
        check_unknown(unknown)
        closed = self._closed(allowed, exclude, filters, unknown)
        own = self._histories(histories, unknown)
        names = np.array([*own, None], object)[:-1]
        tables = self._of_newcomers(
            names, [*own.values()], k, closed, unknown, exclude_seen=exclude_seen
        )
        return _joined(tables, self, unknown)

    def similar_items(
        self,
        items: Any,
        k: int = 20,
        *,
        allowed: Any = None,
        exclude: Any = None,
        filters: Mapping[str, Any] | None = None,
        unknown: Unknown = "error",
    ) -> pd.DataFrame:
        """The `k` items most like each of `items`, itself left out.

        Where the method has vectors of items the score is their cosine; where it has none, it is
        the score for a new user who chose that item alone.

        Returns rows `to` (the item asked for), rank, item, title and score. With unknown = "skip"
        an unknown item gets no list, with "popularity" popular items.

        Raises SettingError for a method with neither vectors nor new users, or whose scores are the
        same whatever a user chose.
        """
        check_unknown(unknown)
        names = _once(listed(items, "item"))
        names, index = self.items.found(names, unknown)
        closed = self._closed(allowed, exclude, filters, unknown)
        if similar := self._similarities:
            lists = Lists(similar.vectors, index, names, similar.itself, closed)
            tables = self._in_blocks(lists, k, unknown, None, best=similar.best)[1]
        else:
            own = [np.array([place] if place >= 0 else [], int) for place in index]
            tables = self._of_newcomers(names, own, k, closed, unknown)
        return _joined(tables, self, unknown).rename(columns={"user": "to"})

    def score(self, users: Any, items: Any = None, *, unknown: Unknown = "error") -> pd.DataFrame:
        """The score of each pair of a user and an item.

        Args:
          users: users [N], one user for all items, or a frame with the columns user and item.
          items: items [N], or one item for all users.
          unknown: "skip" leaves out pairs whose user or item the run does not know.

        Returns rows user, item, score, in the order asked for.
        """
        check_unknown(unknown)
        if unknown == "popularity":
            raise SettingError("unknown = 'popularity': is for lists; scores have error and skip")
        if items is None and not isinstance(users, pd.DataFrame):
            raise SettingError("no items given: pairs are of users and items, or rows of a frame")
        asked = listed(users, "user"), listed(users if items is None else items, "item")
        try:
            user, item = np.broadcast_arrays(*asked)
        except ValueError as error:
            raise SettingError(
                f"{len(asked[0])} users and {len(asked[1])} items: give as many of each, or one"
            ) from error
        row, column = self.users.indices(user, unknown), self.items.indices(item, unknown)
        there = (row >= 0) & (column >= 0)
        user, item, row, column = (array[there] for array in (user, item, row, column))
        scores = self._pairs(self._served, row, column)
        return pd.DataFrame({"user": user, "item": item, "score": scores})

    def explain(self, user: Any, item: Any, k: int = 10) -> pd.DataFrame:
        """The `k` items of a user that carry most of the score of an item.

        What an item carries is how much lower the score would be without it, everything else of the
        user being the same. For linear models (EASE, GF-CF) these are the weights that add up to
        the score; for the others the user is fitted anew without the item.

        Returns rows item, title and contribution, largest first.

        Raises SettingError for a method that cannot serve a user from items; the message says why.
        """
        who, what = self.users.known(listed(user, "user")), self.items.known(listed(item, "item"))
        if len(who) != 1 or len(what) != 1 or k < 1:
            raise SettingError(
                f"{len(who)} users, {len(what)} items, k = {k}: one user and one item are "
                "explained, by one item or more"
            )
        own = self._history(int(who[0]))
        parts, at_once = [], self._block(None)
        without = [own, *(np.delete(own, place) for place in range(len(own)))]
        for start in range(0, len(without), at_once):
            some = without[start : start + at_once]
            rows = np.arange(len(some), dtype=np.int32)
            parts.append(self._pairs(self._folded(some), rows, np.full(len(some), what[0])))
        scores = np.concatenate(parts)
        carried = scores[0] - scores[1:]
        order = np.argsort(-carried, kind="stable")[:k]
        table = {"item": self.items.raw[own[order]]}
        if (titles := self.titles) is not None:
            table["title"] = titles[own[order]]
        return pd.DataFrame(table | {"contribution": carried[order]})

    @cached_property
    def titles(self) -> np.ndarray | None:
        """The title of each item [I]; None where the data have none."""
        items = self.run.dataset.items
        return items["title"].to_numpy() if "title" in items else None

    def columns(self, unknown: Unknown = "error") -> pd.DataFrame:
        """A table of lists of the run's users without a row: its columns and their types."""
        none = np.zeros((0, 1), np.int32)
        names = self.users.raw[:0]
        names = names.astype(object) if unknown == "popularity" else names
        lists = Lists(None, none[:, 0], names, NOTHING_SEEN, np.zeros(self.run.sizes.items, bool))
        return self._table(lists, none, none.astype(np.float32), unknown)

    @cached_property
    def _served(self) -> Any:
        """What scores of the run's users are made of, with the rows of all splits."""
        return jax.jit(self.run.method.prepare)(self.run.state, all_rows(self.run))

    @cached_property
    def _seen(self) -> SeenItems:
        rows = self.run.dataset.interactions[["user", "item"]].to_numpy()
        return SeenItems(np.asarray(rows, np.int32), self.run.dataset.num_users)

    @cached_property
    def _popular(self) -> np.ndarray:
        """Rows of each item, in all splits, f32 [I]."""
        held = np.bincount(self.run.dataset.interactions["item"], minlength=self.run.sizes.items)
        return held.astype(np.float32)

    @cached_property
    def _similarities(self) -> Similarities | None:
        """Cosines of item vectors; None where new users stand for them."""
        factors, fold_in = self.run.method.vectors, self._fold_in
        try:
            if isinstance(factors, Unavailable):
                raise SettingError(factors.reason)
            item = np.asarray(factors(self._served)[1], np.float32)
        except SettingError as error:  # clients' tables may have no common one
            if isinstance(fold_in, Unavailable):
                raise SettingError(
                    f"no item of this method is known to be similar to another: {error}, and new "
                    f"users cannot stand for items, as {fold_in.reason}"
                ) from error
            most = np.argsort(-self._popular, kind="stable")[:TRIED]
            rows = np.arange(len(most), dtype=np.int32)
            scores = np.asarray(self._score(self._folded([*most[:, None]]), rows))
            if (scores == scores[0]).all():
                raise SettingError(
                    f"no item of this method is similar to another: {error}"
                ) from error
            return None
        length = np.linalg.norm(item, axis=1, keepdims=True)
        cosine = lambda vectors, items: vectors[items] @ vectors.T
        best = jax.jit(partial(best_items, cosine), static_argnums=0)
        itself = SeenItems.of([*np.arange(len(item))[:, None]])
        return Similarities(jnp.asarray(item / np.maximum(length, 1e-30)), best, itself)

    def _folded(self, histories: Sequence[np.ndarray]) -> Any:
        """What scores of new users are made of, each from the indices of items that the user has.

        Raises SettingError for a method that cannot.
        """
        if isinstance(self._fold_in, Unavailable):
            raise SettingError(
                f"this method cannot take in new users: {self._fold_in.reason}; train it again "
                "with their rows"
            )
        return self._fold_in(self.run.state, newcomers(self.run.data, histories))

    def _of_newcomers(
        self,
        names: np.ndarray,
        own: Sequence[np.ndarray],
        k: int,
        closed: np.ndarray,
        unknown: Unknown,
        *,
        exclude_seen: bool = True,
    ) -> Iterator[pd.DataFrame]:
        """The tables of users `names` [N] who have the items `own`; who has none is unknown."""
        at_once = self._block(None)
        for start in range(0, len(own), at_once):
            part = own[start : start + at_once]
            index = np.array([n if len(each) else -1 for n, each in enumerate(part)], np.int32)
            seen = SeenItems.of(part) if exclude_seen else NOTHING_SEEN
            called = names[start : start + at_once]
            lists = Lists(self._folded(part), index, called, seen, closed)
            yield from self._in_blocks(lists, k, unknown, None)[1]

    def _histories(self, histories: Histories, unknown: Unknown) -> dict[Any, np.ndarray]:
        """The indices of each new user's items."""
        if isinstance(histories, pd.DataFrame):
            asked = listed(histories, "user"), listed(histories, "item")
            frame = pd.DataFrame(dict(zip(("user", "item"), asked, strict=True)))
            histories = frame.groupby("user", sort=False)["item"].agg(list).to_dict()
        given = histories if isinstance(histories, Mapping) else {"new": listed(histories, "item")}
        if not given:
            raise DataError("no histories given")
        own = {user: listed(items, "item") for user, items in given.items()}
        empty = [str(user) for user, items in own.items() if not len(items)]
        if empty and unknown == "error":
            raise DataError(f"histories: {', '.join(empty[:5])} has no item to go by")
        laid = np.concatenate(list(own.values()))
        places = self.items.indices(laid, unknown)
        parts = np.split(places, np.cumsum([len(items) for items in own.values()])[:-1])
        return {user: part[part >= 0] for user, part in zip(own, parts, strict=True)}

    def _history(self, user: int) -> np.ndarray:
        """The items of a user, oldest first where the data know the order."""
        rows = self.run.dataset.interactions
        rows = rows.loc[(rows["user"] == user).to_numpy()]
        if "timestamp" in rows:
            rows = rows.sort_values("timestamp", kind="stable")
        return rows["item"].to_numpy()

    def _closed(
        self, allowed: Any, exclude: Any, filters: Mapping[str, Any] | None, unknown: Unknown
    ) -> np.ndarray:
        """The items that nobody is to see, bool [I]."""
        places = lambda asked: self.items.indices(listed(asked, "item"), unknown)
        among = lambda asked: (found := places(asked))[found >= 0]
        closed = np.zeros(self.run.sizes.items, bool)
        if allowed is not None:
            closed[:] = True
            closed[among(allowed)] = False
        if exclude is not None:
            closed[among(exclude)] = True
        return closed | ~passing(self.run.dataset.items, filters) if filters else closed

    def _block(self, block: int | None) -> int:
        """Users at a time."""
        if block is None:
            return 1 << max(0, (SCORES // self.run.sizes.items).bit_length() - 1)
        if block < 1:
            raise SettingError(f"block = {block}: must be from 1 up")
        return block

    def _in_blocks(
        self,
        lists: Lists,
        k: int,
        unknown: Unknown,
        block: int | None,
        *,
        best: Callable | None = None,
    ) -> tuple[int, Iterator[pd.DataFrame]]:
        """The tables of lists, a block at a time, and how many there are."""
        if k < 1:
            raise SettingError(f"k = {k}: must be from 1 up")
        if unknown != "popularity":
            known = lists.users >= 0
            lists = lists._replace(users=lists.users[known], names=lists.names[known])
        number = len(lists.users)
        size = min(self._block(block), power_of_two(number))
        taken = min(self.run.sizes.items, max(SHORTEST, power_of_two(k)))
        best = partial(best or self._best, taken, lists.served)

        def tables() -> Iterator[pd.DataFrame]:
            for start in range(0, number, size):
                rows = slice(start, start + size)
                own = np.pad(lists.users[rows], (0, max(0, start + size - number)), mode="edge")
                asked, (row, item) = np.maximum(own, 0), lists.seen.pairs(own)
                found = jax.device_get(best(asked, row, item, lists.closed))
                chosen, scores, broken = (array[: number - start] for array in found)
                if (broken & (own[: len(broken)] >= 0)).any():
                    name = lists.names[rows][np.argmax(broken)]
                    raise FloatingPointError(f"scores of user {name} hold NaN or +inf")
                yield self._table(
                    lists._replace(users=lists.users[rows], names=lists.names[rows]),
                    chosen[:, :k], scores[:, :k], unknown,
                )  # fmt: skip

        return -(-number // size), tables()

    def _table(
        self, lists: Lists, chosen: np.ndarray, scores: np.ndarray, unknown: Unknown
    ) -> pd.DataFrame:
        """Rows of lists [B, k], without the places that nothing is left for."""
        if (strange := lists.users < 0).any():
            held = np.where(lists.closed, -1, self._popular)
            most = np.argsort(-held, kind="stable")[: chosen.shape[1]]
            most = np.where(held[most] < 0, len(held), most)
            chosen = np.where(strange[:, None], most, chosen)
            scores = np.where(strange[:, None], np.append(held, 0)[most], scores)
        real = chosen < self.run.sizes.items
        row, place = np.nonzero(real)
        item = chosen[real]
        columns: dict[str, Any] = {
            "user": lists.names[row],
            "rank": (place + 1).astype(np.int32),
            "item": self.items.raw[item],
        }
        if (titles := self.titles) is not None:
            columns["title"] = titles[item]
        columns["score"] = scores[real]
        if unknown == "popularity":
            columns["by"] = np.where(strange[row], "popularity", "model")
        return pd.DataFrame(columns)

    def _pairs(self, served: Any, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The scores f32 [N] of `row`, numbered as in `served`, for the items `column`."""
        users, which = np.unique(row, return_inverse=True)
        size = min(self._block(None), power_of_two(len(users)))
        found = np.zeros(len(row), np.float32)
        for start in range(0, len(users), size):
            own = users[start : start + size]
            asked = np.pad(own, (0, size - len(own)), mode="edge")
            scores = np.asarray(self._score(served, asked))
            here = (which >= start) & (which < start + size)
            found[here] = scores[which[here] - start, column[here]]
        return found


class Similarities(NamedTuple):
    """Items by their likeness to others."""

    vectors: jax.Array  # f32 [I, D]  of length 1, or 0
    best: Callable  # as `best_items` with a score
    itself: SeenItems  # what is left out of an item's list


def open_run(
    run: str | Path | Result,
    data: str | Path | pd.DataFrame | Dataset | None = None,
    *,
    until: Until = "test",
) -> Model:
    """The model of a run, ready to serve.

    Args:
      run: folder of a run, or of one of its baselines, or what `train` or `reopen` returned.
      data: where a run in a folder has not kept its data: the Dataset, or where they are now.
      until: the last split whose rows are known; see `rows_until`.

    Raises SettingError for a method that cannot score every item, and what `reopen` raises.
    """
    run = run if isinstance(run, Result) else reopen(run, data, progress=False)
    return Model(rows_until(run, until))


def rows_until(run: Result, until: Until) -> Result:
    """The run as if the rows of later splits than `until` were not there.

    Users are fitted on the rows that are there, and those are left out of lists. With "test", the
    default, all are. The test values of a run are those of "train" or, for methods that read a
    history (`sequential`, `llmd4rec`), of "valid"; either way the valid items are left out too.
    """
    if until not in get_args(Until):
        raise SettingError(f"until = {until!r}: must be train, valid or test")
    rows = run.dataset.interactions
    there = (rows["split"] <= get_args(Until).index(until)).to_numpy()
    rows = rows[there].reset_index(drop=True)
    return run._replace(dataset=replace(run.dataset, interactions=rows))


def all_rows(run: Result) -> Data:
    """The run's data with the rows of all splits that it has, in buckets of the same clients."""
    ordered = run.data.history is not None
    layout = {
        "multiple": run.run.client_devices,
        "lengths": [bucket.item.shape[1] for bucket in run.data.clients],
    }
    data, _ = pack(run.dataset, before=EVER, by_time=ordered, **layout)
    return run.data._replace(clients=data.clients, history=data.history)


def _once(asked: np.ndarray) -> np.ndarray:
    """Each id once, where it stands first."""
    first = {text: place for place, text in reversed([*enumerate(as_texts(asked))])}
    return asked[np.sort(np.array([*first.values()], int))]


def _joined(tables: Iterable[pd.DataFrame], model: Model, unknown: Unknown) -> pd.DataFrame:
    """One table of many; where there are none, the columns without a row."""
    first, *others = [*tables] or [model.columns(unknown)]
    return pd.concat([first, *others], ignore_index=True) if others else first

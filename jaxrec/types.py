"""The few shapes everything is made of, and the letters that name them.

`C` clients, `U` users, `I` items, `B` batch, `N` padded interactions, `L` sequence length,
`D` width, `R` rank of a similarity, `Q` quantiser levels, `K` codes per level, `T` tokens,
`H` heads, `V` vocabulary, `M` domains, `G` groups, `S` candidates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

TRAIN, VALID, TEST = 0, 1, 2
EVER = TEST + 1  # rows before it are those of every split
DIGESTED = 2**20  # rows of a column at a time


class DataError(ValueError):
    """Bad input data. The message names file, column, first offending row and remedy."""


class SettingError(ValueError):
    """A setting that does not exist, has the wrong type, or cannot work. Names the nearest one."""


class CheckpointError(RuntimeError):
    """What a run or search has left is missing, damaged or of another one; says which."""


class LLMError(RuntimeError):
    """The model cannot be asked at all; the message names where, why and the remedy."""


REFUSALS = (SettingError, DataError, CheckpointError, LLMError, FloatingPointError)
"""What is wrong with what jaxrec was given, in one line, rather than with jaxrec."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Interactions on the host, as read, split and partitioned.

    `interactions` has int32 `user` and `item`, contiguous from 0, and where known `rating`
    (float32), `timestamp` (int64 seconds, or any order), `domain` (int8), `client` (int32) and
    `split` (int8: 0 train, 1 valid, 2 test). Row k of `items` (`item`, and where known `title`,
    `text`, `category`, `domain`, `raw_id`) and of `users` (`user`, `raw_id`) is item or user k.
    `candidates` are lists of items that a benchmark ranks a user's held-out item among.
    """

    name: str
    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    candidates: pd.DataFrame | None = None  # user, item: the items of each list in its order

    @property
    def num_users(self) -> int:
        return len(self.users)

    @property
    def num_items(self) -> int:
        return len(self.items)

    @cached_property
    def digest(self) -> str:
        """sha256 over the cells and column names of the tables; names and files do not count."""
        digest = hashlib.sha256()
        tables = self.interactions, self.items, self.users, self.candidates
        for table in (table for table in tables if table is not None):
            for column in sorted(table.columns):
                digest.update(f"{column}:{len(table)};".encode())
                for part in _content(table[column].to_numpy()):
                    digest.update(part)
        return digest.hexdigest()


def _content(array: np.ndarray) -> Iterator[bytes]:
    """The bytes of a column, the same on every machine, some rows at a time."""
    slices = [slice(at, at + DIGESTED) for at in range(0, len(array), DIGESTED)]
    if array.dtype.kind in "biuf":
        little = array.dtype.newbyteorder("<")
        yield little.str.encode()
        yield from (array[rows].astype(little).tobytes() for rows in slices)
        return
    text = lambda rows: [str(value).encode() for value in array[rows]]
    yield from (np.array([len(each) for each in text(rows)], "<i8").tobytes() for rows in slices)
    yield from (b"".join(text(rows)) for rows in slices)


class Sizes(NamedTuple):
    """Static sizes a method is made for; hashable."""

    users: int
    items: int
    clients: int
    domains: int = 1


class Clients(NamedTuple):
    """A bucket of federated clients of similar size; every leading axis is the client axis.

    Rows beyond a client's own interactions or users carry `mask` False and user id `U`. `age` is
    None where the data does not know the order of a user's rows.
    """

    user: jax.Array  # int32 [C, N]  row of the client's own user table
    item: jax.Array  # int32 [C, N]
    mask: jax.Array  # bool  [C, N]
    users: jax.Array  # int32 [C, U]  global id of each row of the client's user table
    client: jax.Array  # int32 [C]  the client's id: names its stream of random numbers
    weight: jax.Array  # f32 [C]  number of train interactions; 0 for a padding client
    age: jax.Array | None = None  # int32 [C, N]  how many later train rows the user has; 0: newest


class Text(NamedTuple):
    """Strings as arrays, each in utf-8 from the left of its row; see `jaxrec.ops.strings`."""

    data: jax.Array  # uint8 [..., W]  zero after the string
    length: jax.Array  # int32 [...]  bytes


class History(NamedTuple):
    """What a model may read of the past: each user's rows in time order, one user after another.

    User u's rows are `start[u] .. start[u + 1]`. Rows of equal times are in file order within a
    user and in the users' order among them.
    """

    user: jax.Array  # int32 [R]
    item: jax.Array  # int32 [R]
    start: jax.Array  # int32 [U + 1]
    order: jax.Array  # int32 [R]  the rows in the order of time


class Data(NamedTuple):
    """What a method trains on: buckets of clients, smallest first, and the same rows by time."""

    clients: tuple[Clients, ...]
    history: History | None = None  # None where the data has no order or nobody reads it
    domain: jax.Array | None = None  # int32 [I]  of each item; None where the data has none
    text: jax.Array | None = None  # f32 [I, T]  public vectors of the items' text; zero without any
    written: Text | None = None  # [I]  the items' titles, a newline, categories and texts


class Traffic(NamedTuple):
    """Bytes that cross the network for one client (mean over clients)."""

    up: float = 0.0  # per round it takes part in
    down: float = 0.0  # per round it takes part in
    setup_up: float = 0.0  # once
    setup_down: float = 0.0  # once
    codes_down: float = 0.0  # a code table: at set-up, and again after each refresh
    refresh_up: float = 0.0  # per refresh it takes part in
    refresh_down: float = 0.0  # per refresh it takes part in


class Attendance(NamedTuple):
    """How many clients took part in a round: what the ledger multiplies `Traffic` by."""

    participants: jax.Array | float  # clients whose upload arrived
    refreshed: jax.Array | float = 0  # clients that took part in a refresh of the codes


class Release(NamedTuple):
    """Noisy sums of private data that leave the clients: what a privacy budget is spent on."""

    what: str  # "rounds", "item counts", ...
    noise_multiplier: float  # standard deviation of the noise / what one user or client changes
    times: int = 1
    sampling: float = 1.0  # chance to be in each; below 1 only where a Poisson sample is secret


class Earlier(NamedTuple):
    """What an earlier run was trained on: the first users, items and clients of a later one's."""

    data: Data
    sizes: Sizes


class Unavailable(NamedTuple):
    """Stands for an operation that a method does not have, and says why."""

    reason: str  # ends the sentence "there is no ... :"


class Method(NamedTuple):
    """A recommender as pure functions: everything that takes a state and returns a state is a step.

    Scoring has two halves so that what many users share is computed once: `prepare` makes the
    vectors (or tables) that serve, `score` reads them. Higher is better and nothing is masked.

    A method that is not compiled, because its step talks to a host, may rank candidates in place
    of scoring every item, tell beforehand what a run will take, and account for it afterwards.

    Where scores are inner products, `vectors(served) -> (user [U, D], item [I, D])` are their
    factors; where new users need no training, `fold_in(state, data) -> Served` is `prepare` for the
    users of `data`, one a client, none of whom the state knows.

    A run may go on from another one's state: `grow(state, was, key, data)` is `init` on more users,
    items and rows, with what the state has learned of the first ones. A one-shot method needs none:
    its one step takes all rows.
    """

    init: Callable[[jax.Array, Any], Any]  # (key, data) -> State
    step: Callable[[Any, Any, jax.Array], tuple[Any, Any]]  # (state, data, key) -> (State, Metrics)
    prepare: Callable[[Any, Any], Any]  # (state, data) -> Served
    score: Callable[[Any, jax.Array], jax.Array]  # (served, users [B]) -> f32 [B, I]
    compiled: bool = True  # False: the step talks to a host and is not scanned
    one_shot: bool = False  # True: one step is the whole training
    traffic: Traffic = Traffic()  # what one client sends and receives
    attendance: Callable[[Any], Attendance] | None = None  # Metrics -> it; None: all, every round
    releases: Callable[[int], tuple[Release, ...]] | None = None  # rounds -> all so far; None: none
    rank: Callable | None = None  # (served, users [B], candidates [B, S]) -> f32 [B, S]
    forecast: Callable | None = None  # (data, steps, lists to rank, their length) -> words
    account: Callable | None = None  # (best state, last state, data) -> values, pages
    vectors: Callable | Unavailable = Unavailable(
        "its score is no inner product of a user's and an item's vector"
    )
    fold_in: Callable | Unavailable = Unavailable(
        "its users are learned in training, with everything else"
    )
    grow: Callable[[Any, Earlier, jax.Array, Data], Any] | Unavailable = Unavailable(
        "it does not say how what it has learned goes on with more users and items"
    )
    axis: str = "clients"  # that a mesh divides the step along; "": none, one device works


class Reads(NamedTuple):
    """What a method reads beside the clients' rows."""

    history: bool = False  # `Data.history`, the rows by time
    text: bool = False  # `Data.text`, vectors of the items' texts
    any_text: bool = False  # the same, where any item has a text
    titles: bool = False  # `Data.written`, the texts themselves


@dataclass(frozen=True)
class Traits:
    """What is known of a method before it is made. Its module has one, `TRAITS`.

    `needs` and `uses` name what the method, with default settings, cannot do without and what else
    it can make something of: "order" (times of the interactions), "text" (of the items), "domains".
    """

    run: Mapping[str, Any] = field(default_factory=dict)  # its own defaults of settings of a run
    reads: Callable[[Any], Reads] = lambda config: Reads()
    check_data: Callable[[Any, Data], None] = lambda config, data: None  # refuses what cannot work
    settled: Callable[[Any, Data, bool], tuple[Any, str]] = lambda config, data, forward: (
        config,
        "",
    )
    """(config, data, whether held-out rows are newer than train rows) -> the config with what it
    leaves to the data, and what to say of that."""
    resumable: tuple[str, ...] = ()  # own settings that may change when a run is resumed
    needs: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)  # settings of stored runs: old -> new
    privacy: str = "central data"  # of a method without settings of privacy, in a result
    retired: tuple[str, ...] = ()  # settings of stored runs that are read and do nothing
    before: Mapping[str, Any] = field(default_factory=dict)  # what runs did without one
    unread: Callable[[Any], Mapping[str, Collection[str]]] = lambda config: {}
    """The settings that a config's choice, such as of its model, leaves unread: choice -> names."""
    smaller: tuple[Mapping[str, Any], ...] = ()  # settings to try where a run does not fit a device

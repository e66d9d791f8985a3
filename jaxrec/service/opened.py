"""The run that is served, and the next one: opened and warmed beside it, then put in its place."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrec.service.answers import LEAST
from jaxrec.service.counts import Counts
from jaxrec.service.settings import Settings
from jaxrec.serving.model import Model, open_run
from jaxrec.training.progress import say
from jaxrec.types import REFUSALS, SettingError


class Opened(NamedTuple):
    """A run at work."""

    model: Model
    name: str  # its folder, links followed
    number: int  # from 1: runs opened until it
    since: float  # seconds since 1970


class Place:
    """A folder, or a link to one, and the run from there that is served.

    A run in a background thread takes the place of the old one when it is whole: whoever reads
    `current` sees one or the other. What cannot be opened leaves the old one where it is, and is
    tried again when any of its files changes.
    """

    def __init__(self, run: Path, data: str | None, settings: Settings, counts: Counts):
        self.run, self.data, self.settings, self.counts = run, data, settings, counts
        self.current: Opened | None = None
        self.refused: str | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="jaxrec-opens")
        self.failed: BaseException | None = None  # of the first run: there is nothing to serve
        self._gave_up: Callable[[], None] = lambda: None

    def start(self, gave_up: Callable[[], None]) -> None:
        """Open the run, and watch; `gave_up` is called if the first cannot be served."""
        self._gave_up = gave_up
        self._thread.start()

    def stop(self) -> None:
        """End what is being opened, after the program that is being compiled."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = self._mark()
        try:
            self.open()
        except BaseException as error:
            self.failed = error
            self._gave_up()
            return
        changed = seen
        while self.settings.watch and not self._stopped.wait(self.settings.watch):
            now = self._mark()
            # A folder that is still being written is left alone until it stands still.
            if now != seen and now == changed:
                seen = now
                self._open_next()
            changed = now

    def _open_next(self) -> None:
        try:
            self.open()
        except Exception as error:  # whatever is wrong with the new run, the old one serves
            told = error if isinstance(error, (*REFUSALS, OSError)) else repr(error)
            self.refused = str(told)
            self.counts.opened.labels("refused").inc()
            say(f"warning: the new run is not served, the old one is: {told}")
        else:
            self.refused = None

    def open(self) -> None:
        """Open the run that is there now, compile what it needs, and serve it."""
        folder = self.run.resolve()
        started = time.monotonic()
        model = open_run(folder, self.data)
        for act in programs(model, self.settings.max_users):
            if self._stopped.is_set():
                return
            try:
                act()
            except SettingError:  # the method has no such lists, and says so when it is asked
                continue
        # Else the collector looks through all that was imported, traced and compiled, now and then,
        # and an answer waits for it for 60 ms. What the run before left is collected here.
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        number = self.current.number + 1 if self.current else 1
        self.current = Opened(model, str(folder), number, time.time())
        self.counts.opened.labels("served").inc()
        self.counts.since.set(self.current.since)
        say(f"serving {folder}, opened and warmed in {time.monotonic() - started:.1f} s")

    def _mark(self) -> Any:
        """What changes when another run is in place: where it lies, and its files."""
        try:
            folder = self.run.resolve()
            files = sorted(Path(at) / name for at, _, names in os.walk(folder) for name in names)
            stats = [(file, file.stat()) for file in files]
        except OSError as error:  # a file that has gone while we looked
            return repr(error)
        return folder, [(file, s.st_ino, s.st_size, s.st_mtime_ns) for file, s in stats]


def programs(model: Model, most: int) -> Iterator[Callable[[], Any]]:
    """Calls that compile what requests of up to `most` users, items and pairs usually need.

    For each power of two they ask for users with few rows, with many, and with numbers between: the
    length of a program is a power of four.
    """
    rows = np.bincount(model.run.dataset.interactions["user"], minlength=len(model.users.raw))
    users, items = model.users.raw[np.argsort(rows, kind="stable")], model.items.raw
    until = np.append(0, np.cumsum(np.sort(rows)))
    typical = items[: max(1, int(np.median(rows)))]
    size = 1
    while size < 2 * most:
        number = min(size, most, len(users))
        totals = until[number:] - until[:-number]  # of each `number` users in a row
        longer = np.searchsorted(totals, 4 ** np.arange(16) + 1)
        for start in np.unique([0, *longer[longer < len(totals)]]):
            yield partial(model.recommend, users[start : start + number], LEAST)
        yield partial(model.recommend_from_items, dict.fromkeys(range(number), typical), LEAST)
        yield partial(model.similar_items, items[:number], LEAST)
        yield partial(model.score, users[:number], items[0])
        size *= 2
    yield partial(model.explain, users[len(users) // 2], items[0])

"""Requests that come at the same time share one call of the device.

A request waits for at most a few milliseconds, or while the device is busy; then all that wait and
have its options are answered by one call, in the one thread that computes. A request that fails
fails alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from jaxrec.service.answers import KINDS, Fields
from jaxrec.service.counts import Counts
from jaxrec.service.opened import Opened
from jaxrec.service.settings import Settings


class Busy(Exception):
    """The service cannot take a request now; the message says why."""


class Job(NamedTuple):
    """A request that waits."""

    kind: str
    form: Any
    key: object  # of jobs that it may be answered with
    size: int  # users
    came: float  # on the loop's clock, in seconds
    answer: asyncio.Future


class Batches:
    """Jobs into batches. `run` is a task of the loop in which `ask` is called."""

    def __init__(self, opened: Callable[[], Opened | None], settings: Settings, counts: Counts):
        """`opened` gives the run that answers, asked for once a batch."""
        self.opened, self.settings, self.counts = opened, settings, counts
        self.jobs: deque[Job] = deque()
        self.arrived = asyncio.Event()
        self.thread = ThreadPoolExecutor(1, "jaxrec-device")

    async def ask(self, kind: str, form: Any) -> Fields:
        """The answer to a request.

        Raises Busy without a run and where too many wait, TimeoutError where it takes too long, and
        what the model raises.
        """
        if self.opened() is None:
            raise Busy("no run is open yet")
        self.jobs = deque(job for job in self.jobs if not job.answer.done())  # given up meanwhile
        if len(self.jobs) >= self.settings.max_waiting:
            raise Busy(f"{len(self.jobs):,} requests wait already")
        loop = asyncio.get_running_loop()
        key, size = KINDS[kind].key(form), KINDS[kind].size(form)
        key = object() if key is None else (kind, key)
        job = Job(kind, form, key, size, loop.time(), loop.create_future())
        self.jobs.append(job)
        self.arrived.set()
        async with asyncio.timeout(self.settings.timeout):
            return await job.answer

    async def run(self) -> None:
        """Answer what comes, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self.arrived.wait()
            self.arrived.clear()
            while self.jobs:
                enough = sum(job.size for job in self.jobs) >= self.settings.max_users
                wait = self.jobs[0].came + self.settings.batch_wait / 1000 - loop.time()
                if wait > 0 and not enough:
                    await asyncio.sleep(wait)
                if batch := self._next():
                    try:
                        found = await loop.run_in_executor(self.thread, self._answers, batch)
                    except Exception as error:  # the next batch may do better
                        found = [error] * len(batch)
                    _deliver(batch, found)

    def close(self) -> None:
        """End the thread."""
        self.thread.shutdown(wait=True)

    def _next(self) -> list[Job]:
        """The oldest job, and others that may share its call; they wait no more."""
        batch: list[Job] = []
        others: deque[Job] = deque()
        size = 0
        for job in self.jobs:
            if job.answer.done():
                continue
            if not batch or (
                job.key == batch[0].key and size + job.size <= self.settings.max_users
            ):
                batch.append(job)
                size += job.size
            else:
                others.append(job)
        self.jobs = others
        return batch

    def _answers(self, batch: Sequence[Job]) -> list[Fields | Exception]:
        """An answer, or what is wrong, for each job of a batch."""
        kind, opened = KINDS[batch[0].kind], self.opened()
        if opened is None:
            return [Busy("no run is open yet")] * len(batch)
        found: list[Any] = [*kind.check(opened.model, [job.form for job in batch])]
        sound = [number for number, refused in enumerate(found) if refused is None]
        for group in [sound, *([number] for number in sound)]:
            left = [number for number in group if found[number] is None]
            if not left:
                continue
            try:
                answers = kind.together(opened.model, [batch[number].form for number in left])
            except Exception as error:
                if len(left) == 1:
                    found[left[0]] = error
                continue
            self._count(batch[0].kind, [batch[number] for number in left])
            for number, answer in zip(left, answers, strict=True):
                found[number] = {"run": opened.name, "opened": opened.number} | answer
        return found

    def _count(self, kind: str, jobs: Sequence[Job]) -> None:
        self.counts.batch.labels(f"/{kind}").observe(len(jobs))
        self.counts.batch_users.labels(f"/{kind}").observe(sum(job.size for job in jobs))


def _deliver(batch: Sequence[Job], found: Sequence[Fields | Exception]) -> None:
    """Hand each job its answer, or what is wrong, unless it was given up meanwhile."""
    for job, answer in zip(batch, found, strict=True):
        if job.answer.done():
            continue
        if isinstance(answer, Exception):
            job.answer.set_exception(answer)
        else:
            job.answer.set_result(answer)

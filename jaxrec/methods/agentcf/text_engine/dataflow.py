"""Events that talk: each runs through stages, and every call that is ready is made at once.

An event reads and writes memories, each a string under a name of its own (a `Cell`). Its stages
are calls to a language model that depend on each other; what a stage writes may be read by later
events from the moment it is written, long before the event is through. The values that an event
reads are those that the events before it in the log have left, whatever was run when: any order
gives the bytes of the sequential loop.

An event writes everything or nothing. If one of its answers stays unusable it is given up: what it
had already written is taken back, and events that had read it run again from their first stage.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from jaxrec.llm.protocol import Complete, Prompt
from jaxrec.llm.unusable import Tally

Cell = tuple[Any, ...]  # the kind of a memory, then whose it is
Recall = Callable[[Cell], str]
Notes = dict[str, Any]
Taken = tuple[dict[Cell, str], Notes]


class Log(NamedTuple):
    """`Events` on the host, as lists of Python's numbers."""

    user: Sequence[int]  # [E]
    item: Sequence[int]  # [E]
    negative: Sequence[int]  # [E]


class Stage(NamedTuple):
    """One call of an event. `notes` is what its earlier stages noted, by name.

    `ask` makes the prompt from memories, which it gets through `recall` alone: as the event itself
    has written them, else as the events before it left them. `attempt` counts from 0. `take` makes
    of an answer what the event writes and what it notes, or None if the answer is unusable.
    """

    ask: Callable[[int, Recall, Notes, int], Prompt]  # (event, recall, notes, attempt)
    take: Callable[[int, str, Notes], Taken | None]  # (event, text, notes)


class Counts(NamedTuple):
    """What it took. An event that runs again asks again."""

    calls: int = 0
    rounds: int = 0  # lists of calls that were made one after another
    unusable: int = 0  # answers that did not follow the format
    refused: int = 0  # calls without an answer, or with one that is cut, empty or filtered
    given_up: int = 0  # events that changed nothing


class Outcome(NamedTuple):
    """What the events leave."""

    memories: dict[Cell, str]  # the final value of every cell written
    notes: list[Notes | None]  # of each event; None for one given up
    counts: Counts


def replay(
    stages: Sequence[Stage],
    cells: Sequence[Iterable[Cell]],
    start: Recall,
    complete: Complete,
    batches: Iterable[Sequence[int]],
    attempts: int,
    unusable_limit: float = 1.0,
) -> Outcome:
    """Run the events and return what they leave.

    Args:
      stages: of every event, in order.
      cells: what each event may write, in the order of the log.
      start: the value of a cell before the first event.
      complete: is handed all calls of a round at once.
      batches: the events in groups that run one group after another, each event once.
      attempts: calls for one stage before its event is given up.
      unusable_limit: share of the answers that may be of no use.

    Raises LLMError where more of them are, and warns of calls that were refused.
    """
    tally = Tally(unusable_limit)
    run = _Run(stages, cells, start, attempts)
    rounds = 0
    for batch in batches:
        run.ready = set(batch)
        while run.ready:
            asked = run.prompts()
            answers = complete([prompt for _, _, prompt in asked])
            rounds += 1
            for (event, times, _), answer in zip(asked, answers, strict=True):
                tally.note(answer, fits=run.answered(event, times, answer.text))
            tally.check()
    tally.close()
    events = run.events
    memories = {cell: value for event in events for cell, value in event.made.items()}
    left = [None if event.given_up else event.notes for event in events]
    given_up = sum(event.given_up for event in events)
    return Outcome(memories, left, Counts(tally.calls, rounds, run.unusable, run.refused, given_up))


def batches(log: Log, schedule: str) -> list[list[int]]:
    """Events in groups to run one after another: each "sequential", by level "waves", or all."""
    number = np.arange(len(log.user))
    if schedule == "sequential":
        return number[:, None].tolist()
    if schedule == "waves" and len(number):
        level = _levels(log)
        order = np.argsort(level, kind="stable")
        return [part.tolist() for part in np.split(order, np.cumsum(np.bincount(level))[:-1])]
    return [number.tolist()] if len(number) else []


def _levels(log: Log) -> np.ndarray:
    """`schedule.levels` on the host, for which no log is too short to be worth compiling."""
    user: dict[int, int] = defaultdict(int)
    item: dict[int, int] = defaultdict(int)
    found = []
    for u, i, j in zip(*log, strict=True):
        found.append(max(user[u], item[i], item[j]))
        user[u] = item[i] = item[j] = found[-1] + 1
    return np.array(found)


@dataclass
class _Event:
    """Where one event stands."""

    before: dict[Cell, int]  # the previous event that writes each of its cells; -1: none
    made: dict[Cell, str] = field(default_factory=dict)  # what it has written
    notes: Notes = field(default_factory=dict)
    stage: int = 0
    attempt: int = 0
    times: int = 0  # it has begun anew
    given_up: bool = False
    readers: set[int] = field(default_factory=set)  # events that have read what it wrote
    waiting: set[tuple[int, int]] = field(default_factory=set)  # for it: (event, its times)


class _NotYet(Exception):
    """A cell cannot be read before `event` goes on."""

    def __init__(self, event: int):
        super().__init__(event)
        self.event = event


class _Run:
    """The events of a log on their way; `ready` are those that may ask."""

    def __init__(
        self,
        stages: Sequence[Stage],
        cells: Sequence[Iterable[Cell]],
        start: Recall,
        attempts: int,
    ):
        self.stages, self.start, self.attempts = stages, start, attempts
        self.events: list[_Event] = []
        self.writers: dict[Cell, list[int]] = defaultdict(list)
        for event, written in enumerate(cells):
            written = list(written)
            earlier = [self.writers[cell][-1] if self.writers[cell] else -1 for cell in written]
            self.events.append(_Event(dict(zip(written, earlier, strict=True))))
            for cell in written:
                self.writers[cell].append(event)
        self.ready: set[int] = set()
        self.unusable = self.refused = 0

    def prompts(self) -> list[tuple[int, int, Prompt]]:
        """Event, how often it began anew, and prompt of all calls that can be made now.

        No event is ready after that; one whose memories are not there yet waits for their writer.
        """
        asked = []
        for number in sorted(self.ready):
            event = self.events[number]
            ask, recall = self.stages[event.stage].ask, partial(self._recall, number)
            try:
                prompt = ask(number, recall, event.notes, event.attempt)
                asked.append((number, event.times, prompt))
            except _NotYet as other:
                self.events[other.event].waiting.add((number, event.times))
        self.ready = set()
        return asked

    def answered(self, number: int, times: int, text: str | None) -> bool:
        """Take an answer, or None, to what an event asked when it had begun anew so many times.

        Returns whether it could be used, as far as anybody looked.
        """
        event = self.events[number]
        if event.times != times:
            return True  # what it asked about has been taken back
        taken = None if text is None else self.stages[event.stage].take(number, text, event.notes)
        if taken is not None:
            event.made.update(taken[0])
            event.notes.update(taken[1])
            event.stage, event.attempt = event.stage + 1, 0
        else:
            self.unusable += text is not None
            self.refused += text is None
            event.attempt += 1
        if event.attempt == self.attempts:
            self._restart(number)
            self.ready.remove(number)
            event.given_up = True
        elif event.stage < len(self.stages):
            self.ready.add(number)
        if taken is not None or event.given_up:
            # Whoever has begun anew since, or is given up, waits no more.
            self.ready |= {
                other for other, current in event.waiting if self.events[other].times == current
            }
            event.waiting = set()
        return taken is not None

    def _recall(self, number: int, cell: Cell) -> str:
        """The value of a cell as event `number` has it; raises _NotYet where it is not there."""
        event = self.events[number]
        if cell in event.made:
            return event.made[cell]
        if cell in event.before:
            writer = event.before[cell]
        else:  # a cell that the event reads only
            place = bisect_left(self.writers.get(cell, ()), number)
            writer = self.writers[cell][place - 1] if place else -1
        while writer >= 0:
            earlier = self.events[writer]
            earlier.readers.add(number)
            if cell in earlier.made:
                return earlier.made[cell]
            if not earlier.given_up:
                raise _NotYet(writer)
            writer = earlier.before[cell]
        return self.start(cell)

    def _restart(self, number: int) -> None:
        """Forget an event, and in turn every event that read what it wrote."""
        stack = [number]
        while stack:
            number = stack.pop()
            event = self.events[number]
            stack += event.readers
            event.made, event.notes, event.readers = {}, {}, set()
            event.stage, event.attempt, event.given_up = 0, 0, False
            event.times += 1
            self.ready.add(number)

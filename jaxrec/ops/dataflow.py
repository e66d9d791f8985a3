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
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.llm import Complete, Prompt
from jaxrec.ops.schedule import Events

Cell = Hashable
Read = Callable[[Cell], str]


class Stage(NamedTuple):
    """One call of an event. `notes` is what its earlier stages noted, by name.

    `ask` makes the prompt from memories, which it gets through `read` alone: as the event itself
    has written them, else as the events before it left them. `attempt` counts from 0. `take` makes
    of an answer what the event writes and what it notes, or None if the answer is unusable.
    """

    ask: Callable[[int, Read, dict[str, Any], int], Prompt]  # (event, read, notes, attempt)
    take: Callable[[int, str, dict[str, Any]], tuple[dict[Cell, str], dict[str, Any]] | None]


class Counts(NamedTuple):
    """What it took. An event that runs again asks again."""

    calls: int = 0
    rounds: int = 0  # lists of calls that were made one after another
    unusable: int = 0  # answers that did not follow the format
    refused: int = 0  # calls that the server gave no answer to, or one cut at its limit
    given_up: int = 0  # events that changed nothing


class Outcome(NamedTuple):
    memories: dict[Cell, str]  # the final value of every cell written
    notes: list[dict[str, Any] | None]  # of each event; None for one given up
    counts: Counts


class _NotYet(Exception):
    """The event that must go on before a cell can be read."""


def replay(
    stages: Sequence[Stage],
    cells: Sequence[Iterable[Cell]],
    start: Read,
    complete: Complete,
    batches: Iterable[Sequence[int]],
    attempts: int,
) -> Outcome:
    """Run the events and return what they leave.

    Args:
      stages: of every event, in order.
      cells: what each event may write, in the order of the log.
      start: the value of a cell before the first event.
      complete: is handed all calls of a round at once.
      batches: the events in groups that run one group after another, each event once.
      attempts: calls for one stage before its event is given up.
    """
    before: list[dict[Cell, int]] = []  # the previous event that writes each cell of an event
    writers: dict[Cell, list[int]] = defaultdict(list)
    for event, written in enumerate(cells):
        before.append({cell: writers[cell][-1] if writers[cell] else -1 for cell in written})
        for cell in written:
            writers[cell].append(event)

    number = len(before)
    made: list[dict[Cell, str]] = [{} for _ in range(number)]
    notes: list[dict[str, Any]] = [{} for _ in range(number)]
    stage, attempt, run = ([0] * number for _ in range(3))
    given_up = [False] * number
    readers: list[set[int]] = [set() for _ in range(number)]
    waiting: list[set[tuple[int, int]]] = [set() for _ in range(number)]  # (event, its run)
    calls = rounds = unusable = refused = 0

    def read(event: int, cell: Cell) -> str:
        if cell in made[event]:
            return made[event][cell]
        writer = before[event].get(cell)
        if writer is None:  # a cell that the event reads only
            place = bisect_left(writers.get(cell, ()), event)
            writer = writers[cell][place - 1] if place else -1
        while writer >= 0:
            readers[writer].add(event)
            if cell in made[writer]:
                return made[writer][cell]
            if not given_up[writer]:
                raise _NotYet(writer)
            writer = before[writer][cell]
        return start(cell)

    def restart(event: int, pending: set[int]) -> None:
        """Forget an event, and in turn every event that read of it."""
        stack = [event]
        while stack:
            event = stack.pop()
            made[event], notes[event], given_up[event] = {}, {}, False
            stage[event], attempt[event], run[event] = 0, 0, run[event] + 1
            stack += readers[event]
            readers[event] = set()
            pending.add(event)

    def advance(event: int, text: str | None, pending: set[int]) -> None:
        nonlocal unusable, refused
        taken = None if text is None else stages[stage[event]].take(event, text, notes[event])
        if taken is not None:
            made[event].update(taken[0])
            notes[event].update(taken[1])
            stage[event], attempt[event] = stage[event] + 1, 0
        else:
            unusable, refused = unusable + (text is not None), refused + (text is None)
            attempt[event] += 1
        if attempt[event] == attempts:
            restart(event, pending)
            pending.remove(event)
            given_up[event] = True
        elif stage[event] < len(stages):
            pending.add(event)
        if taken is not None or given_up[event]:
            # A run that was forgotten waits no more: its event began anew, or is given up.
            pending |= {other for other, current in waiting[event] if run[other] == current}
            waiting[event] = set()

    for batch in batches:
        pending = set(batch)
        while pending:
            asked = []
            for event in sorted(pending):
                ask, reads = stages[stage[event]].ask, lambda cell, event=event: read(event, cell)
                try:
                    prompt = ask(event, reads, notes[event], attempt[event])
                    asked.append((event, run[event], prompt))
                except _NotYet as other:
                    waiting[other.args[0]].add((event, run[event]))
            pending = set()
            answers = complete([prompt for _, _, prompt in asked])
            rounds, calls = rounds + 1, calls + len(asked)
            for (event, current, _), answer in zip(asked, answers, strict=True):
                if run[event] == current:  # else what it asked about has been taken back
                    advance(event, answer.text, pending)

    memories = {cell: value for written in made for cell, value in written.items()}
    left = [None if gone else said for gone, said in zip(given_up, notes, strict=True)]
    return Outcome(memories, left, Counts(calls, rounds, unusable, refused, sum(given_up)))


def batches(events: Events, schedule: str) -> list[list[int]]:
    """Events in groups to run one after another: each "sequential", by level "waves", or all."""
    number = np.arange(len(events.user))
    if schedule == "sequential":
        return number[:, None].tolist()
    if schedule == "waves" and len(number):
        level = _levels(events)
        order = np.argsort(level, kind="stable")
        return [part.tolist() for part in np.split(order, np.cumsum(np.bincount(level))[:-1])]
    return [number.tolist()] if len(number) else []


def _levels(events: Events) -> np.ndarray:
    """`schedule.levels` on the host, for which no log is too short to be worth compiling."""
    user, item, found = defaultdict(int), defaultdict(int), []
    for u, i, j in zip(*(np.asarray(part).tolist() for part in events), strict=True):
        found.append(max(user[u], item[i], item[j]))
        user[u] = item[i] = item[j] = found[-1] + 1
    return np.array(found)


def call_rounds(events: Events, domain: np.ndarray, schedule: str) -> int:
    """How many rounds of calls a log takes where every answer is usable, without running it.

    An event chooses from what its user made of this domain (fused) and from two items, reflects on
    the private memory of the domain, fuses all private memories of its user and then rewrites the
    items: it waits for what the events before it write of that, and for nothing else.

    Args:
      events: the log.
      domain: int [I], of each item.
      schedule: "dataflow", "waves" or "sequential".
    """
    if schedule != "dataflow":
        return 4 * len(batches(events, schedule))
    private: dict[int, dict[int, int]] = defaultdict(dict)  # user -> domain -> round
    fused: dict[tuple[int, int], int] = {}
    item: dict[int, int] = {}
    last = 0
    columns = (np.asarray(part).tolist() for part in events)
    of = np.asarray(domain).tolist()
    for u, i, j in zip(*columns, strict=True):
        d = of[i]
        chosen = 1 + max(fused.get((u, d), 0), item.get(i, 0), item.get(j, 0))
        private[u][d] = chosen + 1
        fused[u, d] = 1 + max(private[u].values())
        item[i] = item[j] = fused[u, d] + 1
        last = max(last, item[i])
    return last

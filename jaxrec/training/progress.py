"""What a run says on stderr while it works: single lines, and one live line."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

from jaxrec.output import harmless


def say(text: str, *, shown: bool = True) -> None:
    """A line on stderr, of which a terminal obeys nothing."""
    if shown:
        print(harmless(" ".join(text.splitlines())), file=sys.stderr)


class Line:
    """The live line of a run: round, metric, best, bytes, rounds per second, time left.

    On a terminal it is redrawn in place; elsewhere each evaluation prints a line.
    """

    def __init__(self, method: str, rounds: int, *, shown: bool = True):
        from rich.console import Console

        self.method, self.rounds, self.first = method, rounds, None
        self.console = Console(stderr=True, highlight=False, quiet=not shown)
        self.live = self.console.status(f"{method}: compiling")

    def __enter__(self) -> Line:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def update(self, reached: Any, name: str, value: float) -> None:
        """Show a run at an evaluation. The pace is that since the first one, compiled by then."""
        text = (
            f"{self.method}: round {reached.round}/{self.rounds}  {name} {value:.4f}  "
            f"best {reached.best:.4f} at {reached.best_round}  {reached.ledger.total / 1e6:,.1f} MB"
        )
        now = time.perf_counter()
        if self.first:
            rate = (reached.round - self.first[0]) / (now - self.first[1])
            left = timedelta(seconds=round((self.rounds - reached.round) / rate))
            text += f"  {rate:,.1f} rounds/s  {left} left"
        else:
            self.first = reached.round, now
        if self.console.is_terminal:
            self.live.update(text)
        else:
            self.console.print(text, markup=False, soft_wrap=True)

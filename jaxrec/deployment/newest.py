"""The newest state of a federation, on disk after each round, from which a resumed run goes on.

From an older one, other clients could be in the sum of a round that was taken before, and the
difference of the two sums would tell the part of whoever is in only one of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxrec import files
from jaxrec.deployment.messages import Message, decode, encode

ROUNDS = 10_000  # that are remembered; a checkpoint is never so many rounds old


class Newest:
    """A file with the results of the last round; without a path, none."""

    def __init__(self, path: Path | None):
        """Raises DataError where the file is damaged."""
        self.path = path
        self._from: list[str] = []  # the states that rounds have begun with
        self._left: list[np.ndarray] | None = None  # the results of an earlier process
        if path and path.exists():
            head, arrays = decode(path.read_bytes())
            self._from, self._left = list(head["from"]), list(arrays)

    def after(self, state: Iterable[np.ndarray]) -> list[np.ndarray] | None:
        """The results that an earlier process has left, if they came from a state; asked once."""
        left, self._left = self._left, None
        return left if left is not None and _digest(state) in self._from else None

    def write(self, state: Iterable[np.ndarray], results: Iterable[np.ndarray]) -> None:
        """Remember the results of a round, and the state that it began with."""
        if self.path:
            self._from = [*self._from, _digest(state)][-ROUNDS:]
            whole = encode(Message({"from": self._from}, list(results)))
            files.write_atomic(self.path, lambda beside: beside.write_bytes(whole))


def _digest(arrays: Iterable[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in arrays)).hexdigest()

"""Where a client stands in its federations, on disk: what its machine must not forget.

A file for each terms, written before anything is sent that depends on it. A client that began a
round twice, once before and once after a restart, could tell the server its part of a sum.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrec import files
from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.types import DataError


class Standing(NamedTuple):
    """What a client remembers of one federation."""

    number: int  # among the federation's clients
    begun: int  # the newest round that it has begun
    own: list[np.ndarray] | None  # its part of the state
    kept: dict[int, list[np.ndarray]]  # the same, as of evaluated rounds
    newest_sum: int  # number of the newest secure sum that it was in
    rows: str  # digest of its rows


class Memory:
    """Files in a folder; without one, nothing outlives the process."""

    def __init__(self, folder: Path | None = None):
        self.folder = folder

    def read(self, terms: str) -> Standing | None:
        """Where this client stands under terms; None where it has never agreed to them.

        Raises DataError where its file is damaged.
        """
        if (path := self._path(terms)) is None or not path.exists():
            return None
        try:
            head, arrays = decode(path.read_bytes())
            number, begun, newest = (int(head[name]) for name in ("number", "begun", "newest_sum"))
            rounds, has_own = [int(round) for round in head["kept"]], bool(head["own"])
            each = len(arrays) // max(1, has_own + len(rounds))
            parts = [list(arrays[at : at + each]) for at in range(0, len(arrays), each or 1)]
            parts = parts if each else [[] for _ in range(has_own + len(rounds))]
            own = parts.pop(0) if has_own else None
            kept = dict(zip(rounds, parts, strict=True))
            return Standing(number, begun, own, kept, newest, str(head["rows"]))
        except (DataError, KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(
                f"{path}: damaged ({error}). This client may have begun rounds that it does not "
                "remember; put the file back from a copy, or begin with new terms, such as another "
                "seed"
            ) from error

    def write(self, terms: str, standing: Standing) -> None:
        """Remember where this client stands."""
        if (path := self._path(terms)) is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {name: getattr(standing, name) for name in ("number", "begun", "newest_sum", "rows")}
        head |= {"terms": terms, "kept": list(standing.kept), "own": standing.own is not None}
        parts = [standing.own or [], *standing.kept.values()]
        whole = encode(Message(head, [array for part in parts for array in part]))
        files.write_atomic(path, lambda beside: beside.write_bytes(whole))

    def _path(self, terms: str) -> Path | None:
        name = hashlib.sha256(terms.encode()).hexdigest()[:16]
        return self.folder and self.folder / f"{name}.safetensors"

"""What client and server agree on before a round: sizes, the graph of neighbours, the threshold."""

from __future__ import annotations

import functools
import itertools
import math
import secrets
from dataclasses import dataclass

import numpy as np

from jaxrec.federated.secure_aggregation import primitives
from jaxrec.settings.fields import require
from jaxrec.types import DataError

SAFE, WORKING = 40, 20  # -log2 of the probabilities that a graph reveals a client, or gets stuck


class ProtocolError(DataError):
    """A message, or a number of clients, that a round of secure sums refuses; nothing is revealed.

    Says which client, what it did, and of which round.
    """


@dataclass(frozen=True)
class Terms:
    """One round: whose vectors are added, and who holds whose shares. All of it is public."""

    clients: int
    """Clients of the round; they are named 0 .. clients - 1."""
    length: int
    """Numbers of a vector."""
    bits: int
    """Sums are modulo 2^bits."""
    neighbours: int
    """Clients that one client shares masks and secrets with: all others, or an even number."""
    threshold: int
    """Shares that give a secret back. A client's holders are its neighbours and itself."""
    round: int = 0
    """Names the round; never used twice."""
    least: int = 2
    """Fewest clients that a sum may be over."""
    seed: int = 0
    """Of the order of the clients in the graph."""

    def __post_init__(self) -> None:
        told = "at least 2: the sum over one client is its vector"
        require(self.clients >= 2, self, "clients", told)
        require(self.length >= 1, self, "length", "at least 1")
        require(8 <= self.bits <= 32, self, "bits", "at least 8 and at most 32")
        everybody = self.clients - 1
        even = 2 <= self.neighbours < everybody and self.neighbours % 2 == 0
        rule = f"all {everybody} other clients, or an even number below that and above 0"
        require(even or self.neighbours == everybody, self, "neighbours", rule)
        holders = self.neighbours + 1
        rule = f"at least 2 and at most {holders}, the holders of a client's shares"
        require(2 <= self.threshold <= holders, self, "threshold", rule)
        rule = f"at least 2 and at most clients = {self.clients}"
        require(2 <= self.least <= self.clients, self, "least", rule)
        require(0 <= self.round < 2**64, self, "round", "at least 0 and below 2^64")
        require(0 <= self.seed < 2**64, self, "seed", "at least 0 and below 2^64")


def agree(
    clients: int,
    length: int,
    bits: int,
    *,
    round: int = 0,
    least: int = 2,
    colluding: float = 0.1,
    dropping: float = 0.1,
    seed: int | None = None,
) -> Terms:
    """The terms of a round with the sparsest graph that is safe.

    Args:
      colluding: fraction of the clients that may show the server what they hold.
      dropping: fraction of the clients that may drop out.
      seed: of the graph; None: drawn anew.
    """
    neighbours, threshold = degree(clients, colluding, dropping)
    seed = secrets.randbits(64) if seed is None else seed
    return Terms(clients, length, bits, neighbours, threshold, round, least, seed)


@functools.lru_cache(maxsize=64)
def degree(clients: int, colluding: float, dropping: float) -> tuple[int, int]:
    """The fewest neighbours and the highest threshold with which a random graph hardly ever fails.

    Except with probability 2^-SAFE no client has `threshold` colluding neighbours, and except with
    as much the honest clients that stay are connected: a ring falls apart only where half the
    neighbours of a client, all on one side, are colluding or gone. Except with 2^-WORKING all
    clients keep `threshold` neighbours, more than half of the holders, so that no two sets of
    honest holders could give both secrets of a client. Where no sparse graph does, all others are
    neighbours, and more than two thirds of the clients are the threshold.
    """
    others = clients - 1
    bad, gone = math.ceil(colluding * clients), math.ceil(dropping * clients)
    for neighbours in range(2, others, 2):
        if clients * (colluding + dropping) ** (neighbours / 2) > 2.0**-SAFE:
            continue
        colluders, dropped = (clients * _tail(others, some, neighbours) for some in (bad, gone))
        threshold = neighbours - int((dropped > 2.0**-WORKING).sum()) + 1
        if 2 * threshold > neighbours + 1 and colluders[threshold] <= 2.0**-SAFE:
            return neighbours, threshold
    return others, min(clients, max(2, 2 * clients // 3 + 1))


def _tail(others: int, marked: int, drawn: int) -> np.ndarray:
    """Of `drawn` out of `others` clients, that at least x are `marked`: f64 [drawn + 1]."""
    ways = [math.comb(marked, x) * math.comb(others - marked, drawn - x) for x in range(drawn + 1)]
    every = math.comb(others, drawn)
    return np.array([some / every for some in itertools.accumulate(reversed(ways))])[::-1]


@functools.lru_cache(maxsize=8)
def _ring(clients: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The clients in a random order, and the place of each in it: both int [clients]."""
    # A keyed cipher rather than NumPy's generator, whose stream may change between versions.
    stream = primitives.keystream(seed.to_bytes(32, "little"), 8 * clients)
    order = np.argsort(np.frombuffer(stream, "<u8"), kind="stable")
    return order, np.argsort(order)


@functools.lru_cache(maxsize=2**14)
def neighbours(terms: Terms, client: int) -> tuple[int, ...]:
    """The neighbours of a client, ascending: those nearest on a ring in random order (Harary)."""
    if terms.neighbours == terms.clients - 1:
        return tuple(each for each in range(terms.clients) if each != client)
    order, place = _ring(terms.clients, terms.seed)
    steps = np.arange(1, terms.neighbours // 2 + 1)
    near = (place[client] + np.concatenate([steps, -steps])) % terms.clients
    return tuple(sorted(order[near].tolist()))

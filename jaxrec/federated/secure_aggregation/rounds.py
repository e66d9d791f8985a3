"""A whole round: the server's four stages over any transport, and one within this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxrec.federated.secure_aggregation import client as clients
from jaxrec.federated.secure_aggregation import server as servers
from jaxrec.federated.secure_aggregation.server import STAGES, Requests
from jaxrec.federated.secure_aggregation.terms import ProtocolError, Terms
from jaxrec.types import SettingError

Exchange = Callable[[str, Requests], Iterable[tuple[int, bytes]]]
"""Sends requests in the stage named and gives the answers that come, each with its client."""


class Outcome(NamedTuple):
    """The sum, and how it came about."""

    total: np.ndarray  # uint32 [d]  modulo 2^bits
    clients: tuple[int, ...]  # whose vectors are in it
    up: np.ndarray  # int64 [clients]  bytes that the server received of each
    down: np.ndarray  # int64 [clients]  bytes that it sent to each
    refused: dict[int, str]  # the first bad answer of a client, which then counted as gone


def run(terms: Terms, exchange: Exchange) -> Outcome:
    """The server's side of a round.

    A bad answer is left out and told; too few good ones in a stage are a ProtocolError.
    """
    up, down = np.zeros((2, terms.clients), np.int64)
    refused: dict[int, str] = {}
    server, requests = servers.begin(terms)
    for stage in STAGES:
        for client, request in requests.items():
            down[client] += len(request)
        for client, reply in exchange(stage, requests):
            if client in requests:
                up[client] += len(reply)
            try:
                server = servers.receive(server, client, reply)
            except ProtocolError as error:
                refused.setdefault(client, str(error))
        server, requests = servers.close(server)
    return Outcome(server.total, tuple(sorted(server.masked)), up, down, refused)


def aggregate_in_process(
    vectors: Sequence[np.ndarray] | np.ndarray,
    terms: Terms,
    drop: Mapping[str, Collection[int]] | None = None,
    entropy: Callable[[int], bytes] = os.urandom,
) -> Outcome:
    """The sum of clients' vectors by the real messages, all clients in this process.

    Args:
      vectors: uint32 [clients, d], or anything that gives client i's [d] at i.
      drop: clients that stop answering, by the stage that they do not answer: advertise, share,
        mask or unmask.
      entropy: gives random bytes; anything but `os.urandom` is for tests.
    """
    if len(vectors) != terms.clients:
        raise SettingError(f"{len(vectors)} vectors: the terms are of {terms.clients} clients")
    drop = drop or {}
    if unknown := set(drop) - set(STAGES):
        raise SettingError(f"drop names {min(unknown)!r}: the stages are {', '.join(STAGES)}")
    states = [clients.join(each, terms.round, entropy=entropy) for each in range(terms.clients)]
    gone: set[int] = set()

    def exchange(stage: str, requests: Requests) -> Iterator[tuple[int, bytes]]:
        gone.update(drop.get(stage, ()))
        for each in requests.keys() - gone:
            own = lambda each=each: np.asarray(vectors[each])
            states[each], reply = clients.answer(states[each], requests[each], own)
            yield each, reply

    return run(terms, exchange)

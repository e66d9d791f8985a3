"""A round over TCP: each client has a connection, and a thread of the server.

A connection begins with the client's name, four bytes, and then carries the protocol's messages,
which say how long they are. A client that hangs up, or that is not heard for `patience` seconds, is
gone. Who the clients are is for the caller to prove, by sockets that TLS wraps.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed

import numpy as np

from jaxrec.federated.secure_aggregation import client as clients
from jaxrec.federated.secure_aggregation.messages import HEAD, NAME, protocol_bytes
from jaxrec.federated.secure_aggregation.server import STAGES, Requests
from jaxrec.federated.secure_aggregation.terms import ProtocolError, Terms


class Lines:
    """The server's connections in a round; its `exchange` is for `rounds.run`."""

    def __init__(self, listener: socket.socket, terms: Terms, patience: float = 60.0):
        """Waits until each client has called, or nobody has for `patience` seconds."""
        # No answer is longer than all of a client's with as many neighbours.
        k, d, b = terms.neighbours, terms.length, terms.bits
        self.longest = protocol_bytes(terms.clients, k, d, b).up
        self.lines: dict[int, socket.socket] = {}
        listener.settimeout(patience)
        while len(self.lines) < terms.clients:
            try:
                line, _ = listener.accept()
            except TimeoutError:
                break
            line.settimeout(patience)
            try:
                (name,) = NAME.unpack(_exactly(line, NAME.size))
            except OSError:
                name = terms.clients
            if name >= terms.clients or name in self.lines:
                line.close()  # nobody, or somebody who has called already
            else:
                self.lines[name] = line

    def exchange(self, stage: str, requests: Requests) -> Iterator[tuple[int, bytes]]:
        """Asks the clients that are still there, and gives answers as they come."""
        there = [client for client in requests if client in self.lines]
        with ThreadPoolExecutor(max(1, len(there))) as pool:
            asked = {pool.submit(self._ask, self.lines[c], requests[c]): c for c in there}
            for done in as_completed(asked):
                try:
                    yield asked[done], done.result()
                except (OSError, ProtocolError):
                    self.lines.pop(asked[done]).close()

    def close(self) -> None:
        for line in self.lines.values():
            line.close()

    def _ask(self, line: socket.socket, request: bytes) -> bytes:
        line.sendall(request)
        return receive(line, self.longest)


def take_part(
    address: tuple[str, int],
    me: int,
    round: int,
    vector: np.ndarray,
    least: int = 2,
    patience: float = 60.0,
    entropy: Callable[[int], bytes] = os.urandom,
) -> None:
    """A client's side of a round: adds its uint32 [d] and returns when it has revealed its shares.

    Raises ProtocolError where it refuses a request, OSError where the server is gone.
    """
    state = clients.join(me, round, least, entropy)
    with socket.create_connection(address, patience) as line:
        line.sendall(NAME.pack(me))
        for _ in STAGES:
            state, reply = clients.answer(state, receive(line, 2**32), lambda: vector)
            line.sendall(reply)


def receive(line: socket.socket, longest: int) -> bytes:
    """One message; ConnectionError where the other side has hung up."""
    head = _exactly(line, HEAD.size)
    length, *_ = HEAD.unpack(head)
    if not HEAD.size <= length <= longest:
        raise ProtocolError(f"a message of {length} bytes: at most {longest} are expected")
    return head + _exactly(line, length - HEAD.size)


def _exactly(line: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        if not (taken := line.recv_into(view)):
            raise ConnectionError("the other side has hung up")
        view = view[taken:]
    return bytes(data)

"""The server of a round: it collects the answers of a stage, closes it, and has the next requests.

    begin -> receive* -> close -> receive* -> close -> receive* -> close -> receive* -> close

Each function returns a new state. A bad answer is a ProtocolError and leaves the state as it was,
so that its client counts as one that has not answered. A stage that too few have answered is a
ProtocolError too, and then the server knows no sum and no vector.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from jaxrec.federated.secure_aggregation import messages, primitives, shamir
from jaxrec.federated.secure_aggregation.client import pair_purpose, sign
from jaxrec.federated.secure_aggregation.messages import (
    Advertise,
    Delivery,
    Invite,
    Masked,
    Message,
    Peers,
    Shares,
    Survivors,
    Unmask,
)
from jaxrec.federated.secure_aggregation.terms import ProtocolError, Terms, neighbours

ANSWERS = (Advertise, Shares, Masked, Unmask)
STAGES = ("advertise", "share", "mask", "unmask")


class Server(NamedTuple):
    """What the server knows. `total` is the sum of masked vectors, after the last stage the sum."""

    terms: Terms
    total: np.ndarray  # uint32 [d]
    asked: frozenset[int]  # clients that may answer in this stage
    stage: int = 0
    answers: Mapping[int, Message] = {}  # of this stage, by client
    advertised: Mapping[int, Advertise] = {}
    sharers: frozenset[int] = frozenset()  # clients whose shares were delivered
    masked: frozenset[int] = frozenset()  # clients whose vectors are in the total


Requests = dict[int, bytes]


def begin(terms: Terms) -> tuple[Server, Requests]:
    """A server, and the invitations, by client."""
    everybody = range(terms.clients)
    server = Server(terms, np.zeros(terms.length, np.uint32), frozenset(everybody))
    return server, {client: messages.encode(Invite(client, terms)) for client in everybody}


def receive(server: Server, sender: int, data: bytes) -> Server:
    """The server with one answer more.

    Args:
      sender: the client at the other end of the line, whatever the message says.
    """
    message = messages.decode(data)
    terms, kind = server.terms, type(message).__name__
    refusal = lambda what: ProtocolError(f"round {terms.round}: {kind} of client {sender} {what}")
    if isinstance(message, Invite) or message.round != terms.round:
        raise refusal("is of another round" if not isinstance(message, Invite) else "is no answer")
    if message.client != sender:
        raise refusal(f"says that it is of client {message.client}")
    if sender not in server.asked:
        raise refusal("is from nobody whom this stage has asked")
    if sender in server.answers:
        raise refusal("comes after an answer of that client in this stage")
    if server.stage >= len(STAGES) or not isinstance(message, ANSWERS[server.stage]):
        raise refusal("is out of turn")
    total = server.total
    match message:
        case Advertise():
            mine = {message.share_key, message.mask_key}
            others = server.answers.values()
            taken = {k for a in others if isinstance(a, Advertise) for k in a[2:]}
            if mine & taken or len(mine) < 2:
                raise refusal("repeats a key that has been exchanged already")
        case Shares() if set(message.sealed) != set(_near(terms, sender, server.advertised)):
            raise refusal("has not one pair of shares for each neighbour")
        case Masked():
            try:
                total = total + messages.unpack(message.packed, terms.length, terms.bits)
            except ValueError as error:
                raise refusal(f"has {error}") from error
            message = message._replace(packed=b"")
        case Unmask():
            alive, gone = _fate(server, sender)
            if set(message.seeds) != {sender, *alive} or set(message.keys) != set(gone):
                raise refusal("has not the shares asked for")
    return server._replace(total=total, answers={**server.answers, sender: message})


def close(server: Server) -> tuple[Server, Requests]:
    """The server in the next stage, and its requests; after the last one there are none.

    Raises ProtocolError where those that have answered are too few to end the round.
    """
    terms, present = server.terms, frozenset(server.answers)
    closing = (_send_keys, _deliver, _tell_survivors, _reveal)[server.stage]
    if server.stage < 2:
        present = _with_holders(terms, present)
    _need(server, len(present), terms.least if server.stage < 3 else terms.threshold)
    server, requests = closing(server, present)
    server = server._replace(stage=server.stage + 1, answers={}, asked=frozenset(requests))
    return server, {client: messages.encode(request) for client, request in requests.items()}


def _send_keys(server: Server, present: frozenset[int]) -> tuple[Server, dict[int, Message]]:
    round, terms = server.terms.round, server.terms
    keys = {c: a for c, a in server.answers.items() if isinstance(a, Advertise) and c in present}
    requests: dict[int, Message] = {
        client: Peers(round, client, {peer: keys[peer][2:] for peer in _near(terms, client, keys)})
        for client in keys
    }
    return server._replace(advertised=keys), requests


def _deliver(server: Server, present: frozenset[int]) -> tuple[Server, dict[int, Message]]:
    round, terms = server.terms.round, server.terms
    sealed = {c: a.sealed for c, a in server.answers.items() if isinstance(a, Shares)}
    requests: dict[int, Message] = {
        client: Delivery(
            round, client, {peer: sealed[peer][client] for peer in _near(terms, client, present)}
        )
        for client in sorted(present)
    }
    return server._replace(sharers=present), requests


def _tell_survivors(server: Server, present: frozenset[int]) -> tuple[Server, dict[int, Message]]:
    """Asks for shares only where all that the sum needs can be had."""
    server = server._replace(masked=present)
    for owner in server.sharers:
        holders = len(_near(server.terms, owner, present)) + (owner in present)
        if holders:
            _need(server, holders, server.terms.threshold, f" that hold shares of client {owner}")
    requests: dict[int, Message] = {
        client: Survivors(server.terms.round, client, len(present), _fate(server, client)[0])
        for client in sorted(present)
    }
    return server, requests


def _reveal(server: Server, present: frozenset[int]) -> tuple[Server, dict[int, Message]]:
    """Takes the masks off the total."""
    terms, seeds, keys = server.terms, {}, {}
    for client, message in server.answers.items():
        assert isinstance(message, Unmask)
        for shares, known in ((message.seeds, seeds), (message.keys, keys)):
            for owner, share in shares.items():
                known.setdefault(owner, {})[client + 1] = share
    gone = {owner for owner in server.sharers - server.masked if _near(terms, owner, server.masked)}
    for owner in server.masked | gone:
        shares = (seeds if owner in server.masked else keys).get(owner, {})
        _need(server, len(shares), terms.threshold, f" that hold shares of client {owner}")
    secret = lambda owner, known: _secret(server, owner, known[owner])

    def masks() -> Iterator[tuple[bytes, int]]:
        for owner in server.masked:
            yield secret(owner, seeds), -1
        for owner in gone:
            pair = _pair(server, owner, secret(owner, keys))
            for peer in _near(terms, owner, server.masked):
                purpose = pair_purpose(terms.round, owner, peer)
                common = primitives.exchange(pair, server.advertised[peer].mask_key)
                yield primitives.derive(common, purpose), -sign(peer, owner)

    return server._replace(total=primitives.masked(server.total, masks(), terms.bits)), {}


def _secret(server: Server, owner: int, shares: Mapping[int, int]) -> bytes:
    some = sorted(shares.items())[: server.terms.threshold]
    try:
        return shamir.join(dict(some))
    except OverflowError:
        raise _wrong(server, owner) from None


def _pair(server: Server, owner: int, secret: bytes) -> primitives.KeyPair:
    pair = primitives.key_pair(secret)
    if pair.public != server.advertised[owner].mask_key:
        raise _wrong(server, owner)
    return pair


def _wrong(server: Server, owner: int) -> ProtocolError:
    told = f"round {server.terms.round}: the shares of client {owner} do not fit together"
    return ProtocolError(f"{told}; the sum stays masked, begin another round")


def _near(terms: Terms, client: int, some: Collection[int]) -> tuple[int, ...]:
    """The neighbours of a client that are among some."""
    return tuple(peer for peer in neighbours(terms, client) if peer in some)


def _fate(server: Server, client: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The neighbours whose shares a client holds: with and without a vector in the total."""
    held = _near(server.terms, client, server.sharers)
    alive = tuple(peer for peer in held if peer in server.masked)
    return alive, tuple(peer for peer in held if peer not in server.masked)


def _with_holders(terms: Terms, some: frozenset[int]) -> frozenset[int]:
    """The largest part of some clients whose members all have `threshold` holders in it."""
    while True:
        kept = frozenset(c for c in some if len(_near(terms, c, some)) + 1 >= terms.threshold)
        if kept == some:
            return kept
        some = kept


def _need(server: Server, count: int, needed: int, which: str = "") -> None:
    if count < needed:
        terms, stage = server.terms, STAGES[server.stage]
        raise ProtocolError(
            f"round {terms.round}: {count} of {terms.clients} clients{which} are left after the "
            f"stage {stage!r}, and {needed} are needed; the sum stays masked, begin another round"
        )

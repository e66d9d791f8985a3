"""A client of a round: each request of the server makes a state and an answer.

    join, then answer: Invite -> Advertise, Peers -> Shares, Delivery -> Masked, Survivors -> Unmask

A request that is out of turn, of another round or inconsistent is a ProtocolError, and then nothing
has been answered. Who drives a client keeps its newest state alone: an older one would answer anew.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np

from jaxrec.federated.secure_aggregation import messages, primitives, shamir
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
from jaxrec.federated.secure_aggregation.primitives import KeyPair
from jaxrec.federated.secure_aggregation.terms import ProtocolError, Terms, neighbours
from jaxrec.types import DataError

REQUESTS = (Invite, Peers, Delivery, Survivors)  # one a stage


class Client(NamedTuple):
    """What a client knows. `stage` counts the requests it has answered."""

    me: int
    round: int
    least: int
    entropy: Callable[[int], bytes]
    stage: int = 0
    terms: Terms | None = None
    sealing: KeyPair | None = None
    masking: KeyPair | None = None
    seed: bytes = b""  # of its own mask
    peers: Mapping[int, tuple[bytes, bytes]] = {}  # neighbours' keys: share key, mask key
    secrets: Mapping[int, bytes] = {}  # exchanged with each neighbour's share key
    held: Mapping[int, tuple[int, int]] = {}  # by owner: shares of its seed and of its mask key

    def refusal(self, what: str) -> ProtocolError:
        return ProtocolError(f"client {self.me} in round {self.round}: {what}; it reveals nothing")


def join(
    me: int, round: int, least: int = 2, entropy: Callable[[int], bytes] = os.urandom
) -> Client:
    """A client that waits for the invitation to one round.

    Args:
      least: fewest clients that it lets a sum be over, whatever the invitation says.
      entropy: gives random bytes; anything but `os.urandom` is for tests.
    """
    return Client(me, round, least, entropy)


def answer(
    client: Client, request: bytes, vector: Callable[[], np.ndarray]
) -> tuple[Client, bytes]:
    """The client after a request of the server, and what it sends.

    Args:
      vector: gives the uint32 [d], each below 2^bits, to be added; called in the third stage.
    """
    message = messages.decode(request)
    kind = type(message).__name__
    if (round := _round(message)) != client.round:
        raise client.refusal(f"{kind} is of round {round}")
    if message.client != client.me:
        raise client.refusal(f"{kind} is for client {message.client}")
    if type(message) not in REQUESTS:
        raise client.refusal(f"{kind} is no request of a server")
    turn = REQUESTS.index(type(message))
    if turn != client.stage:
        told = "has been answered already" if turn < client.stage else "is out of turn"
        raise client.refusal(f"{kind} {told}")
    client = client._replace(stage=client.stage + 1)
    match message:
        case Invite():
            client, reply = _advertise(client, message)
        case Peers():
            client, reply = _share(client, message)
        case Delivery():
            client, reply = _mask(client, message, vector)
        case Survivors():
            client, reply = _unmask(client, message)
        case _:
            raise AssertionError(kind)
    return client, messages.encode(reply)


def _round(message: Message) -> int:
    return message.terms.round if isinstance(message, Invite) else message.round


def _advertise(client: Client, message: Invite) -> tuple[Client, Message]:
    terms = message.terms
    if client.me >= terms.clients:
        raise client.refusal(f"the round has {terms.clients} clients")
    if terms.least < client.least:
        told = f"a sum may be over {terms.least} clients, and {client.least} are the least here"
        raise client.refusal(told)
    sealing, masking = (primitives.key_pair(client.entropy(primitives.KEY)) for _ in range(2))
    seed = client.entropy(primitives.KEY)
    client = client._replace(terms=terms, sealing=sealing, masking=masking, seed=seed)
    return client, Advertise(client.round, client.me, sealing.public, masking.public)


def _share(client: Client, message: Peers) -> tuple[Client, Message]:
    """Gives each neighbour a share of the seed of the own mask and one of the mask key."""
    assert client.terms and client.sealing and client.masking
    terms, sealing, masking = client.terms, client.sealing, client.masking
    _check_peers(client, message.keys, neighbours(terms, client.me), "advertised a key")
    known = [
        sealing.public,
        masking.public,
        *(key for keys in message.keys.values() for key in keys),
    ]
    if len(set(known)) < len(known):
        raise client.refusal("a key has been exchanged twice")
    points = [holder + 1 for holder in (client.me, *message.keys)]
    seeds, keys = (
        shamir.split(secret, terms.threshold, points, client.entropy)
        for secret in (client.seed, masking.secret.private_bytes_raw())
    )
    sealed, secrets = {}, {}
    for peer, (public, _) in message.keys.items():
        secrets[peer] = _exchange(client, sealing, public, peer)
        key = primitives.derive(secrets[peer], _purpose(client.round, client.me, peer))
        shares = (each[peer + 1].to_bytes(shamir.SHARE, "little") for each in (seeds, keys))
        sealed[peer] = primitives.seal(key, b"".join(shares))
    held = {client.me: (seeds[client.me + 1], keys[client.me + 1])}
    client = client._replace(peers=message.keys, secrets=secrets, held=held, sealing=None)
    return client, Shares(client.round, client.me, sealed)


def _mask(
    client: Client, message: Delivery, vector: Callable[[], np.ndarray]
) -> tuple[Client, Message]:
    """Adds its own mask and one for each neighbour whose shares it holds."""
    assert client.terms and client.masking
    terms, masking = client.terms, client.masking
    _check_peers(client, message.sealed, client.peers, "sent shares")
    held, masks = dict(client.held), [(client.seed, 1)]
    for peer, sealed in message.sealed.items():
        key = primitives.derive(client.secrets[peer], _purpose(client.round, peer, client.me))
        try:
            plain = primitives.unseal(key, sealed)
        except ValueError as error:
            raise client.refusal(f"what client {peer} sent {error}") from error
        read = lambda share: int.from_bytes(share, "little")
        held[peer] = read(plain[: shamir.SHARE]), read(plain[shamir.SHARE :])
        secret = _exchange(client, masking, client.peers[peer][1], peer)
        key = primitives.derive(secret, pair_purpose(terms.round, client.me, peer))
        masks.append((key, sign(client.me, peer)))
    hidden = primitives.masked(_checked(client, terms, vector()), masks, terms.bits)
    client = client._replace(held=held, secrets={}, seed=b"", masking=None)
    return client, Masked(client.round, client.me, messages.pack(hidden, terms.bits))


def _unmask(client: Client, message: Survivors) -> tuple[Client, Message]:
    """Reveals for each client whose shares it holds one of the two, never both."""
    assert client.terms is not None
    others = client.held.keys() - {client.me}
    _check_peers(client, message.alive, others, "sent a vector")
    least = max(client.terms.least, len(message.alive) + 1)
    if message.count < least:
        raise client.refusal(f"the sum would be over {message.count} clients, fewer than {least}")
    seeds = {owner: client.held[owner][0] for owner in (client.me, *message.alive)}
    keys = {owner: client.held[owner][1] for owner in sorted(client.held.keys() - seeds.keys())}
    client = client._replace(held={}, peers={})
    return client, Unmask(client.round, client.me, seeds, keys)


def _check_peers(client: Client, named: Collection[int], known: Collection[int], what: str) -> None:
    """Refuses a request that names a stranger, or fewer clients than shares are needed of."""
    if strangers := set(named) - set(known):
        raise client.refusal(f"client {min(strangers)} is said to have {what}, and is nobody here")
    assert client.terms is not None
    if len(named) + 1 < (needed := client.terms.threshold):
        counted = f"{len(named)} of its neighbours and itself"
        raise client.refusal(f"{counted} have {what}, and the threshold is {needed}")


def _checked(client: Client, terms: Terms, vector: np.ndarray) -> np.ndarray:
    fits = vector.dtype == np.uint32 and vector.shape == (terms.length,)
    if not fits or int(vector.max()) >= 2**terms.bits:
        most = f", largest {vector.max()}" if vector.size else ""
        raise DataError(
            f"client {client.me}: its vector is {vector.dtype} {list(vector.shape)}{most}; give "
            f"uint32 [{terms.length}] below 2^{terms.bits}"
        )
    return vector


def _exchange(client: Client, mine: KeyPair, theirs: bytes, peer: int) -> bytes:
    try:
        return primitives.exchange(mine, theirs)
    except ValueError as error:
        raise client.refusal(f"the key of client {peer} is none: {error}") from error


def _purpose(round: int, owner: int, holder: int) -> bytes:
    """Of the key that seals an owner's shares for a holder, in one direction and one round."""
    return b"share" + struct.pack("<QII", round, owner, holder)


def pair_purpose(round: int, one: int, other: int) -> bytes:
    """Of the key that two clients' common mask comes from."""
    return b"mask" + struct.pack("<QII", round, min(one, other), max(one, other))


def sign(client: int, peer: int) -> int:
    """Of the mask that a client shares with a peer, in the client's vector."""
    return 1 if client < peer else -1

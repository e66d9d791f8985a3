"""The messages of a round, as values and as bytes.

    server -> client   Invite      Peers    Delivery   Survivors
    client -> server   Advertise   Shares   Masked     Unmask

A message is a head (its length, kind, round and the client it is from or for) and a body. Vectors
are packed: d numbers of b bits take ceil(d b / 8) bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from jaxrec.federated.secure_aggregation.primitives import KEY, TAG
from jaxrec.federated.secure_aggregation.shamir import SHARE
from jaxrec.federated.secure_aggregation.terms import ProtocolError, Terms
from jaxrec.types import SettingError

HEAD = struct.Struct("<IBQI")  # length of all, kind, round, client
TERMS = struct.Struct("<IIBIIIQ")
NAME = struct.Struct("<I")  # of another client
SEALED = 2 * SHARE + TAG
OPENED = 1 + SHARE  # which of the two shares it is, and the share


class Invite(NamedTuple):
    """A round begins."""

    client: int
    terms: Terms


class Advertise(NamedTuple):
    """A client's public keys: for sealing shares, and for masks."""

    round: int
    client: int
    share_key: bytes
    mask_key: bytes


class Peers(NamedTuple):
    """The public keys of a client's neighbours that have advertised: share key, mask key."""

    round: int
    client: int
    keys: Mapping[int, tuple[bytes, bytes]]


class Shares(NamedTuple):
    """A client's sealed shares, by the neighbour that they are for."""

    round: int
    client: int
    sealed: Mapping[int, bytes]


class Delivery(NamedTuple):
    """Sealed shares for a client, by the neighbour that they are from."""

    round: int
    client: int
    sealed: Mapping[int, bytes]


class Masked(NamedTuple):
    """A client's vector under its masks, packed."""

    round: int
    client: int
    packed: bytes


class Survivors(NamedTuple):
    """How many clients' vectors have arrived, and of which neighbours."""

    round: int
    client: int
    count: int
    alive: tuple[int, ...]


class Unmask(NamedTuple):
    """Shares by their owner: of the own masks of survivors, of the mask keys of the others."""

    round: int
    client: int
    seeds: Mapping[int, int]
    keys: Mapping[int, int]


Message = Invite | Advertise | Peers | Shares | Delivery | Masked | Survivors | Unmask
KINDS = (Invite, Advertise, Peers, Shares, Delivery, Masked, Survivors, Unmask)


class Bytes(NamedTuple):
    """What one client sends and receives in a round in which nobody drops out."""

    up: int
    down: int


def protocol_bytes(clients: int, neighbours: int, length: int, bits: int) -> Bytes:
    """The bytes of a round of one client with all messages counted.

    Args:
      neighbours: of a client, k; all others where there are fewer.
      length: numbers of a vector, d, of `bits` bits, b.
    """
    k = min(neighbours, clients - 1)
    heads, sealed = 4 * HEAD.size, k * (NAME.size + SEALED)
    up = heads + 2 * KEY + sealed + packed_size(length, bits) + (k + 1) * (NAME.size + OPENED)
    down = heads + TERMS.size + k * (NAME.size + 2 * KEY) + sealed + NAME.size + k * NAME.size
    return Bytes(up, down)


def encode(message: Message) -> bytes:
    """A message as bytes."""
    match message:
        case Invite(_, t):
            sizes = t.clients, t.length, t.bits, t.neighbours, t.threshold, t.least, t.seed
            body = TERMS.pack(*sizes)
        case Advertise():
            body = message.share_key + message.mask_key
        case Peers():
            body = _listed((peer, b"".join(keys)) for peer, keys in message.keys.items())
        case Shares() | Delivery():
            body = _listed(message.sealed.items())
        case Masked():
            body = message.packed
        case Survivors():
            body = NAME.pack(message.count) + _listed((peer, b"") for peer in message.alive)
        case Unmask():
            named = enumerate((message.seeds, message.keys))
            body = _listed(
                (owner, bytes([kind]) + share.to_bytes(SHARE, "little"))
                for kind, shares in named
                for owner, share in shares.items()
            )
    round = message.terms.round if isinstance(message, Invite) else message.round
    head = HEAD.pack(HEAD.size + len(body), KINDS.index(type(message)), round, message.client)
    return head + body


def decode(data: bytes) -> Message:
    """The message that bytes are; ProtocolError where they are none."""
    if len(data) < HEAD.size:
        raise ProtocolError(f"a message of {len(data)} bytes: its head alone has {HEAD.size}")
    length, kind, round, client = HEAD.unpack_from(data)
    if length != len(data) or kind >= len(KINDS):
        raise ProtocolError(
            f"a message of client {client} has {len(data)} bytes and kind {kind}: it says that it "
            f"has {length} bytes, and kinds are below {len(KINDS)}"
        )
    body = data[HEAD.size :]
    try:
        return _decoded(KINDS[kind], round, client, body)
    except (struct.error, ValueError, SettingError) as error:
        what = f"{KINDS[kind].__name__} of client {client} in round {round}"
        raise ProtocolError(f"{what}: cannot be read, {error}") from error


def _decoded(kind: type, round: int, client: int, body: bytes) -> Message:
    if kind is Invite:
        clients, length, bits, neighbours, threshold, least, seed = TERMS.unpack(body)
        terms = Terms(clients, length, bits, neighbours, threshold, round, least, seed)
        return Invite(client, terms)
    if kind is Advertise:
        return Advertise(round, client, *struct.unpack(f"{KEY}s{KEY}s", body))
    if kind is Peers:
        keys = _named(body, 2 * KEY)
        return Peers(round, client, {peer: (both[:KEY], both[KEY:]) for peer, both in keys.items()})
    if kind is Shares or kind is Delivery:
        return kind(round, client, _named(body, SEALED))
    if kind is Masked:
        return Masked(round, client, body)
    if kind is Survivors:
        (count,) = NAME.unpack_from(body)
        return Survivors(round, client, count, tuple(_named(body[NAME.size :], 0)))
    sorts: tuple[dict[int, int], dict[int, int]] = {}, {}
    for owner, opened in _named(body, OPENED).items():
        if opened[0] >= len(sorts):
            raise ValueError(f"a share of sort {opened[0]}")
        sorts[opened[0]][owner] = int.from_bytes(opened[1:], "little")
    return Unmask(round, client, *sorts)


def _listed(entries: Iterable[tuple[int, bytes]]) -> bytes:
    return b"".join(NAME.pack(name) + entry for name, entry in entries)


def _named(body: bytes, width: int) -> dict[int, bytes]:
    """Entries of `width` bytes by the client that stands before each."""
    entries = list(struct.iter_unpack(f"<I{width}s", body))
    found = dict(entries)
    if len(found) < len(entries):
        raise ValueError("it names a client twice")
    return found


def packed_size(length: int, bits: int) -> int:
    return -(-length * bits // 8)


def pack(vector: np.ndarray, bits: int) -> bytes:
    """Numbers below 2^bits, uint32 [d], one after another from the lowest bit of each byte on."""
    if bits in (8, 16, 32):
        return vector.astype(f"<u{bits // 8}").tobytes()
    # Eight numbers are `bits` bytes, and a byte is of one number or of two that are neighbours.
    groups = -(-vector.size // 8)
    eight = np.zeros((groups, 8), np.uint32)
    eight.reshape(-1)[: vector.size] = vector
    eight, rows = np.ascontiguousarray(eight.T), np.empty((bits, groups), np.uint8)
    for row in range(bits):
        number, start = divmod(8 * row, bits)
        value = eight[number] >> start
        if start + 8 > bits:
            value |= eight[number + 1] << (bits - start)
        rows[row] = value
    return rows.T.tobytes()[: packed_size(vector.size, bits)]


def unpack(packed: bytes, length: int, bits: int) -> np.ndarray:
    """The uint32 [d] that were packed; ValueError where `packed` has another length."""
    if len(packed) != packed_size(length, bits):
        told = f"{len(packed)} bytes for {length} numbers of {bits} bits"
        raise ValueError(f"{told}, which take {packed_size(length, bits)}")
    if bits in (8, 16, 32):
        return np.frombuffer(packed, f"<u{bits // 8}").astype(np.uint32)
    groups = -(-length // 8)
    rows = np.zeros(groups * bits, np.uint8)
    rows[: len(packed)] = np.frombuffer(packed, np.uint8)
    rows = np.ascontiguousarray(rows.reshape(groups, bits).T)
    eight = np.empty((8, groups), np.uint32)
    for number in range(8):
        row, start = divmod(bits * number, 8)
        value = rows[row].astype(np.uint32) >> start
        for low in range(8 - start, bits, 8):
            row += 1
            value |= rows[row].astype(np.uint32) << low
        eight[number] = value & (2**bits - 1)
    return eight.T.reshape(-1)[:length]

"""Secure sums: what the server learns, who may drop out, what is refused, and bytes on the wire."""

import multiprocessing
import re
import socket
import sys

import numpy as np
import pytest
import scipy.stats

from jaxrec.federated.secure_aggregation import (
    ProtocolError,
    Terms,
    aggregate_in_process,
    agree,
    client,
    messages,
    primitives,
    protocol_bytes,
    rounds,
    server,
    shamir,
    sockets,
    terms,
)
from jaxrec.types import DataError, SettingError

FULL = Terms(clients=7, length=50, bits=20, neighbours=6, threshold=4, round=3)
SPARSE = Terms(clients=12, length=50, bits=11, neighbours=6, threshold=4, round=3, seed=5)


def vectors(agreed, seed=0):
    shape = agreed.clients, agreed.length
    return np.random.default_rng(seed).integers(0, 2**agreed.bits, shape, dtype=np.uint32)


def modular(some, bits):
    """The sum over rows as a loop of Python integers, [d]."""
    return np.array([sum(map(int, column)) % 2**bits for column in np.transpose(some)])


class Play:
    """A round stage by stage, with all that is said in it."""

    def __init__(self, agreed, seed=0):
        self.vectors = vectors(agreed)
        entropy = np.random.default_rng(seed).bytes
        self.clients = [
            client.join(each, agreed.round, entropy=entropy) for each in range(agreed.clients)
        ]
        self.server, self.requests = server.begin(agreed)
        self.replies = {}

    def ask(self, silent=()):
        self.replies = {}
        for each in self.requests.keys() - set(silent):
            self.clients[each], self.replies[each] = self.answer(each, self.requests[each])

    def answer(self, each, request):
        return client.answer(self.clients[each], request, lambda: self.vectors[each])

    def take(self):
        for each, reply in self.replies.items():
            self.server = server.receive(self.server, each, reply)

    def stages(self, count, silent=()):
        for _ in range(count):
            self.ask(silent)
            self.end()
        return self

    def end(self):
        self.take()
        self.server, self.requests = server.close(self.server)


def changed(data, **fields):
    return messages.encode(messages.decode(data)._replace(**fields))


# What it is made of


def test_shares_are_a_polynomial_whose_value_at_0_is_the_secret():
    rng = np.random.default_rng(0)
    secret, drawn = rng.bytes(32), rng.bytes(48 * 3)
    shares = shamir.split(secret, 4, [1, 2, 5, 7, 943], lambda size: drawn)
    powers = [int.from_bytes(drawn[at : at + 48], "little") for at in (96, 48, 0)]
    for x, share in shares.items():
        terms_of = [int.from_bytes(secret, "little"), *powers]
        assert share == sum(c * x**k for k, c in enumerate(terms_of)) % shamir.PRIME
    for left_out in shares:
        assert shamir.join({x: y for x, y in shares.items() if x != left_out}) == secret
    # Three shares go with any secret at all: some fourth share makes them so.
    three, other = {x: shares[x] for x in (1, 2, 5)}, rng.bytes(32)
    line = {**three, 0: int.from_bytes(other, "little")}
    fourth = lagrange(line, 7)
    assert shamir.join({**three, 7: fourth}) == other


def lagrange(points, x):
    """The value at x of the polynomial through the points, by Lagrange's formula as written."""
    value = 0
    for at, y in points.items():
        for other in points.keys() - {at}:
            y = y * (x - other) * pow(at - other, -1, shamir.PRIME)
        value += y
    return value % shamir.PRIME


@pytest.mark.parametrize("bits", range(8, 33))
def test_packed_numbers_are_one_number_of_all_their_bits(bits):
    numbers = np.random.default_rng(bits).integers(0, 2**bits, 37, dtype=np.uint32)
    numbers[0] = 2**bits - 1
    packed = messages.pack(numbers, bits)
    assert len(packed) == -(-37 * bits // 8)
    joined = sum(int(number) << bits * at for at, number in enumerate(numbers))
    assert int.from_bytes(packed, "little") == joined
    np.testing.assert_array_equal(messages.unpack(packed, 37, bits), numbers)


@pytest.mark.parametrize("bits, width", [(8, 1), (13, 2), (20, 4), (32, 4)])
def test_a_mask_is_a_stream_of_words(bits, width):
    length = primitives.BLOCK // width + 3
    vector = np.arange(length, dtype=np.uint32) & np.uint32(2**bits - 1)
    draw = lambda key: np.frombuffer(primitives.keystream(key, width * length), f"<u{width}")
    one, two = b"1" * 32, b"2" * 32
    expected = (vector.astype(np.int64) + draw(one) - draw(two)) % 2**bits
    found = primitives.masked(vector, [(one, 1), (two, -1)], bits)
    np.testing.assert_array_equal(found, expected)


def test_the_graph_is_regular_and_symmetric_and_its_seed_moves_it():
    near = [set(terms.neighbours(SPARSE, each)) for each in range(12)]
    for each, peers in enumerate(near):
        assert len(peers) == 6 and each not in peers
        assert all(each in near[peer] for peer in peers)
    other = Terms(**{**vars(SPARSE), "seed": 6})
    assert near != [set(terms.neighbours(other, each)) for each in range(12)]


def test_the_degree_keeps_its_promise():
    found = agree(1000, 1, 8, colluding=0.1, dropping=0.05)
    k, t = found.neighbours, found.threshold
    revealed, stuck = (scipy.stats.hypergeom(999, some, k) for some in (100, 50))
    assert 1000 * revealed.sf(t - 1) <= 2**-terms.SAFE
    assert 1000 * stuck.sf(k - t) <= 2**-terms.WORKING < 1000 * stuck.sf(k - t - 1)
    assert agree(10, 1, 8).neighbours == 9


# The sum


@pytest.mark.parametrize(
    "agreed", [FULL, SPARSE, Terms(2, 1, 8, 1, 2), Terms(5, 33, 32, 4, 5)], ids=str
)
def test_the_sum_is_that_of_the_integers_and_its_bytes_are_those_stated(agreed):
    found = aggregate_in_process(vectors(agreed), agreed)
    np.testing.assert_array_equal(found.total, modular(vectors(agreed), agreed.bits))
    assert found.clients == tuple(range(agreed.clients)) and not found.refused
    stated = protocol_bytes(agreed.clients, agreed.neighbours, agreed.length, agreed.bits)
    assert set(found.up) == {stated.up} and set(found.down) == {stated.down}


DROPS = {stage: {stage: (0, 3, 5)} for stage in server.STAGES}
DROPS["one in each stage"] = {stage: (at,) for at, stage in enumerate(server.STAGES[1:], 1)}


@pytest.mark.parametrize("agreed", [FULL, SPARSE], ids=["complete", "sparse"])
@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
def test_clients_may_drop_out_in_any_stage(agreed, drop):
    agreed = Terms(**{**vars(agreed), "threshold": 3})
    found = aggregate_in_process(vectors(agreed), agreed, drop)
    gone = {each for stage in server.STAGES[:3] for each in drop.get(stage, ())}
    stayed = sorted(set(range(agreed.clients)) - gone)
    assert found.clients == tuple(stayed)
    np.testing.assert_array_equal(found.total, modular(vectors(agreed)[stayed], agreed.bits))


@pytest.mark.parametrize("stage", server.STAGES)
def test_below_the_threshold_nothing_is_revealed(stage):
    play = Play(FULL).stages(server.STAGES.index(stage))
    play.ask(silent=range(4))  # three of seven stay, four are needed
    play.take()
    before = play.server
    with pytest.raises(
        ProtocolError, match=rf"round 3: .*after the stage '{stage}', and \d are needed"
    ):
        server.close(play.server)
    assert play.server is before  # no client has been asked for more
    if stage in ("mask", "unmask"):
        heard = list(play.server.answers)
        assert (play.server.total != modular(play.vectors[heard], FULL.bits)).mean() > 0.9


def test_a_sparse_graph_leaves_out_a_client_with_too_few_holders():
    near = terms.neighbours(SPARSE, 0)
    found = aggregate_in_process(vectors(SPARSE), SPARSE, {"share": near[:4]})
    assert 0 not in found.clients
    np.testing.assert_array_equal(
        found.total, modular(vectors(SPARSE)[list(found.clients)], SPARSE.bits)
    )


@pytest.mark.parametrize("bits", [8, 12])
def test_a_masked_vector_is_uniform(bits):
    agreed = Terms(3, 2**18, bits, 2, 2)
    play = Play(agreed)
    play.vectors[:] = 5
    play.stages(2).ask()
    packed = messages.decode(play.replies[1]).packed
    counts = np.bincount(messages.unpack(packed, agreed.length, bits), minlength=2**bits)
    assert 0.001 < scipy.stats.chisquare(counts).pvalue < 0.999
    masked = [
        messages.unpack(messages.decode(r).packed, 2**18, bits) for r in play.replies.values()
    ]
    assert abs(np.corrcoef(masked)[np.triu_indices(3, 1)]).max() < 5 / np.sqrt(2**18)


def test_943_clients_in_memory():
    agreed = Terms(clients=943, length=20, bits=18, neighbours=6, threshold=3, seed=1)
    gone = range(0, 943, 100)
    found = aggregate_in_process(vectors(agreed), agreed, {"mask": gone, "unmask": [1, 2]})
    stayed = [each for each in range(943) if each not in gone]
    assert found.clients == tuple(stayed)
    np.testing.assert_array_equal(found.total, modular(vectors(agreed)[stayed], 18))


# What the server refuses


def other_round(play):
    return 0, changed(play.replies[0], round=2)


def twice(play):
    play.server = server.receive(play.server, 0, play.replies[0])
    return 0, play.replies[0]


def from_nobody(play):
    return 99, changed(play.replies[0], client=99)


def of_another(play):
    return 1, play.replies[0]


def cut(play):
    return 0, play.replies[0][:-1]


def the_last_one(play):
    earlier = Play(FULL).stages(play.server.stage - 1)
    earlier.ask()
    return 0, earlier.replies[0]


BAD = {
    other_round: "is of another round",
    twice: "comes after an answer of that client",
    from_nobody: "of client 99 is from nobody",
    of_another: "of client 1 says that it is of client 0",
    cut: r"it says that it has \d+ bytes",
    the_last_one: "is out of turn",
}


@pytest.mark.parametrize(
    "bad, stage",
    [(bad, stage) for bad in BAD for stage in range(4) if stage or bad is not the_last_one],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_the_server_refuses_a_bad_answer_and_stays_as_it_was(bad, stage):
    play = Play(FULL).stages(stage)
    play.ask()
    sender, data = bad(play)
    with pytest.raises(ProtocolError, match=BAD[bad]):
        server.receive(play.server, sender, data)
    if bad is not twice:
        play.take()
        server.close(play.server)


def test_the_server_refuses_contents_that_do_not_fit():
    play = Play(FULL)
    play.ask()
    play.server = server.receive(play.server, 0, play.replies[0])
    key = messages.decode(play.replies[0]).mask_key
    with pytest.raises(ProtocolError, match="Advertise of client 1 repeats a key"):
        server.receive(play.server, 1, changed(play.replies[1], share_key=key))
    play = Play(FULL).stages(1)
    play.ask()
    sealed = messages.decode(play.replies[0]).sealed
    less = {peer: each for peer, each in sealed.items() if peer != 4}
    with pytest.raises(
        ProtocolError, match="Shares of client 0 has not one pair of shares for each"
    ):
        server.receive(play.server, 0, changed(play.replies[0], sealed=less))
    again = play.replies[0] + play.replies[0][messages.HEAD.size :]
    again = len(again).to_bytes(4, "little") + again[4:]
    with pytest.raises(ProtocolError, match="cannot be read, it names a client twice"):
        server.receive(play.server, 0, again)
    play.end()
    play.ask()
    packed = messages.decode(play.replies[0]).packed
    with pytest.raises(ProtocolError, match="Masked of client 0 has 124 bytes for 50 numbers"):
        server.receive(play.server, 0, changed(play.replies[0], packed=packed[:-1]))
    play.end()
    play.ask()
    seeds = {**messages.decode(play.replies[0]).seeds}
    del seeds[2]
    with pytest.raises(ProtocolError, match="Unmask of client 0 has not the shares asked for"):
        server.receive(play.server, 0, changed(play.replies[0], seeds=seeds))


def test_a_forged_share_of_a_mask_key_ends_the_round():
    play = Play(FULL).stages(2).stages(1, silent=[6])
    play.ask()
    play.replies[0] = changed(play.replies[0], keys={6: 1})
    play.take()
    with pytest.raises(ProtocolError, match="the shares of client 6 do not fit together"):
        server.close(play.server)


def test_a_client_with_bad_answers_counts_as_gone():
    play = Play(FULL)

    def exchange(stage, requests):
        play.requests = requests
        play.ask()
        if stage == "mask":
            play.replies[2] = changed(play.replies[2], round=9)
        yield from play.replies.items()
        yield 5, play.replies[5]
        yield 77, play.replies[5]

    found = rounds.run(FULL, exchange)
    stayed = [0, 1, 3, 4, 5, 6]
    assert found.clients == tuple(stayed) and set(found.refused) == {2, 5, 77}
    np.testing.assert_array_equal(found.total, modular(play.vectors[stayed], FULL.bits))


# What a client refuses


def test_a_client_refuses_requests_out_of_turn_and_answers_each_once():
    play = Play(FULL)
    seen = []
    for _ in range(4):
        own = play.requests[0]
        for wrong, told in (
            (changed(own, client=1), "is for client 1"),
            (play.requests[1], "is for client 1"),
            *((request, "has been answered already") for request in seen),
        ):
            with pytest.raises(ProtocolError, match=f"client 0 in round 3: .*{told}"):
                play.answer(0, wrong)
        if seen:
            with pytest.raises(ProtocolError, match="is of round 2"):
                play.answer(0, changed(own, round=2))
        seen.append(own)
        play.ask()
        with pytest.raises(ProtocolError, match=r"is no request of a server"):
            play.answer(0, play.replies[0])
        play.end()
    early = Play(FULL)
    with pytest.raises(ProtocolError, match="Survivors is out of turn"):
        early.answer(0, seen[3])


def test_a_client_never_reveals_both_secrets_of_a_peer():
    play = Play(FULL).stages(2).stages(1, silent=[6])
    request = play.requests[0]
    play.clients[0], reply = play.answer(0, request)
    told = messages.decode(reply)
    assert set(told.seeds) == {0, 1, 2, 3, 4, 5} and set(told.keys) == {6}
    with pytest.raises(ProtocolError, match="Survivors has been answered already"):
        play.answer(0, changed(request, alive=(1, 2, 3, 6)))


def test_a_client_reveals_nothing_for_too_few_or_for_strangers():
    play = Play(FULL).stages(3)
    request = play.requests[0]
    for fields, told in (
        ({"alive": (1, 2)}, "2 of its neighbours and itself .*, and the threshold is 4"),
        ({"count": 1}, "the sum would be over 1 clients, fewer than 7"),
        ({"alive": (1, 2, 3, 9)}, "client 9 is said to have sent a vector, and is nobody here"),
    ):
        with pytest.raises(ProtocolError, match=told):
            play.answer(0, changed(request, **fields))
    invite = server.begin(FULL)[1][0]
    with pytest.raises(ProtocolError, match="may be over 2 clients, and 5 are the least here"):
        client.answer(client.join(0, 3, least=5), invite, lambda: play.vectors[0])
    play = Play(FULL).stages(1)
    keys = dict(messages.decode(play.requests[0]).keys)
    with pytest.raises(ProtocolError, match="a key has been exchanged twice"):
        play.answer(0, changed(play.requests[0], keys={**keys, 2: keys[1]}))
    with pytest.raises(ProtocolError, match="the key of client 2 is none"):
        play.answer(0, changed(play.requests[0], keys={**keys, 2: (bytes(32), keys[2][1])}))
    with pytest.raises(ProtocolError, match="1 of its neighbours and itself have advertised"):
        play.answer(0, changed(play.requests[0], keys={2: keys[2]}))
    play.stages(1)
    sealed = dict(messages.decode(play.requests[0]).sealed)
    with pytest.raises(ProtocolError, match="client 1 sent was sealed with another key"):
        play.answer(0, changed(play.requests[0], sealed={**sealed, 1: sealed[2]}))
    play.vectors[0, 7] = 2**FULL.bits
    with pytest.raises(DataError, match=re.escape("give uint32 [50] below 2^20")):
        play.answer(0, play.requests[0])


@pytest.mark.parametrize(
    "wrong, told",
    [
        ({"clients": 1, "neighbours": 0}, "clients = 1: must be at least 2: the sum over one"),
        ({"threshold": 8}, "threshold = 8: must be at least 2 and at most 7, the holders"),
        ({"threshold": 1}, "threshold = 1"),
        ({"neighbours": 3}, "neighbours = 3: must be all 6 other clients, or an even number"),
        ({"bits": 33}, "bits = 33: must be at least 8 and at most 32"),
        ({"least": 8}, "least = 8: must be at least 2 and at most clients = 7"),
    ],
)
def test_terms_that_cannot_work(wrong, told):
    with pytest.raises(SettingError, match=told):
        Terms(**{**vars(FULL), **wrong})


def test_without_the_package_the_extra_is_named(monkeypatch):
    primitives._cryptography.cache_clear()
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    with pytest.raises(SettingError, match=re.escape("pip install 'jaxrec[privacy]'")):
        aggregate_in_process(vectors(FULL), FULL)


# Real processes


def test_eight_processes_on_loopback_of_which_some_are_killed():
    agreed = Terms(clients=8, length=3000, bits=20, neighbours=7, threshold=4, round=6)
    drop = {"advertise": 0, "share": 1, "mask": 2, "unmask": 3}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", sockets.__name__])
    own = vectors(agreed)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = [
            context.Process(
                target=sockets.take_part, args=(listener.getsockname(), each, 6, own[each])
            )
            for each in range(8)
        ]
        for process in started:
            process.start()
        lines = sockets.Lines(listener, agreed)
        wire = {each: Counted(line) for each, line in lines.lines.items()}
        lines.lines = dict(wire)

        def exchange(stage, requests):
            started[drop[stage]].kill()
            started[drop[stage]].join()
            yield from lines.exchange(stage, requests)

        found = rounds.run(agreed, exchange)
        lines.close()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [-9] * 4 + [0] * 4
    assert found.clients == (3, 4, 5, 6, 7)
    np.testing.assert_array_equal(found.total, modular(own[3:], 20))
    for each in range(4, 8):
        assert (wire[each].received, wire[each].sent) == (found.up[each], found.down[each])


class Counted:
    """A connection that counts the bytes through it."""

    def __init__(self, line):
        self.line, self.sent, self.received = line, 0, 0

    def sendall(self, data):
        self.line.sendall(data)
        self.sent += len(data)

    def recv_into(self, view):
        count = self.line.recv_into(view)
        self.received += count
        return count

    def close(self):
        self.line.close()

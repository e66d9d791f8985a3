"""What privacy costs: the protocol of secure sums, and what a simulated round pays for integers
and noise.

    python -m benchmarks privacy [--quick]

**The protocol.** Whole rounds with the real messages, all clients in one process, one of 20 lost
after the shares went round: the worst stage, for the server takes off its masks one by one. Seconds
are of CPU time, a client's apart from the server's, so that a busy machine does not count. Sums are
checked. Where all masks would take minutes, a sample of the clients makes them, the others do all
but them and send noughts: then the seconds of a client are the sample's, and the sum is not
checked. Numbers have 16 bits and room for the sum over all clients. `--quick` leaves 1,000 clients
and long vectors out.

**A simulated round**, with one-user clients in ML-1M's shape: the same method in clear, by secure
sums and under a budget, a round of each in turn.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.common import Bench, Timing
from benchmarks.rqfedrec import CONFIG, FEDMF, ITEMS, USERS, problem
from jaxrec.federated.secure_aggregation import agree, client, messages, protocol_bytes, rounds
from jaxrec.federated.secure_aggregation.terms import Terms
from jaxrec.methods import fedavg, rqfedrec

CLIENTS, LENGTHS = (10, 100, 1000), (10_000, 1_000_000)
SAMPLE, MASKED = 20, 5e9  # clients that make masks where all of them would make more numbers


class Cost(NamedTuple):
    clients: list[float]  # CPU seconds of each client of the sample that stayed
    server: float


def round_of(terms: Terms, gone: range) -> Cost:
    """The CPU seconds of one round in which the clients `gone` send no vector."""
    numbers = terms.clients * (terms.neighbours + 1) * terms.length
    sampled = terms.clients if numbers <= MASKED else SAMPLE
    rng = np.random.default_rng(0)
    vector = rng.integers(0, 2**16, terms.length, dtype=np.uint32)
    noughts = bytes(messages.packed_size(terms.length, terms.bits))
    states = [client.join(each, terms.round) for each in range(terms.clients)]
    short = dataclasses.replace(terms, length=1)
    seconds = np.zeros(terms.clients)

    def ask(each: int, stage: str, request: bytes) -> bytes:
        """A client's answer; outside the sample with a vector of one number, padded to be long."""
        spared = stage == "mask" and each >= sampled
        state = states[each]._replace(terms=short) if spared else states[each]
        state, reply = client.answer(state, request, lambda: vector[:1] if spared else vector)
        states[each] = state._replace(terms=terms)
        if spared:
            reply = messages.encode(messages.Masked(terms.round, each, noughts))
        return reply

    def exchange(stage: str, requests: rounds.Requests):
        for each, request in requests.items():
            if stage == "mask" and each in gone:
                continue
            start = time.process_time()
            reply = ask(each, stage, request)
            seconds[each] += time.process_time() - start
            yield each, reply

    start = time.process_time()
    found = rounds.run(terms, exchange)
    server = float(time.process_time() - start - seconds.sum())
    stayed = [each for each in range(terms.clients) if each not in gone]
    assert found.clients == tuple(stayed) and not found.refused
    if sampled == terms.clients:
        expected = vector.astype(np.uint64) * len(stayed) % 2**terms.bits
        assert (found.total == expected).all()
    return Cost([float(seconds[each]) for each in stayed if each < sampled], server)


def protocol(bench: Bench, quick: bool) -> None:
    for clients in CLIENTS[:-1] if quick else CLIENTS:
        for length in LENGTHS[:-1] if quick else LENGTHS:
            bits = 16 + (clients - 1).bit_length()
            terms = agree(clients, length, bits, seed=0)
            gone = range(clients - -(-clients // 20), clients)
            cost = round_of(terms, gone)
            low, middle, high = statistics.quantiles(cost.clients, n=4)
            what = f"{clients:,} clients, {length:,} numbers"
            each = Timing(0.0, middle, (high - low) / 2, len(cost.clients))
            bench.report(f"client of a secure sum, {what}", each)
            bench.report(f"server of a secure sum, {what}", Timing(0.0, cost.server, 0.0, 1))
            up, down = protocol_bytes(clients, terms.neighbours, length, bits)
            packed = messages.packed_size(length, bits)
            print(
                f"    {bits} bits, {terms.neighbours} neighbours, threshold {terms.threshold}, "
                f"{len(gone)} dropped out; bytes of a client: {up:,} up, of which the vector "
                f"{packed:,}, {down:,} down"
            )


def simulation(bench: Bench, quick: bool) -> None:
    data, sizes = problem(USERS, ITEMS)
    once = {"privacy": "central_dp", "noise_multiplier": 1.0, "clip": 1.0}
    settings = {"plain": {"privacy": "plain"}, "secure_sum": {"privacy": "secure_sum"}}
    methods = {
        "FedMF": lambda own: fedavg.make(replace(FEDMF, **own), sizes),
        "RQFedRec, int8": lambda own: rqfedrec.make(replace(CONFIG, **own), sizes),
    }
    for name, make in methods.items():
        made = {kind: make(own) for kind, own in (settings | {"central_dp": once}).items()}
        states = {kind: jax.jit(m.init)(jax.random.key(0), data) for kind, m in made.items()}
        steps = {
            kind: jax.jit(method.step).lower(states[kind], data, jax.random.key(0)).compile()
            for kind, method in made.items()
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in made}
        for number in range(4 if quick else 14):
            for kind, step in steps.items():
                key = jax.random.fold_in(jax.random.key(1), number)
                start = time.perf_counter()
                states[kind], _ = jax.block_until_ready(step(states[kind], data, key))
                seconds[kind].append(time.perf_counter() - start)
        middle = {kind: statistics.median(taken[2:]) for kind, taken in seconds.items()}
        for kind, taken in seconds.items():
            low, _, high = statistics.quantiles(taken[2:], n=4)
            timing = Timing(0.0, middle[kind], (high - low) / 2, len(taken) - 2)
            bench.report(f"a round of {name}, {kind}", timing)
            print(f"    {middle[kind] / middle['plain'] - 1:+.0%} against plain", flush=True)


PARTS = (protocol, simulation)  # each prints what one piece of privacy costs


def main(bench: Bench, quick: bool) -> None:
    for part in PARTS:
        part(bench, quick)

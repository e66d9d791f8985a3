"""The server of a federation: it asks nodes for parts of sums, adds them and goes on from there."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrec.deployment import measure, vectors
from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.deployment.node import NOTHING, SET_UP
from jaxrec.deployment.party import Party
from jaxrec.deployment.terms import Terms
from jaxrec.evaluation.evaluator import Evaluation
from jaxrec.federated.secure_aggregation import ProtocolError, agree
from jaxrec.federated.secure_aggregation.rounds import run
from jaxrec.federated.stages import Progress
from jaxrec.types import Data, DataError

Ask = Callable[[Mapping[str, bytes]], Iterable[tuple[str, bytes]]]
"""Sends each node its request, and gives the replies that come, each with its node's name."""


AHEAD = 10_000  # rounds that a client may have begun beyond those that the server knows of
DAY = 86_400 * 10**9  # nanoseconds that another server's clock may be ahead
PURPOSES = ("joining", "setup", "rounds", "evaluation")


class Sent(NamedTuple):
    """Bytes of messages, and how many there were. Up is from the clients to the server."""

    up: int = 0
    down: int = 0
    messages: int = 0


class Shared(NamedTuple):
    """The part of a state that all clients share, and which of its arrays a request needs."""

    arrays: list[np.ndarray]
    needed: list[int]


class Coordinator:
    """The server's side, without rows: a state's shared leaves, and who takes part.

    A node that refuses, or whose reply does not come, is out of the later sums of that round;
    `left_out` says why. The round goes on with the others while there are at least `min_cohort` of
    them. One that fails is over: nodes begin each round once, so the next one has another number.
    """

    def __init__(self, terms: Terms, data: Data, ask: Ask):
        """`data`: see `party.nobody`; `ask`: the transport."""
        self.terms, self.ask = terms, ask
        self.party = Party(terms, data)
        self.secure = self.party.config.privacy == "secure_sum"
        self.least = max(2, self.party.config.min_cohort) if self.secure else 1  # in a sum
        self.members: dict[str, int] = {}  # the number of each node that has joined
        self.users: dict[str, int] = {}  # how many users each of them has
        self.begun = NOTHING  # the newest round that one of them has begun
        self.left_out: dict[str, str] = {}  # in what was done last, by node
        self._known: dict[str, dict[int, np.ndarray]] = {}  # of the shared state, by node
        self.sent: dict[str, Sent] = dict.fromkeys(PURPOSES, Sent())
        self._purpose: str = "joining"
        self._sums = time.time_ns()  # sums are numbered, and no number may come back

    def enrol(self, nodes: Iterable[str]) -> None:
        """Offer the terms to nodes; those that agree are members from now on."""
        self.left_out, self._purpose = {}, "joining"
        free = sorted(set(range(self.terms.clients)) - set(self.members.values()), reverse=True)
        places, terms = {}, self.terms.to_json()
        for name in sorted(nodes):
            if name in self.members:
                places[name] = self.members[name]
            elif free:
                places[name] = free.pop()
            else:
                self.left_out[name] = f"all {self.terms.clients} places are taken"
        offer = lambda place: Message({"do": "join", "terms": terms, "client": place})
        agreed = self._asked({name: offer(place) for name, place in places.items()})
        # Who asks for another place than the one that was offered comes after the others.
        agreed.sort(key=lambda one: one[1].head.get("client") != places[one[0]])
        for name, reply in agreed:
            if why := self._unwelcome(name, reply):
                self.left_out[name] = why
                continue
            self.members[name], self.users[name] = reply.head["client"], reply.head["users"]
            self.begun = max(self.begun, reply.head["round"])
            self._sums = max(self._sums, reply.head["newest_sum"] + 1)
            self._known[name] = {}

    def _unwelcome(self, name: str, reply: Message) -> str:
        """Why a node that agrees cannot be a member; nothing where it can."""
        told = [reply.head.get(key) for key in ("users", "round", "client", "newest_sum")]
        users, begun, place, newest = (e if isinstance(e, int) else NOTHING - 1 for e in told)
        fine = (
            users >= 0,
            NOTHING <= begun <= max(self.begun, 0) + AHEAD,
            0 <= place < self.terms.clients,
            NOTHING < newest < time.time_ns() + DAY,
        )
        if not all(fine):
            return "it does not say how many users it has and where it stands"
        if place in [self.members[each] for each in self.members if each != name]:
            return f"it joined these terms as client {place} before, and another node is that now"
        others = sum(self.users[each] for each in self.users if each != name)
        if others + users > self.terms.users:
            return f"users = {self.terms.users}: with its {users} users there would be more"
        return ""

    def init(self, among: Collection[str] | None = None) -> Any:
        """The set-up, with all members or those `among` some nodes; returns the first state."""
        stages = self.party.programs.init(False)
        progress = stages.begin(self.party.init_key, self.party.data)
        return self._run(SET_UP, Shared([], []), progress, self.present(among))

    def step(self, state: Any, round: int, among: Collection[str] | None = None) -> tuple[Any, Any]:
        """A round; returns the state and the metrics.

        Args:
          round: its number, above those of all that have begun, failed ones included.
          among: nodes that can be reached now; None: all members are asked.
        """
        if round < 0:
            raise DataError(f"round = {round}: rounds begin at 0")
        party = self.party
        progress = party.programs.step(False).begin(state, party.data, party.key_of(round))
        shared = party.leaves(state, own=False)
        needed = [number for number, read in enumerate(party.reads) if read]
        return self._run(round, Shared(shared, needed), progress, self.present(among))

    def evaluate(
        self,
        state: Any,
        round: int,
        split: str,
        ks: Sequence[int],
        *,
        best: int | None = None,
        among: Collection[str] | None = None,
    ) -> Evaluation:
        """Metrics over the held-out users of clients in a split, before a round.

        Args:
          split: "valid" or "test", as the nodes name their plans.
          ks: lengths of the lists, as in the nodes' plans.
          best: the round whose users are to be kept for later, beside this one's.
          among: as in `step`.
        """
        self.left_out, self._purpose = {}, "evaluation"
        shared = self.party.leaves(state, own=False)
        head = {"do": "evaluate", "split": split, "ks": list(ks), "round": round, "best": best}
        whole = Shared(shared, [*range(len(shared))])
        there, shapes = self.present(among), measure.shape_of(ks)
        _, (totals,) = self._summed(there, head, whole, shapes)
        return measure.evaluation_of(totals, ks)

    def end(self, nodes: Iterable[str]) -> None:
        """Tell nodes that no round follows."""
        self._purpose = "joining"
        self._asked({name: Message({"do": "end"}) for name in nodes})

    def present(self, among: Collection[str] | None = None) -> list[str]:
        """The members, or those of them that are among some nodes, by their numbers."""
        there = self.members if among is None else self.members.keys() & set(among)
        return sorted(there, key=self.members.__getitem__)

    def _run(self, round: int, content: Shared, progress: Progress, there: list[str]) -> Any:
        """The set-up or a round, exchange by exchange."""
        self._need(len(there), round)
        self.left_out, self._purpose = {}, "setup" if round == SET_UP else "rounds"
        self.begun = max(self.begun, round)
        head: dict[str, Any] = {"do": "begin", "round": round}
        sent: Shared | list[np.ndarray] = content
        while True:
            shapes = progress.due
            if not shapes:  # nothing is added any more, and nodes may wait for the last sums
                self._asked({name: self._message(name, head, sent) for name in there})
                return progress.results
            there, sent = self._summed(there, head, sent, shapes)
            progress = progress.go_on(sent)
            head = {"do": "go on", "round": round, "exchange": progress.number - 1}

    def _message(
        self, name: str, head: dict[str, Any], content: Shared | list[np.ndarray]
    ) -> Message:
        """A request to a node; of the shared state without the arrays that the node has."""
        if not isinstance(content, Shared):
            return Message(head, content)
        known, arrays = self._known.get(name, {}), content.arrays
        has = lambda n: n in known and np.array_equal(known[n], arrays[n])
        new = [n for n in content.needed if not has(n)]
        return Message({**head, "new": new}, [arrays[n] for n in new])

    def _summed(
        self,
        there: list[str],
        head: dict[str, Any],
        content: Shared | list[np.ndarray],
        shapes: Any,
    ) -> tuple[list[str], list[np.ndarray]]:
        """Who was in the sums of an exchange, and the sums."""
        self._need(len(there), head["round"])
        if not self.secure:
            requests = {name: self._message(name, head, content) for name in there}
            found = dict(self._asked(requests, content))
            for name, reply in list(found.items()):
                if why := _unfit(reply.arrays, shapes):
                    self.left_out[name] = why
                    del found[name]
            there = [name for name in there if name in found]
            self._need(len(there), head["round"])
            return there, vectors.added([found[name].arrays for name in there])
        terms = agree(
            len(there), vectors.length(shapes), 32, round=self._sums, least=self.least
        )  # fmt: skip
        self._sums += 1

        def exchange(stage: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
            first, messages = stage == "advertise", {}
            for place, request in requests.items():
                own = np.frombuffer(request, np.uint8)
                message = Message({"do": "secure"}, [own])
                if first:
                    told = {**head, "sum": terms.round, "me": place}
                    message = self._message(there[place], told, content)
                    message = message._replace(arrays=[*message.arrays, own])
                messages[there[place]] = message
            for name, reply in self._asked(messages, content if first else None):
                yield there.index(name), b"".join(array.tobytes() for array in reply.arrays)

        try:
            outcome = run(terms, exchange)
        except ProtocolError as error:
            told = str(error).removeprefix(f"round {terms.round}: ")
            raise self._failed(head["round"], told) from error
        self.left_out |= {there[c]: why for c, why in outcome.refused.items()}
        kept = [there[place] for place in outcome.clients]
        return kept, vectors.from_vector(outcome.total, shapes)

    def _asked(
        self, requests: Mapping[str, Message], content: Shared | list[np.ndarray] | None = None
    ) -> list[tuple[str, Message]]:
        """The replies that came and are no refusals, of nodes that then have the content."""
        found, left_out = replies(self._counted, requests)
        self.left_out |= left_out
        if isinstance(content, Shared):
            for name in left_out:  # it may have the content, or an older one
                self._known[name] = {}
            for name, _ in found:
                known = self._known.setdefault(name, {})
                known |= {n: content.arrays[n] for n in content.needed}
        return found

    def _counted(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """`ask`, whose bytes are counted."""
        for request in requests.values():
            self._count(0, len(request))
        for name, reply in self.ask(requests):
            self._count(len(reply), 0)
            yield name, reply

    def _count(self, up: int, down: int) -> None:
        before = self.sent[self._purpose]
        self.sent[self._purpose] = Sent(before.up + up, before.down + down, before.messages + 1)

    def _need(self, number: int, round: int) -> None:
        if number < self.least:
            raise self._failed(round, f"{number} clients are left, and {self.least} are needed")

    def _failed(self, round: int, told: object) -> ProtocolError:
        where = "the set-up" if round < 0 else f"round {round}"
        why = "; ".join(f"{name}: {reason}" for name, reason in self.left_out.items())
        return ProtocolError(f"{where}: {told}{f' ({why})' if why else ''}")


def replies(
    ask: Ask, requests: Mapping[str, Message]
) -> tuple[list[tuple[str, Message]], dict[str, str]]:
    """The replies that came and are no refusals, and why there is none of the other nodes."""
    found, left_out, missing = [], {}, set(requests)
    for name, data in ask({name: encode(message) for name, message in requests.items()}):
        if name not in missing:
            continue  # it has replied already, or nobody asked it
        missing.remove(name)
        try:
            reply = decode(data)
        except DataError as error:
            reply = Message({"refused": str(error)})
        if "refused" in reply.head:
            left_out[name] = reply.head["refused"]
        else:
            found.append((name, reply))
    return found, left_out | dict.fromkeys(missing, "no reply came")


def users_of(ask: Ask, nodes: Iterable[str]) -> tuple[dict[str, int], dict[str, str]]:
    """How many users each node has, which the terms count; and why others do not say."""
    found, left_out = replies(ask, {name: Message({"do": "greet"}) for name in nodes})
    told = {name: reply.head.get("users") for name, reply in found}
    counts = {n: each for n, each in told.items() if type(each) is int and 0 < each < 2**31}
    unclear = dict.fromkeys(told.keys() - counts, "it does not say how many users it has")
    return counts, left_out | unclear


def _unfit(arrays: Sequence[np.ndarray], shapes: Sequence[Any]) -> str:
    """What is wrong with parts in clear; nothing where they can be added."""
    if [(a.shape, a.dtype) for a in arrays] != [(s.shape, s.dtype) for s in shapes]:
        return f"its parts have the shapes {[list(array.shape) for array in arrays]}"
    fine = all(np.isfinite(a).all() for a in arrays if np.issubdtype(a.dtype, np.floating))
    return "" if fine else "its parts hold a number that is not finite"

"""A client's machine: it answers the coordinator's requests on rows that never leave it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrec.deployment import measure, vectors
from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.deployment.party import Party, on_host
from jaxrec.deployment.terms import Terms
from jaxrec.evaluation.evaluator import Evaluation, evaluator
from jaxrec.evaluation.plan import Plan
from jaxrec.federated.secure_aggregation import client as secure
from jaxrec.federated.stages import Progress
from jaxrec.settings.fields import check, setting
from jaxrec.types import REFUSALS, Data, DataError, SettingError


@dataclass(frozen=True)
class Limits:
    """What a client asks of a federation before it takes part."""

    secure_sum: bool = True
    """Whether the server may see sums over clients alone."""
    min_cohort: int = setting(3, at_least=1)
    """Fewest clients that a sum with this client's part may be over."""
    methods: tuple[str, ...] = ()
    """Methods that this client takes part in; none: any."""

    __post_init__ = check

    def refuse(self, terms: Terms) -> None:
        """Raises SettingError where the terms break a limit."""
        config = terms.config
        if self.methods and terms.method not in self.methods:
            raise SettingError(
                f"method = {terms.method!r}: this client takes part in {', '.join(self.methods)}"
            )
        if self.secure_sum and config.privacy != "secure_sum":
            raise SettingError(
                f"privacy = {config.privacy!r}: this client sends parts of secure sums alone; set "
                "privacy = 'secure_sum' on the server"
            )
        least = config.min_cohort
        if config.privacy == "secure_sum" and least < self.min_cohort:
            raise SettingError(
                f"min_cohort = {least}: this client's parts go into sums over at least "
                f"{self.min_cohort} clients; set min_cohort = {self.min_cohort} on the server"
            )


class Node:
    """One client of a federation.

    `answer` takes a request and gives a reply, both as bytes. What a node refuses it says in the
    reply, in one sentence, and nothing of its rows goes with it.
    """

    def __init__(
        self, data: Data, limits: Limits | None = None, plans: Mapping[str, Plan] | None = None
    ):
        """Make a client that has joined nobody yet.

        Args:
          data: this client's rows, one bucket of one client, with the items' public texts.
          limits: what it asks of a federation.
          plans: its held-out users by the name of the split, "valid" or "test".
        """
        self.data, self.limits, self.plans = data, limits or Limits(), plans or {}
        self._evaluate_split: dict[str, Callable[[Any, Data], Evaluation]] = {}
        self.party: Party | None = None
        self.number: int | None = None  # among the federation's clients
        self.own: dict[int, list[np.ndarray]] = {}  # its part of the state, by the next round
        self._progress: Progress | None = None
        self._ends: int = 0  # the round before which what is in progress ends
        self._sum: secure.Client | None = None
        self._newest = -1  # number of the newest secure sum

    def answer(self, request: bytes) -> bytes:
        """The reply to a request of the coordinator."""
        try:
            message = decode(request)
            kinds = {"hello": self._hello, "join": self._join, "secure": self._secure}
            kinds |= {"begin": self._begin, "go on": self._go_on, "evaluate": self._evaluate}
            if (name := message.head["do"]) not in kinds:
                raise DataError(f"a request to {name!r}: nobody here can")
            reply = kinds[name](message)
        except REFUSALS as error:
            reply = Message({"refused": str(error)})
        except (KeyError, IndexError, TypeError, ValueError) as error:
            reply = Message({"refused": f"the request is not what it should be: {error!r}"})
        return encode(reply)

    def _hello(self, message: Message) -> Message:
        """What the server may know before anything is agreed on."""
        return Message({"users": self.data.clients[0].users.shape[1]})

    def _join(self, message: Message) -> Message:
        """Agree to the terms, or refuse them."""
        terms = Terms.from_json(message.head["terms"])
        self.limits.refuse(terms)
        number = int(message.head["client"])
        if self.party and (self.party.terms, self.number) == (terms, number):
            return Message({"round": max(self.own, default=-1)})
        if not 0 <= number < terms.clients:
            raise DataError(f"client {number}: the terms have {terms.clients} places")
        me = self.data.clients[0]._replace(client=jnp.full(1, number, jnp.int32))
        self.party = Party(terms, self.data._replace(clients=(me,)))
        self.number, self.own, self._progress, self._evaluate_split = number, {}, None, {}
        return Message({"round": -1})

    def _begin(self, message: Message) -> Message:
        """Compute this client's part of the first sums of a set-up or of a round."""
        party = self._joined()
        what, number = message.head["what"], int(message.head["round"])
        if what == "init":
            self._ends = 0
            self._progress = party.programs.init(True).begin(party.init_key, party.data)
        else:
            self._ends, state = number + 1, self._state(party, message)
            stages = party.programs.step(True)
            self._progress = stages.begin(state, party.data, party.key_of(number))
        return self._reply(message)

    def _evaluate(self, message: Message) -> Message:
        """Rank the held-out items of this client's users, and send its part of the sums."""
        party, split, ks = self._joined(), message.head["split"], tuple(message.head["ks"])
        if (plan := self.plans.get(split)) is None or plan.ks != ks:
            told = f"and has lists of lengths {list(plan.ks)}" if plan else "and has none"
            raise DataError(f"split {split!r} at {list(ks)}: this client holds out its own, {told}")
        if split not in self._evaluate_split:
            self._evaluate_split[split] = evaluator(party.method, plan, lists=False)
        found = self._evaluate_split[split](self._state(party, message), party.data)
        return self._sent(message, {}, [measure.part_of(found.per_user, ks)])

    def _joined(self) -> Party:
        if self.party is None:
            raise DataError("a round before the terms: this client has not joined")
        return self.party

    def _state(self, party: Party, message: Message) -> Any:
        """The state before a round: what came, and this client's part.

        Where it missed rounds, its part is where it was.
        """
        number = int(message.head["round"])
        if (newest := max((r for r in self.own if r <= number), default=None)) is None:
            raise DataError(f"round {number}: this client was in no set-up before it")
        return party.joined(message.arrays[: message.head["shared"]], self.own[newest])

    def _go_on(self, message: Message) -> Message:
        """Compute the next stage, from the sums over all clients."""
        if self._progress is None:
            raise DataError("sums of a round that this client has not begun: it was started anew")
        self._progress = self._progress.go_on(message.arrays[: message.head["totals"]])
        return self._reply(message)

    def _reply(self, message: Message) -> Message:
        """Keep what is known of this client's part of the state, and send the next parts."""
        progress = self._progress
        assert progress is not None
        if progress.done:
            kept = {r: own for r, own in self.own.items() if r >= self._ends - 1}
            self.own = kept | {self._ends: on_host(progress.results)}
        head = {"done": progress.done, "parts": len(progress.parts)}
        if not progress.parts:
            self._progress = None
            return Message(head)
        return self._sent(message, head, on_host(progress.parts))

    def _sent(self, message: Message, head: dict[str, Any], parts: list[np.ndarray]) -> Message:
        """This client's parts, in clear or as the first message of a secure sum."""
        party = self._joined()
        if (number := message.head.get("sum")) is None:
            if self.limits.secure_sum or party.config.privacy != "plain":
                raise SettingError("parts in clear were asked for: this client sends none")
            return Message(head, parts)
        if number <= self._newest:
            raise DataError(f"secure sum {number}: this client has been in sum {self._newest}")
        vector = vectors.to_vector(parts, party.terms.clients)
        self._newest, self._vector = number, vector
        least = max(party.config.min_cohort, self.limits.min_cohort)
        self._sum = secure.join(int(message.head["me"]), number, max(2, least))
        return Message(head, [self._protocol(message.arrays[-1])])

    def _secure(self, message: Message) -> Message:
        """The next message of a secure sum."""
        return Message({}, [self._protocol(message.arrays[0])])

    def _protocol(self, request: np.ndarray) -> np.ndarray:
        if self._sum is None:
            raise DataError("a message of a secure sum that this client has not begun")
        self._sum, reply = secure.answer(self._sum, request.tobytes(), lambda: self._vector)
        return np.frombuffer(reply, np.uint8)

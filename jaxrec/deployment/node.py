"""A client's machine: it answers the coordinator's requests on rows that never leave it."""

from __future__ import annotations

import logging
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

SET_UP, NOTHING = -1, -2  # rounds before round 0

log = logging.getLogger(__name__)


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
    reply, in one sentence that holds nothing of its rows; more is in its log.

    Rounds go forward. A node begins the set-up and each round once: the sum of a second try, with
    other clients in it, would tell a server the part of whoever is in one of the two alone. What a
    client has learned about its own users it keeps, also where its part did not arrive.
    """

    def __init__(
        self,
        data: Data,
        limits: Limits | None = None,
        plans: Mapping[str, Plan] | None = None,
        catalogue: str = "",
    ):
        """Make a client that has joined nobody yet.

        Args:
          data: this client's rows, one bucket of one client, with the items' public texts.
          limits: what it asks of a federation.
          plans: its held-out users by the name of the split, "valid" or "test".
          catalogue: digest of the list of items that its rows are laid on.
        """
        self.catalogue = catalogue
        self.data, self.limits, self.plans = data, limits or Limits(), plans or {}
        self.party: Party | None = None
        self.number = -1  # among the federation's clients
        self.own: list[np.ndarray] | None = None  # its part of the state
        self.begun = NOTHING  # the newest round that it has begun
        self._evaluators: dict[str, Callable[[Any, Data], Evaluation]] = {}
        self._progress: Progress | None = None
        self._vector = np.zeros(0, np.uint32)
        self._sum: secure.Client | None = None
        self._newest = -1  # number of the newest secure sum

    def answer(self, request: bytes) -> bytes:
        """The reply to a request of the coordinator."""
        try:
            message = decode(request)
            kinds = {"join": self._join, "begin": self._begin, "go on": self._go_on}
            kinds |= {"secure": self._secure, "evaluate": self._evaluate}
            if (name := message.head.get("do")) not in kinds:
                raise DataError(f"this client knows no request {name!r}")
            reply = kinds[name](message)
        except REFUSALS as error:
            reply = Message({"refused": str(error)})
        except Exception:  # whatever a request holds, the node lives on
            log.exception("a request failed")
            reply = Message({"refused": "this client failed at the request; its log says why"})
        return encode(reply)

    def _join(self, message: Message) -> Message:
        """Agree to the terms, or refuse them."""
        terms, number = Terms.from_json(message.head["terms"]), message.head["client"]
        self.limits.refuse(terms)
        if not (isinstance(number, int) and 0 <= number < terms.clients):
            raise DataError(f"client {number}: the terms have {terms.clients} places")
        if terms.catalogue != self.catalogue:
            raise DataError(
                f"catalogue {terms.catalogue[:12] or 'none'}: this client's rows are laid on "
                f"{self.catalogue[:12] or 'none'}; give server and clients the same list of items"
            )
        if (most := int(self.data.clients[0].item.max())) >= terms.items:
            raise DataError(f"items = {terms.items}: this client has rows of item {most}")
        if self.party is None or (self.party.terms, self.number) != (terms, number):
            me = self.data.clients[0]._replace(client=jnp.full(1, number, jnp.int32))
            self.party = Party(terms, self.data._replace(clients=(me,)))
            self.number, self.own, self.begun, self._progress = number, None, NOTHING, None
            self._evaluators = {}
        return Message({"users": self.data.clients[0].users.shape[1], "round": self.begun})

    def _begin(self, message: Message) -> Message:
        """Compute this client's part of the first sums of the set-up or of a round."""
        party, number = self._joined(), message.head["round"]
        if not (isinstance(number, int) and self.begun < number < 2**31):
            raise DataError(
                f"round {number}: this client has begun round {self.begun} and goes forward alone"
            )
        if number == SET_UP:
            progress = party.programs.init(True).begin(party.init_key, party.data)
        else:
            state = self._state(party, message)
            progress = party.programs.step(True).begin(state, party.data, party.key_of(number))
        self.begun = number
        return self._moved(message, progress)

    def _go_on(self, message: Message) -> Message:
        """Compute the next stage, from the sums over all clients."""
        progress, at = self._progress, (message.head["round"], message.head["exchange"])
        if progress is None or at != (self.begun, progress.number):
            raise DataError(f"this client does not wait for sums {at[1]} of round {at[0]}")
        return self._moved(message, progress.go_on(message.arrays[: message.head["totals"]]))

    def _evaluate(self, message: Message) -> Message:
        """Rank the held-out items of this client's users, and send its part of the sums."""
        party, split, ks = self._joined(), message.head["split"], tuple(message.head["ks"])
        if (plan := self.plans.get(split)) is None or plan.ks != ks:
            there = f"lists of lengths {list(plan.ks)}" if plan else "no held-out rows"
            raise DataError(f"split {split!r}, lists of lengths {list(ks)}: it has {there}")
        if split not in self._evaluators:
            self._evaluators[split] = evaluator(party.method, plan, lists=False)
        found = self._evaluators[split](self._state(party, message), party.data)
        return self._sent(message, [measure.part_of(found.per_user, ks)])

    def _joined(self) -> Party:
        if self.party is None:
            raise DataError("this client has joined no federation yet")
        return self.party

    def _state(self, party: Party, message: Message) -> Any:
        """The shared leaves that came, and this client's own."""
        if self.own is None:  # it comes late
            first = party.programs.init(True).begin(party.init_key, party.data)
            if not first.done:
                raise DataError(
                    "this client was not in the set-up, and its users need the sums of it; begin "
                    "with new terms, such as another seed"
                )
            self.own = on_host(first.results)
        return party.joined(message.arrays[: message.head["shared"]], self.own)

    def _moved(self, message: Message, progress: Progress) -> Message:
        """Keep what is known of this client's part of the state, and send the next parts."""
        if progress.done:
            self.own = on_host(progress.results)
        self._progress = progress if progress.parts else None
        return self._sent(message, on_host(progress.parts)) if progress.parts else Message({})

    def _sent(self, message: Message, parts: list[np.ndarray]) -> Message:
        """This client's parts, in clear or as the first message of a secure sum."""
        party, number = self._joined(), message.head.get("sum")
        if number is None:
            if self.limits.secure_sum or party.config.privacy != "plain":
                raise SettingError("this client sends its parts in secure sums alone")
            return Message({}, parts)
        if not (isinstance(number, int) and self._newest < number < 2**63):
            raise DataError(f"secure sum {number}: this client has been in sum {self._newest}")
        self._vector = vectors.to_vector(parts, party.terms.clients)
        least = max(2, party.config.min_cohort, self.limits.min_cohort)
        self._sum = secure.join(int(message.head["me"]), number, least)
        first = self._protocol(message.arrays[-1])
        self._newest = number
        return Message({}, [first])

    def _secure(self, message: Message) -> Message:
        """The next message of a secure sum."""
        return Message({}, [self._protocol(message.arrays[0])])

    def _protocol(self, request: np.ndarray) -> np.ndarray:
        if self._sum is None:
            raise DataError("this client is in no secure sum")
        self._sum, reply = secure.answer(self._sum, request.tobytes(), lambda: self._vector)
        return np.frombuffer(reply, np.uint8)

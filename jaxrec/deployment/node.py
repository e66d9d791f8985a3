"""A client's machine: it answers the coordinator's requests on rows that never leave it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.deployment import measure, vectors
from jaxrec.deployment.memory import Memory, Standing
from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.deployment.party import Party, on_host
from jaxrec.deployment.terms import DEPLOYABLE, Terms
from jaxrec.evaluation.evaluator import Evaluation, evaluator
from jaxrec.evaluation.plan import Plan
from jaxrec.federated.secure_aggregation import client as secure
from jaxrec.federated.stages import Progress
from jaxrec.settings.fields import check, setting, unknown
from jaxrec.types import Data, DataError, SettingError

SET_UP, NOTHING = -1, -2  # rounds before round 0
LAST = 2**31  # no round has a number so high

Plans = Callable[[str, tuple[int, ...]], Plan]
"""(split, lengths of lists) -> who is measured; DataError where nothing is held out."""

log = logging.getLogger(__name__)


def nothing_held_out(split: str, ks: tuple[int, ...]) -> Plan:
    """The plans of a client that takes part and is not measured."""
    raise DataError(f"split {split!r}: this client holds nothing out")


@dataclass(frozen=True)
class Limits:
    """What a client asks of a federation before it takes part."""

    secure_sum: bool = True
    """Whether the server may see only sums over clients."""
    min_cohort: int = setting(3, at_least=1)
    """Fewest clients that a sum with this client's part may be over."""
    methods: tuple[str, ...] = ()
    """Methods that this client takes part in; none: any."""

    def __post_init__(self) -> None:
        check(self)
        for name in self.methods:
            if name not in DEPLOYABLE:
                raise unknown(f"methods = {name!r}: cannot be deployed", name, DEPLOYABLE)

    def refuse(self, terms: Terms) -> None:
        """Raises SettingError where the terms break a limit."""
        config = terms.config
        if self.methods and terms.method not in self.methods:
            raise SettingError(
                f"method = {terms.method!r}: this client takes part in {', '.join(self.methods)}"
            )
        if self.secure_sum and config.privacy != "secure_sum":
            raise SettingError(
                f"privacy = {config.privacy!r}: this client sends its parts only in secure sums; "
                "set privacy = 'secure_sum' on the server"
            )
        least = config.min_cohort
        if config.privacy == "secure_sum" and least < self.min_cohort:
            raise SettingError(
                f"min_cohort = {least}: this client's parts go into sums over at least "
                f"{self.min_cohort} clients; set min_cohort = {self.min_cohort} on the server"
            )


@dataclass
class Membership:
    """Where a node stands in one federation."""

    party: Party
    number: int  # among the federation's clients
    begun: int = NOTHING  # the newest round that it has begun
    own: list[np.ndarray] | None = None  # its part of the state
    kept: dict[int, list[np.ndarray]] = field(default_factory=dict)  # as of evaluated rounds
    shared: dict[int, np.ndarray] = field(default_factory=dict)  # the shared state, as it came
    progress: Progress | None = None
    evaluators: dict[Any, Callable[[Any, Data], Evaluation]] = field(default_factory=dict)


class Evaluated(NamedTuple):
    """What a node has evaluated last."""

    party: Party
    state: Any
    round: int
    best: int | None  # the best round before it, as far as the server knows
    split: str
    means: dict[str, float]  # over this client's users


class Node:
    """One client of a federation.

    `answer` takes a request and gives a reply, both as bytes. What a node refuses it says in the
    reply, in one sentence that holds nothing of its rows; more is in its log.

    Rounds go forward. A node begins the set-up and each round once, and a method of one step only
    once: the sum of a second try, with other clients in it, would tell a server the part of whoever
    is in only one of the two. Metrics are sums as well, and two evaluations that differ by one
    client tell that client's metrics. What a client has learned about its own users it keeps, also
    where its part did not arrive.
    """

    def __init__(
        self,
        data: Data,
        items: int,
        limits: Limits | None = None,
        plans: Plans = nothing_held_out,
        catalogue: str = "",
        *,
        texts: Callable[[str], jax.Array] | None = None,
        rows: str = "",
        memory: Memory | None = None,
    ):
        """Make a client that has joined nobody yet.

        Args:
          data: this client's rows, one bucket of one client.
          items: how many items the list has that the rows are laid on.
          limits: what it asks of a federation.
          plans: gives its held-out users of a split, "valid" or "test".
          catalogue: digest of that list.
          texts: gives the vectors [I, T] of the items' texts by the name of what makes them.
          rows: digest of its rows, which do not change under terms; by default of the train rows.
          memory: what it remembers where it stands in; without one, nothing outlives the process.
        """
        self.data, self.items, self.catalogue = data, items, catalogue
        self.limits, self.plans, self.texts = limits or Limits(), plans, texts
        self.memory = memory or Memory()
        self.users = int(data.clients[0].users.shape[1])
        self.membership: Membership | None = None
        self.evaluated: Evaluated | None = None
        self.refusal = ""  # why it has refused the last request, if it has
        self.ended = False  # whether the server has said that it is done
        self._memberships: dict[str, Membership] = {}  # by the terms
        self._vector = np.zeros(0, np.uint32)
        self._sum: secure.Client | None = None
        self._newest = -1  # number of the newest secure sum
        self._rows = rows or _digest_of(data)

    def answer(self, request: bytes) -> bytes:
        """The reply to a request of the coordinator."""
        try:
            message = decode(request)
            kinds = {"greet": self._greet, "join": self._join, "begin": self._begin}
            kinds |= {"go on": self._go_on, "secure": self._secure, "evaluate": self._evaluate}
            kinds |= {"end": self._end}
            if (name := message.head.get("do")) not in kinds:
                raise DataError(f"this client does not know the request {name!r}")
            reply = kinds[name](message)
        except (SettingError, DataError) as error:
            reply = Message({"refused": str(error)})
        except Exception:  # whatever a request holds, the node lives on
            log.exception("a request failed")
            reply = Message({"refused": "this client failed at the request; its log says why"})
        self.refusal = reply.head.get("refused", "")
        return encode(reply)

    def _greet(self, message: Message) -> Message:
        """Say how many users this client has, which the terms count."""
        return Message({"users": self.users})

    def _join(self, message: Message) -> Message:
        """Agree to the terms, or refuse them. Who joins again is where it was."""
        terms, number = Terms.from_json(message.head["terms"]), message.head["client"]
        self.limits.refuse(terms)
        if not (isinstance(number, int) and 0 <= number < terms.clients):
            raise DataError(f"client {number}: the terms have {terms.clients} places")
        if (terms.catalogue, terms.items) != (self.catalogue, self.items):
            raise DataError(
                f"items = {terms.items}, catalogue = {terms.catalogue[:12]!r}: this client has a "
                f"list of {self.items} items, {self.catalogue[:12]!r}; give the server and all "
                "clients the same list of items"
            )
        if self.users > terms.users:
            raise DataError(f"users = {terms.users}: this client alone has more")
        told = terms.to_json()
        if told not in self._memberships:
            self._memberships[told] = self._member(terms, number)
        joined = self.membership = self._memberships[told]
        told = {"users": self.users, "round": joined.begun, "client": joined.number}
        return Message(told | {"newest_sum": self._newest})

    def _member(self, terms: Terms, number: int) -> Membership:
        """This client under terms that it has agreed to, as it stood if it had before."""
        before = self.memory.read(terms.to_json())
        if before and before.rows != self._rows:
            raise DataError(
                "the rows of this client, or their split, have changed since it joined these "
                "terms; put them back, or give the server another --seed, which makes new terms"
            )
        number = before.number if before else number
        me = self.data.clients[0]._replace(client=jnp.full(1, number, jnp.int32))
        data = self.data._replace(clients=(me,))
        if terms.text:
            if self.texts is None:
                raise DataError(f"text = {terms.text!r}: this client reads no texts of items")
            data = data._replace(text=self.texts(terms.text))
        member = Membership(Party(terms, data), number)
        if before:
            member.begun, member.own, member.kept = before.begun, before.own, before.kept
            self._newest = max(self._newest, before.newest_sum)
        return member

    def _begin(self, message: Message) -> Message:
        """Compute this client's part of the first sums of the set-up or of a round."""
        joined, number = self._joined(), message.head["round"]
        party = joined.party
        if number == SET_UP and joined.begun >= SET_UP:
            raise DataError(
                "this client has begun the set-up of these terms before, and a set-up begins once; "
                "give the server another --seed, which makes new terms"
            )
        if not (isinstance(number, int) and joined.begun < number < LAST):
            raise DataError(
                f"round {number}: this client has begun round {joined.begun}, and a round begins "
                "once; go on with a later one"
            )
        if party.method.one_shot and joined.begun >= 0:
            raise DataError(
                f"round {number}: {party.terms.method} has one step, which this client has begun; "
                "begin with new terms, such as another seed"
            )
        if number == SET_UP:
            progress = party.programs.init(True).begin(party.init_key, party.data)
        else:
            state = party.joined(self._shared(message, party.reads), self._own(joined))
            progress = party.programs.step(True).begin(state, party.data, party.key_of(number))
        joined.begun = number
        self._remember(joined)
        return self._moved(message, progress)

    def _go_on(self, message: Message) -> Message:
        """Compute the next stage, from the sums over all clients."""
        joined, at = self._joined(), (message.head["round"], message.head["exchange"])
        progress = joined.progress
        if progress is None or at != (joined.begun, progress.number):
            raise DataError(f"this client does not wait for sums {at[1]} of round {at[0]}")
        return self._moved(message, progress.go_on(message.arrays[: len(progress.due)]))

    def _evaluate(self, message: Message) -> Message:
        """Rank the held-out items of this client's users, and send its part of the sums.

        Users stand as they stood when the same round was evaluated first; a client remembers that
        of the round named `best` until a better one comes.
        """
        joined, split, ks = self._joined(), message.head["split"], tuple(message.head["ks"])
        number, best = message.head["round"], message.head["best"]
        whole = lambda value, most: type(value) is int and 0 <= value <= most
        if not whole(number, LAST) or not (best is None or whole(best, LAST)):
            raise DataError(f"round {number!r:.40}, best {best!r:.40}: are no numbers of rounds")
        if not (0 < len(ks) < 100 and all(whole(k, self.items) and k for k in ks)):
            raise DataError(f"ks = {list(ks)!r:.80}: are no lengths of lists of {self.items} items")
        if (split, ks) not in joined.evaluators:
            plan = self.plans(split, ks)
            joined.evaluators[split, ks] = evaluator(joined.party.method, plan, lists=False)
        own = joined.kept.setdefault(number, self._own(joined))
        joined.kept = {r: kept for r, kept in joined.kept.items() if r in (number, best)}
        self._remember(joined)
        state = joined.party.joined(self._shared(message), own)
        found = joined.evaluators[split, ks](state, joined.party.data)
        reply = self._sent(message, [measure.part_of(found.per_user, ks)])
        self.evaluated = Evaluated(joined.party, state, number, best, split, found.means)
        return reply

    def _end(self, message: Message) -> Message:
        """Hear that no round follows."""
        self.ended = True
        return Message({})

    def _joined(self) -> Membership:
        if self.membership is None:
            raise DataError("this client has joined no federation yet")
        return self.membership

    def _shared(self, message: Message, reads: list[bool] | None = None) -> list[np.ndarray]:
        """The shared state: arrays that have changed are in the message.

        `reads` says which arrays are read; None: all. The others are zero where they never came.
        """
        joined, new = self._joined(), message.head["new"]
        joined.shared |= dict(zip(new, message.arrays, strict=False))
        like = joined.party.shared_like
        read = reads or [True] * len(like)
        if any(name not in joined.shared for name in range(len(like)) if read[name]):
            raise DataError("this client lacks a part of the shared state; offer the terms again")
        known, zeros = joined.shared, lambda shape: np.zeros(shape.shape, shape.dtype)
        return [known[n] if n in known else zeros(shape) for n, shape in enumerate(like)]

    def _own(self, joined: Membership) -> list[np.ndarray]:
        """This client's part of the state."""
        if joined.own is None:  # it comes late
            party = joined.party
            first = party.programs.init(True).begin(party.init_key, party.data)
            if not first.done:
                raise DataError(
                    "this client was not in the set-up, and its users need the sums of it; begin "
                    "with new terms, such as another seed"
                )
            joined.own = on_host(first.results)
        return joined.own

    def _moved(self, message: Message, progress: Progress) -> Message:
        """Keep what is known of this client's part of the state, and send the next parts."""
        joined = self._joined()
        if progress.done:
            joined.own = on_host(progress.results)
            self._remember(joined)
        joined.progress = progress if progress.parts else None
        return self._sent(message, on_host(progress.parts)) if progress.parts else Message({})

    def _sent(self, message: Message, parts: list[np.ndarray]) -> Message:
        """This client's parts, in clear or as the first message of a secure sum."""
        party, number = self._joined().party, message.head.get("sum")
        if number is None:
            if self.limits.secure_sum or party.config.privacy != "plain":
                raise SettingError("this client sends its parts only in secure sums")
            return Message({}, parts)
        if not (isinstance(number, int) and self._newest < number < 2**63):
            raise DataError(f"secure sum {number}: this client has been in sum {self._newest}")
        self._vector = vectors.to_vector(parts, party.terms.clients)
        least = max(2, party.config.min_cohort, self.limits.min_cohort)
        self._sum = secure.join(int(message.head["me"]), number, least)
        first = self._protocol(message.arrays[-1])
        self._newest = number
        self._remember(self._joined())
        return Message({}, [first])

    def _secure(self, message: Message) -> Message:
        """The next message of a secure sum."""
        return Message({}, [self._protocol(message.arrays[0])])

    def _remember(self, joined: Membership) -> None:
        kept, newest = joined.kept, self._newest
        standing = Standing(joined.number, joined.begun, joined.own, kept, newest, self._rows)
        self.memory.write(joined.party.terms.to_json(), standing)

    def _protocol(self, request: np.ndarray) -> np.ndarray:
        if self._sum is None:
            raise DataError("this client is in no secure sum")
        self._sum, reply = secure.answer(self._sum, request.tobytes(), lambda: self._vector)
        return np.frombuffer(reply, np.uint8)


def _digest_of(data: Data) -> str:
    """sha256 of a client's train rows."""
    client = data.clients[0]
    rows = (client.user, client.item, client.mask)
    return hashlib.sha256(b"".join(np.asarray(array).tobytes() for array in rows)).hexdigest()

"""Clients on machines of their own learn what a simulation of the same clients learns."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.deployment import Coordinator, Limits, Node, Terms
from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.deployment.party import nobody
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.federated.secure_aggregation import ProtocolError
from jaxrec.types import VALID, SettingError

CLIENTS, ITEMS = 4, 32
SUMS = {"min_cohort": 2}
PLAIN = {"privacy": "plain"}
WILLING = Limits(secure_sum=False, min_cohort=2)
CODED = {"width": 4, "codes": 4, "levels": 1, "passes": 2, "participation": 1.0}
# In eight bits, rounding follows the arbitrary signs of the set-up's eigenvectors.
EXACT = {"uplink": "float32", "downlink": "float32", "sketch_bits": 32}
COLD = {"channels": "random", "start": "cold"}
METHODS = {
    "popularity": ("popularity", SUMS, 1),
    "fedavg": ("fedavg", {"width": 8, "local_steps": 2, **SUMS}, 3),
    "fedavg in clear": ("fedavg", {"width": 8, "local_steps": 2, **PLAIN}, 2),
    "fedmf": ("fedavg", {"width": 8, "upload": "gradient", **SUMS}, 2),
    "fedcia": ("fedcia", {"width": 8, **SUMS}, 3),
    "ease in clear": ("fedcia", {"model": "ease", **PLAIN}, 1),
    "gfcf": ("fedcia", {"model": "gfcf", "singular_vectors": 8, **SUMS}, 1),
    "gfcf's sketch": ("fedcia", {"model": "gfcf", "singular_vectors": 8, "sketch": 20, **SUMS}, 1),
    "gram": ("fedcia", {"model": "gram", "directions": 10, "basis": "items", **SUMS}, 1),
    "rqfedrec's rounds": ("rqfedrec", {**CODED, **EXACT, **SUMS, **COLD}, 2),
    "rqfedrec": ("rqfedrec", {**CODED, **EXACT, **SUMS}, 2),
}
SLOW = ("rqfedrec's rounds", "rqfedrec")  # their sums are of the kinds of fedmf and gfcf's sketch


@cache
def problem():
    return split(synthetic(users=48, items=ITEMS, clients=CLIENTS, length=16), "ratio", 0.1, 0.2, 0)


@pytest.fixture(scope="module")
def whole():
    """All clients in one bucket, by number, and the sizes."""
    data, sizes = pack(problem(), lengths=[300])
    (clients,) = data.clients
    order = np.argsort(clients.client)
    return data._replace(clients=(jax.tree.map(lambda leaf: leaf[order], clients),)), sizes


def of_client(data, number):
    return data._replace(
        clients=(jax.tree.map(lambda leaf: leaf[number : number + 1], data.clients[0]),)
    )


class Network:
    """Nodes in this process; some requests get lost, and some replies change on their way."""

    def __init__(self, whole, limits=WILLING):
        data, _ = whole
        self.nodes = {
            f"client {n}": Node(of_client(data, n), ITEMS, limits) for n in range(CLIENTS)
        }
        self.lost = lambda name, request: False
        self.changed = lambda name, reply: reply
        self.up = self.down = 0

    def ask(self, requests):
        for name, request in requests.items():
            if self.lost(name, decode(request).head):
                continue
            reply = self.changed(name, self.nodes[name].answer(request))
            self.down, self.up = self.down + len(request), self.up + len(reply)
            yield name, reply


def federation(whole, method, settings, network):
    data, sizes = whole
    terms = Terms(method, sizes.items, CLIENTS, sizes.users, 7, settings)
    coordinator = Coordinator(terms, nobody(terms, data), network.ask)
    coordinator.enrol(network.nodes)
    return coordinator


def simulated(coordinator, data, rounds):
    """The state and the last metrics of the same rounds on one machine."""
    party = coordinator.party
    state, step, metrics = jax.jit(party.method.init)(party.init_key, data), None, None
    step = jax.jit(party.method.step)
    for number in range(rounds):
        state, metrics = step(state, data, party.key_of(number))
    return state, metrics


def scores(coordinator, state, data):
    method, users = coordinator.party.method, coordinator.terms.users
    serve = lambda state: method.score(method.prepare(state, data), jnp.arange(users))
    return np.asarray(jax.jit(serve)(state))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in METHODS]
)
def test_clients_on_their_own_machines_learn_what_a_simulation_does(whole, name):
    method, settings, rounds = METHODS[name]
    network = Network(whole)
    coordinator = federation(whole, method, settings, network)
    assert coordinator.members == {f"client {n}": n for n in range(CLIENTS)}
    state = coordinator.init()
    for number in range(rounds):
        state, metrics = coordinator.step(state, number)
    assert coordinator.left_out == {}
    expected, expected_metrics = simulated(coordinator, whole[0], rounds)
    own = [network.nodes[name].membership.own for name in sorted(network.nodes)]
    together = [np.concatenate(leaves) for leaves in zip(*own, strict=True)]
    state = coordinator.party.joined(coordinator.party.leaves(state, own=False), together)
    found, wanted = (scores(coordinator, each, whole[0]) for each in (state, expected))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
    for one, other in zip(*map(jax.tree.leaves, (metrics, expected_metrics)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_the_server_sees_no_part_of_a_secure_sum(whole):
    network, seen = Network(whole), []
    coordinator = federation(whole, "popularity", SUMS, network)
    network.changed = lambda name, reply: seen.append(decode(reply)) or reply
    state, _ = coordinator.step(coordinator.init(), 0)
    counts = np.bincount(np.asarray(whole[0].clients[0].item)[np.asarray(whole[0].clients[0].mask)])
    kept = np.where(counts >= coordinator.party.config.min_support, counts, 0)
    np.testing.assert_array_equal(state.counts[: len(kept)], kept)
    assert {array.dtype for reply in seen for array in reply.arrays} == {np.dtype(np.uint8)}
    assert {key for reply in seen for key in reply.head} <= {"users", "round"}


FEDAVG = ("fedavg", {"width": 8, "local_steps": 2, **SUMS})


@pytest.mark.parametrize("settings", [SUMS, PLAIN], ids=["secure sums", "in clear"])
def test_held_out_users_of_all_clients_are_measured_as_on_one_machine(whole, settings):
    data, _ = whole
    dataset, network = problem(), Network(whole)
    owner = dataset.interactions.groupby("user")["client"].first()
    for number, node in enumerate(network.nodes.values()):
        only = (dataset.interactions["user"].map(owner) == number).to_numpy()
        node.plans = lambda split, ks, only=only: make_plan(dataset, VALID, ks=ks, only=only)
    coordinator = federation(whole, "fedcia", {"width": 8, **settings}, network)
    state, _ = coordinator.step(coordinator.init(), 0)
    found = coordinator.evaluate(state, 1, "valid", (5, 10, 20)).means
    wanted = evaluator(coordinator.party.method, make_plan(dataset, VALID), lists=False)
    wanted = wanted(state, data).means
    assert set(found) == {n for n in wanted if "client" not in n and not re.match("F1.*/se", n)}
    for name, value in found.items():
        assert value == pytest.approx(wanted[name], rel=1e-3, abs=1e-4), name
    assert "Recall@7" in coordinator.evaluate(state, 1, "valid", (7,)).means


@pytest.mark.parametrize("stage", ["begin", "advertised", "shared", "masked"])
def test_a_client_that_vanishes_is_out_of_the_round_and_comes_back(whole, stage):
    """At each message of a round; whoever has sent its vector is in the sum."""
    method, settings = FEDAVG
    network = Network(whole)
    coordinator = federation(whole, method, settings, network)
    state, heard = coordinator.init(), []
    before = network.nodes["client 2"].membership.own
    number = ["begin", "advertised", "shared", "masked"].index(stage)

    def lost(name, head):
        heard.append(name)
        return name == "client 2" and heard.count(name) > number

    network.lost = lost
    state, metrics = coordinator.step(state, 0)
    assert metrics.participants == (4 if stage == "masked" else 3)
    assert coordinator.left_out == {"client 2": "no reply came"}
    network.lost = lambda *_: False
    if stage == "begin":  # it never heard of the round, so its users stand where they stood
        assert network.nodes["client 2"].membership.own is before
    state, metrics = coordinator.step(state, 1)
    assert (metrics.participants, coordinator.left_out) == (4, {})


def test_a_round_with_too_few_clients_is_over_and_cannot_be_tried_again(whole):
    """Two sums of one round, of which one has a client more, would tell that client's part."""
    network = Network(whole)
    coordinator = federation(whole, *FEDAVG, network)
    state, masked = coordinator.init(), []
    network.lost = lambda name, head: head["do"] == "secure" and name != "client 0"
    network.changed = lambda name, reply: masked.append(decode(reply)) or reply
    with pytest.raises(ProtocolError, match=r"round 0: .*begin another round.*no reply came"):
        coordinator.step(state, 0)
    assert len(masked) == CLIENTS + 1  # keys of all, shares of one, and no vector of anybody
    network.lost = lambda *_: False
    with pytest.raises(ProtocolError, match="has begun round 0, and a round begins once"):
        coordinator.step(state, 0)
    with pytest.raises(ProtocolError, match="begun the set-up of these terms before"):
        coordinator.init()
    _, metrics = coordinator.step(state, coordinator.begun + 1)
    assert metrics.participants == CLIENTS


@pytest.mark.parametrize("method", ["fedavg", "rqfedrec"])
def test_a_client_that_comes_late_takes_part_where_its_users_need_no_set_up(whole, method):
    network = Network(whole)
    settings = {**CODED, **EXACT, **COLD, **SUMS} if method == "rqfedrec" else FEDAVG[1]
    coordinator = federation(whole, method, settings, network)
    state = coordinator.init()
    late = network.nodes["client 3"] = Node(of_client(whole[0], 3), ITEMS, WILLING)
    coordinator.enrol(network.nodes)
    assert (coordinator.members["client 3"], coordinator.users["client 3"]) == (3, 12)
    _, metrics = coordinator.step(state, 0)
    if method == "fedavg":
        assert (metrics.participants, coordinator.left_out) == (4, {})
        assert late.membership.own is not None
    else:
        assert metrics.participants == 3
        assert "was not in the set-up" in coordinator.left_out["client 3"]


def test_what_a_client_has_is_not_sent_again(whole):
    """RQFedRec's vectors of texts, for one, never change."""
    network = Network(whole)
    coordinator = federation(whole, *FEDAVG, network)
    state, heard = coordinator.init(), []
    network.lost = lambda name, head: heard.append(head) and False
    state, _ = coordinator.step(state, 0)
    state, _ = coordinator.step(state, 1)
    sent = {head["round"]: set(head["new"]) for head in heard if head["do"] == "begin"}
    assert sent[1] < sent[0]  # which items have support
    again = Node(of_client(whole[0], 0), ITEMS, WILLING)
    network.nodes["client 0"] = again  # its machine has forgotten all
    coordinator.step(state, 2)
    assert "joined no federation" in coordinator.left_out["client 0"]
    coordinator.enrol(network.nodes)
    _, metrics = coordinator.step(state, 3)
    assert metrics.participants == CLIENTS


def test_another_coordinator_goes_on_with_the_same_clients(whole):
    network = Network(whole)
    first = federation(whole, *FEDAVG, network)
    state, _ = first.step(first.init(), 0)
    second = federation(whole, *FEDAVG, network)
    assert (second.members, second.begun) == (first.members, 0)
    _, metrics = second.step(state, 1)
    assert metrics.participants == CLIENTS


def test_a_message_that_comes_twice_changes_nothing(whole):
    sketch = ("fedcia", {"model": "gfcf", "singular_vectors": 8, "sketch": 20, **PLAIN})
    network, calm = Network(whole), Network(whole)
    coordinator, alone = (federation(whole, *sketch, each) for each in (network, calm))

    def twice(requests):
        for name, reply in network.ask(requests):
            yield name, reply
            yield name, network.nodes[name].answer(requests[name])

    coordinator.ask = twice
    found, _ = coordinator.step(coordinator.init(), 0)
    wanted, _ = alone.step(alone.init(), 0)
    assert coordinator.left_out == {}
    np.testing.assert_array_equal(found.left, wanted.left)


def test_parts_in_clear_that_are_not_finite_are_left_out(whole):
    network = Network(whole)
    coordinator = federation(whole, "fedavg", {"width": 8, "local_steps": 2, **PLAIN}, network)
    state = coordinator.init()

    def poisoned(name, reply):
        message = decode(reply)
        if name == "client 1":
            wrong = [a * np.float32(np.nan) if a.ndim else a for a in message.arrays]
            message = message._replace(arrays=wrong)
        return encode(message)

    network.changed = poisoned
    state, metrics = coordinator.step(state, 0)
    assert metrics.participants == 3
    assert coordinator.left_out == {"client 1": "its parts hold a number that is not finite"}
    assert np.isfinite(state.shared.item).all()


def test_a_damaged_reply_counts_as_none(whole):
    network = Network(whole)
    coordinator = federation(whole, *FEDAVG, network)
    state = coordinator.init()
    network.changed = lambda name, reply: reply[:-3] if name == "client 1" else reply
    _, metrics = coordinator.step(state, 0)
    assert metrics.participants == 3
    assert "is damaged" in coordinator.left_out["client 1"]


def test_a_client_refuses_terms_beyond_its_limits(whole):
    careful = Network(whole, Limits(min_cohort=2))
    coordinator = federation(whole, "fedcia", {"width": 8, **PLAIN}, careful)
    assert coordinator.members == {}
    assert set(coordinator.left_out) == set(careful.nodes)
    assert "parts only in secure sums" in coordinator.left_out["client 0"]
    with pytest.raises(ProtocolError, match=r"^the set-up: 0 clients are left"):
        coordinator.init()
    strict = Network(whole, Limits(min_cohort=3))
    coordinator = federation(whole, "fedcia", {"width": 8, **SUMS}, strict)
    assert "sums over at least 3 clients" in coordinator.left_out["client 3"]
    choosy = Network(whole, Limits(methods=("rqfedrec",)))
    coordinator = federation(whole, "fedcia", {"width": 8}, choosy)
    assert "takes part in rqfedrec" in coordinator.left_out["client 3"]


def test_a_client_with_another_list_of_items_is_refused(whole):
    network = Network(whole)
    network.nodes["client 1"].catalogue = "f" * 64
    network.nodes["client 2"].items = 31
    coordinator = federation(whole, *FEDAVG, network)
    assert set(coordinator.members) == {"client 0", "client 3"}
    assert "list of 32 items, 'ffffffffffff'; give the" in coordinator.left_out["client 1"]
    assert "list of 31 items" in coordinator.left_out["client 2"]


def test_more_users_than_the_terms_have_are_refused(whole):
    network = Network(whole)
    terms = Terms("fedavg", ITEMS, CLIENTS, 36, 7, FEDAVG[1])
    coordinator = Coordinator(terms, nobody(terms, whole[0]), network.ask)
    coordinator.enrol(network.nodes)
    assert len(coordinator.members) == 3
    assert "with its 12 users there would be more" in coordinator.left_out["client 3"]


def test_terms_that_a_client_knows_are_not_begun_anew(whole):
    """Not after other terms, and not under another number."""
    network = Network(whole)
    first = federation(whole, *FEDAVG, network)
    state, _ = first.step(first.init(), 0)
    federation(whole, "popularity", SUMS, network)
    again = Coordinator(first.terms, first.party.data, network.ask)
    again.enrol(["client 3", "client 2"])  # who would be the first and the second
    assert (again.members, again.begun) == ({"client 2": 2, "client 3": 3}, 0)
    again.enrol(network.nodes)
    with pytest.raises(ProtocolError, match="begun the set-up of these terms before"):
        again.init()
    _, metrics = again.step(state, 1)
    assert metrics.participants == CLIENTS


def test_a_method_of_one_step_takes_one(whole):
    coordinator = federation(whole, "popularity", SUMS, Network(whole))
    state, _ = coordinator.step(coordinator.init(), 0)
    with pytest.raises(ProtocolError, match="popularity has one step, which this client has begun"):
        coordinator.step(state, 1)


def test_a_refusal_says_nothing_of_what_was_scored(whole):
    network = Network(whole)
    for node in network.nodes.values():
        node.plans = {"valid": make_plan(problem(), VALID)}
    coordinator = federation(whole, *FEDAVG, network)
    state = coordinator.init()
    broken = state.shared._replace(item=state.shared.item * np.float32(np.nan))
    with pytest.raises(ProtocolError):
        coordinator.evaluate(state._replace(shared=broken), 0, "valid", (5, 10, 20))
    assert set(coordinator.left_out.values()) == {
        "this client failed at the request; its log says why"
    }


def test_more_clients_than_places_are_told(whole):
    network = Network(whole)
    network.nodes["client 9"] = network.nodes["client 0"]
    coordinator = federation(whole, *FEDAVG, network)
    assert coordinator.left_out == {"client 9": "all 4 places are taken"}
    coordinator.enrol(["client 1"])  # it keeps its number
    assert coordinator.members["client 1"] == 1


@pytest.mark.parametrize(
    "head, told",
    [
        ({"do": "begin", "round": 0, "shared": 0}, "has joined no federation yet"),
        ({"do": "go on", "round": 0, "exchange": 0, "totals": 0}, "has joined no federation"),
        ({"do": "secure"}, "failed at the request"),
        ({"do": "_moved"}, "does not know the request '_moved'"),
        ({}, "does not know the request None"),
        ({"do": "join", "terms": "{}", "client": 0}, "states no terms of a federation"),
        ({"do": "join", "terms": '{"method": "svd"}', "client": 0}, "states no terms"),
    ],
)
def test_requests_out_of_turn_are_refused(whole, head, told):
    node = Node(of_client(whole[0], 0), ITEMS)
    assert told in decode(node.answer(encode(Message(head)))).head["refused"]


@pytest.mark.parametrize("settings", [SUMS, PLAIN], ids=["secure sums", "in clear"])
def test_requests_that_ask_for_more_than_was_agreed_are_refused(whole, settings):
    network = Network(whole)
    coordinator = federation(whole, "fedavg", {"width": 8, "local_steps": 2, **settings}, network)
    state, node = coordinator.init(), network.nodes["client 0"]
    shared = coordinator.party.leaves(state, own=False)
    head = {"do": "begin", "round": 0, "new": [*range(len(shared))]}
    ask = lambda more, arrays=shared: decode(node.answer(encode(Message({**head, **more}, arrays))))
    assert "a round begins once" in ask({"round": 2**40}).head["refused"]
    assert "a round begins once" in ask({"round": "0"}).head["refused"]
    assert "lacks a part of the shared state" in ask({"new": []}).head["refused"]
    assert "failed at the request" in ask({}, shared[::-1]).head["refused"]
    late = ask({"do": "go on", "exchange": 0, "totals": 0})
    assert "does not wait for sums 0 of round 0" in late.head["refused"]
    if settings is SUMS:
        assert "only in secure sums" in ask({}).head["refused"]  # parts in clear
    assert "secure sum nan" in ask({"round": 1, "sum": float("nan"), "me": 0}).head["refused"]
    reply = ask({"round": 2, "sum": 2**62, "me": 0}, [*shared, np.zeros(3, np.uint8)])
    assert "refused" in reply.head  # it is no invitation, and the next sum is none the worse
    _, metrics = coordinator.step(state, 3)
    assert (metrics.participants, coordinator.left_out) == (CLIENTS, {})


@pytest.mark.parametrize(
    "method, settings, told",
    [
        ("itemknn", {}, "method = 'itemknn': must be one of fedavg, fedcia, popularity, rqfedrec"),
        ("fedavg", {"participation": 0.5}, "participation = 0.5: simulates what clients do"),
        ("fedavg", {"privacy": "central_dp", "epsilon": 1.0, "clip": 1.0}, "add no noise yet"),
        ("fedavg", {"attackers": 0.2}, "attackers = 0.2: simulates what clients do"),
        ("fedavg", {"min_cohort": 1}, "min_cohort = 1: a sum over one client"),
        ("fedavg", {"widht": 8}, "widht: is no setting of fedavg; the nearest is 'width'"),
        ("fedavg", {"width": 0}, "width = 0: must be at least 1"),
    ],
)
def test_terms_that_real_clients_cannot_have_are_refused(method, settings, told):
    with pytest.raises(SettingError, match=told):
        _ = Terms(method, 32, CLIENTS, 48, settings=settings).config


@pytest.mark.parametrize(
    "method, settings, told",
    [
        ("fedavg", {"aggregate": "median", **PLAIN}, "aggregate = 'median': this round needs"),
        ("fedcia", {"training": "steps", "upload": "factor", **PLAIN}, "upload = 'sketch'"),
        ("fedcia", {"model": "mf:4,lightgcn:4", **SUMS}, "model = 'mf,lightgcn': models are dealt"),
        ("rqfedrec", {**CODED, "refresh": 1, **SUMS}, "set refresh = 0"),
    ],
)
def test_settings_that_need_more_than_sums_are_refused(whole, method, settings, told):
    with pytest.raises(SettingError, match=told):
        coordinator = federation(whole, method, {"width": 4, **settings}, Network(whole))
        coordinator.party.programs.step(False)


def test_a_node_never_counts_as_having_what_it_may_lack(whole):
    network = Network(whole)
    coordinator = federation(whole, *FEDAVG, network)
    older, _ = coordinator.step(coordinator.init(), 0)
    newer, _ = coordinator.step(older, 1)
    node = network.nodes["client 0"]
    ask = coordinator.ask

    def torn(requests):
        for name, reply in ask(requests):
            yield name, reply[:-5] if name == "client 0" else reply

    coordinator.ask = torn
    coordinator.step(newer, 2)  # client 0 has the newer state, and its reply is damaged
    coordinator.ask = ask
    coordinator.step(older, 3)
    shared = coordinator.party.leaves(older, own=False)
    for place, array in node.membership.shared.items():
        np.testing.assert_array_equal(array, shared[place])


@pytest.mark.parametrize(
    "claim", [{"newest_sum": 2**63 - 2}, {"round": 2**31 - 1}, {"client": 1}, {"users": -1}]
)
def test_a_client_that_lies_of_itself_keeps_no_other_out(whole, claim):
    network = Network(whole)

    def lying(name, reply):
        message = decode(reply)
        joins = name == "client 0" and "newest_sum" in message.head
        return encode(message._replace(head={**message.head, **claim})) if joins else reply

    network.changed = lying
    coordinator = federation(whole, *FEDAVG, network)
    assert set(coordinator.members) == {"client 1", "client 2", "client 3"}
    _, metrics = coordinator.step(coordinator.init(), 0)
    assert metrics.participants == 3

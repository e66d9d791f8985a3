"""A run with clients on machines of their own leaves an ordinary run folder."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.deployment import Coordinator, Limits, Node, Terms
from jaxrec.deployment.messages import decode
from jaxrec.deployment.party import nobody
from jaxrec.deployment.run import train_together
from jaxrec.evaluation.plan import make_plan
from jaxrec.federated.secure_aggregation import ProtocolError
from jaxrec.training.settings import RunConfig
from jaxrec.types import TEST, VALID, SettingError

CLIENTS, KS = 4, (5, 10)
RUN = RunConfig(rounds=4, evaluate_every=2, patience=0, ks=KS)


def plan_of(dataset, split, ks):
    return make_plan(dataset, {"valid": VALID, "test": TEST}[split], ks=ks)


@pytest.fixture
def network():
    """Clients of twelve users each, by name, and what the server needs to find them."""
    nodes = {}
    for number in range(CLIENTS):
        dataset = split(
            synthetic(users=12, items=32, clients=1, length=16, seed=number), "ratio", 0.1, 0.2, 0
        )
        data, sizes = pack(dataset, by_time=False, lengths=[300])
        plans = partial(plan_of, dataset)
        nodes[f"client {number}"] = Node(data, sizes.items, Limits(min_cohort=2), plans)
    return nodes, data, sizes


def coordinator(network, gone=()):
    nodes, data, sizes = network
    settings = {"width": 4, "min_cohort": 2, "min_support": 2}
    terms = Terms("fedcia", sizes.items, CLIENTS, 12 * CLIENTS, 0, settings)

    def ask(requests):
        for name, request in requests.items():
            if name not in gone:
                yield name, nodes[name].answer(request)

    return Coordinator(terms, nobody(terms, data), ask)


def test_the_server_writes_an_ordinary_run(network, tmp_path, capfd):
    out = tmp_path / "run"
    together = coordinator(network)
    result = train_together(together, lambda: network[0], RUN, out)
    assert [row["round"] for row in result.rows] == [2, 4]
    values = json.loads((out / "result.json").read_text())
    assert values["rounds"] == 4
    assert 0 < values["test/NDCG@10"] < 1
    sent = together.sent
    assert values["bytes/total"] == sum(sum(sent[name][:2]) for name in ("setup", "rounds"))
    assert values["bytes/up_per_client_round"] == sent["rounds"].up / CLIENTS / 4
    record = json.loads((out / "config.json").read_text())
    assert (record["data"]["users"], record["data"]["clients"]) == (48, 4)
    assert "privacy: " in record["protocol"]
    command = [
        sys.executable,
        "-m",
        "jaxrec.report",
        str(out),
        "--out",
        str(tmp_path / "page.html"),
    ]
    subprocess.run(command, check=True, capture_output=True)


def test_a_run_goes_on_from_its_checkpoint(network, tmp_path):
    out = tmp_path / "run"
    short = replace(RUN, rounds=2)
    train_together(coordinator(network), lambda: network[0], short, out, progress=False)
    longer = train_together(coordinator(network), lambda: network[0], RUN, out, progress=False)
    assert [row["round"] for row in longer.rows] == [2, 4]
    assert {node.membership.begun for node in network[0].values()} == {3}


def test_clients_come_and_go(network, capfd):
    gone, asked = {"client 2"}, []

    def reachable():
        asked.append(None)
        gone.clear() if len(asked) > 2 else None
        return [name for name in network[0] if name not in gone]

    together = coordinator(network, gone)
    train_together(together, reachable, RUN)
    assert set(together.members) == set(network[0])
    assert network[0]["client 2"].membership.begun == 3
    few = coordinator(network, {"client 0", "client 1", "client 2"})
    with pytest.raises(ProtocolError, match="clients are left, and 2 are needed"):
        train_together(few, lambda: network[0], RUN, tries=2, wait=0.0)
    told = capfd.readouterr().err
    assert "client 1 is left out: no reply came" in told


class Falling(Coordinator):
    """Its validation values fall from round to round."""

    def evaluate(self, state, round, split, ks, **given):
        found = super().evaluate(state, round, split, ks, **given)
        if split == "valid":
            found.means["NDCG@10"] = -round
        return found


def test_the_test_values_are_of_the_best_round(network):
    """FedAvg's users belong to a round as its items do."""
    nodes, data, sizes = network
    settings = {"width": 4, "local_steps": 4, "learning_rate": 0.5, "privacy": "plain"}
    terms = Terms("fedavg", sizes.items, CLIENTS, 12 * CLIENTS, 0, settings)
    ask = lambda requests: ((name, nodes[name].answer(r)) for name, r in requests.items())
    found = []
    for rounds in (2, 6):
        for name, node in nodes.items():
            nodes[name] = Node(node.data, node.items, Limits(secure_sum=False), node.plans)
        together, run = Falling(terms, nobody(terms, data), ask), replace(RUN, rounds=rounds)
        found.append(train_together(together, lambda: nodes, run, progress=False).values)
    short, long = found
    assert (short["rounds"], long["rounds"], long["best_round"]) == (2, 6, 2)
    tested = [name for name in short if name.startswith("test/")]
    assert [long[name] for name in tested] == [short[name] for name in tested]


def test_a_server_comes_back_while_a_client_is_away(network, tmp_path):
    out = tmp_path / "run"
    short = replace(RUN, rounds=2)
    train_together(coordinator(network), lambda: network[0], short, out, progress=False)
    again = coordinator(network, {"client 0"})
    train_together(again, lambda: ["client 1", "client 2", "client 3"], RUN, out, progress=False)
    assert again.members == {f"client {n}": n for n in range(CLIENTS)}
    begun = {name: node.membership.begun for name, node in network[0].items()}
    assert begun == {"client 0": 1, "client 1": 3, "client 2": 3, "client 3": 3}


def test_few_of_many_can_leave_for_good(network):
    there = ["client 1", "client 3"]
    together = coordinator(network)
    together.enrol(network[0])
    result = train_together(together, lambda: there, RUN, progress=False)
    assert network[0]["client 1"].membership.begun == 3
    assert result.values["rounds"] == 4
    assert network[0]["client 0"].membership.begun == -2


def test_seeds_must_agree(network):
    with pytest.raises(SettingError, match="seed = 1: the terms have seed = 0"):
        train_together(coordinator(network), lambda: network[0], RunConfig(seed=1))
    assert np.all([node.membership is None for node in network[0].values()])


def test_the_server_draws_some_of_the_clients_for_each_round(network):
    nodes, began = network[0], []
    for _ in range(2):
        for name, node in nodes.items():
            nodes[name] = Node(node.data, node.items, node.limits, node.plans)
        together, rounds = coordinator(network), []
        ask = together.ask

        def heard(requests, ask=ask, rounds=rounds):
            heads = {name: decode(request).head for name, request in requests.items()}
            rounds += [(h["round"], n) for n, h in heads.items() if h["do"] == "begin"]
            yield from ask(requests)

        together.ask = heard
        train_together(together, lambda: nodes, RUN, participation=0.5, progress=False)
        began.append(rounds)
    first, second = began
    assert first == second
    drawn = [{name for round, name in first if round == number} for number in range(4)]
    assert {len(each) for each in drawn} == {3}  # one more than a sum needs
    assert len(set(map(frozenset, drawn))) > 1
    with pytest.raises(SettingError, match=r"participation = 1\.5: must be above 0"):
        train_together(coordinator(network), lambda: nodes, RUN, participation=1.5)


class Stopped(Exception):
    """The server's process ends."""


def test_a_server_that_is_killed_takes_no_round_from_an_older_state_again(network, tmp_path):
    """With other clients in it, two sums would tell the part of whoever is in one of them."""

    class Killed(Coordinator):
        def evaluate(self, state, round, split, ks, **given):
            if round == 4:
                raise Stopped
            return super().evaluate(state, round, split, ks, **given)

    out, first = tmp_path / "run", coordinator(network)
    killed = Killed(first.terms, first.party.data, first.ask)
    with pytest.raises(Stopped):
        train_together(killed, lambda: network[0], RUN, out, progress=False)
    again, heard = coordinator(network), []
    ask = again.ask

    def listening(requests):
        heads = [decode(request).head for request in requests.values()]
        heard.extend(head["round"] for head in heads if head["do"] == "begin")
        yield from ask(requests)

    again.ask = listening
    result = train_together(again, lambda: network[0], RUN, out, progress=False)
    assert [row["round"] for row in result.rows] == [2, 4]
    assert heard == [4] * CLIENTS  # of rounds 2 and 3, whose sums were seen, neither comes again
    assert {node.membership.begun for node in network[0].values()} == {4}


def test_a_client_that_fails_is_not_drawn_for_ever(network):
    there = lambda: network[0]
    together = coordinator(network, {"client 1", "client 2"})
    together.enrol(network[0])
    result = train_together(together, there, RUN, participation=0.3, wait=0.0, progress=False)
    assert result.values["rounds"] == 4

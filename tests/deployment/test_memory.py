"""What a client must not forget, it finds again in its folder."""

import numpy as np
import pytest

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.deployment import Coordinator, Limits, Node, Terms
from jaxrec.deployment.memory import Memory, Standing
from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.deployment.party import nobody
from jaxrec.types import DataError

CLIENTS, ITEMS = 3, 32
SETTINGS = {"width": 4, "local_steps": 1, "min_cohort": 2}


def data_of(number):
    dataset = synthetic(users=6, items=ITEMS, clients=1, length=12, seed=number)
    data, _ = pack(split(dataset, "ratio", 0.1, 0.2, 0), by_time=False, lengths=[80])
    return data


@pytest.fixture
def machines(tmp_path):
    """A function that starts the clients, each with its folder."""

    def start():
        return {
            f"client {n}": Node(
                data_of(n), ITEMS, Limits(min_cohort=2), memory=Memory(tmp_path / str(n))
            )
            for n in range(CLIENTS)
        }

    return start


def coordinator(nodes, seed=0):
    terms = Terms("fedavg", ITEMS, CLIENTS, 6 * CLIENTS, seed, SETTINGS)
    ask = lambda requests: ((name, nodes[name].answer(r)) for name, r in requests.items())
    made = Coordinator(terms, nobody(terms, data_of(0)), ask)
    made.enrol(nodes)
    return made


@pytest.mark.parametrize("own", [None, [], [np.arange(3.0), np.ones((2, 1), np.int32)]])
def test_what_is_written_is_read(tmp_path, own):
    kept = {4: own, 6: own} if own is not None else {}
    standing = Standing(2, 7, own, kept, 2**40, "digest")
    memory = Memory(tmp_path)
    assert memory.read("terms") is None
    memory.write("terms", standing)
    found = memory.read("terms")
    assert found._replace(own=None, kept={}) == standing._replace(own=None, kept={})
    assert list(found.kept) == list(kept)
    for one, other in zip([found.own, *found.kept.values()], [own, *kept.values()], strict=True):
        assert (one is None) == (other is None)
        for left, right in zip(one or [], other or [], strict=True):
            np.testing.assert_array_equal(left, right)
    assert memory.read("other terms") is None


def test_a_client_that_starts_again_stands_where_it_stood(machines):
    nodes = machines()
    first = coordinator(nodes)
    state, _ = first.step(first.init(), 0)
    again = machines()
    second = coordinator(again)
    assert (second.members, second.begun) == (first.members, 0)
    for name, node in nodes.items():
        for one, other in zip(node.membership.own, again[name].membership.own, strict=True):
            np.testing.assert_array_equal(one, other)
    _, metrics = second.step(state, 1)
    assert metrics.participants == CLIENTS


def test_a_client_that_starts_again_begins_no_round_twice(machines):
    nodes = machines()
    first = coordinator(nodes)
    state = first.init()
    request = Message({"do": "begin", "round": 0, "shared": 0})
    shared = first.party.leaves(state, own=False)
    head = {"do": "begin", "round": 0, "new": [*range(len(shared))]}
    request = encode(Message({**head, "sum": 1, "me": 0}, shared))
    nodes["client 0"].answer(request)  # its process ends before any part is sent
    again = machines()["client 0"]
    told = {"do": "join", "terms": first.terms.to_json(), "client": 0}
    assert decode(again.answer(encode(Message(told)))).head["round"] == 0
    assert "a round begins once" in decode(again.answer(request)).head["refused"]


def test_a_damaged_memory_is_refused_and_kept(machines, tmp_path):
    coordinator(machines()).init()
    (path,) = (tmp_path / "1").iterdir()
    path.write_bytes(whole := path.read_bytes()[:-9])
    found = coordinator(machines())
    assert set(found.members) == {"client 0", "client 2"}
    assert "damaged" in found.left_out["client 1"]
    assert path.read_bytes() == whole
    with pytest.raises(DataError, match="may have begun rounds that it does not remember"):
        Memory(tmp_path / "1").read(found.terms.to_json())
    assert set(coordinator(machines(), seed=1).members) == set(machines())


def test_a_client_whose_rows_have_changed_is_no_member(machines, tmp_path):
    first = coordinator(machines())
    first.step(first.init(), 0)
    nodes = machines()
    changed = Node(data_of(9), ITEMS, Limits(min_cohort=2), memory=Memory(tmp_path / "1"))
    again = coordinator(nodes | {"client 1": changed})
    assert set(again.members) == {"client 0", "client 2"}
    assert "the rows of this client, or their split, have changed" in again.left_out["client 1"]

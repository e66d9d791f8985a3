"""A client's folder is an ordinary run, of what the federation has learned."""

import hashlib
import json
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec.deployment import Coordinator, Limits
from jaxrec.deployment.catalogue import read_list
from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.deployment.opening import open_terms, public_data
from jaxrec.deployment.own_run import OwnRun
from jaxrec.deployment.run import train_together
from jaxrec.methods import method_module
from jaxrec.training.settings import RunConfig
from jaxrec.types import DataError, SettingError

CLIENTS, ITEMS = 3, 30
SERVER = RunConfig(rounds=4, evaluate_every=2, ks=(5, 10), baselines=())


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A list of items, and a CSV for each client, the first of which knows one item more."""
    folder, rng = tmp_path_factory.mktemp("clients"), np.random.default_rng(0)
    ids = [f"i{n:02}" for n in range(ITEMS)]
    items = pd.DataFrame({"item": ids, "title": [f"Item {n}" for n in range(ITEMS)], "domain": 0})
    items.to_csv(folder / "items.csv", index=False)
    for client in range(CLIENTS):
        rows = [
            (f"u{client}{user}", item, place)
            for user in range(8)
            for place, item in enumerate(rng.choice(ids, 9, replace=False))
        ]
        rows += [(f"u{client}0", "elsewhere", 9)] if client == 0 else []
        table = pd.DataFrame(rows, columns=["user", "item", "timestamp"])
        table.to_csv(folder / f"client{client}.csv", index=False)
    return folder


def method_of(nodes):
    return nodes["client 0"].membership.party


def federation(files, folder, method, seed=0, **settings):
    """The clients, a coordinator and the list of items, in one process."""
    items = read_list(str(files / "items.csv"))
    owned, nodes = {}, {}
    for n in range(CLIENTS):
        run = RunConfig(data=str(files / f"client{n}.csv"), baselines=())
        owned[f"client {n}"] = OwnRun(run, items, folder / str(n), progress=False)
        nodes[f"client {n}"] = owned[f"client {n}"].node(Limits())
    config = method_module(method).Config(min_support=2, **settings)

    def ask(requests):
        for name, request in requests.items():
            reply = nodes[name].answer(request)
            owned[name].keep(nodes[name])
            yield name, reply

    terms = open_terms(
        method, replace(SERVER, seed=seed), config, items, ask, nodes, clients=CLIENTS
    )
    coordinator = Coordinator(terms, public_data(terms, items), ask)
    coordinator.enrol(nodes)
    return nodes, coordinator, items


@pytest.mark.parametrize(
    "method, settings", [("fedavg", {"width": 4, "local_steps": 1}), ("fedcia", {"model": "ease"})]
)
def test_the_folder_recommends_what_the_federation_has_learned(files, tmp_path, method, settings):
    nodes, coordinator, items = federation(files, tmp_path, method, **settings)
    assert coordinator.terms.users == 24
    result = train_together(
        coordinator, lambda: nodes, SERVER, tmp_path / "server", items=items, progress=False
    )
    model = jaxrec.open(tmp_path / "0")
    lists = model.recommend(k=3)
    assert lists["user"].nunique() == 8
    assert set(lists["title"]) <= {f"Item {n}" for n in range(ITEMS)}
    best, member = result.values["best_round"], nodes["client 0"].membership
    party = member.party
    state = party.joined(party.leaves(result.state, own=False), member.kept[best])
    reopened = jaxrec.reopen(tmp_path / "0")
    for one, other in zip(*map(jax.tree.leaves, (reopened.state, state)), strict=True):
        np.testing.assert_array_equal(one, other)
    users = jnp.arange(8)
    own = lambda method, data: method.score(method.prepare(state, data), users)
    found, wanted = own(reopened.method, reopened.data), own(party.method, party.data)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_later_evaluations_keep_the_best_round(files, tmp_path):
    _, coordinator, _ = federation(files, tmp_path, "fedavg", width=4, local_steps=1)
    state = coordinator.init()
    for round, best in ((0, None), (2, 0), (4, 0), (5, 4)):
        coordinator.evaluate(state, round, "valid", (5, 10, 20), best=best)
        index = json.loads((tmp_path / "1" / "checkpoint" / "index.json").read_text())
        assert index["memory"] == {"round": round, "best_round": 0 if best is None else best}
        assert index["best"] == f"round-{index['memory']['best_round']}"
    rows = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").open()]
    assert [row["round"] for row in rows] == [0, 2, 4, 5]
    assert jaxrec.reopen(tmp_path / "1").rows == rows


def test_a_restarted_client_goes_on_in_its_folder(files, tmp_path):
    _, coordinator, _ = federation(files, tmp_path, "fedcia", width=4)
    coordinator.step(coordinator.init(), 0)
    _, again, _ = federation(files, tmp_path, "fedcia", width=4)
    assert again.terms == coordinator.terms
    assert again.begun == 0


def test_items_that_the_list_does_not_know_are_told(files, tmp_path, capfd):
    items = read_list(str(files / "items.csv"))
    own = OwnRun(RunConfig(data=str(files / "client0.csv"), baselines=()), items, tmp_path)
    told = capfd.readouterr().err
    assert "rows of 1 items are left out, which are not in the federation's list: elsewhere" in told
    assert len(own.dataset.interactions) == 72
    other = items.assign(raw_id=[f"x{n}" for n in range(ITEMS)])
    with pytest.raises(DataError, match=r"none of its \d+ items is among the 30"):
        OwnRun(RunConfig(data=str(files / "client0.csv"), baselines=()), other, tmp_path)


def test_the_list_of_items_is_read_from_the_web_with_its_digest(files, tmp_path):
    path = files / "items.csv"
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    handler = partial(SimpleHTTPRequestHandler, directory=str(files))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/items.csv"
        found = read_list(url, sha, progress=False)
        server.shutdown()
    pd.testing.assert_frame_equal(found, read_list(str(path), sha))
    with pytest.raises(SettingError, match="needs its file's --items-sha256"):
        read_list("https://example.org/items.csv")
    with pytest.raises(DataError, match="is not the 0000"):
        read_list(str(path), "0" * 64)
    with pytest.raises(DataError, match="is no table of items"):
        read_list(str(files / "none.csv"))


def test_another_federation_begins_the_folder_anew(files, tmp_path):
    for seed in (0, 1):
        nodes, coordinator, _ = federation(
            files, tmp_path, "fedavg", width=4, local_steps=1, seed=seed
        )
        state, _ = coordinator.step(coordinator.init(), 0)
        coordinator.evaluate(state, 1, "valid", (5, 10, 20))
        reopened = jaxrec.reopen(tmp_path / "0")
        found = method_of(nodes).leaves(reopened.state, own=False)
        for one, other in zip(found, method_of(nodes).leaves(state, own=False), strict=True):
            np.testing.assert_array_equal(one, other)
        assert [row["round"] for row in reopened.rows] == [1]


def test_a_folder_of_another_run_is_left_alone(files, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    run = RunConfig(data=str(files / "client0.csv"), baselines=())
    with pytest.raises(SettingError, match="holds a run that is no client's"):
        OwnRun(run, read_list(str(files / "items.csv")), tmp_path)


@pytest.mark.parametrize("round", ["0/../../victim", -1, True, 2**40, None])
def test_a_round_that_is_no_number_of_a_round_is_refused(files, tmp_path, round):
    nodes, coordinator, _ = federation(files, tmp_path, "popularity")
    coordinator.step(coordinator.init(), 0)
    before, node = sorted(tmp_path.rglob("*")), nodes["client 0"]
    head = {"do": "evaluate", "split": "valid", "ks": [5], "best": None, "new": []}
    refused = lambda **told: decode(node.answer(encode(Message({**head, **told})))).head["refused"]
    assert "are no numbers of rounds" in refused(round=round)
    assert "are no numbers of rounds" in refused(round=1, best=str(round))
    assert "are no lengths of lists" in refused(round=1, ks=[10**9])
    assert sorted(tmp_path.rglob("*")) == before
    assert node.evaluated is None

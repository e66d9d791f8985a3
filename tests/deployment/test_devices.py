"""The commands of a federation, as processes that are killed, late, wrong or away."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pandas as pd
import pytest

import jaxrec
from jaxrec.deployment.flower.supernode import private_key
from tests.deployment import certificates

pytestmark = pytest.mark.slow  # minutes; `test_flower` has the same messages in one process
CLIENTS, ITEMS, USERS = 5, 30, 6
LIMIT = 240.0  # seconds for a test's processes


class Processes:
    """A server and clients in a folder; each writes what it says to NAME.log."""

    def __init__(self, folder, clients=CLIENTS):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            self.port = taken.getsockname()[1]
        self.folder, self.clients, self.started = folder, clients, {}
        certificates.make(folder / "tls")
        rng = np.random.default_rng(0)
        ids = [f"i{n:02}" for n in range(ITEMS)]
        pd.DataFrame({"item": ids, "title": ids}).to_csv(folder / "items.csv", index=False)
        parts = []
        for client in range(clients):
            private_key(folder / "keys" / f"client-{client}.key")
            rows = [
                (f"u{client}-{user}", item, (0, 0, 0, 0, 0, 0, 1, 2)[place])
                for user in range(USERS)
                for place, item in enumerate(rng.choice(ids, 8, replace=False))
            ]
            part = pd.DataFrame(rows, columns=["user", "item", "split"])
            part.to_csv(folder / f"client-{client}.csv", index=False)
            parts.append(part.assign(client=client))
        self.rows = pd.concat(parts, ignore_index=True)

    def start(self, name, *words, code=None):
        """Start a process, `python -m jaxrec.words...` or some code with the words."""
        how = ["-c", code] if code else ["-m", f"jaxrec.{words[0]}"]
        with (self.folder / f"{name}.log").open("a") as log:
            process = subprocess.Popen(
                [sys.executable, *how, *(words if code else words[1:])],
                cwd=self.folder,
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": os.environ.get("PYTHONPATH", os.getcwd())},
            )
        self.started[name] = process
        return process

    def server(self, method, *words, resume=False):
        given = ["--resume", "run"] if resume else [method, "--items", "items.csv", "--out", "run"]
        tls = ["--certificate", "tls/server.pem", "--certificate-key", "tls/server.key"]
        if not resume:
            given += ["--clients", str(self.clients), "--port", str(self.port), *tls]
            given += ["--keys", "keys", "--min-support", "2", "--wait", "1"]
        return self.start("server", "coordinate", *given, *words)

    def client(self, number, root="tls/ca.pem", key=None, code=None):
        name = f"client-{number}"
        given = [f"{name}.csv", "--items", "items.csv", "--server", f"127.0.0.1:{self.port}"]
        given += ["--root-certificate", root, "--key", key or f"keys/{name}.key", "--out", name]
        return self.start(name, *([] if code else ["participate"]), *given, code=code)

    def said(self, name):
        path = self.folder / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def until(self, name, pattern):
        end = time.monotonic() + LIMIT
        while not re.search(pattern, self.said(name)):
            assert time.monotonic() < end, f"{name} does not say {pattern}:\n{self.all()}"
            time.sleep(0.05)

    def ends(self, name, status=0):
        try:
            assert self.started[name].wait(LIMIT) == status, self.all()
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} does not end:\n{self.all()}")

    def all(self):
        return "\n".join(f"{n}:\n{self.said(n)}" for n in self.started)

    def rounds(self):
        return [json.loads(line) for line in (self.folder / "run" / "metrics.jsonl").open()]

    def result(self):
        return json.loads((self.folder / "run" / "result.json").read_text())


@pytest.fixture
def processes(tmp_path):
    """A function that prepares a federation; its processes end with the test."""
    made = []

    def prepare(clients=CLIENTS):
        made.append(Processes(tmp_path, clients))
        return made[0]

    yield prepare
    for process in made[0].started.values():
        process.kill()
        process.wait()


METHODS = {
    "popularity": ("popularity", {}),
    "ease": ("fedcia", {"model": "ease"}),
    "newton": ("fedcia", {"width": 4, "rounds": 4, "evaluate_every": 2}),
}


@pytest.mark.parametrize("name", METHODS)
def test_five_processes_learn_what_a_simulation_does(processes, name, tmp_path):
    method, settings = METHODS[name]
    words = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    together = processes()
    together.server(method, *words)
    for number in range(CLIENTS):
        together.client(number)
    for who in ("server", *(f"client-{n}" for n in range(CLIENTS))):
        together.ends(who)
    alone = jaxrec.train(
        method, together.rows, baselines=(), min_support=2, progress=False, **settings
    )
    served = jaxrec.reopen(tmp_path / "client-0")
    for one, other in zip(*map(jax.tree.leaves, (served.state, alone.state)), strict=True):
        if name == "popularity":  # sums of whole numbers
            np.testing.assert_array_equal(one, other)
        scale = np.abs(other).max() if np.size(other) else 0
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * scale)
    values = together.result()
    for metric in ("NDCG@10", "Recall@5", "MRR"):
        assert values[f"test/{metric}"] == pytest.approx(alone.values[f"test/{metric}"], rel=1e-3)
    lists = jaxrec.recommend(tmp_path / "client-3", k=2)
    assert set(lists["user"]) == {f"u3-{user}" for user in range(USERS)}


LONG = ["fedcia", "--width", "4", "--rounds", "16", "--evaluate-every", "1", "--patience", "0"]


def test_a_client_that_is_killed_is_left_out_and_may_come_back(processes):
    together = processes()
    together.server(*LONG, "--timeout", "20")
    for number in range(CLIENTS):
        together.client(number)
    together.until("server", "round 2/16")
    together.started["client-4"].send_signal(signal.SIGKILL)
    together.started["client-4"].wait()
    together.until("server", "client-4 is left out: ")
    together.client(4)
    together.until("client-4", r"(?s)connected.*connected")
    together.ends("server")
    there = [row["train/participants"] for row in together.rounds()]
    assert (len(there), min(there), there[-1]) == (16, 4, 5)


def test_a_client_that_comes_late_takes_part(processes):
    together = processes()
    users = str(CLIENTS * USERS)
    together.server(*LONG, "--start-with", "4", "--users", users)
    for number in range(CLIENTS - 1):
        together.client(number)
    together.until("server", "round 2/16")
    together.client(4)
    together.until("client-4", "connected")
    together.ends("server")
    members = json.loads((together.folder / "run" / "members.json").read_text())
    assert set(members["members"]) == {f"client-{n}" for n in range(CLIENTS)}
    together.ends("client-4")


SLOW = """
import sys, time
from jaxrec.deployment.node import Node
answer = Node.answer
def slow(node, request):
    time.sleep(0 if node.membership is None else 4)
    return answer(node, request)
Node.answer = slow
from jaxrec.cli.participate import main
sys.exit(main(sys.argv[1:]))
"""
TORN = """
import sys
from jaxrec.deployment.node import Node
answer = Node.answer
Node.answer = lambda node, request: (
    answer(node, request) if node.membership is None else answer(node, request)[:-5]
)
from jaxrec.cli.participate import main
sys.exit(main(sys.argv[1:]))
"""
OLDER = """
import sys
import jaxrec.deployment.terms as terms
terms.__version__ = "0.0.1"
from jaxrec.cli.participate import main
sys.exit(main(sys.argv[1:]))
"""
SHORT = ["fedcia", "--width", "4", "--rounds", "4", "--evaluate-every", "2"]


@pytest.mark.parametrize(
    "code, told, own",
    [
        (SLOW, "no reply came within 3 s", "after the 3 s that the server waits"),
        (TORN, "a message of [0-9,]+ bytes is damaged", ""),
        (OLDER, "the server runs jaxrec [0-9.]+ and this side 0.0.1: install the same", ""),
    ],
    ids=["late", "damaged", "another version"],
)
def test_a_client_that_fails_is_left_out_and_the_others_go_on(processes, code, told, own):
    together = processes(4)
    together.server(*SHORT, "--timeout", "3" if code == SLOW else "60")
    for number in range(3):
        together.client(number)
    together.client(3, code=code)
    together.ends("server")
    assert re.search(f"client-3 is left out: .*{told}", together.said("server")), together.all()
    assert own in together.said("client-3")
    assert together.result()["rounds"] == 4


def test_a_server_that_is_killed_goes_on_from_its_folder(processes):
    together = processes(3)
    together.server(*LONG)
    for number in range(3):
        together.client(number)
    together.until("server", "round 3/16")
    together.started["server"].send_signal(signal.SIGKILL)
    together.started["server"].wait()
    together.until("client-1", "tries again until it is there")
    together.server(None, "--rounds", "12", resume=True)
    together.ends("server")
    for number in range(3):
        together.ends(f"client-{number}")
    assert [row["round"] for row in together.rounds()] == list(range(1, 13))
    assert together.result()["rounds"] == 12


def test_wrong_certificates_and_strangers_are_told(processes):
    together = processes(3)
    certificates.make(together.folder / "others")
    together.server(*SHORT)
    together.until("server", "listening on https")
    together.client(0, root="others/ca.pem")
    together.ends("client-0", 2)
    assert "its certificate is not trusted" in together.said("client-0")
    private_key(together.folder / "stranger.key")
    together.client(1, key="stranger.key")
    together.until("client-1", "the server does not list this client's key")
    assert "PRIVATE" not in together.all()
    assert not list((together.folder / "client-1").rglob("*.key"))

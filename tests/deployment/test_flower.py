"""Clients and a server find each other over Flower's Fleet API, on loopback."""

import os
import socket
import stat
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from flwr.app import RecordDict
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE

from jaxrec.data.pack import pack
from jaxrec.data.split import split
from jaxrec.data.synthetic import synthetic
from jaxrec.deployment import Coordinator, Limits, Node, Terms
from jaxrec.deployment.coordinator import users_of
from jaxrec.deployment.flower.superlink import Certificate, SuperLink
from jaxrec.deployment.flower.supernode import private_key, take_part
from jaxrec.deployment.messages import Message, decode, encode
from jaxrec.deployment.party import nobody
from jaxrec.types import SettingError
from tests.deployment import certificates

CLIENTS, ITEMS = 3, 32
FRAMING = 2000  # bytes that Flower adds to a message, at most


def data_of(number):
    dataset = synthetic(users=6, items=ITEMS, clients=1, length=12, seed=number)
    return pack(split(dataset, "ratio", 0.1, 0.2, 0), by_time=False, lengths=[80])[0]


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@contextmanager
def connected(nodes, port, keys, **how):
    """The nodes take part in threads, until the block ends."""
    stop = threading.Event()
    threads = [
        threading.Thread(
            target=take_part,
            args=(node, f"127.0.0.1:{port}", keys / f"{name}.key"),
            kwargs={"stop": stop, **how},
            daemon=True,
        )
        for name, node in nodes.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)


def until(holds, seconds=20.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    return certificates.make(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def admitted(tmp_path):
    """A folder of the keys of three clients."""
    for number in range(CLIENTS):
        private_key(tmp_path / "keys" / f"client-{number}.key")
    return tmp_path / "keys"


class Slow(Node):
    """Answers after a while."""

    def answer(self, request):
        time.sleep(5)
        return super().answer(request)


class Torn(Node):
    """Its replies lose their ends."""

    def answer(self, request):
        return super().answer(request)[:-3]


def nodes_of(*kinds):
    return {f"client-{n}": kind(data_of(n), ITEMS, Limits()) for n, kind in enumerate(kinds)}


def test_clients_with_keys_learn_over_tls_what_their_rows_say(tls, admitted):
    port, nodes = free_port(), nodes_of(Node, Node, Node)
    certificate = Certificate(tls / "server.pem", tls / "server.key")
    terms = Terms("popularity", ITEMS, CLIENTS, 18, settings={"min_support": 2})
    root = {"root_certificate": tls / "ca.pem", "progress": False}
    with (
        SuperLink("127.0.0.1", port, certificate, admitted) as link,
        connected(nodes, port, admitted, **root) as threads,
    ):
        until(lambda: len(link.names()) == CLIENTS)
        assert link.names() == list(nodes)
        coordinator = Coordinator(terms, nobody(terms, data_of(0)), link.ask)
        coordinator.enrol(link.names())
        state, _ = coordinator.step(coordinator.init(), 0)
        coordinator.end(link.names())
        until(lambda: not any(thread.is_alive() for thread in threads))
        wire, left = link.traffic, len(link._state.object_store)
    rows = [
        np.asarray(node.data.clients[0].item)[node.data.clients[0].mask] for node in nodes.values()
    ]
    counts = np.bincount(np.concatenate(rows), minlength=ITEMS)
    np.testing.assert_array_equal(state.counts, np.where(counts >= 2, counts, 0))
    assert (coordinator.left_out, left) == ({}, 0)
    up, down, messages = map(sum, zip(*coordinator.sent.values(), strict=True))
    assert up > 4 * CLIENTS * ITEMS  # a masked vector of each
    for told, measured in zip((up, down), wire, strict=True):
        assert 0 < measured - told < FRAMING * messages / 2


def test_a_server_with_another_certificate_is_not_trusted(tls, admitted, tmp_path):
    port, (node, *_) = free_port(), nodes_of(Node).values()
    others = certificates.make(tmp_path / "others")
    certificate = Certificate(tls / "server.pem", tls / "server.key")
    with SuperLink("127.0.0.1", port, certificate, admitted):
        join = partial(take_part, node, f"127.0.0.1:{port}", admitted / "client-0.key")
        with pytest.raises(SettingError, match=r"its certificate is not trusted.*root-certificate"):
            join(root_certificate=others / "ca.pem", progress=False)
        with pytest.raises(SettingError, match="its certificate is not trusted"):
            join(progress=False)
    with (
        SuperLink("127.0.0.1", port, None),
        pytest.raises(SettingError, match="is it without TLS"),
    ):
        join(root_certificate=tls / "ca.pem", progress=False)
    with pytest.raises(SettingError, match="cannot be used with its key"):
        SuperLink("127.0.0.1", port, Certificate(others / "server.pem", tls / "server.key"))


def test_a_key_that_is_not_listed_is_not_admitted(admitted, tmp_path, capfd):
    port, nodes = free_port(), nodes_of(Node)
    with (
        SuperLink("127.0.0.1", port, None, admitted) as link,
        connected(nodes, port, tmp_path / "strangers", insecure=True),
    ):
        told = lambda: capfd.readouterr().err
        until(lambda: "the server does not list this client's key" in told())
        assert link.names() == []


def test_only_what_clients_need_is_on_the_network(admitted):
    port, kind = free_port(), {"content-type": PROTOBUF_MEDIA_TYPE}
    post = lambda path: httpx.post(f"http://127.0.0.1:{port}/{path}", headers=kind).status_code
    others = ("v1/control/start-run", "v1/runtime/acquire-task", "docs", "openapi.json")
    with SuperLink("127.0.0.1", port, None):
        assert {path: post(path) for path in others} == dict.fromkeys(others, 404)
        assert post("v1/fleet/pull-messages") == 401  # without a signature
    with SuperLink("127.0.0.1", port, None, admitted):
        assert post("v1/fleet/pull-messages") == 403  # without a listed key, and unread


@pytest.mark.parametrize("server", ["localhost:abc", "::1:9092", "http://a:80", "host", ""])
def test_an_address_that_is_none_is_told(server, tmp_path):
    (node,) = nodes_of(Node).values()
    with pytest.raises(SettingError, match="must be HOST:PORT"):
        take_part(node, server, tmp_path / "client.key", insecure=True)


def test_a_root_certificate_that_is_none_is_told(tmp_path):
    (node,) = nodes_of(Node).values()
    for number, content in enumerate((b"", b"junk", b"\xff\xfe")):
        path = tmp_path / f"{number}.pem"
        path.write_bytes(content)
        with pytest.raises(SettingError, match=f"{path}: is no certificate in PEM"):
            take_part(node, "127.0.0.1:9", tmp_path / "client.key", root_certificate=path)


def test_what_is_no_server_is_waited_for(tmp_path, capfd):
    """A proxy or another program answers in its place."""

    class Other(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>welcome to our network</html>")

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with connected(nodes_of(Node), server.server_port, tmp_path, insecure=True):
            until(lambda: "tries again until it is there" in capfd.readouterr().err)
        server.shutdown()


def test_a_reply_that_flower_cannot_read_is_none(admitted, monkeypatch):
    port, nodes = free_port(), nodes_of(Node)
    monkeypatch.setattr("jaxrec.deployment.flower.supernode.content_of", lambda data: RecordDict())
    with (
        SuperLink("127.0.0.1", port, None, admitted, timeout=5) as link,
        connected(nodes, port, admitted, insecure=True),
    ):
        until(lambda: link.names() == ["client-0"])
        greet = encode(Message({"do": "greet"}))
        replies = dict(link.ask({"client-0": greet}))
    told = decode(replies["client-0"]).head["refused"]
    assert "cannot be read: a message without bytes" in told


def test_a_server_outlives_a_long_wait(monkeypatch):
    """Flower ends a run that gives no sign of life."""
    monkeypatch.setattr("jaxrec.deployment.flower.superlink.SIGN_OF_LIFE", 0.05)
    with SuperLink("127.0.0.1", free_port(), None) as link:
        given = []
        monkeypatch.setattr(link._state, "acknowledge_task_heartbeat", given.append)
        until(lambda: len(given) > 2)


def test_late_and_damaged_replies_do_not_count(admitted, capfd):
    port, nodes = free_port(), nodes_of(Node, Slow, Torn)
    with (
        SuperLink("127.0.0.1", port, None, admitted, timeout=3) as link,
        connected(nodes, port, admitted, insecure=True),
    ):
        until(lambda: len(link.names()) == CLIENTS)
        users, left_out = users_of(link.ask, link.names())
        assert users == {"client-0": 6}
        assert left_out["client-1"] == "no reply came within 3 s"
        assert "is damaged" in left_out["client-2"]
        until(lambda: "after the 3 s that the server waits" in capfd.readouterr().err)
        assert users_of(link.ask, ["client-0"]) == ({"client-0": 6}, {})


def test_a_client_waits_for_its_server_and_finds_it_again(admitted, capfd):
    port, nodes = free_port(), nodes_of(Node)
    greet = encode(Message({"do": "greet"}))
    with connected(nodes, port, admitted, insecure=True):
        until(lambda: "tries again until it is there" in capfd.readouterr().err)
        for _ in range(2):  # the second server does not know the client's number
            with SuperLink("127.0.0.1", port, None, admitted, timeout=10) as link:
                until(lambda link=link: link.names() == ["client-0"])
                assert dict(link.ask({"client-0": greet}))


def test_keys_are_for_their_owner_and_told_to_nobody(tmp_path):
    path = tmp_path / "client.key"
    made = private_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert private_key(path).private_numbers() == made.private_numbers()
    public = path.with_suffix(".pub").read_bytes()
    path.unlink()
    assert private_key(path).private_numbers() != made.private_numbers()
    assert path.with_suffix(".pub").read_bytes() != public
    torn = path.read_text().replace("PRIVATE", "PRIVET")
    path.write_text(torn)
    with pytest.raises(SettingError, match="no private key in PEM") as caught:
        private_key(path)
    assert torn.splitlines()[1] not in str(caught.value)
    (tmp_path / "twice.pub").write_bytes((tmp_path / "client.pub").read_bytes())
    with pytest.raises(SettingError, match="has the key of client too"):
        SuperLink("127.0.0.1", free_port(), None, tmp_path)
    with pytest.raises(SettingError, match=r"holds no file NAME\.pub"):
        SuperLink("127.0.0.1", free_port(), None, tmp_path / "empty")


def test_a_port_that_is_taken_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match="cannot listen there"):
            SuperLink("127.0.0.1", port, None).__enter__()


def test_flower_sends_nothing_to_its_makers():
    assert os.environ["FLWR_TELEMETRY_ENABLED"] == "0"

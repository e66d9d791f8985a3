"""Flower's SuperLink in the server's own process, with its Fleet API alone on the network.

Flower's own command puts three APIs on one port, and whoever reaches the other two can start
programs and admit clients. Here requests come from this process, and keys from a folder.
"""

from __future__ import annotations

import base64
import logging
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from cryptography.hazmat.primitives import serialization
from fastapi import FastAPI
from flwr.app import Message, Metadata
from flwr.app.message import make_message, remove_content_from_message
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLWR_IN_MEMORY_DB_NAME,
    NOOP_FEDERATION_ID,
    TaskType,
)
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.config_loader import (
    get_federation_manager,
    get_objectstore_linkstate_factories,
)
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware

from jaxrec.deployment.flower.envelope import KIND, bytes_of, content_of, fingerprint
from jaxrec.deployment.messages import Message as Told
from jaxrec.deployment.messages import encode
from jaxrec.types import SettingError

POLL = 0.02  # seconds between two looks for replies
SPARE = 3600.0  # seconds that a request lives beyond its time: `ask` decides what is late
SIGN_OF_LIFE = 5.0  # seconds between those of the server's own task


class Certificate(NamedTuple):
    """What a server shows its clients: PEM files."""

    certificate: Path
    key: Path


class SuperLink:
    """Where clients connect. Use it in a `with` block, in which it listens.

    A client is called by the name of its key's file, or by a fingerprint of its key where the
    server admits every key.
    """

    def __init__(
        self,
        host: str,
        port: int,
        certificate: Certificate | None,
        keys: Path | None = None,
        timeout: float = 60.0,
    ):
        """Make one that does not listen yet.

        Args:
          certificate: None: without TLS, for one machine only.
          keys: folder of the public keys of the clients that are admitted, NAME.pub each, in PEM;
            None: every client is.
          timeout: seconds that a client has for a reply.
        """
        self._names, self.timeout = _names_of(keys), timeout
        app = _fleet_alone(admits_all=keys is None)
        self._state = app.state.linkstate_factory.state()
        for key in self._names:
            self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 0)
        self._run = self._state.create_run(
            None, None, None, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        (self._task,) = self._state.get_tasks(run_ids=[self._run])
        self._state.claim_task(self._task.task_id)
        self._state.activate_task(self._task.task_id)
        for name in ("flwr", "uvicorn"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._closed = threading.Event()
        quiet: Any = {"log_config": None, "access_log": False, "lifespan": "off", "ws": "none"}
        tls: Any = {}
        if certificate:
            tls = {"ssl_certfile": certificate.certificate, "ssl_keyfile": certificate.key}
        config = uvicorn.Config(_admitting(app, self._names), **quiet, **tls)
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:  # whose texts hold no key
            raise SettingError(f"certificate: cannot be used with its key ({error})") from error
        self._server = uvicorn.Server(config)
        self._host, self._port = host, port

    def __enter__(self) -> SuperLink:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            listening = socket.create_server((self._host, self._port), family=family)
        except (OSError, OverflowError) as error:
            raise SettingError(
                f"{self._host}:{self._port}: cannot listen there ({error}); choose another --port, "
                "or an address of this machine"
            ) from error
        run = partial(self._server.run, sockets=[listening])
        self._thread = threading.Thread(target=run, name="superlink", daemon=True)
        self._thread.start()
        while self._thread.is_alive() and not self._server.started:
            time.sleep(POLL)
        if not self._server.started:
            raise SettingError(f"{self._host}:{self._port}: the server has ended as it began")
        threading.Thread(target=self._live, name="sign of life", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.should_exit = True
        self._thread.join(10.0)

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes received from clients and sent to them so far, with Flower's framing."""
        (run,) = self._state.get_run_info(run_ids=[self._run])
        return run.bytes_recv, run.bytes_sent

    def names(self) -> list[str]:
        """The clients that are connected."""
        return sorted(self._nodes())

    def ask(self, requests: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
        """Send each client its request, and give the replies as they come; see `Coordinator`."""
        nodes, sent = self._nodes(), {}
        try:
            for name, data in requests.items():
                if name in nodes:
                    sent[self._push(nodes[name], data)] = name
            waiting, coming = dict(sent), []
            until = time.monotonic() + self.timeout
            while waiting and time.monotonic() < until:
                asked = waiting.keys() - {m.metadata.reply_to_message_id for m in coming}
                coming += self._state.get_message_res(asked, self._run)
                for message in list(coming):
                    if (data := self._data(message)) is not None:
                        coming.remove(message)
                        yield waiting.pop(message.metadata.reply_to_message_id), data
                time.sleep(POLL)
            for name in waiting.values():
                reason = f"no reply came within {self.timeout:g} s"
                yield name, encode(Told({"refused": reason}))
        finally:
            self._state.delete_messages(set(sent))
            for number in sent:
                self._state.object_store.delete(number)

    def _nodes(self) -> dict[str, int]:
        """The number of each client that is connected, by its name."""
        numbers = list(self._state.get_nodes(self._run))
        infos = self._state.get_node_info(node_ids=numbers)
        name = lambda key: self._names.get(key) or fingerprint(key)
        return {name(info.public_key): info.node_id for info in infos}

    def _live(self) -> None:
        """Give signs of life, without which Flower ends a run after a minute."""
        while not self._closed.wait(SIGN_OF_LIFE):
            self._state.acknowledge_task_heartbeat(self._task.task_id)

    def _push(self, node: int, data: bytes) -> str:
        """Lay a request down for a client; returns its number."""
        metadata = Metadata(
            run_id=self._run, message_id="", src_node_id=SUPERLINK_NODE_ID, dst_node_id=node,
            reply_to_message_id="", group_id=f"{self.timeout:g}", created_at=time.time(),
            ttl=self.timeout + SPARE,
            message_type=KIND,
        )  # fmt: skip
        message = make_message(metadata=metadata, content=content_of(data))
        message.metadata.__dict__["_message_id"] = message.object_id
        session = self._state.start_session(self._run)
        bare = remove_content_from_message(message)
        _, wanted = self._state.store_message_and_object_tree(
            bare, get_object_tree(message), session
        )
        objects = get_all_nested_objects(message)
        for name in wanted:
            self._state.store_object(self._run, session, name, objects[name].deflate())
        return message.metadata.message_id

    def _data(self, message: Message) -> bytes | None:
        """The bytes of a reply; None while some are on their way."""
        if message.has_error():
            return encode(Told({"refused": "it went away before it replied"}))
        try:
            number, store = message.metadata.message_id, self._state.object_store
            names = [tree.object_id for tree in iterate_object_tree(store.get_object_tree(number))]
            found = {name: self._state.get_object(self._run, name) for name in names}
            if not all(found.values()):
                return None
            store.delete(number)
            return bytes_of(inflate_object_from_contents(number, found))
        except Exception as error:  # of Flower and protobuf, whatever the client has sent
            return encode(Told({"refused": f"its reply cannot be read: {error!s:.200}"}))


def _names_of(keys: Path | None) -> dict[bytes, str]:
    """The names of the admitted clients by their keys, as Flower writes them."""
    if keys is None:
        return {}
    paths = sorted(keys.glob("*.pub")) if keys.is_dir() else []
    if not paths:
        raise SettingError(
            f"keys = '{keys}': holds no file NAME.pub; put one there for each client"
        )
    names = {}
    for path in paths:
        key = public_key(path)
        if key in names:
            raise SettingError(
                f"{path}: has the key of {names[key]} too; each client needs its own"
            )
        names[key] = path.stem
    return names


def public_key(path: Path) -> bytes:
    """A public key as Flower writes it, from a PEM file."""
    try:
        key = serialization.load_pem_public_key(path.read_bytes())
    except (ValueError, OSError) as error:
        raise SettingError(f"{path}: is no public key in PEM ({error})") from error
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _admitting(app: Any, keys: Collection[bytes]) -> Any:
    """The app, which reads nothing of a request that shows none of the keys, if there are any."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        shown = headers.get(FLEET_HTTP_PUBLIC_KEY_HEADER.lower().encode(), b"")
        if keys and scope["type"] == "http" and shown not in encoded:
            await send({"type": "http.response.start", "status": 403, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, send)

    encoded = {base64.b64encode(key) for key in keys}
    return guarded


def _fleet_alone(*, admits_all: bool) -> FastAPI:
    """An app that answers what SuperNodes ask, with Flower's handlers, and nothing else."""
    app = FastAPI(
        docs_url=None,
        openapi_url=None,
        redoc_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
        ],
    )
    manager = get_federation_manager()
    _, factory = get_objectstore_linkstate_factories(FLWR_IN_MEMORY_DB_NAME, manager)
    app.state.linkstate_factory = factory
    app.state.enable_supernode_auth = not admits_all
    app.include_router(router)
    return app

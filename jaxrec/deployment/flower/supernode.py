"""A client's end of Flower: a SuperNode whose app is a node that stays in memory.

Flower's own SuperNode starts a process for each message, which would import JAX and compile anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node as NodeNumber
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    pull_and_inflate_object_from_tree,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from jaxrec.deployment.flower.envelope import bytes_of, content_of, fingerprint
from jaxrec.deployment.messages import Message as Told
from jaxrec.deployment.messages import encode
from jaxrec.deployment.node import Node
from jaxrec.training.progress import say
from jaxrec.types import DataError, SettingError

BUSY, IDLE = 0.05, 1.0  # seconds between two looks for requests: at least, at most
PATIENCE = 20  # looks grow apart after a last request, by its age over this
SIGN_OF_LIFE = 10  # seconds between two; Flower counts a client as gone after two of them
CLOSED = ssl.SSLEOFError, ssl.SSLZeroReturnError  # of a server that goes away
RETRY = 2.0, 30.0  # seconds before a lost server is looked for again: at first, at most


class Lost(Exception):
    """The server cannot be reached, or does not know this client any more."""


def take_part(
    node: Node,
    server: str,
    key: Path,
    *,
    root_certificate: Path | None = None,
    insecure: bool = False,
    after: Callable[[], None] = lambda: None,
    stop: threading.Event | None = None,
    progress: bool = True,
) -> None:
    """Answer a server's requests until it says that it is done, or `stop`.

    A server that goes away is waited for.

    Args:
      server: HOST:PORT.
      key: private key of this client, in PEM; it is made where it does not exist.
      root_certificate: PEM of who has signed the server's certificate; None: the system's.
      insecure: without TLS, for one machine only.
      after: called after each reply has gone.

    Raises SettingError where the server shows another certificate, or does not admit this client.
    """
    for name in ("flwr", "httpx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    private = private_key(key)
    public = public_key_to_bytes(private.public_key())
    say(f"this client's key is {fingerprint(public)}", shown=progress)
    if not re.fullmatch(r"(\[[0-9a-fA-F:.]+\]|[^\s:/@]+):\d{1,5}", server):
        raise SettingError(f"server = {server!r}: must be HOST:PORT, such as 127.0.0.1:9092")
    trusted = None if insecure else _trusted(root_certificate)
    stop, wait, told = stop or threading.Event(), RETRY[0], ""
    while not (stop.is_set() or node.ended):
        try:
            with (
                _fleet(server, private, trusted) as fleet,
                _Connection(fleet, public) as connection,
            ):
                say(f"connected to {server}", shown=progress)
                wait, told = RETRY[0], ""
                connection.serve(node, after, stop, progress)
        except SettingError:
            raise
        except (Exception, SystemExit) as error:  # of Flower and the network: it may come back
            if why := _untrusted(error):
                raise SettingError(f"{server}: {why}") from error
            if str(error) != told:
                say(f"{server}: {error}; this client tries again until it is there")
            told = str(error)
            stop.wait(wait)
            wait = min(2 * wait, RETRY[1])


def _fleet(
    server: str, private: ec.EllipticCurvePrivateKey, trusted: ssl.SSLContext | None
) -> FleetHttpClient:
    """Flower's client of the server's Fleet API, which signs its requests."""
    return FleetHttpClient(
        f"{'https' if trusted else 'http'}://{server}",
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="SuperNode"),
            NodeAuthHttpInterceptor(private, private.public_key()),
        ],
        verify=trusted or False,
    )


def _trusted(root_certificate: Path | None) -> ssl.SSLContext:
    """Who may have signed the server's certificate."""
    try:
        return ssl.create_default_context(cafile=root_certificate)
    except (OSError, ValueError) as error:
        raise SettingError(f"{root_certificate}: is no certificate in PEM ({error})") from error


def _untrusted(error: BaseException | None) -> str:
    """What is wrong with the server's certificate; nothing where that is not what is wrong."""
    while error:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({error.verify_message}); give the certificate of "
                "who signed it with --root-certificate"
            )
        if isinstance(error, ssl.SSLError) and not isinstance(error, CLOSED):
            return f"it does not speak TLS as expected ({error.reason}); is it without TLS?"
        error = error.__cause__ or error.__context__
    return ""


class _Connection:
    """A registered and active SuperNode; deactivated on leaving."""

    def __init__(self, fleet: FleetHttpClient, public: bytes):
        self.fleet, self.public = fleet, public
        self.stopped = threading.Event()

    def __enter__(self) -> _Connection:
        with contextlib.suppress(httpx.HTTPStatusError):  # it is registered, or keys are listed
            self.fleet.RegisterNode(RegisterNodeFleetRequest(public_key=self.public))
        try:
            reply = self.fleet.ActivateNode(
                ActivateNodeRequest(public_key=self.public, heartbeat_interval=SIGN_OF_LIFE)
            )
        except httpx.HTTPStatusError as error:
            raise Lost(self._refusal(error.response.status_code)) from error
        self.place = NodeNumber(node_id=reply.node_id)
        self.beat = threading.Thread(target=self._beat, daemon=True)
        self.beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        with contextlib.suppress(httpx.HTTPError):
            self.fleet.DeactivateNode(DeactivateNodeRequest(node_id=self.place.node_id))

    def _refusal(self, status: int) -> str:
        """What a refusal to connect means."""
        if status == 403:
            return f"the server does not list this client's key, {fingerprint(self.public)}"
        if status == 401:
            return (
                "the server does not accept this client's signature; is the clock of this machine "
                "more than 5 seconds ahead of the server's, or 5 minutes behind it?"
            )
        if status == 404 or status >= 500:
            return f"no jaxrec server answers there (HTTP {status})"
        return "the server still counts this client's last process as connected"

    def _beat(self) -> None:
        while not self.stopped.wait(0.7 * SIGN_OF_LIFE):
            with contextlib.suppress(Exception):  # which the next request meets as well
                self.fleet.SendNodeHeartbeat(
                    SendNodeHeartbeatRequest(node=self.place, heartbeat_interval=SIGN_OF_LIFE)
                )

    def serve(
        self, node: Node, after: Callable[[], None], stop: threading.Event, progress: bool
    ) -> None:
        """Answer requests until `stop`; raises Lost, or an error of HTTP, where the server goes."""
        last, refused = time.monotonic(), ""
        while not (stop.is_set() or node.ended):
            try:
                message = self._pull()
            except httpx.HTTPStatusError as error:
                raise Lost("the server does not know this client any more") from error
            if message is None:
                stop.wait(min(IDLE, max(BUSY, (time.monotonic() - last) / PATIENCE)))
                continue
            try:
                data = bytes_of(message)
            except DataError as error:
                data = encode(Told({"refused": str(error)}))
            else:
                data = node.answer(data)
            if node.refusal and node.refusal != refused:
                say(f"this client refuses: {node.refusal}")
            refused = node.refusal
            limit = float(message.metadata.group_id)
            if (late := time.time() - message.metadata.created_at - limit) > 0:
                say(
                    f"a reply came {late:.0f} s after the {limit:g} s that the server waits, and "
                    "counts as none",
                    shown=progress,
                )
            self._push(Message(content_of(data), reply_to=message))
            after()
            last = time.monotonic()

    def _pull(self) -> Message | None:
        reply = self.fleet.PullMessages(PullMessagesRequest(node=self.place))
        if not reply.messages_list:
            return None
        run, tree = reply.messages_list[0].metadata.run_id, reply.message_object_trees[0]
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(self.fleet.PullObject, self.place, run),
            make_confirm_message_received_fn_protobuf(
                self.fleet.ConfirmMessageReceived, self.place, run
            ),
            return_type=Message,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id
        return message

    def _push(self, reply: Message) -> None:
        reply.metadata.__dict__["_message_id"] = reply.object_id
        run = reply.metadata.run_id
        with no_object_id_recompute():
            pushed = self.fleet.PushMessages(
                PushMessagesRequest(
                    node=self.place,
                    messages_list=[message_to_proto(remove_content_from_message(reply))],
                    message_object_trees=[get_object_tree(reply)],
                )
            )
            push_objects(
                get_all_nested_objects(reply),
                make_push_object_fn_protobuf(
                    self.fleet.PushObject, self.place, run, pushed.session_id
                ),
                object_ids_to_push=set(pushed.objects_to_push),
            )


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A client's private key, made where there is none yet, which only its owner can read.

    Its public half lies beside it, NAME.pub for NAME.key, for the server.
    """
    if path.suffix == ".pub":
        raise SettingError(f"key = '{path}': NAME.pub is for the public half; choose another name")
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made, _ = generate_key_pairs()
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private_key_to_bytes(made))
    try:
        found = bytes_to_private_key(path.read_bytes())
    except (ValueError, TypeError) as error:  # whose text could hold a part of the key
        raise SettingError(
            f"{path}: is no private key in PEM without a password; remove it to have one made"
        ) from error
    if not isinstance(found, ec.EllipticCurvePrivateKey):
        raise SettingError(f"{path}: is no elliptic curve key; remove it to have one made")
    public = path.with_name(path.name.removesuffix(".key") + ".pub")
    if not public.exists() or public.read_bytes() != public_key_to_bytes(found.public_key()):
        public.write_bytes(public_key_to_bytes(found.public_key()))
    return found

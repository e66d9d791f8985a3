"""The server: a socket, the application behind it, and an end in which no request is lost."""

from __future__ import annotations

import logging
import signal
import socket
import sys
import threading
from pathlib import Path

import uvicorn

from jaxrec.service.application import PATHS, application
from jaxrec.service.batches import Batches
from jaxrec.service.connections import bounded
from jaxrec.service.counts import Counts
from jaxrec.service.guard import Guard
from jaxrec.service.opened import Place
from jaxrec.service.settings import Settings
from jaxrec.training.progress import say

BACKLOG = 2048  # connections that wait to be accepted, as uvicorn's own


class Service:
    """A run, served over HTTP from `run()` until `stop()`, SIGTERM or Ctrl-C."""

    def __init__(self, run: Path, settings: Settings, data: str | None = None):
        """Listens at once. Raises OSError where the address cannot be had."""
        self.settings, self.counts = settings, Counts()
        self.socket = _listening(settings.host, settings.port)
        self.url = _url(self.socket)
        self.place = Place(run, data, settings, self.counts)
        self.batches = Batches(lambda: self.place.current, settings, self.counts)
        app = application(self.place, self.batches, settings, self.counts, self.stop)
        config = uvicorn.Config(
            Guard(app, PATHS, settings, self.counts),
            http=bounded(settings, self.counts),  # type: ignore[arg-type]: any factory will do
            ws="none",
            lifespan="on",
            log_level=logging.WARNING,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=settings.drain,
        )
        self.server = uvicorn.Server(config)

    def run(self) -> None:
        """Serve until the end; raises what was wrong with the first run."""
        if threading.current_thread() is threading.main_thread():
            # uvicorn sends itself the signal again when it has drained: let it end with status 0.
            signal.signal(signal.SIGTERM, lambda *_: self.stop())
        say(f"listening at {self.url}; it answers when the run is open")
        try:
            self.server.run([self.socket])
        except KeyboardInterrupt:
            raise KeyboardInterrupt("no request is left; stopped") from None
        if self.place.failed:
            raise self.place.failed
        say("no request is left; stopped")

    def stop(self) -> None:
        """Take no more connections, answer what is in flight and end `run`; from any thread."""
        self.server.should_exit = True


def serve(run: Path, settings: Settings, data: str | None = None) -> None:
    """Serve a run until SIGTERM or Ctrl-C; requests in flight are answered first.

    Raises OSError where the address cannot be had, and what `jaxrec.open` raises for the run.
    """
    service = Service(run, settings, data)
    # A thread that answers may keep the others waiting for 5 ms by default, most of its time.
    sys.setswitchinterval(0.0005)
    service.run()


def _listening(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(BACKLOG)
    except OSError as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error.strerror or error}") from error
    return found


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

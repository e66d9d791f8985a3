"""Connections that end when their client is slow; uvicorn alone waits for headers for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from jaxrec.service.counts import Counts
from jaxrec.service.settings import Settings


class Connection(H11Protocol):
    """HTTP/1.1 over one connection, with the limits of `settings`."""

    def __init__(self, *args, settings: Settings, counts: Counts, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.settings, self.counts = settings, counts
        self._headers: asyncio.TimerHandle | None = None  # which the client owes
        self._reading: asyncio.TimerHandle | None = None  # as above

    def connection_made(self, transport) -> None:  # type: ignore[override]
        """Take a connection, or refuse one too many."""
        super().connection_made(transport)
        self._headers = self.loop.call_later(self.settings.slow, self._no_headers)
        most = self.settings.max_connections
        if len(self.connections) > most:
            self._end(
                503, "connections", f"{most:,} connections are open already", b"Retry-After: 1\r\n"
            )

    def data_received(self, data: bytes) -> None:
        """Bytes of headers or of a body."""
        if self.transport.is_closing():
            return
        if self._headers is None and self.conn.their_state is h11.IDLE:
            self._headers = self.loop.call_later(self.settings.slow, self._no_headers)
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._headers = _cancelled(self._headers)

    def pause_writing(self) -> None:
        """The client reads more slowly than the answer is written."""
        super().pause_writing()
        self._reading = self.loop.call_later(self.settings.slow, self._not_read)

    def resume_writing(self) -> None:
        """The client has caught up."""
        super().resume_writing()
        self._reading = _cancelled(self._reading)

    def timeout_keep_alive_handler(self) -> None:
        """An idle connection ends, and so does one whose last bytes nobody reads."""
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():
            self._not_read()

    def connection_lost(self, exc: Exception | None) -> None:
        """The timers end with the connection."""
        self._headers, self._reading = _cancelled(self._headers), _cancelled(self._reading)
        super().connection_lost(exc)

    def _no_headers(self) -> None:
        why = f"the headers took longer than {self.settings.slow:g} seconds"
        self._end(408, "headers", why)

    def _not_read(self) -> None:
        self.counts.cut.labels("reading").inc()
        self.transport.abort()

    def _end(self, status: int, reason: str, why: str, header: bytes = b"") -> None:
        self.counts.cut.labels(reason).inc()
        body = json.dumps({"error": why}).encode()
        self.transport.write(
            b"HTTP/1.1 %d \r\nContent-Type: application/json\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n%s\r\n%s" % (status, len(body), header, body)
        )
        self.transport.close()


def bounded(settings: Settings, counts: Counts) -> Callable[..., Connection]:
    """What uvicorn makes connections of."""
    return partial(Connection, settings=settings, counts=counts)


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer:
        timer.cancel()

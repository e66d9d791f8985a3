"""What stands before the application: bodies of bounded size and time, every request counted."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from jaxrec.service.counts import Counts
from jaxrec.service.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
LEAVE = 8  # bodies' lengths that are read and dropped, so that the client comes to read why
GONE = "499"  # the status that is counted for a client who left before the answer


class Guard:
    """An ASGI application around another one."""

    def __init__(
        self, app: Callable, paths: Collection[str], settings: Settings, counts: Counts
    ) -> None:
        self.app, self.paths, self.settings, self.counts = app, paths, settings, counts

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request, or hand on what is none."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        status, started = GONE, time.perf_counter()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        self.counts.in_flight.inc()
        try:
            await self._bounded(scope, receive, counted)
        finally:
            self.counts.in_flight.dec()
            self.counts.requests.labels(path, status).inc()
            self.counts.seconds.labels(path).observe(time.perf_counter() - started)

    async def _bounded(self, scope: Message, receive: Receive, send: Send) -> None:
        """Read the body, then call the application with it."""
        most, headers = self.settings.max_body, dict(scope["headers"])
        too_large = f"the body has more than {most:,} bytes, the most that is read"
        if int(headers.get(b"content-length", 0)) > most and b"expect" in headers:
            await _refuse(send, 413, too_large)
            return
        try:
            async with asyncio.timeout(self.settings.slow):
                body = await _body(receive, most)
        except TimeoutError:
            await _refuse(send, 408, f"the body took longer than {self.settings.slow:g} seconds")
            return
        if body is None:
            return
        if len(body) > most:
            await _refuse(send, 413, too_large)
            return
        parts = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def read() -> Message:
            part = next(parts, None)
            return await receive() if part is None else part

        await self.app(scope, read, send)


async def _body(receive: Receive, most: int) -> bytearray | None:
    """The body, or its beginning where it is longer than `most`; None if the client has gone."""
    body, length = bytearray(), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        part = message.get("body", b"")
        length += len(part)
        if len(body) <= most:
            body += part
        if not message.get("more_body") or length > LEAVE * most:
            return body


async def _refuse(send: Send, status: int, why: str) -> None:
    """An answer after which the connection ends: what is left of the body is never read."""
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"error": why}).encode()})

"""One request to a server: bounded in time and size, and sent to no other host.

The package `openai` bounds the time between two bytes; a server that drips them, in its headers or
its answer, would hold a call for ever. Hence the client here reads every response itself.
"""

from __future__ import annotations

import asyncio
import json
import threading
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from jaxrec.llm.protocol import Prompt
from jaxrec.llm.unusable import EMPTY, cut_at

if TYPE_CHECKING:
    from openai import AsyncOpenAI

MOST_BYTES = 8 << 20  # of an answer: a million tokens are about half of it
MOST_TOKENS = 10**9  # that a server may say it has counted for one answer
_HEADERS = ("location", "retry-after", "retry-after-ms", "x-should-retry")  # those that are read


class NotOfTheProtocol(ValueError):
    """What came back is no answer of chat completions; the message is what the server said."""


class Reply(NamedTuple):
    """What came back; tokens as the server counted them, or guessed from the characters."""

    text: str
    cut: bool  # at the limit of its length
    problem: str  # why the text is of no use, "" where it is whole
    prompt_tokens: int
    answer_tokens: int


@dataclass
class Call:
    """A question under way: how often it was sent. Once `ended` is set, it is sent no more."""

    ended: threading.Event
    tries: int = 0


CALL: ContextVar[Call] = ContextVar("CALL")


def connect(base_url: str, key: str, timeout: float) -> AsyncOpenAI:
    """A client that counts what the current `CALL` sends; `timeout` seconds bound each request."""
    import openai

    class Bounded(openai.DefaultAsyncHttpxClient):
        async def send(self, request: Any, **settings: Any) -> Any:
            call = CALL.get()
            if call.ended.is_set():
                raise openai.OpenAIError("not asked")
            call.tries += 1
            settings["stream"] = True  # to be read below
            try:
                async with asyncio.timeout(timeout):
                    response = await super().send(request, **settings)
                    content = await _read(response)
            except TimeoutError:
                raise openai.APITimeoutError(request) from None
            headers = {name: response.headers.get(name) for name in _HEADERS}
            return type(response)(
                response.status_code, content=content, request=request,
                headers={name: value for name, value in headers.items() if value is not None},
            )  # fmt: skip

    return openai.AsyncOpenAI(
        base_url=base_url,
        api_key=key or "none",  # a server that wants no key gets one: the package insists
        timeout=None,
        # A redirect would carry the prompts to whatever host it names.
        http_client=Bounded(follow_redirects=False),
        default_headers={"Accept-Encoding": "identity"},  # a few bytes may unpack to gigabytes
    )


async def _read(response: Any) -> bytes:
    """The body, once it is known to be of a size that an answer may have."""
    try:
        if (packed := response.headers.get("content-encoding", "identity")) != "identity":
            raise NotOfTheProtocol(f"packed as {packed}, which was not asked for")
        parts, size = [], 0
        async for part in response.aiter_raw():
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                raise NotOfTheProtocol(f"more than {MOST_BYTES >> 20} MiB")
        return b"".join(parts)
    finally:
        await response.aclose()


def read_reply(body: bytes, prompt: Prompt) -> Reply:
    """The answer in the body of a response with status 200.

    Raises NotOfTheProtocol where there is none.
    """
    try:
        found = json.loads(body)
        choice = found["choices"][0]
        message, why = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        if not isinstance(content, str | None):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise NotOfTheProtocol(words(body)) from None
    # JSON may hold halves of characters, which no file takes and no server.
    text = (content or "").encode("utf-8", "replace").decode()
    used = found.get("usage")
    used = used if isinstance(used, dict) else {}
    return Reply(
        text,
        why == "length",
        _problem(text, why, refusal, prompt.max_tokens),
        _tokens(used.get("prompt_tokens"), prompt.system + prompt.user),
        _tokens(used.get("completion_tokens"), text),
    )


def _problem(text: str, why: Any, refusal: Any, limit: int) -> str:
    """Why an answer is of no use, "" where it is whole."""
    if why == "length":
        return cut_at(limit)
    if why == "content_filter":
        return "held back by the server's filter (content_filter)"
    if refusal and isinstance(refusal, str):
        return f"a refusal of the model ({one_line(refusal)})"
    return "" if text.strip() else EMPTY


def _tokens(counted: Any, text: str) -> int:
    """A server's count where it can be one, else a guess."""
    return counted if type(counted) is int and 0 <= counted <= MOST_TOKENS else len(text) // 4


def words(body: bytes) -> str:
    """What a server says in a body, in one line: its error message where that is JSON."""
    text = body.decode("utf-8", "replace")
    try:
        said = json.loads(text)
        for name in ("error", "message", "detail"):
            said = said.get(name) or said if isinstance(said, dict) else said
        text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    except (ValueError, RecursionError):
        pass
    return one_line(text)


def one_line(text: str) -> str:
    """A text of others in one line, without what a terminal would execute."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())

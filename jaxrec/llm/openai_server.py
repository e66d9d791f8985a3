"""A language model behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxrec.llm.answers import remembering
from jaxrec.llm.openai_http import (
    CALL,
    Call,
    NotOfTheProtocol,
    Reply,
    connect,
    one_line,
    read_reply,
    words,
)
from jaxrec.llm.openai_settings import check_address, check_settings, hide_key, read_key
from jaxrec.llm.protocol import Answer, Complete, Keep, Prompt, Usage
from jaxrec.llm.unusable import without_use
from jaxrec.types import LLMError

# What reading may end in beside the protocol's errors, whatever a server sends.
_ODD = NotOfTheProtocol, RecursionError, TypeError, ValueError
_SHOWN = 300  # characters of what a server says


def server(
    base_url: str,
    model: str,
    *,
    concurrency: int = 8,
    timeout: float = 120.0,
    retries: int = 6,
    temperature: float = 0.0,
    limit_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    api_key_env: str = "OPENAI_API_KEY",
    folder: Path | None = None,
    usage: Usage | None = None,
) -> Complete:
    """A function that asks a server which speaks OpenAI's chat completions.

    The package `openai` tries a call again after a broken connection and a busy (429) or broken
    (5xx) server: with back-off, or after the server's Retry-After where that is two minutes at
    most. A call that takes too long, and an answer that is not of the protocol or larger than
    8 MiB, are asked for again at once. If that does not help, or if the key or the model is
    refused, `LLMError` ends the whole list with the server's words; what has arrived by then is
    kept. A redirect is refused: it would carry the prompts to another host.

    A prompt that the server refuses (400, 413, 422) fails alone, and so does one whose answer is
    empty, held back by a filter, or at its limit before it is whole: what there is of it is neither
    used nor kept. `LLMError` ends the list if the first 8 calls end so.

    Args:
      base_url: such as http://localhost:8000/v1.
      model: as the server names it.
      concurrency: calls under way at once.
      timeout: seconds from sending a call to the last byte of its answer, each time it is tried.
      retries: tries after the first one.
      temperature: of sampling; 0 for the most likely answer.
      limit_as: what the server calls the limit on an answer's length.
      api_key_env: the environment variable that holds the API key; it may be absent where the
        server wants none. The key goes to the server and nowhere else: errors show [key] in its
        place, and so do answers that repeat one of at least 8 characters.
      folder: where answers are kept, by the sha256 of base_url, model, parameters, prompt and
        seed; None keeps none.
      usage: counts what is asked.

    Raises SettingError where a setting cannot work or the package `openai` is absent.
    """
    check_address(base_url)
    check_settings(model, base_url, concurrency, timeout, retries)
    usage = Usage() if usage is None else usage
    asked = _Server(
        base_url=base_url, model=model, concurrency=concurrency, timeout=timeout, retries=retries,
        temperature=temperature, limit_as=limit_as, api_key_env=api_key_env,
        key=read_key(api_key_env), keeps=folder is not None, usage=usage,
    )  # fmt: skip
    # One name may be another model elsewhere.
    identity = {"base_url": base_url.rstrip("/"), "model": model, "temperature": temperature}
    return remembering(asked.ask_all, folder, identity, usage)


class _Failure(NamedTuple):
    """Why a call failed, after how many tries, and the server's status where it gave one."""

    problem: str
    status: int | None
    tries: int


@dataclass(frozen=True)
class _Server:
    """A server and how to ask it; see `server`."""

    base_url: str
    model: str
    concurrency: int
    timeout: float
    retries: int
    temperature: float
    limit_as: str
    api_key_env: str
    key: str = field(repr=False)
    keeps: bool
    usage: Usage

    def ask_all(self, prompts: Sequence[Prompt], keep: Keep) -> list[Answer]:
        """The answers in the order of the prompts; an LLMError once one call cannot be mended."""
        ended = threading.Event()
        # In a thread, as the caller's may have a loop already: notebooks do.
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(self.runner.run, self.ask_each(prompts, keep, ended))
            try:
                return asked.result()
            finally:  # after Ctrl-C what is under way ends, and is kept; nothing else is asked
                ended.set()

    async def ask_each(
        self, prompts: Sequence[Prompt], keep: Keep, ended: threading.Event
    ) -> list[Answer]:
        """`ask_all`, in the loop that the client's connections belong to."""
        room = asyncio.Semaphore(self.concurrency)
        errors: list[BaseException] = []

        async def ask(prompt: Prompt) -> Answer:
            async with room:
                try:
                    return await self.ask(prompt, keep, Call(ended))
                except BaseException as error:
                    ended.set()
                    errors.append(error)
                    raise

        tasks = [asyncio.create_task(ask(prompt)) for prompt in prompts]
        await asyncio.wait(tasks)
        failed = [task for task in tasks if task.exception()]
        if failed:
            raise errors[0]  # the one that came first, whichever prompt it is of
        return [task.result() for task in tasks]

    async def ask(self, prompt: Prompt, keep: Keep, call: Call) -> Answer:
        """One answer, kept as soon as it is there."""
        if call.ended.is_set():
            return Answer(None, "not asked")
        CALL.set(call)
        reply = await self.attempt(prompt, call)
        self.usage.retries += max(call.tries - 1, 0)
        if isinstance(reply, _Failure):
            return self.give_up(reply, call)
        # A shorter key, such as "none", keeps no secret and may well be a word of the answer.
        text = self.hide(reply.text) if len(self.key) >= 8 else reply.text
        if not reply.problem:
            keep(prompt, text)
        self.usage.calls += 1
        self.usage.prompt_tokens += reply.prompt_tokens
        self.usage.answer_tokens += reply.answer_tokens
        if not reply.problem:
            return Answer(text)
        self.usage.cut += reply.cut
        self.usage.empty += not reply.cut
        return without_use(self.usage, self.base_url, self.hide(reply.problem)[:_SHOWN])

    async def attempt(self, prompt: Prompt, call: Call) -> Reply | _Failure:
        """Ask until there is an answer of the protocol, `retries + 1` times at most."""
        import openai

        failure = _Failure("not asked", None, 0)
        for _ in range(self.retries + 1):
            try:
                return read_reply(await self.send(prompt, self.retries - call.tries), prompt)
            except openai.APITimeoutError:
                failure = _Failure(f"no whole answer in {self.timeout:g} s", None, call.tries)
            except openai.OpenAIError as error:  # the client has tried again as often as it may
                return _failure(error, call.tries, self.hide)
            except _ODD as error:
                failure = _failure(error, call.tries, self.hide)
            if call.tries > self.retries:
                break
        return failure

    async def send(self, prompt: Prompt, retries: int) -> bytes:
        """The body of what comes back, with status 200."""
        completions = self.client.with_options(max_retries=retries).chat.completions
        reply = await completions.with_raw_response.create(
            model=self.model,
            messages=[
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": prompt.user},
            ],
            seed=prompt.seed,
            temperature=self.temperature,
            **{self.limit_as: prompt.max_tokens},
        )
        return reply.content

    def give_up(self, failure: _Failure, call: Call) -> Answer:
        """An Answer that says why there is none, or an LLMError that ends the whole list."""
        if call.ended.is_set():
            return Answer(None, "not asked")
        if failure.status in (400, 413, 422):
            self.usage.failures += 1
            return without_use(self.usage, self.base_url, failure.problem)
        tries = "1 try" if failure.tries == 1 else f"{failure.tries} tries"
        kept = "; answers that arrived are kept, so the run may be started again"
        raise LLMError(
            f"{self.base_url}: {failure.problem} ({tries} at model {self.model!r}): "
            f"{_remedy(failure.status, self.model, self.api_key_env)}{kept if self.keeps else ''}"
        )

    @functools.cached_property
    def runner(self) -> asyncio.Runner:
        """One loop for all lists, so that connections stay open from one to the next."""
        return asyncio.Runner()

    @functools.cached_property
    def client(self) -> Any:
        return connect(self.base_url, self.key, self.timeout)

    def hide(self, text: str) -> str:
        """The text without the key."""
        return hide_key(self.key, text)


def _failure(error: Exception, tries: int, hide: Callable[[str], str]) -> _Failure:
    """What went wrong, without the error, which carries the request and its key.

    What others wrote goes through `hide` before it is cut.
    """
    import openai

    if isinstance(error, openai.APIStatusError):
        response = error.response
        said = hide(words(response.content))[:_SHOWN] or response.reason_phrase
        if response.is_redirect:
            said = f"a redirect to {hide(one_line(response.headers.get('location', '')))[:_SHOWN]}"
        return _Failure(f"answered {error.status_code} ({said})", error.status_code, tries)
    odd = isinstance(error.__cause__, NotOfTheProtocol)  # older versions of openai wrap it
    if isinstance(error, openai.APIConnectionError) and not odd:
        return _Failure(f"no connection ({hide(str(error.__cause__ or error))})", None, tries)
    said = hide(one_line(str(error.__cause__ if odd else error)))[:_SHOWN]
    return _Failure(f"not an answer of the chat completions protocol ({said})", None, tries)


def _remedy(status: int | None, model: str, api_key_env: str) -> str:
    if status in (401, 403):
        return f"put a key that it accepts into the environment variable {api_key_env}"
    if status == 404:
        return f"base_url must end where the server's API begins (often /v1) and serve {model!r}"
    if status == 429:
        return "lower concurrency, raise retries, or see whether the account has credit"
    if status and 300 <= status < 400:
        return "prompts follow no redirect; set base_url to the address that answers itself"
    return "see that the server runs and base_url is right, or raise timeout and retries"

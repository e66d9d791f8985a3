"""A language model behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple
from warnings import warn

from jaxrec.llm.answers import remembering
from jaxrec.llm.openai_settings import check_address, check_settings, hide_key, read_key
from jaxrec.llm.protocol import Answer, Complete, Keep, Prompt, Usage
from jaxrec.types import LLMError

_CUT = "cut at max_tokens = {}: allow longer answers, as with spare_tokens"
# What the client ends in where an answer is no JSON, or JSON but not of the protocol.
_NOT_OF_THE_PROTOCOL = AttributeError, IndexError, TypeError, ValueError


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

    The package `openai` tries a call again after a time-out, a broken connection and a busy (429)
    or broken (5xx) server: with back-off, or after the server's Retry-After where that is two
    minutes at most. An answer that is not of the protocol is asked for again at once. If that does
    not help, or if the key or the model is refused, `LLMError` ends the whole list; what has
    arrived by then is kept. A prompt that the server refuses (400, 413, 422) fails alone, and so
    does one whose answer reaches its limit before it is whole: what there is of it is neither used
    nor kept.

    Args:
      base_url: such as http://localhost:8000/v1.
      model: as the server names it.
      concurrency: calls under way at once.
      timeout: seconds until a call is given up and tried again.
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


class _Reply(NamedTuple):
    """What came back, and whether it is whole; tokens as the server counted them, or guessed."""

    text: str
    whole: bool
    prompt_tokens: int
    answer_tokens: int


class _Failure(NamedTuple):
    """Why a call failed, after how many tries, and the server's status where it gave one."""

    problem: str
    status: int | None
    tries: int


class _Call(threading.local):
    """The call that a thread has under way: how often it was sent, and when to send no more."""

    tries = 0
    stop = threading.Event()


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
    lock: threading.Lock = field(default_factory=threading.Lock)
    call: _Call = field(default_factory=_Call)

    def ask_all(self, prompts: Sequence[Prompt], keep: Keep) -> list[Answer]:
        """The answers in the order of the prompts; an LLMError once one call cannot be mended."""
        client, stop = self.client, threading.Event()
        with ThreadPoolExecutor(max_workers=self.concurrency) as pool:
            try:
                asked = [pool.submit(self.ask, client, prompt, keep, stop) for prompt in prompts]
                wait(asked, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # what is under way ends, and is kept; nothing else is asked
                pool.shutdown(cancel_futures=True)
        failed = [one for one in asked if not one.cancelled() and one.exception()]
        return [one.result() for one in failed or asked]

    def ask(self, client: Any, prompt: Prompt, keep: Keep, stop: threading.Event) -> Answer:
        """One answer, kept as soon as it is there."""
        self.call.tries, self.call.stop = 0, stop
        reply = self.attempt(client, prompt)
        with self.lock:
            self.usage.retries += max(self.call.tries - 1, 0)
        if isinstance(reply, _Failure):
            return self.give_up(reply)
        if reply.whole:
            keep(prompt, reply.text)
        with self.lock:
            self.usage.calls += 1
            self.usage.prompt_tokens += reply.prompt_tokens
            self.usage.answer_tokens += reply.answer_tokens
            self.usage.cut += not reply.whole
        if reply.whole:
            return Answer(reply.text)
        problem = _CUT.format(prompt.max_tokens)
        warn(f"{self.base_url}: an answer was {problem}; it is not used", stacklevel=2)
        return Answer(None, problem)

    def attempt(self, client: Any, prompt: Prompt) -> _Reply | _Failure:
        """Ask until there is an answer of the protocol, `retries + 1` times at most."""
        import openai

        failure = _Failure("not asked", None, 0)
        for _ in range(self.retries + 1):
            try:
                left = self.retries - self.call.tries
                return self.send(client.with_options(max_retries=left), prompt)
            except openai.APIResponseValidationError as error:
                failure = self.failure(error)
            except openai.OpenAIError as error:  # the client has tried again as often as it may
                return self.failure(error)
            except _NOT_OF_THE_PROTOCOL as error:
                failure = self.failure(error)
            if self.call.tries > self.retries:
                break
        return failure

    def failure(self, error: Exception) -> _Failure:
        """What went wrong, without the error, which carries the request and its key."""
        import openai

        status = error.status_code if isinstance(error, openai.APIStatusError) else None
        return _Failure(_problem(error, self.hide), status, self.call.tries)

    def send(self, client: Any, prompt: Prompt) -> _Reply:
        """The reply to one call."""
        reply = client.chat.completions.create(
            model=self.model,
            messages=[
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": prompt.user},
            ],
            seed=prompt.seed,
            temperature=self.temperature,
            **{self.limit_as: prompt.max_tokens},
        )
        text = reply.choices[0].message.content or ""
        # A shorter key, such as "none", keeps no secret and may well be a word of the answer.
        text = self.hide(text) if len(self.key) >= 8 else text
        spent = [getattr(reply.usage, f"{kind}_tokens", None) for kind in ("prompt", "completion")]
        guessed = len(prompt.system + prompt.user) // 4, len(text) // 4
        whole = reply.choices[0].finish_reason != "length"
        tokens = (g if s is None else s for s, g in zip(spent, guessed, strict=True))
        return _Reply(text, whole, *tokens)

    def give_up(self, failure: _Failure) -> Answer:
        """An Answer that says why there is none, or an LLMError that ends the whole list."""
        if self.call.stop.is_set():
            return Answer(None, "not asked")
        if failure.status in (400, 413, 422):
            with self.lock:
                self.usage.failures += 1
            return Answer(None, failure.problem)
        tries = "1 try" if failure.tries == 1 else f"{failure.tries} tries"
        kept = "; answers that arrived are kept, so the run may be started again"
        raise LLMError(
            f"{self.base_url}: {failure.problem} ({tries} at model {self.model!r}): "
            f"{_remedy(failure.status, self.model, self.api_key_env)}{kept if self.keeps else ''}"
        )

    @functools.cached_property
    def client(self) -> Any:
        """A client that counts what a thread sends, and sends nothing once its call has to stop."""
        import openai

        def count(request: Any) -> None:
            if self.call.stop.is_set():
                raise openai.OpenAIError("not asked")
            self.call.tries += 1

        return openai.OpenAI(
            base_url=self.base_url,
            api_key=self.key or "none",  # a server that wants no key gets one: the package insists
            timeout=self.timeout,
            http_client=openai.DefaultHttpxClient(event_hooks={"request": [count]}),
        )

    def hide(self, text: str) -> str:
        """The text without the key."""
        return hide_key(self.key, text)


def _problem(error: Exception, hide: Callable[[str], str]) -> str:
    """What went wrong, in a line; what others wrote goes through `hide` before it is cut."""
    import openai

    if isinstance(error, openai.APIStatusError):
        return f"answered {error.status_code} ({' '.join(hide(str(error)).split())[:300]})"
    if isinstance(error, openai.APITimeoutError):
        return "timed out"
    if isinstance(error, openai.APIConnectionError):
        return f"no connection ({hide(str(error.__cause__ or error))})"
    return f"not an answer of the chat completions protocol ({type(error).__name__})"


def _remedy(status: int | None, model: str, api_key_env: str) -> str:
    if status in (401, 403):
        return f"put a key that it accepts into the environment variable {api_key_env}"
    if status == 404:
        return f"base_url must end where the server's API begins (often /v1) and serve {model!r}"
    if status == 429:
        return "lower concurrency, raise retries, or see whether the account has credit"
    return "see that the server runs and base_url is right, or raise timeout and retries"

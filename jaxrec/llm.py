"""A language model as a function: a list of prompts -> a list of answers, nothing paid twice.

    complete = server("http://localhost:8000/v1", "my-model", folder=Path("answers"))
    complete([Prompt("You are terse.", "Name a colour.")])

Whatever is of type `Complete` will do. `server` asks any server that speaks OpenAI's chat
completions, `local` a decoder in this process. Both keep every answer on disk the moment it
arrives, so that a run that is killed and started again asks only for what it never got.
"""

from __future__ import annotations

import email.utils
import functools
import hashlib
import json
import os
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit
from warnings import warn

import jax
import numpy as np

from jaxrec.report import write_text
from jaxrec.types import SettingError

LONGEST_PAUSE = 300.0  # seconds between two tries, whatever a server asks for
_CUT = "cut at max_tokens = {}: allow longer answers, as with spare_tokens"
_VERSION = 1  # of the cache's entries


class Prompt(NamedTuple):
    """What to ask. The same prompt with another seed is another question."""

    system: str
    user: str
    seed: int = 0
    max_tokens: int = 512


class Answer(NamedTuple):
    """What came back: text, or None and why there is none."""

    text: str | None
    failure: str = ""


Complete = Callable[[Sequence[Prompt]], list[Answer]]


class LLMError(RuntimeError):
    """The model cannot be asked at all; the message names where, why and the remedy."""


@dataclass
class Usage:
    """What has been asked so far. Tokens are as the server counted them, else characters / 4."""

    calls: int = 0  # that were paid for
    cached: int = 0  # answered from the disk
    retries: int = 0  # tries after the first one of a call
    failures: int = 0  # calls that the server refused for good
    cut: int = 0  # paid for, but at their limit before the answer was whole: not used, not kept
    prompt_tokens: int = 0  # of the calls paid for
    answer_tokens: int = 0

    def values(self) -> dict[str, int]:
        """By name."""
        return asdict(self)


class Estimate(NamedTuple):
    """What a run will take, before it starts."""

    calls: int
    prompt_tokens: int
    answer_tokens: int
    seconds: float
    cost: float | None  # None where no price is known


def estimate(
    calls: int,
    prompt_tokens: int,
    answer_tokens: int,
    *,
    rounds: int = 1,
    concurrency: int = 1,
    answer_seconds: float = 1.0,
    prices: tuple[float, float] = (0.0, 0.0),
) -> Estimate:
    """Calls, tokens, time and cost of a run.

    Args:
      calls: in all.
      prompt_tokens: in all.
      answer_tokens: in all.
      rounds: lists of calls made one after another; none takes less time than one answer.
      concurrency: calls under way at once.
      answer_seconds: for one answer.
      prices: of a million prompt tokens and of a million answer tokens.
    """
    seconds = max(rounds, calls / concurrency) * answer_seconds
    cost = (prices[0] * prompt_tokens + prices[1] * answer_tokens) / 1e6
    return Estimate(calls, prompt_tokens, answer_tokens, seconds, cost if any(prices) else None)


def tell(took: Estimate) -> str:
    """An estimate in words."""
    cost = "" if took.cost is None else f", cost {took.cost:,.2f}"
    return (
        f"about {took.calls:,} calls, {took.prompt_tokens / 1e6:,.2f} M prompt and "
        f"{took.answer_tokens / 1e6:,.2f} M answer tokens, "
        f"{timedelta(seconds=round(took.seconds))} (h:mm:ss){cost}"
    )


def server(
    base_url: str,
    model: str,
    *,
    concurrency: int = 8,
    timeout: float = 120.0,
    retries: int = 6,
    pause: float = 1.0,
    temperature: float = 0.0,
    limit_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    api_key_env: str = "OPENAI_API_KEY",
    folder: Path | None = None,
    usage: Usage | None = None,
) -> Complete:
    """A function that asks a server which speaks OpenAI's chat completions.

    A call is tried again after a time-out, a broken connection, a busy (429) or broken (5xx) server
    and an answer that is not of the protocol: after `pause` seconds, twice as many each time, with
    jitter, or as many as the server's Retry-After says. If that does not help, or if the key or the
    model is refused, `LLMError` ends the whole list; what has arrived by then is kept. A prompt
    that the server refuses (400, 413, 422) fails alone, and so does one whose answer reaches its
    limit before it is whole: what there is of it is neither used nor kept.

    Args:
      base_url: such as http://localhost:8000/v1.
      model: as the server names it.
      concurrency: calls under way at once.
      timeout: seconds until a call is given up and tried again.
      retries: tries after the first one.
      pause: seconds before the first retry.
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
    _check_server(base_url, model, concurrency, timeout, retries, pause, api_key_env)
    usage = Usage() if usage is None else usage
    settings = {"temperature": temperature}
    key = os.environ.get(api_key_env, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise SettingError(
            f"api_key_env: the key in the environment variable {api_key_env} holds a space, a line "
            "break or another character that no key has; set it anew"
        )
    hide = functools.partial(_hide, key)
    lock = threading.Lock()

    @functools.cache
    def client() -> Any:
        import openai

        # A server that wants no key still gets one: the package insists.
        return openai.OpenAI(
            base_url=base_url, api_key=key or "none", timeout=timeout, max_retries=0
        )

    def once(prompt: Prompt) -> tuple[str, bool, int, int]:
        reply = client().chat.completions.create(
            model=model,
            messages=[
                {"role": "system", "content": prompt.system},
                {"role": "user", "content": prompt.user},
            ],
            seed=prompt.seed,
            **settings,
            **{limit_as: prompt.max_tokens},
        )
        text = reply.choices[0].message.content or ""
        # A shorter key, such as "none", keeps no secret and may well be a word of the answer.
        text = hide(text) if len(key) >= 8 else text
        spent = [getattr(reply.usage, f"{kind}_tokens", None) for kind in ("prompt", "completion")]
        guessed = len(prompt.system + prompt.user) // 4, len(text) // 4
        whole = reply.choices[0].finish_reason != "length"
        return text, whole, *(g if s is None else s for s, g in zip(spent, guessed, strict=True))

    def ask(prompt: Prompt, keep: Callable[[Prompt, str], None], stop: threading.Event) -> Answer:
        import openai

        # The last four are what an answer that is JSON but not of the protocol ends in.
        broken = openai.APIError, AttributeError, IndexError, TypeError, ValueError
        for number in range(retries + 1):
            if stop.is_set():
                return Answer(None, "not asked")
            try:
                text, whole, *tokens = once(prompt)
            except broken as error:
                status, problem = getattr(error, "status_code", None), _problem(error, hide)
                waits = _asked_to_wait(error)
            else:
                if whole:
                    keep(prompt, text)
                with lock:
                    usage.calls += 1
                    usage.prompt_tokens += tokens[0]
                    usage.answer_tokens += tokens[1]
                    usage.cut += not whole
                if whole:
                    return Answer(text)
                problem = _CUT.format(prompt.max_tokens)
                warn(f"{base_url}: an answer was {problem}; it is not used", stacklevel=2)
                return Answer(None, problem)
            # Out of the except clause: an error raised there would carry the request and its key.
            if status in (400, 413, 422):
                with lock:
                    usage.failures += 1
                return Answer(None, problem)
            if status and 300 <= status < 500 and status not in (408, 409, 429):
                break
            if number < retries:
                with lock:
                    usage.retries += 1
                jitter = random.uniform(0.5, 1.0) * pause * 2**number
                stop.wait(min(max(waits, jitter), LONGEST_PAUSE))
        tries = "1 try" if number == 0 else f"{number + 1} tries"
        kept = "; answers that arrived are kept, so the run may be started again" if folder else ""
        remedy = _remedy(status, model, api_key_env)
        raise LLMError(f"{base_url}: {problem} ({tries} at model {model!r}): {remedy}{kept}")

    def ask_all(prompts: Sequence[Prompt], keep: Callable[[Prompt, str], None]) -> list[Answer]:
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=concurrency) as pool:
            try:
                asked = [pool.submit(ask, prompt, keep, stop) for prompt in prompts]
                wait(asked, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()  # what is under way ends, and is kept; nothing else is asked
                pool.shutdown(cancel_futures=True)
        failed = [one for one in asked if not one.cancelled() and one.exception()]
        return [one.result() for one in failed or asked]

    # One name may be another model elsewhere.
    identity = {"base_url": base_url.rstrip("/"), "model": model, **settings}
    return _remembering(ask_all, folder, identity, usage)


def local(
    folder: Path,
    *,
    batch: int = 16,
    temperature: float = 0.0,
    answers: Path | None = None,
    usage: Usage | None = None,
) -> Complete:
    """A function that asks the decoder in `folder` (`jaxrec.models.decoder`), in this process.

    Prompts with the same limit and of similar length run together, with cached keys and values; a
    prompt too long for the decoder fails alone. A sample depends on its prompt and seed only.

    Args:
      folder: of a model, with config.json, model.safetensors and tokenizer.json.
      batch: prompts at once, which bounds memory.
      temperature: of sampling; 0 for the most likely answer, whatever the seed.
      answers: where answers are kept; None keeps none.
      usage: counts what is asked.

    Raises SettingError where the folder holds no model; a damaged one is found at the first call.
    """
    from jaxrec.models import decoder as decoders
    from jaxrec.models.generate import generate, tokenize

    if batch < 1:
        raise SettingError(f"concurrency = {batch}: must be at least 1, the prompts in a batch")
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        raise SettingError(
            f"model = {str(folder)!r}: must be the folder of a model, with config.json"
        )
    usage = Usage() if usage is None else usage
    load = functools.cache(lambda: decoders.load(folder))

    def ask_all(prompts: Sequence[Prompt], keep: Callable[[Prompt, str], None]) -> list[Answer]:
        decoder, dress = load(), _dress(folder)
        tokenizer = decoder.folder.tokenizer(decoder.config.vocabulary)
        found: list[Answer] = [Answer(None)] * len(prompts)
        tokens = tokenize(decoder, [dress(prompt.system, prompt.user) for prompt in prompts])
        alike = defaultdict(list)
        for k, prompt in enumerate(prompts):
            room = decoder.config.positions - prompt.max_tokens
            if len(tokens[k]) > room:
                found[k] = Answer(None, f"{len(tokens[k])} tokens, and {room} have room")
                usage.failures += 1
            else:
                width = min(room, 1 << max(3, (len(tokens[k]) - 1).bit_length()))
                alike[prompt.max_tokens, width].append(k)
        for (limit, width), places in sorted(alike.items()):
            for some in (places[k : k + batch] for k in range(0, len(places), batch)):
                ids, mask = np.zeros((batch, width), np.int32), np.zeros((batch, width), bool)
                for row, k in enumerate(some):
                    ids[row, width - len(tokens[k]) :] = tokens[k]
                    mask[row, width - len(tokens[k]) :] = True
                written = generate(
                    decoder, ids, mask, jax.random.key(0), max_new=limit, temperature=temperature,
                    rows=np.resize([prompts[k].seed for k in some], batch),
                ).tokens  # fmt: skip
                for k, new in zip(some, np.asarray(written), strict=False):  # rows of padding
                    text = tokenizer.decode(new[new >= 0].tolist())
                    keep(prompts[k], text)
                    found[k] = Answer(text)
                    usage.calls += 1
                    usage.prompt_tokens += len(tokens[k])
                    usage.answer_tokens += int((new >= 0).sum())
        return found

    # Other weights in the same place are another model.
    files = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    about = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    identity = {"model": str(folder.resolve()), "files": about, "temperature": temperature}
    return _remembering(ask_all, answers, identity, usage)


def _dress(folder: Path) -> Callable[[str, str], str]:
    """(system, user) -> the text that a model of the folder's family expects, from its tokenizer.

    ChatML (Qwen and others) and Llama 3 are known; any other model is shown plain text.
    """
    path = folder / "tokenizer.json"
    known = path.read_text() if path.exists() else ""
    if "<|im_start|>" in known:
        turn, begin = "<|im_start|>{0}\n{1}<|im_end|>\n", "<|im_start|>assistant\n"
    elif "<|start_header_id|>" in known:
        header = "<|start_header_id|>{0}<|end_header_id|>\n\n"
        turn, begin = header + "{1}<|eot_id|>", header.format("assistant")
    else:
        return lambda system, user: f"{system}\n\n{user}\n\n"
    return lambda system, user: turn.format("system", system) + turn.format("user", user) + begin


def _check_server(
    base_url: str, model: str, concurrency: int, timeout: float, retries: int, pause: float,
    api_key_env: str,
) -> None:  # fmt: skip
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingError(
            f"base_url = {base_url!r}: must be the address of a server, such as "
            "http://localhost:8000/v1"
        )
    if parts.username or parts.password or parts.query:
        raise SettingError(
            f"base_url: that of {parts.hostname} holds a user, a password or a query, which would "
            "end up in the run folder; put the key into an environment variable (api_key_env)"
        )
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", api_key_env):
        # The value is not shown: it may be the key itself.
        raise SettingError(
            "api_key_env: must be the name of an environment variable in capitals, such as "
            "OPENAI_API_KEY, not the key"
        )
    if not model:
        raise SettingError(f"model = '': name the model to ask {base_url} for")
    if concurrency < 1 or retries < 0 or not timeout > 0 or not pause >= 0:
        raise SettingError(
            f"concurrency = {concurrency}, retries = {retries}, timeout = {timeout}, pause = "
            f"{pause}: needs at least 1, at least 0, more than 0 and at least 0"
        )
    if not find_spec("openai"):
        raise SettingError(
            "llm = 'server': needs the package openai, which is not installed: "
            "pip install 'jaxrec[agents]'"
        )


def _hide(key: str, text: str) -> str:
    """The text without the key, as it is or as Python and JSON escape it."""
    for form in filter(None, (repr(key)[1:-1], json.dumps(key)[1:-1], key)):
        text = text.replace(form, "[key]")
    return text


def _problem(error: Exception, hide: Callable[[str], str]) -> str:
    """What went wrong, in a line; what others wrote goes through `hide` before it is cut."""
    status = getattr(error, "status_code", None)
    if status and status >= 300:
        return f"answered {status} ({' '.join(hide(str(error)).split())[:300]})"
    if "Timeout" in type(error).__name__:
        return "timed out"
    if "Connection" in type(error).__name__:
        cause = error.__cause__
        return f"no connection ({hide(str(cause or error))})"
    return f"not an answer of the chat completions protocol ({type(error).__name__})"


def _remedy(status: int | None, model: str, api_key_env: str) -> str:
    if status in (401, 403):
        return f"put a key that it accepts into the environment variable {api_key_env}"
    if status == 404:
        return f"base_url must end where the server's API begins (often /v1) and serve {model!r}"
    if status == 429:
        return "lower concurrency, raise retries, or see whether the account has credit"
    return "see that the server runs and base_url is right, or raise timeout and retries"


def _asked_to_wait(error: Exception) -> float:
    """Seconds that a server asks to wait with Retry-After, as a number or as a date; else 0."""
    headers = getattr(getattr(error, "response", None), "headers", None) or {}
    asked = headers.get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time())
    except ValueError:
        return 0.0


def _remembering(
    ask_all: Callable[[Sequence[Prompt], Callable[[Prompt, str], None]], list[Answer]],
    folder: Path | None,
    identity: dict[str, Any],
    usage: Usage,
) -> Complete:
    """`ask_all` for what is not on disk; equal prompts are asked once.

    `ask_all` gets the prompts and a function to keep an answer with as soon as it is there.
    """

    def digest(prompt: Prompt) -> str:
        asked = json.dumps([_VERSION, identity, prompt._asdict()], sort_keys=True)
        return hashlib.sha256(asked.encode()).hexdigest()

    def keep(prompt: Prompt, text: str) -> None:
        if folder:
            _keep(_file(folder, digest(prompt)), {**identity, **prompt._asdict()}, text)

    def complete(prompts: Sequence[Prompt]) -> list[Answer]:
        names = [digest(prompt) for prompt in prompts]
        wanted = dict(zip(names, prompts, strict=True))
        found = {name: _kept(_file(folder, name)) for name in wanted} if folder else {}
        answers = {name: Answer(text) for name, text in found.items() if text is not None}
        usage.cached += len(answers)
        missing = {name: prompt for name, prompt in wanted.items() if name not in answers}
        if missing:
            asked = ask_all(list(missing.values()), keep)
            answers |= dict(zip(missing, asked, strict=True))
        return [answers[name] for name in names]

    return complete


def _file(folder: Path, digest: str) -> Path:
    return Path(folder) / digest[:2] / f"{digest[2:]}.json"


def _kept(file: Path) -> str | None:
    """The answer in a file of the cache; None if there is none or it is damaged."""
    try:
        entry = json.loads(file.read_text())
        if entry["sha256"] == _checksum(entry["answer"]):
            return entry["answer"]
        problem = "its checksum is another"
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        problem = repr(error)
    warn(f"{file} is damaged ({problem}): its prompt is asked again", stacklevel=3)
    return None


def _keep(file: Path, prompt: dict[str, Any], text: str) -> None:
    """Write an answer whole or not at all, whoever else writes the same one."""
    entry = {"prompt": prompt, "answer": text, "sha256": _checksum(text)}
    try:
        write_text(file, json.dumps(entry, indent=1))
    except OSError as error:
        # To go on would be to pay for what a later run would have to pay for again.
        raise LLMError(f"{file}: an answer cannot be kept ({error}); make room there") from error


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

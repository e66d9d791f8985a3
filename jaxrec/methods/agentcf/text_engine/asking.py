"""Asking the model of AgentCF++'s text engine: limits, seeds, and what is asked again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np

from jaxrec.llm.protocol import Complete, Prompt
from jaxrec.llm.unusable import Tally
from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.methods.agentcf.text_engine.prompts import AGAIN, Words

WORD_TOKENS = 1.4  # of a word of a memory

Found = TypeVar("Found")
Seed = Callable[..., int]


def to_prompt(config: Config, words: Words, seed: int, attempt: int, room: float) -> Prompt:
    """A prompt for `room` words; another attempt has another seed and says why it is made."""
    system, user = words
    limit = int(2 * WORD_TOKENS * room) + 64 + config.spare_tokens
    return Prompt(system, user + (AGAIN if attempt else ""), seed, limit)


def seeds(key: jax.Array, *more: Any) -> Seed:
    """A function of anything that prints -> 31 bits; another function for another key or `more`."""
    start = [*np.asarray(jax.random.key_data(key)).tolist(), *more]

    def draw(*what: Any) -> int:
        digest = hashlib.sha256(repr([*start, *what]).encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    return draw


def ask_each(
    complete: Complete,
    number: int,
    ask: Callable[[int, int], Prompt],
    take: Callable[[int, str], Found | None],
    config: Config,
) -> list[Found | None]:
    """What is taken of the answer to each of some prompts, None where it stays unusable.

    Args:
      complete: is handed all prompts of an attempt at once.
      number: of prompts.
      ask: (which, attempt) -> prompt.
      take: (which, text) -> what the text says, None if it does not follow the format.
      config: how often each may be asked, and how many answers may be of no use.

    Raises LLMError where more of them are, and warns of calls that were refused.
    """
    found: list[Found | None] = [None] * number
    tally = Tally(config.unusable_limit)
    for attempt in range(config.attempts):
        open_ = [k for k in range(number) if found[k] is None]
        if not open_:
            break
        answers = complete([ask(k, attempt) for k in open_])
        for k, answer in zip(open_, answers, strict=True):
            found[k] = None if answer.text is None else take(k, answer.text)
            tally.note(answer, fits=found[k] is not None)
        tally.check()
    tally.close()
    return found

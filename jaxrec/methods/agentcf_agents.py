"""AgentCF++'s text engine, one event: its items in words, its four calls, what it writes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from jaxrec.llm import Prompt
from jaxrec.methods import agentcf_prompts as prompts
from jaxrec.methods.agentcf_prompts import Offer
from jaxrec.ops import dataflow, strings
from jaxrec.ops.dataflow import Stage
from jaxrec.ops.schedule import Events
from jaxrec.types import Data, DataError, SettingError

if TYPE_CHECKING:
    from jaxrec.methods.agentcf_text import Config

WIDTH = 8  # bytes that a word of a memory has room for
REASON = 320  # bytes of a reason that the state keeps
TOKENS = 1.4  # of a word


class Names(NamedTuple):
    """The words for items and domains."""

    domain: np.ndarray  # int [I]
    domains: list[str]  # [M]
    title: list[str]  # [I]  no two alike
    about: list[str]  # [I]  category and text


def names_of(config: Config, data: Data) -> Names:
    """Raises SettingError where the names given do not fit the domains."""
    if data.written is None:
        raise DataError(
            "column 'title': the items have no text to show to a language model; add title, "
            "category or text to the table of items"
        )
    domain = domains_of(data)
    number = int(domain.max()) + 1
    if len(config.domains) > number:
        raise SettingError(
            f"domains = {config.domains!r}: {len(config.domains)} names, and the items are of "
            f"{number} domains; leave out what is too many"
        )
    named = [*config.domains, *(f"domain {d}" for d in range(len(config.domains), number))]
    if twice := [name for name, times in Counter(named).items() if times > 1]:
        raise SettingError(
            f"domains = {config.domains!r}: {twice[0]!r} would name two domains; give each a name "
            "of its own"
        )
    written = jax.tree.map(np.asarray, data.written)
    texts = [strings.read(written, item) for item in range(len(domain))]
    first, _, about = zip(*(text.partition("\n") for text in texts), strict=True)
    times = Counter(first)
    title = [
        text if text and times[text] == 1 else f"{text} (item {item})".strip()
        for item, text in enumerate(first)
    ]
    return Names(domain, named, title, [" ".join(text.split()) for text in about])


def written(names: Names, user: int, item: int, negative: int) -> list[tuple]:
    """The memories that an event writes, named by field and index of the state."""
    domain = int(names.domain[item])
    return [("private", user, domain), ("fused", user, domain), ("item", item), ("item", negative)]


def stages(
    config: Config, names: Names, log: Events, seed: Callable[..., int], first: int
) -> list[Stage]:
    """choose, reflect, fuse and items of the events `log`, which begins with number `first`."""

    def about(event: int) -> tuple[int, int, list[int]]:
        """User, domain, and the two items in the order shown: the place tells nothing."""
        user, item, negative = (part[event] for part in log)
        shown = [item, negative][:: -1 if seed("order", first + event) % 2 else 1]
        return user, int(names.domain[item]), shown

    def offers(shown: Sequence[int], read: dataflow.Read) -> list[Offer]:
        return [Offer(names.title[item], read(("item", item))) for item in shown]

    def prompt(stage: str, words: prompts.Words, event: int, attempt: int, room: float) -> Prompt:
        return to_prompt(config, words, seed(stage, first + event, attempt), attempt, room)

    def take_notes(field: str, words: int) -> Callable:
        def take(event, text, notes):
            user, domain, _ = about(event)
            found = prompts.read_notes(text)
            return found and ({(field, user, domain): strings.cut(found, WIDTH * words)}, {})

        return take

    def ask_choose(event, read, notes, attempt):
        user, domain, shown = about(event)
        words = prompts.choose(
            names.domains[domain], read(("fused", user, domain)), offers(shown, read)
        )
        return prompt("choose", words, event, attempt, 80)

    def take_choose(event, text, notes):
        found = prompts.read_choice(text, 2)
        if not found:
            return None
        chosen = about(event)[2][found[0]]
        reason = strings.cut(found[1], REASON)
        return {}, {"right": chosen == log.item[event], "reason": reason}

    def ask_reflect(event, read, notes, attempt):
        user, domain, _ = about(event)
        taken, passed = offers((log.item[event], log.negative[event]), read)
        if not notes["right"]:
            taken, passed = passed, taken
        words = prompts.reflect(
            names.domains[domain], read(("private", user, domain)), taken, passed,
            notes["reason"], notes["right"], config.private_words,
        )  # fmt: skip
        return prompt("reflect", words, event, attempt, config.private_words)

    def ask_fuse(event, read, notes, attempt):
        user, domain, _ = about(event)
        private = [read(("private", user, d)) for d in range(len(names.domains))]
        words = fuse(config, names, domain, private, read(("fused", user, domain)))
        return prompt("fuse", words, event, attempt, config.fused_words)

    def ask_items(event, read, notes, attempt):
        user, domain, shown = about(event)
        words = prompts.items(
            names.domains[domain], read(("fused", user, domain)), offers(shown, read),
            shown.index(log.item[event]), notes["reason"], config.item_words,
        )  # fmt: skip
        return prompt("items", words, event, attempt, 2 * config.item_words)

    def take_items(event, text, notes):
        found = prompts.read_items(text, 2)
        if not found:
            return None
        cells = [("item", item) for item in about(event)[2]]
        cut = [strings.cut(note, WIDTH * config.item_words) for note in found]
        return dict(zip(cells, cut, strict=True)), {}

    return [
        Stage(ask_choose, take_choose),
        Stage(ask_reflect, take_notes("private", config.private_words)),
        Stage(ask_fuse, take_notes("fused", config.fused_words)),
        Stage(ask_items, take_items),
    ]


def fuse(
    config: Config, names: Names, domain: int, private: Sequence[str], fused: str
) -> prompts.Words:
    told = [(name, notes) for name, notes in zip(names.domains, private, strict=True) if notes]
    return prompts.fuse(names.domains[domain], told, fused, config.fused_words)


def to_prompt(config: Config, words: prompts.Words, seed: int, attempt: int, room: float) -> Prompt:
    """A prompt for `room` words; another attempt has another seed and says why it is made."""
    system, user = words
    limit = int(2 * TOKENS * room) + 64 + config.spare_tokens
    return Prompt(system, user + (prompts.AGAIN if attempt else ""), seed, limit)


def seeds(key: jax.Array, *more: Any) -> Callable[..., int]:
    """A function of anything that prints -> 31 bits; another function for another key or `more`."""
    start = [*np.asarray(jax.random.key_data(key)).tolist(), *more]

    def draw(*what: Any) -> int:
        digest = hashlib.sha256(repr([*start, *what]).encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    return draw


def domains_of(data: Data) -> np.ndarray:
    """int [I]; all 0 where the data knows no domains."""
    if data.domain is None:
        return np.zeros(len(data.written.length), int)
    domain = np.asarray(data.domain).astype(int)
    if (bad := np.flatnonzero(domain < 0)).size:
        raise DataError(
            f"column 'domain': item {bad[0]} has domain {domain[bad[0]]}; give every item one from "
            "0 up, or drop the column"
        )
    return domain

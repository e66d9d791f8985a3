"""The words for items and domains in the prompts of AgentCF++'s text engine."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import jax
import numpy as np

from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.ops import strings
from jaxrec.types import Data, DataError, SettingError, Text


class Names(NamedTuple):
    """The words for items and domains."""

    domain: np.ndarray  # int [I]
    domains: list[str]  # [M]
    title: list[str]  # [I]  no two alike
    about: list[str]  # [I]  category and text


def names_of(config: Config, data: Data) -> Names:
    """The words for the items and domains of some data.

    Raises DataError where the items have no text, SettingError where the names given do not fit
    the domains.
    """
    written, domain = jax.tree.map(np.asarray, _written(data)), domains_of(data)
    named = _named(config, int(domain.max()) + 1)
    texts = [strings.string_at(written, item) for item in range(len(domain))]
    titles, _, about = zip(*(text.partition("\n") for text in texts), strict=True)
    times = Counter(titles)
    title = [
        text if text and times[text] == 1 else f"{text} (item {item})".strip()
        for item, text in enumerate(titles)
    ]
    return Names(domain, named, title, [" ".join(text.split()) for text in about])


def domains_of(data: Data) -> np.ndarray:
    """The domain of each item, int [I]; all 0 where the data know no domains."""
    if data.domain is None:
        return np.zeros(len(_written(data).length), int)
    domain = np.asarray(data.domain).astype(int)
    if (bad := np.flatnonzero(domain < 0)).size:
        raise DataError(
            f"column 'domain': item {bad[0]} has domain {domain[bad[0]]}; give every item one from "
            "0 up, or drop the column"
        )
    return domain


def _named(config: Config, number: int) -> list[str]:
    """The names of so many domains."""
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
    return named


def _written(data: Data) -> Text:
    if data.written is None:
        raise DataError(
            "column 'title': the items have no text to show to a language model; add title, "
            "category or text to the table of items"
        )
    return data.written

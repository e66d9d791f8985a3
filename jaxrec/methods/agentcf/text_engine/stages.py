"""One event of AgentCF++'s text engine: its memories and its four calls to the model.

    choose    i or j, from fused[u, d]                    -> a choice and a reason
    reflect   was it right? rewrite                       -> private[u, d]
    fuse      private[u, every domain], what bears on d   -> fused[u, d]
    items     what does that tell of i and j?             -> item[i], item[j]

User u took item i of domain d, and item j was rejected.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.pack import history_of
from jaxrec.llm.protocol import Prompt
from jaxrec.methods.agentcf.events import draw_events
from jaxrec.methods.agentcf.text_engine import prompts
from jaxrec.methods.agentcf.text_engine.asking import Seed, to_prompt
from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.methods.agentcf.text_engine.dataflow import Cell, Log, Notes, Recall, Stage, Taken
from jaxrec.methods.agentcf.text_engine.names import Names, domains_of
from jaxrec.methods.agentcf.text_engine.prompts import Offer
from jaxrec.ops import strings
from jaxrec.types import Data

WORD_BYTES = 8  # that a word of a memory has room for
REASON_BYTES = 320  # of a reason that the state keeps

_drawn = jax.jit(draw_events)  # without, each of its operations would be compiled by itself


def log_of(data: Data, key: jax.Array, epoch: int = 0) -> Log:
    """The train rows in the order of time, each with a rejected item, which an epoch draws anew."""
    history = jax.tree.map(jnp.asarray, history_of(data))
    found = _drawn(jax.random.fold_in(key, epoch), history, jnp.asarray(domains_of(data)))
    return Log(*(np.asarray(part).tolist() for part in found))


def cells_of(names: Names, user: int, item: int, negative: int) -> list[Cell]:
    """The memories that an event writes, named by field and index of the state."""
    domain = int(names.domain[item])
    return [("private", user, domain), ("fused", user, domain), ("item", item), ("item", negative)]


class Part(NamedTuple):
    """Events of one epoch that are run together."""

    config: Config
    names: Names
    log: Log
    seed: Seed
    begin: int  # the number of the first of them in the epoch

    def told(self, event: int) -> tuple[int, int, list[int]]:
        """User, domain, and the two items in the order shown: the place tells nothing."""
        user, item, negative = (part[event] for part in self.log)
        shown = [item, negative][:: -1 if self.seed("order", self.begin + event) % 2 else 1]
        return user, int(self.names.domain[item]), shown

    def offers(self, items: Sequence[int], recall: Recall) -> list[Offer]:
        """Items as they are shown, with their memories."""
        return [Offer(self.names.title[item], recall(("item", item))) for item in items]

    def prompt(
        self, stage: str, words: prompts.Words, event: int, attempt: int, room: float
    ) -> Prompt:
        """The prompt of a stage, whose seed no other event, stage or attempt has."""
        seed = self.seed(stage, self.begin + event, attempt)
        return to_prompt(self.config, words, seed, attempt, room)


def stages(part: Part) -> list[Stage]:
    """choose, reflect, fuse and items, for the events of `part`."""
    config = part.config
    return [
        Stage(partial(_ask_choose, part), partial(_take_choose, part)),
        Stage(
            partial(_ask_reflect, part),
            partial(_take_notes, part, "private", config.private_words),
        ),
        Stage(partial(_ask_fuse, part), partial(_take_notes, part, "fused", config.fused_words)),
        Stage(partial(_ask_items, part), partial(_take_items, part)),
    ]


def _ask_choose(part: Part, event: int, recall: Recall, notes: Notes, attempt: int) -> Prompt:
    user, domain, shown = part.told(event)
    fused = recall(("fused", user, domain))
    words = prompts.choose(part.names.domains[domain], fused, part.offers(shown, recall))
    return part.prompt("choose", words, event, attempt, 80)


def _take_choose(part: Part, event: int, text: str, notes: Notes) -> Taken | None:
    found = prompts.read_choice(text, 2)
    if not found:
        return None
    chosen = part.told(event)[2][found[0]]
    reason = strings.cut(found[1], REASON_BYTES)
    return {}, {"right": chosen == part.log.item[event], "reason": reason}


def _ask_reflect(part: Part, event: int, recall: Recall, notes: Notes, attempt: int) -> Prompt:
    user, domain, _ = part.told(event)
    taken, passed = part.offers((part.log.item[event], part.log.negative[event]), recall)
    if not notes["right"]:
        taken, passed = passed, taken
    room = part.config.private_words
    words = prompts.reflect(
        part.names.domains[domain], recall(("private", user, domain)), taken, passed,
        notes["reason"], notes["right"], room,
    )  # fmt: skip
    return part.prompt("reflect", words, event, attempt, room)


def _ask_fuse(part: Part, event: int, recall: Recall, notes: Notes, attempt: int) -> Prompt:
    user, domain, _ = part.told(event)
    private = [recall(("private", user, d)) for d in range(len(part.names.domains))]
    fused = recall(("fused", user, domain))
    words = fuse_words(part.config, part.names, domain, private, fused)
    return part.prompt("fuse", words, event, attempt, part.config.fused_words)


def _take_notes(
    part: Part, field: str, words: int, event: int, text: str, notes: Notes
) -> Taken | None:
    user, domain, _ = part.told(event)
    found = prompts.read_notes(text)
    return ({(field, user, domain): strings.cut(found, WORD_BYTES * words)}, {}) if found else None


def _ask_items(part: Part, event: int, recall: Recall, notes: Notes, attempt: int) -> Prompt:
    user, domain, shown = part.told(event)
    room = part.config.item_words
    words = prompts.items(
        part.names.domains[domain], recall(("fused", user, domain)), part.offers(shown, recall),
        shown.index(part.log.item[event]), notes["reason"], room,
    )  # fmt: skip
    return part.prompt("items", words, event, attempt, 2 * room)


def _take_items(part: Part, event: int, text: str, notes: Notes) -> Taken | None:
    found = prompts.read_items(text, 2)
    if not found:
        return None
    cells = [("item", item) for item in part.told(event)[2]]
    cut = [strings.cut(note, WORD_BYTES * part.config.item_words) for note in found]
    return dict(zip(cells, cut, strict=True)), {}


def fuse_words(
    config: Config, names: Names, domain: int, private: Sequence[str], fused: str
) -> prompts.Words:
    """What a user of these private memories [M] is asked for a fused one of `domain`."""
    told = [(name, notes) for name, notes in zip(names.domains, private, strict=True) if notes]
    return prompts.fuse(names.domains[domain], told, fused, config.fused_words)

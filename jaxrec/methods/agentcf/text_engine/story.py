"""What a user of AgentCF++'s text engine remembered before, what happened, and after."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from jaxrec.data.pack import history_of
from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.methods.agentcf.text_engine.dataflow import Log
from jaxrec.methods.agentcf.text_engine.names import Names, domains_of, names_of
from jaxrec.methods.agentcf.text_engine.stages import WORD_BYTES, log_of
from jaxrec.methods.agentcf.text_engine.state import GIVEN_UP, NOT_YET, RIGHT, State
from jaxrec.ops import strings
from jaxrec.types import Data


def story(config: Config, state: State, data: Data, user: int) -> str:
    """A user's memories before training and after it, and the events between, as Markdown.

    Of several epochs an event is told as it last went, with the item that was rejected then.
    """
    names, log = names_of(config, data), _latest_log(state, data)
    state = jax.tree.map(np.asarray, state._replace(key=None))
    lines = [f"# User {user}", "", "Before: no memory of any domain.", ""]
    lines += _happened(state, names, log, user)
    for domain, name in enumerate(names.domains):
        for field in ("private", "fused"):
            notes = strings.string_at(getattr(state, field), (user, domain))
            lines += ["", f"After, {field} memory of {name}: {notes or 'none'}"]
    taken = dict.fromkeys(
        item for other, item in zip(log.user, log.item, strict=True) if other == user
    )
    for item in taken:
        before = strings.cut(names.about[item], WORD_BYTES * config.item_words)
        after = strings.string_at(state.item, item)
        lines += ["", f"Item {names.title[item]}, before: {before}"]
        lines += ["", f"Item {names.title[item]}, after: {after}"]
    return "\n".join([*lines, ""])


def _latest_log(state: State, data: Data) -> Log:
    """Each event as it last went: those reached in this epoch, the others in the one before."""
    epoch, reached = divmod(int(state.done), len(state.choice))
    this, before = (log_of(data, state.key, max(0, each)) for each in (epoch, epoch - 1))
    parts = zip(this, before, strict=True)
    return Log(*([*new[:reached], *old[reached:]] for new, old in parts))


def _happened(state: State, names: Names, log: Log, user: int) -> Iterator[str]:
    """A line for each event of a user."""
    words = {NOT_YET: "not reached", GIVEN_UP: "no usable answer, nothing changed"}
    for event, (other, item, negative) in enumerate(zip(*log, strict=True)):
        if other != user:
            continue
        choice = int(state.choice[event])
        told = words.get(choice)
        reason = strings.string_at(state.reason, event)
        if not told:
            told = "chose right" if choice == RIGHT else "chose wrong"
            told += f": {reason}" if reason else ""
        domain = names.domains[names.domain[item]]
        yield f"- {domain}: took **{names.title[item]}**, not {names.title[negative]} -- {told}"


def users_to_tell_of(config: Config, data: Data) -> list[int]:
    """`config.stories` users: of the most domains, then of a number of events nearest 6."""
    history, domain = history_of(data), domains_of(data)
    if not config.stories:
        return []
    user, item = np.asarray(history.user), np.asarray(history.item)
    rows = np.bincount(user)
    pairs = np.unique(np.stack([user, domain[item]]), axis=1)
    order = np.lexsort((np.abs(rows - 6), -np.bincount(pairs[0], minlength=len(rows))))
    return sorted(order[: config.stories].tolist())

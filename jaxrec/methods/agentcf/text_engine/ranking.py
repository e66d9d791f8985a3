"""AgentCF++'s text engine, ranking: one call for each list of candidates."""

from __future__ import annotations

from typing import NamedTuple

import chex
import numpy as np

from jaxrec.llm.protocol import Complete, Prompt
from jaxrec.methods.agentcf.text_engine import prompts
from jaxrec.methods.agentcf.text_engine.asking import ask_each, seeds, to_prompt
from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.methods.agentcf.text_engine.names import Names
from jaxrec.methods.agentcf.text_engine.prompts import Offer
from jaxrec.methods.agentcf.text_engine.stages import WORD_BYTES, fuse_words
from jaxrec.methods.agentcf.text_engine.state import State
from jaxrec.ops import strings


class Served(NamedTuple):
    """What ranking reads, on the host."""

    state: State
    names: Names
    groups: list[list[int]]  # of each user, the closest first
    lately: list[dict[int, str]]  # of each group: domain -> what its members took


def rank_lists(
    config: Config, served: Served, users: np.ndarray, candidates: np.ndarray, complete: Complete
) -> tuple[np.ndarray, dict[str, int]]:
    """Rank lists of items, one for each of some users.

    Args:
      config: of the method.
      served: memories, names and groups.
      users: int [B].
      candidates: int [B, S].
      complete: answers the prompts.

    Returns:
      Scores f32 [B, S], S for the first of an answer and 0 for what it omits; and how many lists
      were asked for, had no usable answer, or had an incomplete one.
    """
    chex.assert_shape(candidates, (len(users), None))
    state, names = served.state, served.names
    key = state.key
    of = [sorted(set(names.domain[row].tolist())) for row in candidates]
    fused = _fused_to_rank(config, served, users, of, complete)
    order_seed, seed = seeds(key, "candidates"), seeds(key, "rank")
    # By the hash of each item: neither the target's place nor the order given can be told.
    orders = [
        sorted(
            range(len(row)),
            key=lambda k, row=row, user=user: (order_seed(int(user), int(row[k])), k),
        )
        for user, row in zip(users, candidates, strict=True)
    ]

    def ask(k: int, attempt: int) -> Prompt:
        user = int(users[k])
        notes = [(names.domains[d], fused[user, d]) for d in of[k]]
        told = [served.lately[g].get(d) for g in served.groups[user] for d in of[k]]
        told = [f"- {words}" for words in filter(None, told)][: config.shown_groups]
        shown = candidates[k][orders[k]].tolist()
        offers = [Offer(names.title[i], strings.string_at(state.item, i)) for i in shown]
        words = prompts.rank(notes, told, offers)
        return to_prompt(config, words, seed(user, *shown, attempt), attempt, 2 * len(shown))

    take = lambda k, text: prompts.read_ranking(text, candidates.shape[1])
    found = ask_each(complete, len(users), ask, take, config)
    scores = np.zeros(candidates.shape, np.float32)
    for k, places in enumerate(found):
        for better, place in enumerate(places or ()):
            scores[k, orders[k][place]] = candidates.shape[1] - better
    told = {"asked": len(found), "unusable": sum(not places for places in found)}
    omitted = sum(len(places) < candidates.shape[1] for places in found if places)
    return scores, told | {"incomplete": omitted}


def _fused_to_rank(
    config: Config, served: Served, users: np.ndarray, of: list[list[int]], complete: Complete
) -> dict[tuple[int, int], str]:
    """The fused memory of each user and domain to rank in.

    A user who took nothing of a domain but something of another has none yet: it is made here of
    the private memories that there are, and not kept.
    """
    state, names = served.state, served.names
    cells = sorted({(int(u), d) for u, domains in zip(users, of, strict=True) for d in domains})
    fused = {cell: strings.string_at(state.fused, cell) for cell in cells}
    lacking = [
        (u, d) for (u, d), notes in fused.items() if not notes and state.private.length[u].any()
    ]
    seed = seeds(state.key, "cold")

    def ask(k: int, attempt: int) -> Prompt:
        user, domain = lacking[k]
        private = [strings.string_at(state.private, (user, d)) for d in range(len(names.domains))]
        words = fuse_words(config, names, domain, private, "")
        return to_prompt(config, words, seed(user, domain, attempt), attempt, config.fused_words)

    take = lambda k, text: prompts.read_notes(text)
    found = ask_each(complete, len(lacking), ask, take, config)
    size = WORD_BYTES * config.fused_words
    made = {
        cell: strings.cut(notes or "", size) for cell, notes in zip(lacking, found, strict=True)
    }
    return fused | made

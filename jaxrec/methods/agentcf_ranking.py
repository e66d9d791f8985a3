"""AgentCF++'s text engine, ranking: groups of like interests, and one call for each list."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.text import embed
from jaxrec.llm import Complete, Prompt
from jaxrec.methods import agentcf_prompts as prompts
from jaxrec.methods.agentcf_agents import WIDTH, Names, fuse, seeds, to_prompt
from jaxrec.methods.agentcf_prompts import Offer
from jaxrec.ops import strings
from jaxrec.ops.groups import spherical_k_means

if TYPE_CHECKING:
    from jaxrec.methods.agentcf_text import Config, State


class Served(NamedTuple):
    """What ranking reads, on the host."""

    state: State
    names: Names
    groups: list[list[int]]  # of each user, the closest first
    lately: list[dict[int, str]]  # of each group: domain -> what its members took


def interest_groups(
    config: Config, state: State, names: Names, complete: Complete
) -> tuple[list[list[int]], list[dict[int, str]]]:
    """The groups of each user, the closest first, and what the members of each took by domain.

    What they took is what the state keeps: the train rows, and at no time a validation row.
    """
    number, domains = state.private.length.shape
    private = [[strings.read(state.private, (u, d)) for d in range(domains)] for u in range(number)]
    active = [user for user in range(number) if any(private[user])]
    seed = seeds(state.key, "tags")

    def ask(k: int, attempt: int) -> Prompt:
        user = active[k]
        told = [pair for pair in zip(names.domains, private[user], strict=True) if pair[1]]
        words = prompts.tags(told, config.tags)
        return to_prompt(config, words, seed(user, attempt), attempt, 4 * config.tags)

    take = lambda k, text: prompts.read_tags(text, config.tags)
    found = ask_each(complete, len(active), ask, take, config.attempts)
    tagged = {user: tags for user, tags in zip(active, found, strict=True) if tags}
    distinct = sorted({tag for tags in tagged.values() for tag in tags})
    groups: list[list[int]] = [[] for _ in range(number)]
    if not distinct:
        return groups, []
    wanted = min(config.groups or max(1, round(len(tagged) ** 0.5)), len(distinct))
    times = Counter(tag for tags in tagged.values() for tag in tags)
    vectors = embed(distinct, config.tag_encoder)
    weights = jnp.array([times[tag] for tag in distinct], jnp.float32)
    key = jax.random.fold_in(state.key, seed("clusters"))
    centres = spherical_k_means(jnp.asarray(vectors), weights, key, wanted)
    cluster = np.asarray(jnp.argmax(vectors @ centres.T, axis=1))
    of = dict(zip(distinct, cluster.tolist(), strict=True))
    members = Counter(group for tags in tagged.values() for group in {of[tag] for tag in tags})
    for user, tags in tagged.items():
        closest = Counter(of[tag] for tag in tags).most_common()
        groups[user] = [group for group, _ in closest if members[group] > 1]

    took: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(wanted)]
    for user, item in zip(state.who.tolist(), state.took.tolist(), strict=True):
        for group in groups[user]:
            took[group][int(names.domain[item])].append(item)
    lately = [
        {domain: _lately(config, names, items) for domain, items in by_domain.items()}
        for by_domain in took
    ]
    return groups, lately


def _lately(config: Config, names: Names, items: Sequence[int]) -> str:
    """The latest and the most taken of items in the order of time, in words."""
    title = lambda some: "; ".join(names.title[item] for item in some)
    latest = list(dict.fromkeys(reversed(items)))[: config.shown]
    most = [item for item, _ in Counter(reversed(items)).most_common(config.shown)]
    return f"of late {title(latest)}; most often {title(most)}" if latest else ""


def rank_lists(
    config: Config, served: Served, users: np.ndarray, candidates: np.ndarray, complete: Complete
) -> tuple[np.ndarray, dict[str, int]]:
    """Scores [B, S] of `candidates` [B, S]: S for the first of an answer, 0 for what it omits."""
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
        offers = [Offer(names.title[i], strings.read(state.item, i)) for i in shown]
        words = prompts.rank(notes, told, offers)
        return to_prompt(config, words, seed(user, *shown, attempt), attempt, 2 * len(shown))

    take = lambda k, text: prompts.read_ranking(text, candidates.shape[1])
    found = ask_each(complete, len(users), ask, take, config.attempts)
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
    fused = {cell: strings.read(state.fused, cell) for cell in cells}
    lacking = [
        (u, d) for (u, d), notes in fused.items() if not notes and state.private.length[u].any()
    ]
    seed = seeds(state.key, "cold")

    def ask(k: int, attempt: int) -> Prompt:
        user, domain = lacking[k]
        private = [strings.read(state.private, (user, d)) for d in range(len(names.domains))]
        words = fuse(config, names, domain, private, "")
        return to_prompt(config, words, seed(user, domain, attempt), attempt, config.fused_words)

    take = lambda k, text: prompts.read_notes(text)
    found = ask_each(complete, len(lacking), ask, take, config.attempts)
    width = WIDTH * config.fused_words
    made = {
        cell: strings.cut(notes or "", width) for cell, notes in zip(lacking, found, strict=True)
    }
    return fused | made


def ask_each(
    complete: Complete,
    number: int,
    ask: Callable[[int, int], Prompt],  # (which, attempt)
    take: Callable[[int, str], Any],
    attempts: int,
) -> list[Any]:
    """What `take` makes of the answer to each of `number` prompts, None where it stays unusable."""
    found: list[Any] = [None] * number
    for attempt in range(attempts):
        open_ = [k for k in range(number) if found[k] is None]
        if not open_:
            break
        answers = complete([ask(k, attempt) for k in open_])
        for k, answer in zip(open_, answers, strict=True):
            found[k] = None if answer.text is None else take(k, answer.text)
    return found

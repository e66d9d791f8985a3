"""AgentCF++ with a real language model: agents whose memories are text.

After "AgentCF++: Memory-enhanced LLM-based Agents for Popularity-aware Cross-domain
Recommendations", SIGIR 2025, arXiv 2502.13843. Every user has a private memory for each domain and
a fused one of what all private ones tell about that domain; every item has a memory, which starts
as its category and text. Each train row is an event, in the order of time: user u took item i of
domain d, and a rejected item j of d is drawn. Four calls to the model follow:

    choose    i or j, from fused[u, d]                    -> a choice and a reason
    reflect   was it right? rewrite                       -> private[u, d]
    fuse      private[u, every domain], what bears on d   -> fused[u, d]
    items     what does that tell of i and j?             -> item[i], item[j]

To rank, users get tags of their interests, tags are clustered into groups, a user may be in several
or none, and the prompt shows what the members of the user's groups took of late and most often.

What differs from the authors' code, and why: options stand in seeded random order and are named by
letters, so that their place tells nothing; candidates that an answer omits rank last, equal; items
of equal titles are told apart by number; an answer that does not follow the format is asked for
again, and if it stays so its event changes nothing and is counted; groups grow in number with the
users; a user without a fused memory of a domain, but with others, is given one to rank with.

Events run as soon as what they read is there (`jaxrec.ops.dataflow`), with the bytes of the
sequential loop. A step takes the next `events_per_round` events, so that a run can be saved within
an epoch; every answer is on disk the moment it arrives, so that nothing is ever paid twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import llm
from jaxrec.data.download import cache_folder
from jaxrec.data.text import embed
from jaxrec.llm import Complete, Prompt
from jaxrec.methods import agentcf_prompts as prompts
from jaxrec.methods.agentcf_prompts import Offer
from jaxrec.ops import dataflow, strings
from jaxrec.ops.dataflow import Counts, Stage
from jaxrec.ops.schedule import Events, negatives
from jaxrec.types import Data, DataError, Method, SettingError, Sizes, Text

RUN = {
    "rounds": 1,
    "evaluate_every": 1,
    "patience": 0,
    "candidates": 9,
    "ranking": "domains",
    "ks": (1, 5, 10),
    "monitor": "MRR",
    "baselines": ("popularity",),
}
RESUMABLE = ("base_url", "api_key_env", "concurrency", "timeout", "retries")
"""Settings that change no answer, so that a run may go on with others."""
reads_titles = True

WIDTH = 8  # bytes that a word of a memory has room for
REASON = 320  # bytes of a reason that the state keeps
TOKENS = 1.4  # of a word


@dataclass(frozen=True)
class Config:
    """Settings of AgentCF++'s text engine."""

    llm: Literal["server", "local"] = "server"
    """Who answers: a server that speaks OpenAI's chat completions, or a decoder in this process."""
    base_url: str = "http://localhost:8000/v1"
    """Address of the server."""
    model: str = ""
    """Name of the model on the server or, if local, the folder that holds it."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the server's API key; it may be unset for a local server."""
    temperature: float = 0.0
    """Of sampling, no unit; 0: the most likely answer."""
    concurrency: int = 8
    """Calls under way at once (server), prompts in a batch (local)."""
    timeout: float = 120.0
    """Seconds until a call is tried again."""
    retries: int = 6
    """Tries of a call after the first one, when the server fails."""
    limit_as: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the server calls the limit on an answer's length."""
    answers: str = ""
    """Folder that keeps every answer; empty: llm in the cache folder of jaxrec."""
    attempts: int = 3
    """Calls until an answer that does not follow the format is given up."""
    schedule: Literal["dataflow", "waves", "sequential"] = "dataflow"
    """Which calls are made at once; the result is the same."""
    events_per_round: int = 0
    """Train rows a round takes; 0: all, one epoch. Rounds beyond the last row begin anew."""
    private_words: int = 150
    """Length of a user's memory of one domain."""
    fused_words: int = 180
    """Length of what a user's memories tell of one domain."""
    item_words: int = 50
    """Length of an item's memory."""
    domains: tuple[str, ...] = ()
    """Names of the domains in prompts, such as movies toys; by default domain 0, domain 1, ..."""
    groups: int = 0
    """Interest groups; 0: as many as the square root of the users, -1: none."""
    tags: int = 6
    """Interests named for each user."""
    tag_encoder: str = "auto"
    """What makes vectors of the tags: minilm, tfidf, a sentence encoder's folder, or auto."""
    shown: int = 5
    """Items a group shows of the latest, and as many of the most taken."""
    shown_groups: int = 3
    """Groups shown to a user at most."""
    prompt_price: float = 0.0
    """Of a million prompt tokens, in any currency; 0: unknown."""
    answer_price: float = 0.0
    """Of a million answer tokens."""
    answer_seconds: float = 3.0
    """Seconds that an answer is expected to take, for the estimate before a run."""
    stories: int = 3
    """Users whose memories before and after are written to stories.md."""

    def __post_init__(self) -> None:
        for name, least in (
            ("attempts", 1), ("events_per_round", 0), ("private_words", 1), ("fused_words", 1),
            ("item_words", 1), ("groups", -1), ("tags", 1), ("shown", 0), ("shown_groups", 0),
            ("stories", 0), ("temperature", 0), ("prompt_price", 0), ("answer_price", 0),
            ("answer_seconds", 0),
        ):  # fmt: skip
            if not getattr(self, name) >= least:
                raise SettingError(f"{name} = {getattr(self, name)}: must be at least {least}")


class State(NamedTuple):
    private: Text  # [U, M]
    fused: Text  # [U, M]
    item: Text  # [I]
    choice: jax.Array  # int8 [E]  of each event, see below
    reason: Text  # [E]
    done: jax.Array  # int32 []  events taken, over all epochs
    counts: Counts  # int32 [] each
    key: jax.Array


NOT_YET, WRONG, RIGHT, GIVEN_UP = -1, 0, 1, 2


class Metrics(NamedTuple):
    right: float  # share of the choices
    calls: int
    call_rounds: int
    unusable: int  # answers that did not follow the format
    refused: int  # calls without an answer
    given_up: int  # events that changed nothing


class Served(NamedTuple):
    """What ranking reads, on the host."""

    state: State
    names: Names
    groups: list[list[int]]  # of each user, the closest first
    lately: list[dict[int, str]]  # of each group: domain -> what its members took


class Names(NamedTuple):
    """The words for items and domains."""

    domain: np.ndarray  # int [I]
    domains: list[str]  # [M]
    title: list[str]  # [I]  no two alike
    about: list[str]  # [I]  category and text


def make(config: Config, sizes: Sizes, complete: Complete | None = None) -> Method:
    """Build the method for `sizes`; `complete` answers prompts in place of what `config` names."""
    usage, ranked = llm.Usage(), Counter()
    complete = complete or connect(config, usage)

    def init(key: jax.Array, data: Data) -> State:
        names, number = _names(config, data), len(_history(data).order)
        if not number:
            raise DataError("column 'split': there are no train rows to learn from")
        memory = lambda words: _on_device(
            strings.empty((sizes.users, len(names.domains)), WIDTH * words)
        )
        return State(
            private=memory(config.private_words),
            fused=memory(config.fused_words),
            item=_on_device(strings.pack(names.about, WIDTH * config.item_words)),
            choice=jnp.full(number, NOT_YET, jnp.int8),
            reason=_on_device(strings.empty((number,), REASON)),
            done=jnp.int32(0),
            counts=Counts(*(jnp.int32(0) for _ in Counts._fields)),
            key=key,
        )

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        del key  # what an event draws must not depend on the round it falls into
        names, number = _names(config, data), len(state.choice)
        epoch, first = divmod(int(state.done), number)
        last = min(number, first + (config.events_per_round or number))
        log = Events(*(part[first:last] for part in events(data, state.key, epoch)))
        host = jax.tree.map(np.array, state._replace(key=None))
        stages = _stages(config, names, log, _seed(state.key, epoch), first)
        outcome = dataflow.replay(
            stages,
            [_written(names, *event) for event in zip(*log, strict=True)],
            lambda cell: strings.read(getattr(host, cell[0]), cell[1:]),
            complete,
            dataflow.batches(log, config.schedule),
            config.attempts,
        )
        for cell, memory in outcome.memories.items():
            strings.write(getattr(host, cell[0]), cell[1:], memory)
        for event, notes in enumerate(outcome.notes, first):
            host.choice[event] = (WRONG, RIGHT)[notes["right"]] if notes else GIVEN_UP
            strings.write(host.reason, event, notes["reason"] if notes else "")
        counts = outcome.counts
        state = jax.tree.map(jnp.asarray, host)._replace(
            done=state.done + (last - first),
            counts=jax.tree.map(jnp.add, state.counts, counts),
            key=state.key,
        )
        chosen = host.choice[first:last]
        right = (chosen == RIGHT).sum() / max(1, (chosen != GIVEN_UP).sum())
        return state, Metrics(np.float32(right), *map(np.int32, counts))

    def prepare(state: State, data: Data) -> Served:
        names, host = _names(config, data), jax.tree.map(np.asarray, state._replace(key=None))
        host = host._replace(key=state.key)
        if config.groups < 0:
            return Served(host, names, [[] for _ in range(sizes.users)], [])
        return Served(host, names, *_interest_groups(config, host, names, data, complete))

    def score(served: Served, users: jax.Array) -> jax.Array:
        raise SettingError(
            "candidates = 0: a language model cannot rank the full catalogue; set candidates to "
            "the number of rivals that each test item is ranked among, such as 9"
        )

    def rank(served: Served, users: jax.Array, candidates: jax.Array) -> np.ndarray:
        scores, told = _rank(config, served, np.asarray(users), np.asarray(candidates), complete)
        ranked.update(told)
        return scores

    def forecast(data: Data, steps: int, rankings: int, candidates: int) -> str:
        return _forecast(config, data, sizes, steps, rankings, candidates)

    def account(best: State, last: State, data: Data) -> tuple[dict[str, int], dict[str, str]]:
        took = {name: int(count) for name, count in last.counts._asdict().items()}
        took["rounds/sequential"] = 4 * int(last.done)
        session = usage.values() | {f"rankings_{name}": count for name, count in ranked.items()}
        took |= {f"session/{name}": count for name, count in session.items()}
        values = {f"llm/{name}": count for name, count in took.items()}
        told = [story(config, best, data, user) for user in _chosen(config, data)]
        return values, {"stories.md": "\n".join(told)} if told else {}

    return Method(
        init, step, prepare, score,
        compiled=False, rank=rank, forecast=forecast, account=account,
    )  # fmt: skip


def connect(config: Config, usage: llm.Usage | None = None) -> Complete:
    """The function that asks what `config` names."""
    folder = Path(config.answers).expanduser() if config.answers else cache_folder() / "llm"
    if config.llm == "local":
        return llm.local(
            Path(config.model), batch=config.concurrency, temperature=config.temperature,
            answers=folder, usage=usage,
        )  # fmt: skip
    return llm.server(
        config.base_url,
        config.model,
        concurrency=config.concurrency,
        timeout=config.timeout,
        retries=config.retries,
        temperature=config.temperature,
        limit_as=config.limit_as,
        api_key_env=config.api_key_env,
        folder=folder,
        usage=usage,
    )


def events(data: Data, key: jax.Array, epoch: int = 0) -> Events:
    """The train rows in the order of time, each with a rejected item, as lists of int."""
    history, domain = _history(data), _domains(data)
    user, item = (np.asarray(part)[np.asarray(history.order)] for part in history[:2])
    rejected = negatives(jax.random.fold_in(key, epoch), jnp.asarray(item), domain)
    return Events(*(np.asarray(part).tolist() for part in (user, item, rejected)))


def _written(names: Names, user: int, item: int, negative: int) -> list[tuple]:
    """The memories that an event writes, named by field and index of the state."""
    domain = int(names.domain[item])
    return [("private", user, domain), ("fused", user, domain), ("item", item), ("item", negative)]


def _stages(
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
        return _prompt(words, seed(stage, first + event, attempt), attempt, room)

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

    def take_reflect(event, text, notes):
        user, domain, _ = about(event)
        found = prompts.read_notes(text)
        return found and (
            {("private", user, domain): strings.cut(found, WIDTH * config.private_words)},
            {},
        )

    def ask_fuse(event, read, notes, attempt):
        user, domain, _ = about(event)
        private = [read(("private", user, d)) for d in range(len(names.domains))]
        words = _fuse(config, names, domain, private, read(("fused", user, domain)))
        return prompt("fuse", words, event, attempt, config.fused_words)

    def take_fuse(event, text, notes):
        user, domain, _ = about(event)
        found = prompts.read_notes(text)
        return found and (
            {("fused", user, domain): strings.cut(found, WIDTH * config.fused_words)},
            {},
        )

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
        Stage(ask_reflect, take_reflect),
        Stage(ask_fuse, take_fuse),
        Stage(ask_items, take_items),
    ]


def _prompt(words: prompts.Words, seed: int, attempt: int, room: float) -> Prompt:
    """A prompt for `room` words; another attempt has another seed and says why it is made."""
    system, user = words
    again = prompts.AGAIN if attempt else ""
    return Prompt(system, user + again, seed, int(2 * TOKENS * room) + 64)


def _fuse(
    config: Config, names: Names, domain: int, private: Sequence[str], fused: str
) -> prompts.Words:
    told = [(name, notes) for name, notes in zip(names.domains, private, strict=True) if notes]
    return prompts.fuse(names.domains[domain], told, fused, config.fused_words)


def _interest_groups(
    config: Config, state: State, names: Names, data: Data, complete: Complete
) -> tuple[list[list[int]], list[dict[int, str]]]:
    """The groups of each user, the closest first, and what the members of each took by domain."""
    number, domains = state.private.length.shape
    private = [[strings.read(state.private, (u, d)) for d in range(domains)] for u in range(number)]
    active = [user for user in range(number) if any(private[user])]
    seed = _seed(state.key, "tags")

    def ask(k: int, attempt: int) -> Prompt:
        user = active[k]
        told = [pair for pair in zip(names.domains, private[user], strict=True) if pair[1]]
        words = prompts.tags(told, config.tags)
        return _prompt(words, seed(user, attempt), attempt, 4 * config.tags)

    take = lambda k, text: prompts.read_tags(text, config.tags)
    found = _ask_each(complete, len(active), ask, take, config.attempts)
    tagged = {user: tags for user, tags in zip(active, found, strict=True) if tags}
    distinct = sorted({tag for tags in tagged.values() for tag in tags})
    groups: list[list[int]] = [[] for _ in range(number)]
    if not distinct:
        return groups, []
    wanted = config.groups or max(1, round(len(tagged) ** 0.5))
    times = Counter(tag for tags in tagged.values() for tag in tags)
    vectors = embed(distinct, config.tag_encoder)
    cluster = cluster_directions(
        vectors, np.array([times[tag] for tag in distinct]), wanted, seed("clusters")
    )
    of = dict(zip(distinct, cluster.tolist(), strict=True))
    members = Counter(group for tags in tagged.values() for group in {of[tag] for tag in tags})
    for user, tags in tagged.items():
        closest = Counter(of[tag] for tag in tags).most_common()
        groups[user] = [group for group, _ in closest if members[group] > 1]

    history = _history(data)
    took: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(int(cluster.max()) + 1)]
    users, items = (np.asarray(part)[np.asarray(history.order)].tolist() for part in history[:2])
    for user, item in zip(users, items, strict=True):
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


def cluster_directions(vectors: np.ndarray, weight: np.ndarray, number: int, seed: int):
    """Spherical k-means: the cluster of each of the unit `vectors` [N, D], int [N].

    Seeded far apart (k-means++), then 20 rounds of assigning each vector to the centre of the
    greatest cosine and of moving centres to the weighted mean direction.
    """
    rng = np.random.default_rng(seed)
    vectors = np.asarray(vectors, float)
    number = min(number, len(vectors))
    centres = vectors[[rng.choice(len(vectors), p=weight / weight.sum())]]
    while len(centres) < number:
        far = weight * np.maximum(0, 1 - (vectors @ centres.T).max(1))
        if not far.sum() > 1e-9:
            break
        centres = np.vstack([centres, vectors[rng.choice(len(vectors), p=far / far.sum())]])
    for _ in range(20):
        cluster = (vectors @ centres.T).argmax(1)
        for k in np.unique(cluster):
            mean = weight[cluster == k] @ vectors[cluster == k]
            centres[k] = mean / max(np.linalg.norm(mean), 1e-12)
    return np.unique((vectors @ centres.T).argmax(1), return_inverse=True)[1]


def _rank(
    config: Config, served: Served, users: np.ndarray, candidates: np.ndarray, complete: Complete
) -> tuple[np.ndarray, dict[str, int]]:
    """Scores [B, S] of `candidates` [B, S]: S for the first of an answer, 0 for what it omits."""
    state, names = served.state, served.names
    key = state.key
    of = [sorted(set(names.domain[row].tolist())) for row in candidates]
    fused = _fused_to_rank(config, served, users, of, complete)
    order_seed, seed = _seed(key, "candidates"), _seed(key, "rank")
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
        return _prompt(words, seed(user, *shown, attempt), attempt, 2 * len(shown))

    take = lambda k, text: prompts.read_ranking(text, candidates.shape[1])
    found = _ask_each(complete, len(users), ask, take, config.attempts)
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
    seed = _seed(state.key, "cold")

    def ask(k: int, attempt: int) -> Prompt:
        user, domain = lacking[k]
        private = [strings.read(state.private, (user, d)) for d in range(len(names.domains))]
        words = _fuse(config, names, domain, private, "")
        return _prompt(words, seed(user, domain, attempt), attempt, config.fused_words)

    take = lambda k, text: prompts.read_notes(text)
    found = _ask_each(complete, len(lacking), ask, take, config.attempts)
    width = WIDTH * config.fused_words
    made = {
        cell: strings.cut(notes or "", width) for cell, notes in zip(lacking, found, strict=True)
    }
    return fused | made


def _ask_each(
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


def story(config: Config, state: State, data: Data, user: int) -> str:
    """A user's memories before training and after it, and the events between, as Markdown."""
    names, log = _names(config, data), events(data, state.key)
    state = jax.tree.map(np.asarray, state._replace(key=None))
    choice = state.choice
    lines = [f"# User {user}", "", "Before: no memory of any domain.", ""]
    words = {NOT_YET: "not reached", GIVEN_UP: "no usable answer, nothing changed"}
    for event, (other, item, negative) in enumerate(zip(*log, strict=True)):
        if other != user:
            continue
        told = words.get(int(choice[event]))
        reason = strings.read(state.reason, event)
        if not told:
            told = "chose right" if choice[event] == RIGHT else "chose wrong"
            told += f": {reason}" if reason else ""
        domain = names.domains[names.domain[item]]
        lines.append(
            f"- {domain}: took **{names.title[item]}**, not {names.title[negative]} -- {told}"
        )
    for domain, name in enumerate(names.domains):
        for field in ("private", "fused"):
            notes = strings.read(getattr(state, field), (user, domain))
            lines += ["", f"After, {field} memory of {name}: {notes or 'none'}"]
    taken = dict.fromkeys(
        item for other, item in zip(log.user, log.item, strict=True) if other == user
    )
    for item in taken:
        start = strings.cut(names.about[item], WIDTH * config.item_words)
        lines += ["", f"Item {names.title[item]}, before: {start}"]
        lines += ["", f"Item {names.title[item]}, after: {strings.read(state.item, item)}"]
    return "\n".join([*lines, ""])


def _chosen(config: Config, data: Data) -> list[int]:
    """Users whose stories are told: of the most domains, then of a number of events nearest 6."""
    history, domain = _history(data), _domains(data)
    if not config.stories:
        return []
    user, item = np.asarray(history.user), np.asarray(history.item)
    rows = np.bincount(user)
    pairs = np.unique(np.stack([user, domain[item]]), axis=1)
    order = np.lexsort((np.abs(rows - 6), -np.bincount(pairs[0], minlength=len(rows))))
    return sorted(order[: config.stories].tolist())


def _forecast(
    config: Config, data: Data, sizes: Sizes, steps: int, rankings: int, candidates: int
) -> str:
    """What a run will take, in words; within a few parts of ten, as texts differ in length."""
    domain, log = _domains(data), events(data, jax.random.key(0))
    taken = steps * (config.events_per_round or len(log.user))
    number = min(len(log.user), taken)
    epochs = max(1.0, taken / max(1, number))
    log = Events(*(part[:number] for part in log))
    rounds = {how: dataflow.call_rounds(log, domain, how) for how in ("dataflow", "waves")}
    rounds["sequential"] = 4 * number
    item, private, fused = (
        TOKENS * words for words in (config.item_words, config.private_words, config.fused_words)
    )
    template, title, domains = 180, 12, int(domain.max()) + 1
    pair = 2 * (item + title)
    prompt = number * epochs * (4 * template + 3 * pair + 3 * fused + (1 + domains) * private)
    answer = number * epochs * (80 + private + fused + 2 * item)
    tagged = sizes.users if config.groups >= 0 else 0
    groups = config.shown_groups * 2 * config.shown * title
    prompt += rankings * (template + fused + groups + candidates * (item + title))
    prompt += tagged * (template + domains * private)
    answer += rankings * 3 * candidates + tagged * 30
    took = llm.estimate(
        round(4 * number * epochs) + rankings + tagged,
        round(prompt),
        round(answer),
        rounds=round(rounds[config.schedule] * epochs),
        concurrency=config.concurrency,
        answer_seconds=config.answer_seconds,
        prices=(config.prompt_price, config.answer_price),
    )
    return llm.tell(took) + (
        f"; training in rounds of calls: {rounds['sequential']:,} one by one, "
        f"{rounds['waves']:,} in waves, {rounds['dataflow']:,} by dataflow (as set: "
        f"{config.schedule})"
    )


def _names(config: Config, data: Data) -> Names:
    if data.written is None:
        raise DataError(
            "column 'title': the items have no text to show to a language model; add title, "
            "category or text to the table of items"
        )
    domain = _domains(data)
    number = int(domain.max()) + 1
    named = [*config.domains, *(f"domain {d}" for d in range(len(config.domains), number))]
    written = jax.tree.map(np.asarray, data.written)
    texts = [strings.read(written, item) for item in range(len(domain))]
    first, _, about = zip(*(text.partition("\n") for text in texts), strict=True)
    times = Counter(first)
    title = [
        text if text and times[text] == 1 else f"{text} (item {item})".strip()
        for item, text in enumerate(first)
    ]
    return Names(domain, named[:number], title, [" ".join(text.split()) for text in about])


def _history(data: Data) -> Any:
    if data.history is None:
        raise DataError(
            "column 'timestamp': agents learn from events in the order of time, and the "
            "interactions have none; add timestamp, or position for the order alone"
        )
    return data.history


def _domains(data: Data) -> np.ndarray:
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


def _seed(key: jax.Array, *more: Any) -> Callable[..., int]:
    """A function of anything that prints -> 31 bits; another function for another key or `more`."""
    start = [*np.asarray(jax.random.key_data(key)).tolist(), *more]

    def draw(*what: Any) -> int:
        digest = hashlib.sha256(repr([*start, *what]).encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    return draw


def _on_device(text: Text) -> Text:
    return Text(*map(jnp.asarray, text))

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
or none, and the prompt shows what the members of the user's groups took of late and most often, of
the train rows alone.

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

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec import llm
from jaxrec.data.download import cache_folder
from jaxrec.data.pack import history_of
from jaxrec.llm import Complete
from jaxrec.methods.agentcf_agents import (
    REASON,
    TOKENS,
    WIDTH,
    domains_of,
    names_of,
    seeds,
    stages,
    written,
)
from jaxrec.methods.agentcf_ranking import Served, interest_groups, rank_lists
from jaxrec.ops import dataflow, strings
from jaxrec.ops.dataflow import Counts
from jaxrec.ops.schedule import Events, check_domains, log
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
RESUMABLE = ("api_key_env", "concurrency", "timeout", "retries")
"""Settings that change no answer, so that a run may go on with others."""
reads_titles = reads_history = True


@dataclass(frozen=True)
class Config:
    """Settings of AgentCF++'s text engine."""

    llm: Literal["server", "local"] = "server"
    """Who answers: a server that speaks OpenAI's chat completions, or a decoder in this process."""
    base_url: str = "http://localhost:8000/v1"
    """Address of the server; a model of the same name elsewhere is another one."""
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
    spare_tokens: int = 0
    """Tokens that an answer may have beside what it is asked for; for models that think first."""
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
    """Names of the domains in prompts, such as movies toys; by default domain 0, domain 1, ...;
    no more than there are, no two alike."""
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
        zero = (
            "events_per_round", "spare_tokens", "shown", "shown_groups", "stories", "temperature",
            "prompt_price", "answer_price", "answer_seconds",
        )  # fmt: skip
        one = ("attempts", "private_words", "fused_words", "item_words", "tags")
        least = dict.fromkeys(zero, 0) | dict.fromkeys(one, 1) | {"groups": -1}
        for name, bound in least.items():
            if not getattr(self, name) >= bound:
                raise SettingError(f"{name} = {getattr(self, name)}: must be at least {bound}")


class State(NamedTuple):
    private: Text  # [U, M]
    fused: Text  # [U, M]
    item: Text  # [I]
    who: jax.Array  # int32 [E]  the user of each event, in the order of time
    took: jax.Array  # int32 [E]  and the item; at test time the data's history holds more rows
    choice: jax.Array  # int8 [E]  what came of each event: NOT_YET, WRONG, RIGHT or GIVEN_UP
    reason: Text  # [E]  why the model chose as it did
    done: jax.Array  # int32 []  events taken, over all epochs
    counts: Counts  # int32 [] each
    key: jax.Array


NOT_YET, WRONG, RIGHT, GIVEN_UP = -1, 0, 1, 2


class Metrics(NamedTuple):
    right: float  # share of the choices
    calls: int
    call_rounds: int
    unusable: int  # answers that did not follow the format
    refused: int  # calls without an answer, or with one cut at its limit
    given_up: int  # events that changed nothing


def check_data(config: Config, data: Data) -> None:
    """Refuse data that lack what agents need, or that hold a domain of one item; DataError.

    SettingError where the names of domains do not fit them.
    """
    names = names_of(config, data)
    if not len(history_of(data).order):
        raise DataError("column 'split': there are no train rows to learn from")
    check_domains(names.domain)


def make(config: Config, sizes: Sizes, complete: Complete | None = None) -> Method:
    """Build the method for `sizes`; `complete` answers prompts in place of what `config` names."""
    usage, ranked = llm.Usage(), Counter()
    complete = complete or connect(config, usage)

    def init(key: jax.Array, data: Data) -> State:
        check_data(config, data)
        names, past = names_of(config, data), history_of(data)
        who, took = (jnp.asarray(part)[past.order] for part in (past.user, past.item))
        memory = lambda words: _on_device(
            strings.empty((sizes.users, len(names.domains)), WIDTH * words)
        )
        return State(
            private=memory(config.private_words),
            fused=memory(config.fused_words),
            item=_on_device(strings.pack(names.about, WIDTH * config.item_words)),
            who=who,
            took=took,
            choice=jnp.full(len(who), NOT_YET, jnp.int8),
            reason=_on_device(strings.empty((len(who),), REASON)),
            done=jnp.int32(0),
            counts=Counts(*(jnp.int32(0) for _ in Counts._fields)),
            key=key,
        )

    def step(state: State, data: Data, key: jax.Array) -> tuple[State, Metrics]:
        del key  # what an event draws must not depend on the round it falls into
        names, number = names_of(config, data), len(state.choice)
        epoch, first = divmod(int(state.done), number)
        last = min(number, first + (config.events_per_round or number))
        log = Events(*(part[first:last] for part in events(data, state.key, epoch)))
        host = jax.tree.map(np.array, state._replace(key=None))
        outcome = dataflow.replay(
            stages(config, names, log, seeds(state.key, epoch), first),
            [written(names, *event) for event in zip(*log, strict=True)],
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
        names, host = names_of(config, data), jax.tree.map(np.asarray, state._replace(key=None))
        host = host._replace(key=state.key)
        if config.groups < 0:
            return Served(host, names, [[] for _ in range(sizes.users)], [])
        return Served(host, names, *interest_groups(config, host, names, complete))

    def score(served: Served, users: jax.Array) -> jax.Array:
        raise SettingError(
            "candidates = 0: a language model cannot rank the full catalogue; set candidates to "
            "the number of rivals that each test item is ranked among, such as 9"
        )

    def rank(served: Served, users: jax.Array, candidates: jax.Array) -> np.ndarray:
        users, candidates = np.asarray(users), np.asarray(candidates)
        scores, told = rank_lists(config, served, users, candidates, complete)
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
        compiled=False, axis="", rank=rank, forecast=forecast, account=account,
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
    history = jax.tree.map(jnp.asarray, history_of(data))
    found = log(jax.random.fold_in(key, epoch), history, jnp.asarray(domains_of(data)))
    return Events(*(np.asarray(part).tolist() for part in found))


def story(config: Config, state: State, data: Data, user: int) -> str:
    """A user's memories before training and after it, and the events between, as Markdown.

    Of several epochs an event is told as it last went, with the item that was rejected then.
    """
    names = names_of(config, data)
    epoch, reached = divmod(int(state.done), len(state.choice))
    # Those already reached in this epoch have its negatives, all others those of the one before.
    this, before = (events(data, state.key, max(0, one)) for one in (epoch, epoch - 1))
    log = Events(*(new[:reached] + old[reached:] for new, old in zip(this, before, strict=True)))
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
    history, domain = history_of(data), domains_of(data)
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
    domain, log = domains_of(data), events(data, jax.random.key(0))
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


def _on_device(text: Text) -> Text:
    return Text(*map(jnp.asarray, text))

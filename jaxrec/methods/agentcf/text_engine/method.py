"""AgentCF++ with a real language model: agents whose memories are text.

After "AgentCF++: Memory-enhanced LLM-based Agents for Popularity-aware Cross-domain
Recommendations", SIGIR 2025, arXiv 2502.13843. Every user has a private memory for each domain and
a fused one of what all private ones tell about that domain; every item has a memory, which starts
as its category and text. Each train row is an event, in the order of time: user u took item i of
domain d, and a rejected item j of d is drawn. Four calls to the model follow (`stages`): the user
chooses, reflects on the choice, fuses all private memories, and both items' memories are rewritten.

To rank, users get tags of their interests, tags are clustered into groups, a user may be in several
or none, and the prompt shows what the members of the user's groups took of late and most often, of
the train rows alone.

What differs from the authors' code, and why: options stand in seeded random order and are named by
letters, so that their place tells nothing; candidates that an answer omits rank last, equal; items
of equal titles are told apart by number; an answer that does not follow the format is asked for
again, and if it stays so its event changes nothing and is counted; groups grow in number with the
users; a user without a fused memory of a domain, but with others, is given one to rank with.

Events run as soon as what they read is there (`dataflow`), with the bytes of the sequential loop. A
step takes the next `events_per_round` events, so that a run can be saved within an epoch; every
answer is on disk the moment it arrives, so that none is paid for again.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.pack import history_of
from jaxrec.files import cache_folder
from jaxrec.llm import local_decoder, openai_server, protocol
from jaxrec.llm.protocol import Complete
from jaxrec.methods.agentcf.events import check_domains
from jaxrec.methods.agentcf.text_engine import dataflow
from jaxrec.methods.agentcf.text_engine.asking import seeds
from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.methods.agentcf.text_engine.dataflow import Counts, Log, Outcome
from jaxrec.methods.agentcf.text_engine.forecast import forecast
from jaxrec.methods.agentcf.text_engine.interests import interest_groups
from jaxrec.methods.agentcf.text_engine.names import names_of
from jaxrec.methods.agentcf.text_engine.ranking import Served, rank_lists
from jaxrec.methods.agentcf.text_engine.stages import (
    REASON_BYTES,
    WORD_BYTES,
    Part,
    cells_of,
    log_of,
    stages,
)
from jaxrec.methods.agentcf.text_engine.state import (
    GIVEN_UP,
    NOT_YET,
    RIGHT,
    WRONG,
    Metrics,
    State,
)
from jaxrec.methods.agentcf.text_engine.story import story, users_to_tell_of
from jaxrec.ops import strings
from jaxrec.types import (
    Data,
    DataError,
    Method,
    Reads,
    SettingError,
    Sizes,
    Text,
    Traits,
    Unavailable,
)


def check_data(config: Config, data: Data) -> None:
    """Refuse data that lack what agents need, or that hold a domain of one item; DataError.

    SettingError where the names of domains do not fit them.
    """
    names = names_of(config, data)
    if not len(history_of(data).order):
        raise DataError("column 'split': there are no train rows to learn from")
    check_domains(names.domain)


OF_SERVERS = "base_url", "api_key_env", "timeout", "retries", "limit_as"
TRAITS = Traits(
    run={
        "rounds": 1,
        "evaluate_every": 1,
        "patience": 0,
        "candidates": 9,
        "ranking": "domains",
        "ks": (1, 5, 10),
        "monitor": "MRR",
        "baselines": ("popularity",),
    },
    reads=lambda config: Reads(history=True, titles=True),
    check_data=check_data,
    unread=lambda config: {"llm": OF_SERVERS if config.llm == "local" else ()},
    # These change no answer.
    resumable=("api_key_env", "concurrency", "timeout", "retries", "unusable_limit"),
    needs=("order", "domains"),
    uses=("text",),
)


def make(config: Config, sizes: Sizes, complete: Complete | None = None) -> Method:
    """Build the method for `sizes`; `complete` answers prompts in place of what `config` names."""
    usage, ranked = protocol.Usage(), Counter()
    complete = complete or connect(config, usage)

    def rank(served: Served, users: jax.Array, candidates: jax.Array) -> np.ndarray:
        lists = np.asarray(users), np.asarray(candidates)
        scores, told = rank_lists(config, served, *lists, complete)
        ranked.update(told)
        return scores

    def account(best: State, last: State, data: Data) -> tuple[dict[str, int], dict[str, str]]:
        took = {name: int(count) for name, count in last.counts._asdict().items()}
        took["rounds/sequential"] = 4 * int(last.done)
        session = usage.values() | {f"rankings_{name}": count for name, count in ranked.items()}
        took |= {f"session/{name}": count for name, count in session.items()}
        values = {f"llm/{name}": count for name, count in took.items()}
        told = [story(config, best, data, user) for user in users_to_tell_of(config, data)]
        return values, {"stories.md": "\n".join(told)} if told else {}

    return Method(
        init=partial(init, config, sizes),
        step=partial(step, config, complete),
        prepare=partial(prepare, config, complete),
        score=score,
        compiled=False,
        axis="",
        rank=rank,
        forecast=partial(forecast, config, sizes),
        account=account,
        grow=Unavailable(
            "its agents live through the log again from its beginning, where kept answers cost "
            "nothing; train anew on all rows"
        ),
    )


def connect(config: Config, usage: protocol.Usage | None = None) -> Complete:
    """The function that asks what `config` names."""
    folder = Path(config.answers).expanduser() if config.answers else cache_folder() / "llm"
    if config.llm == "local":
        return local_decoder.local(
            Path(config.model), batch=config.concurrency, temperature=config.temperature,
            answers=folder, usage=usage,
        )  # fmt: skip
    return openai_server.server(
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


def init(config: Config, sizes: Sizes, key: jax.Array, data: Data) -> State:
    """Users without any memory, items that remember their category and text, no event taken."""
    check_data(config, data)
    names, past = names_of(config, data), history_of(data)
    who, took = (jnp.asarray(part)[past.order] for part in (past.user, past.item))
    domains = len(names.domains)
    memory = lambda words: _on_device(strings.empty((sizes.users, domains), WORD_BYTES * words))
    return State(
        private=memory(config.private_words),
        fused=memory(config.fused_words),
        item=_on_device(strings.pack(names.about, WORD_BYTES * config.item_words)),
        who=who,
        took=took,
        choice=jnp.full(len(who), NOT_YET, jnp.int8),
        reason=_on_device(strings.empty((len(who),), REASON_BYTES)),
        done=jnp.int32(0),
        counts=Counts(*(jnp.int32(0) for _ in Counts._fields)),
        key=key,
    )


def step(
    config: Config, complete: Complete, state: State, data: Data, key: jax.Array
) -> tuple[State, Metrics]:
    """Take the next `events_per_round` events of the epoch, or all; then another epoch begins."""
    del key  # what an event draws must not depend on the round it falls into
    names, number = names_of(config, data), len(state.choice)
    epoch, begin = divmod(int(state.done), number)
    end = min(number, begin + (config.events_per_round or number))
    log = Log(*(part[begin:end] for part in log_of(data, state.key, epoch)))
    host = jax.tree.map(np.array, state._replace(key=None))
    seed = seeds(state.key, epoch)
    outcome = _replay(config, complete, host, Part(config, names, log, seed, begin))
    _write(host, outcome, begin)
    state = jax.tree.map(jnp.asarray, host)._replace(
        done=state.done + (end - begin),
        counts=jax.tree.map(jnp.add, state.counts, outcome.counts),
        key=state.key,
    )
    chosen = host.choice[begin:end]
    right = (chosen == RIGHT).sum() / max(1, (chosen != GIVEN_UP).sum())
    return state, Metrics(np.float32(right), *map(np.int32, outcome.counts))


def _replay(config: Config, complete: Complete, host: State, part: Part) -> Outcome:
    """Run the events of `part` from the memories of a state on the host, which stays as it is."""
    return dataflow.replay(
        stages(part),
        [cells_of(part.names, *event) for event in zip(*part.log, strict=True)],
        lambda cell: strings.string_at(getattr(host, cell[0]), cell[1:]),
        complete,
        dataflow.batches(part.log, config.schedule),
        config.attempts,
        config.unusable_limit,
    )


def _write(host: State, outcome: Outcome, begin: int) -> None:
    """Put what events left, the first of which is number `begin`, into a state on the host."""
    for cell, memory in outcome.memories.items():
        strings.write(getattr(host, cell[0]), cell[1:], memory)
    for event, notes in enumerate(outcome.notes, begin):
        host.choice[event] = (WRONG, RIGHT)[notes["right"]] if notes else GIVEN_UP
        strings.write(host.reason, event, notes["reason"] if notes else "")


def prepare(config: Config, complete: Complete, state: State, data: Data) -> Served:
    """What ranking reads: the memories on the host, and groups of users with like interests."""
    names = names_of(config, data)
    host = jax.tree.map(np.asarray, state._replace(key=None))._replace(key=state.key)
    if config.groups < 0:
        return Served(host, names, [[] for _ in host.private.length], [])
    return Served(host, names, *interest_groups(config, host, names, complete))


def score(served: Served, users: jax.Array) -> jax.Array:
    """Refuses: SettingError says that a language model ranks candidates only."""
    raise SettingError(
        "candidates = 0: a language model cannot rank the full catalogue; set candidates to "
        "the number of rivals that each test item is ranked among, such as 9"
    )


def _on_device(text: Text) -> Text:
    return Text(*map(jnp.asarray, text))

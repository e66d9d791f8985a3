"""Interest groups of AgentCF++'s text engine: users' tags in clusters, and what members took."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxrec.data.text import embed
from jaxrec.llm.protocol import Complete, Prompt
from jaxrec.methods.agentcf.groups import spherical_k_means
from jaxrec.methods.agentcf.text_engine import prompts
from jaxrec.methods.agentcf.text_engine.asking import ask_each, seeds, to_prompt
from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.methods.agentcf.text_engine.names import Names
from jaxrec.methods.agentcf.text_engine.state import State
from jaxrec.ops import strings

_centres = jax.jit(spherical_k_means, static_argnums=3)


def interest_groups(
    config: Config, state: State, names: Names, complete: Complete
) -> tuple[list[list[int]], list[dict[int, str]]]:
    """The groups of each user, the closest first, and what the members of each took by domain.

    What they took is what the state keeps: the train rows, and at no time a validation row.
    """
    tagged = _ask_tags(config, state, names, complete)
    groups: list[list[int]] = [[] for _ in range(len(state.private.length))]
    if not tagged:
        return groups, []
    group_of, number = _cluster(config, state.key, tagged)
    members = Counter(
        group for tags in tagged.values() for group in {group_of[tag] for tag in tags}
    )
    for user, tags in tagged.items():
        closest = Counter(group_of[tag] for tag in tags).most_common()
        groups[user] = [group for group, _ in closest if members[group] > 1]

    took: list[dict[int, list[int]]] = [defaultdict(list) for _ in range(number)]
    for user, item in zip(state.who.tolist(), state.took.tolist(), strict=True):
        for group in groups[user]:
            took[group][int(names.domain[item])].append(item)
    lately = [
        {domain: _lately(config, names, items) for domain, items in by_domain.items()}
        for by_domain in took
    ]
    return groups, lately


def _ask_tags(
    config: Config, state: State, names: Names, complete: Complete
) -> dict[int, list[str]]:
    """The interests of each user who has any private memory and a usable answer."""
    number, domains = state.private.length.shape
    private = [
        [strings.string_at(state.private, (user, d)) for d in range(domains)]
        for user in range(number)
    ]
    active = [user for user in range(number) if any(private[user])]
    seed = seeds(state.key, "tags")

    def ask(k: int, attempt: int) -> Prompt:
        user = active[k]
        told = [pair for pair in zip(names.domains, private[user], strict=True) if pair[1]]
        words = prompts.tags(told, config.tags)
        return to_prompt(config, words, seed(user, attempt), attempt, 4 * config.tags)

    take = lambda k, text: prompts.read_tags(text, config.tags)
    found = ask_each(complete, len(active), ask, take, config)
    return {user: tags for user, tags in zip(active, found, strict=True) if tags}


def _cluster(
    config: Config, key: jax.Array, tagged: Mapping[int, Sequence[str]]
) -> tuple[dict[str, int], int]:
    """The group of each tag, by k-means over the users' tags, and how many groups there are."""
    times = Counter(tag for tags in tagged.values() for tag in tags)
    distinct = sorted(times)
    number = min(config.groups or max(1, round(len(tagged) ** 0.5)), len(distinct))
    vectors = embed(distinct, config.tag_encoder)
    weights = jnp.array([times[tag] for tag in distinct], jnp.float32)
    key = jax.random.fold_in(key, seeds(key, "tags")("clusters"))
    centres = _centres(jnp.asarray(vectors), weights, key, number)
    cluster = np.asarray(jnp.argmax(vectors @ centres.T, axis=1))
    return dict(zip(distinct, cluster.tolist(), strict=True)), number


def _lately(config: Config, names: Names, items: Sequence[int]) -> str:
    """The latest and the most taken of items in the order of time, in words."""
    title = lambda some: "; ".join(names.title[item] for item in some)
    latest = list(dict.fromkeys(reversed(items)))[: config.shown]
    most = [item for item, _ in Counter(reversed(items)).most_common(config.shown)]
    return f"of late {title(latest)}; most often {title(most)}" if latest else ""

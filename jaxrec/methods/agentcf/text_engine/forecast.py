"""What a run of AgentCF++'s text engine will take, before its first call."""

from __future__ import annotations

from collections import defaultdict

import jax
import numpy as np

from jaxrec.llm import estimate
from jaxrec.methods.agentcf.text_engine.asking import WORD_TOKENS
from jaxrec.methods.agentcf.text_engine.config import Config
from jaxrec.methods.agentcf.text_engine.dataflow import Log, batches
from jaxrec.methods.agentcf.text_engine.names import domains_of
from jaxrec.methods.agentcf.text_engine.stages import log_of
from jaxrec.types import Data, Sizes

TEMPLATE, TITLE = 180, 12  # tokens of a prompt without its memories, and of a title


def forecast(
    config: Config, sizes: Sizes, data: Data, steps: int, rankings: int, candidates: int
) -> str:
    """What a run will take, in words; within a few parts of ten, as texts differ in length.

    Args:
      config, sizes: of the method.
      data: of the run.
      steps: rounds of the run.
      rankings: lists to rank, with `candidates` items each.
    """
    domain, log = domains_of(data), log_of(data, jax.random.key(0))
    taken = steps * (config.events_per_round or len(log.user))
    number = min(len(log.user), taken)
    epochs = max(1.0, taken / max(1, number))
    log = Log(*(part[:number] for part in log))
    rounds = {how: call_rounds(log, domain, how) for how in ("dataflow", "waves")}
    rounds["sequential"] = 4 * number
    item, private, fused = (
        WORD_TOKENS * words
        for words in (config.item_words, config.private_words, config.fused_words)
    )
    domains = int(domain.max()) + 1
    pair = 2 * (item + TITLE)
    prompt = number * epochs * (4 * TEMPLATE + 3 * pair + 3 * fused + (1 + domains) * private)
    answer = number * epochs * (80 + private + fused + 2 * item)
    tagged = sizes.users if config.groups >= 0 else 0
    groups = config.shown_groups * 2 * config.shown * TITLE
    prompt += rankings * (TEMPLATE + fused + groups + candidates * (item + TITLE))
    prompt += tagged * (TEMPLATE + domains * private)
    answer += rankings * 3 * candidates + tagged * 30
    took = estimate.estimate(
        round(4 * number * epochs) + rankings + tagged,
        round(prompt),
        round(answer),
        rounds=round(rounds[config.schedule] * epochs),
        concurrency=config.concurrency,
        answer_seconds=config.answer_seconds,
        prices=(config.prompt_price, config.answer_price),
    )
    return estimate.tell(took) + (
        f"; training in rounds of calls: {rounds['sequential']:,} one by one, "
        f"{rounds['waves']:,} in waves, {rounds['dataflow']:,} by dataflow (as set: "
        f"{config.schedule})"
    )


def call_rounds(log: Log, domain: np.ndarray, schedule: str) -> int:
    """How many rounds of calls a log takes where every answer is usable, without running it.

    An event chooses from what its user made of this domain (fused) and from two items, reflects on
    the private memory of the domain, fuses all private memories of its user and then rewrites the
    items: it waits for what the events before it write of that, and for nothing else.

    Args:
      log: the events.
      domain: int [I], of each item.
      schedule: "dataflow", "waves" or "sequential".
    """
    if schedule != "dataflow":
        return 4 * len(batches(log, schedule))
    private: dict[int, dict[int, int]] = defaultdict(dict)  # user -> domain -> round
    fused: dict[tuple[int, int], int] = {}
    item: dict[int, int] = {}
    last = 0
    domains = domain.tolist()
    for u, i, j in zip(*log, strict=True):
        d = domains[i]
        chosen = 1 + max(fused.get((u, d), 0), item.get(i, 0), item.get(j, 0))
        private[u][d] = chosen + 1
        fused[u, d] = 1 + max(private[u].values())
        item[i] = item[j] = fused[u, d] + 1
        last = max(last, item[i])
    return last

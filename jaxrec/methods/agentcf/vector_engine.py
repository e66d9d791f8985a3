"""AgentCF++: user and item agents with memories that learn from each other (arXiv 2502.13843).

Every event of the log, in the order of time, is one interaction of a user with an item that was
chosen and one that was not (`interaction`):

    choose between the two from the fused memory of the item's domain; reflect: the private memory
    moves, the further the less the choice was expected; fuse: what all private memories say about
    this domain is filtered and merged anew; items: both lean towards, or away from, the new taste.

Events that share nothing run at once (`schedule`), with the same result as one by one. After the
log, users of like memories form interest groups (`groups`), which remember what was lately popular
among them. A ranking adds up eight features of a user and an item, with weights of the item's
domain (`ranking`).

Here the agents are vectors and every step is arithmetic; `agentcf_text` lets a language model do
the same. What differs from the paper, and why:
- The paper's LLM weighs all it is shown; here a softmax regression does, fitted to the newest tenth
  of the training log, before the memories have seen it (a user's rejected items are drawn from all
  that the whole train part does not have). No validation row is read.
- Groups are clusters of the memories themselves, not of tags, and they count as well as list. The
  count of everybody is a feature of its own: without it, groups get the credit for popularity
  (docs/agentcf.md).
- Before test rows are ranked, the agents live through the validation rows too, as any model that
  reads histories does; the ranking's weights stay as they were fitted.
- A domain that a user never touched has no fused memory yet; it is fused when a ranking needs it.
- memory = "single" with groups = 0 and popularity = false is AgentCF (Zhang et al., WWW 2024): one
  memory for all domains, nothing of other users but what item memories have taken from them.
"""

from __future__ import annotations

from functools import partial

from jaxrec.data.pack import history_of
from jaxrec.methods.agentcf.config import Config
from jaxrec.methods.agentcf.events import check_domains
from jaxrec.methods.agentcf.life import live_through, step
from jaxrec.methods.agentcf.ranking import Served, score, serve
from jaxrec.methods.agentcf.state import State, init
from jaxrec.methods.agentcf.world import text_of, world_of
from jaxrec.types import Data, Method, Reads, SettingError, Sizes, Traits, Unavailable


def check_data(config: Config, data: Data) -> None:
    """Refuse data that lack what agents need, or that hold a domain of one item; DataError."""
    del config
    history_of(data)
    text_of(data)
    if data.domain is not None:
        check_domains(data.domain)


ALONE = {  # settings that only other memories read
    "dual": (),
    "single": ("rank", "transfer"),
    "private": ("transfer", "renewal"),
}
TRAITS = Traits(
    run={
        "ranking": "domains",
        "candidates": 9,
        "baselines": ("popularity",),
        "ks": (1, 5, 10),
        "monitor": "MRR",
    },
    reads=lambda config: Reads(history=True, text=True),  # an item's first memory is its text
    check_data=check_data,
    unread=lambda config: {
        "memory": ALONE[config.memory],
        "minibatch": () if config.minibatch else ("minibatch_size",),
    },
    needs=("order", "text", "domains"),
    renamed={"recency": "newest_weight", "width": "minibatch_size"},
)


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; SettingError where there are more groups than users."""
    if config.groups > sizes.users:
        raise SettingError(
            f"groups = {config.groups}: must be 0 (none) or up to the {sizes.users:,} users"
        )
    return Method(
        init=partial(init, config, sizes),
        step=partial(step, config, sizes),
        prepare=partial(prepare, config, sizes),
        score=score,
        one_shot=True,
        axis="users",
        vectors=Unavailable(
            "a score adds counts of a user's group and the odds of a domain to inner products"
        ),
        fold_in=Unavailable(
            "an agent's memories come from living through events, one after another"
        ),
    )


def prepare(config: Config, sizes: Sizes, state: State, data: Data) -> Served:
    """What ranking reads, once the agents have lived through all rows that the data hold."""
    world, past = world_of(config, sizes, data), history_of(data)
    state = live_through(config, sizes, state, world, past)
    return serve(config, sizes, state, world, past)

"""Settings of AgentCF++'s vector engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxrec.settings.fields import check, setting


@dataclass(frozen=True)
class Config:
    """Settings of AgentCF++."""

    memory: Literal["dual", "single", "private"] = "dual"
    """dual: private per domain and fused; single: one memory for all domains (AgentCF); private:
    per domain, nothing crosses over."""
    groups: int = setting(20, at_least=0)
    """G, interest groups; 0: none."""
    popularity: bool = True
    """Whether the ranking reads how many rows an item has so far."""
    half_life: float = setting(0.0, at_least=0)
    """Rows of the log after which a row counts half in a group; 0: all count alike."""
    recent: int = setting(20, at_least=1)
    """R, a group's newest rows in a domain that make its vector."""
    rank: int = setting(32, at_least=1)
    """Directions in which a domain's items differ, that filter what other domains say."""
    item_rate: float = setting(0.03, at_least=0)
    """How far an unexpected choice moves an item's memory; 0: items are frozen."""
    surprise: float = setting(0.5, at_least=0, at_most=1)
    """How much more an unexpected choice moves a memory than an expected one, 0 to 1."""
    newest_weight: float = setting(0.01, at_least=0, at_most=1)
    """Least weight of the newest interaction in a private memory, 0 to 1."""
    transfer: float = setting(0.5, at_least=0)
    """Weight of an interaction of another domain in a fused memory, in interactions."""
    renewal: float = setting(0.7, at_least=0, at_most=1)
    """Share of a fused memory that each interaction writes anew, 0 to 1."""
    temperature: float = setting(0.3, above=0)
    """Of a choice, in inner products of unit vectors."""
    tail: float = setting(0.1, above=0, below=1)
    """Share of the training log, its newest, that the ranking's weights are fitted to."""
    rivals: int = setting(9, at_least=1)
    """Items that each row of the tail is ranked against in that fit, at most."""
    new_items: bool = True
    """Whether the fit counts items without an earlier row, as a ranking of all items does. Those of
    a log are there because somebody takes them later: with catalogue = known, set it to false."""
    minibatch: bool = False
    """Run the log in order, `minibatch_size` events at once, whatever they share: an
    approximation."""
    minibatch_size: int = setting(128, at_least=1)
    """Events of a minibatch; without minibatches the device decides how many run at once."""

    __post_init__ = check

    @property
    def single(self) -> bool:
        """Whether one memory serves all domains."""
        return self.memory == "single"

"""The privacy ledger: what a run promises, in words, and what it has released so far, in numbers.

It stands beside the byte ledger and is a function of the rounds alone, so a run that is cut into
pieces has the same one.
"""

from __future__ import annotations

from typing import Any

from jaxrec.federated import accountant
from jaxrec.federated.accountant import ADJACENCY
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.types import Method, Release


def released(method: Method, rounds: int) -> tuple[Release, ...]:
    """All noisy releases of so many rounds; none where the method adds no noise."""
    return method.releases(rounds) if method.releases else ()


def promise(config: Any, method: Method, rounds: int, otherwise: str) -> str:
    """What a whole run promises, for the line that states its protocol.

    Args:
      otherwise: what to say of a method whose config has no settings of privacy.
    """
    if not isinstance(config, PrivacyConfig):
        return otherwise
    if config.privacy == "plain":
        return "the server sees every upload (plain)"
    if config.privacy == "secure_sum":
        return (
            f"secure sums over at least {config.min_cohort} clients, items of at least "
            f"{config.min_support} users"
        )
    releases = released(method, rounds)
    sampled = ", Poisson samples" * any(one.sampling < 1 for one in releases)
    budget = f"({config.epsilon:g}, {config.delta:g})"
    if not config.epsilon:
        budget = f"no budget, noise multiplier {config.noise_multiplier:g},"
    how = accountant.accountant_of(releases)
    whom = f"for each {config.privacy_unit}, by {ADJACENCY}"
    return f"{budget} {whom}, {config.privacy}{sampled}, {how}"


def values(config: Any, method: Method, rounds: int, otherwise: str) -> dict[str, Any]:
    """The privacy in result.json after so many rounds; `epsilon` is all that was spent."""
    if not isinstance(config, PrivacyConfig):
        return {"privacy": otherwise}
    told: dict[str, Any] = {"privacy": config.privacy}
    if config.clip:
        told |= {"privacy/clip": config.clip}
    if config.privacy == "plain":
        return told
    told |= {"privacy/min_cohort": config.min_cohort}
    if not config.noised:
        return told | {"privacy/min_support": config.min_support}
    releases = released(method, rounds)
    return told | {
        "privacy/epsilon": accountant.epsilon(releases, config.delta),
        "privacy/epsilon/rdp": accountant.epsilon(releases, config.delta, "rdp"),
        "privacy/delta": config.delta,
        "privacy/unit": config.privacy_unit,
        "privacy/adjacency": ADJACENCY,
        "privacy/noise_multiplier": config.noise_multiplier,
        "privacy/accountant": accountant.accountant_of(releases),
    }


def row(config: Any, method: Method, rounds: int) -> dict[str, float]:
    """What a line of metrics.jsonl says: a bound of what was spent so far that is quickly had."""
    if not (isinstance(config, PrivacyConfig) and config.noised):
        return {}
    bound = accountant.epsilon(released(method, rounds), config.delta, "rdp")
    return {"privacy/epsilon/rdp": bound}


def short(values: dict[str, Any]) -> str:
    """The privacy of a result in a cell of a table; empty where an older version did not say."""
    if "privacy/epsilon" not in values:
        return values.get("privacy", "")
    spent, delta = values["privacy/epsilon"], values["privacy/delta"]
    return f"({spent:.3g}, {delta:g})"

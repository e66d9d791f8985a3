"""The privacy budget of a run: the least noise that keeps within it, and no round beyond it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from jaxrec.federated import accountant
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.federated.privacy_ledger import released
from jaxrec.types import Method, SettingError

SLACK = 1 + 1e-6  # another machine's last digits are no breach


def rounds_of(method: Method, rounds: int) -> int:
    """Rounds that a method takes where a run asks for so many."""
    return 1 if method.one_shot else rounds


def solved(config: Any, rounds: int, make: Callable[[Any], Method]) -> Any:
    """The config with the least noise that keeps a whole run within its epsilon, where it asks.

    Args:
      rounds: of the run; a one-shot method takes one.
      make: config -> method; cheap.

    Raises SettingError where no noise keeps within the budget.
    """
    if not (isinstance(config, PrivacyConfig) and config.noised) or config.noise_multiplier:
        return config

    def releases_of(noise: float):
        method = make(replace(config, noise_multiplier=noise))
        return _releases(config, method, rounds_of(method, rounds))

    noise = accountant.noise_multiplier_for(config.epsilon, config.delta, releases_of)
    return replace(config, noise_multiplier=noise)


def check(config: Any, method: Method, rounds: int) -> None:
    """SettingError where `rounds` rounds go past the budget, or where nothing would be noised."""
    if not (isinstance(config, PrivacyConfig) and config.noised):
        return
    spent = lambda rounds: accountant.epsilon(_releases(config, method, rounds), config.delta)
    most, all_of_them = config.epsilon * SLACK, spent(rounds)
    if not config.epsilon or all_of_them <= most:
        return
    told = f"with noise_multiplier = {config.noise_multiplier:.6g} and delta = {config.delta:g}"
    past = f"epsilon {all_of_them:.4g} would be spent {told}, of a budget of {config.epsilon:g}"
    fit = _most(lambda rounds: spent(rounds) <= most, rounds)
    if method.one_shot or not fit:
        whole = "its one round" if method.one_shot else "a single round"
        raise SettingError(
            f"epsilon = {config.epsilon:g}: no number of rounds meets it: after {whole} "
            f"epsilon {spent(1):.4g} would be spent {told}; raise epsilon or noise_multiplier"
        )
    raise SettingError(
        f"rounds = {rounds}: {past}; {fit} round{'s' * (fit > 1)} fit: set rounds = {fit}"
    )


def _releases(config: PrivacyConfig, method: Method, rounds: int):
    """What would be released; SettingError where it is nothing, so that a budget says nothing."""
    if not (releases := released(method, rounds)):
        raise SettingError(
            f"privacy = {config.privacy!r}: with these settings the method adds no noise; "
            "set privacy = 'secure_sum' or 'plain'"
        )
    return releases


def _most(fits: Callable[[int], bool], too_many: int) -> int:
    """The largest number below `too_many` that fits; 0 where none does."""
    fitting = 0
    while too_many - fitting > 1:
        middle = (fitting + too_many) // 2
        fitting, too_many = (middle, too_many) if fits(middle) else (fitting, middle)
    return fitting

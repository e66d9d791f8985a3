"""What a federation promises: what the server sees, and how much noise covers it.

    plain           the server sees every upload
    secure_sum      the server sees sums over clients, and no upload
    central_dp      a trusted server adds Gaussian noise to each sum
    distributed_dp  each client adds its share of discrete noise; the server sees the noisy sum

A guarantee (epsilon, delta) is one for adding or removing one user, or one client, as
`privacy_unit` says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxrec.settings.fields import check, require, setting
from jaxrec.types import SettingError, Sizes

BEFORE = {"privacy": "plain", "min_cohort": 1, "min_support": 1}
"""What runs did that were stored before there were these settings."""

Privacy = Literal["plain", "secure_sum", "central_dp", "distributed_dp"]


@dataclass(frozen=True)
class PrivacyConfig:
    """Settings of a federated method's privacy; its Config inherits them."""

    privacy: Privacy = "secure_sum"
    """What the server sees. plain: every upload; secure_sum: sums over clients alone; central_dp:
    a trusted server adds noise to each sum; distributed_dp: clients add it inside secure sums."""
    epsilon: float = setting(0.0, at_least=0)
    """Privacy budget of a whole run with central_dp or distributed_dp; 0 for the other two."""
    delta: float = setting(1e-6, above=0, below=1)
    """Probability with which the budget may not hold."""
    noise_multiplier: float = setting(0.0, at_least=0)
    """Standard deviation of the noise on a sum, in units of what one user or client can change.
    0: the least noise that keeps within epsilon."""
    privacy_unit: Literal["user", "client"] = "user"
    """Whom the budget protects: each user, or each client with all of its users."""
    clip: float = setting(0.0, at_least=0)
    """Longest upload of a client, as the L2 norm over all of its numbers; 0: any."""
    clip_quantile: float = setting(0.0, at_least=0, below=1)
    """Fraction of the uploads that an adaptive clip leaves whole; the clip starts at `clip`. 0: the
    clip is fixed."""
    min_cohort: int = setting(3, at_least=1)
    """Fewest clients that a sum may be over; a round with fewer is left out. 3: where one of them
    tells the server its own part, the rest still hides among two."""
    min_support: int = setting(10, at_least=1)
    """Fewest users that an item must have to be in a sum and in the served model, where no noise
    covers it."""

    def __post_init__(self) -> None:
        check(self)
        check_privacy(self)

    @property
    def noised(self) -> bool:
        """Whether the run has a budget."""
        return self.privacy in ("central_dp", "distributed_dp")

    @property
    def support(self) -> int:
        """Fewest users of an item that is learned: 1 where noise covers all items."""
        return 1 if self.noised or self.privacy == "plain" else self.min_support


def check_privacy(config: PrivacyConfig) -> None:
    """Rules that join the settings of privacy; raises SettingError naming the value."""
    budget = config.epsilon or config.noise_multiplier
    rule = "above 0, or give noise_multiplier: the budget of privacy = " + repr(config.privacy)
    require(budget or not config.noised, config, "epsilon", rule)
    rule = f"0 for privacy = {config.privacy!r}, which adds no noise; set privacy = 'central_dp'"
    require(config.noised or not config.epsilon, config, "epsilon", rule)
    require(config.noised or not config.noise_multiplier, config, "noise_multiplier", rule)
    rule = "above 0 where clip_quantile > 0, which moves it from there"
    require(config.clip or not config.clip_quantile, config, "clip", rule)


def check_sum(config: PrivacyConfig, clients: int, share: float = 1.0) -> None:
    """Refuse sums over too few clients to hide any.

    Args:
      clients: of the federation.
      share: of them that a sum is over on average.
    """
    if config.privacy != "plain" and clients * share < config.min_cohort:
        raise SettingError(
            f"min_cohort = {config.min_cohort}: a sum would be over {clients * share:g} of "
            f"{clients} clients on average; have more of them take part, lower min_cohort, or set "
            "privacy = 'plain'"
        )


def check_user_sums(config: PrivacyConfig, sizes: Sizes) -> None:
    """Refuse to promise clients what sums over users give: each user is bounded, no client is."""
    single = sizes.users == sizes.clients
    rule = "'user' where a client has several users: each user's part of a sum is bounded"
    fits = single or not config.noised or config.privacy_unit == "user"
    require(fits, config, "privacy_unit", rule)

"""Who takes part in a round, whose upload arrives, and what a server believes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp

from jaxrec.federated.malicious import AttackConfig
from jaxrec.federated.privacy import PrivacyConfig, check_privacy, check_sum
from jaxrec.federated.private_mean import COUNT_NOISE
from jaxrec.settings.fields import check, require, setting
from jaxrec.types import Clients, Data, Release, Sizes


@dataclass(frozen=True)
class CohortConfig(AttackConfig, PrivacyConfig):
    """Settings of the clients that take part in a round; a federated method's Config inherits them.

    The engine takes the method's whole config as its cohort.
    """

    participation: float = setting(1.0, above=0, at_most=1)
    """Chance of a client to be in a round, 0 to 1. It is raised where a secure sum would be over
    fewer than min_cohort clients."""
    dropped: float = setting(0.0, at_least=0, at_most=1)
    """Chance of a chosen client to fail before its upload arrives, 0 to 1."""
    block: int = setting(0, at_least=0)
    """Clients computed at once, a bound on memory; 0 = all of a bucket that take part."""
    aggregate: Literal["auto", "mean", "norm_bound", "median", "trimmed_mean", "multi_krum"] = (
        "auto"
    )
    """How the server joins uploads. mean: it believes everybody; the others, which need to see each
    upload, withstand clients that lie: norm_bound cuts uploads to the median length, median and
    trimmed_mean act on each number, multi_krum takes the uploads that lie closest together. auto:
    multi_krum where malicious > 0, else mean."""
    malicious: float = setting(0.0, at_least=0, below=0.5)
    """Share of clients that may lie: trimmed_mean leaves out as many at either end, multi_krum as
    many uploads."""

    def __post_init__(self) -> None:
        check(self)
        check_cohort(self)

    @property
    def sampled(self) -> bool:
        """Whether cohorts are Poisson samples, which an accountant may rely on."""
        return self.noised and self.participation < 1

    @property
    def rule(self) -> str:
        """The rule that joins uploads."""
        if self.aggregate == "auto":
            return "multi_krum" if self.malicious else "mean"
        return self.aggregate


def check_cohort(config: CohortConfig) -> None:
    """Rules that join settings of a cohort; raises SettingError naming the value."""
    check_privacy(config)
    name = "malicious" if config.aggregate == "auto" else "aggregate"
    rule = (
        f"left at its default for privacy = {config.privacy!r}: {config.rule} looks at each "
        "upload, and the server sees sums; set privacy = 'plain', or clip, which bounds uploads "
        "at the clients"
    )
    require(config.privacy == "plain" or config.rule == "mean", config, name, rule)
    rule = "above 0 for aggregate = " + repr(config.aggregate)
    needed = config.aggregate in ("trimmed_mean", "multi_krum")
    require(config.malicious or not needed, config, "malicious", rule)


EVERYONE = CohortConfig(privacy="plain")


Cohort = TypeVar("Cohort", bound=CohortConfig)


def with_enough(cohort: Cohort, sizes: Sizes) -> Cohort:
    """The settings with a participation that brings `min_cohort` clients into a secure sum."""
    least = min(1.0, cohort.min_cohort / max(sizes.clients, 1))
    if cohort.privacy != "secure_sum" or cohort.participation >= least:
        return cohort
    return replace(cohort, participation=least)


def check_rounds(cohort: CohortConfig, sizes: Sizes) -> None:
    """Refuse rounds that cannot keep what `privacy` promises; SettingError says the remedy."""
    if cohort.privacy == "plain":
        return
    check_sum(cohort, sizes.clients, cohort.participation)
    if not cohort.noised:
        return
    rule = f"above 0 for privacy = {cohort.privacy!r}: noise covers uploads of a bounded norm"
    require(cohort.clip, cohort, "clip", rule)
    rule = "'client' where a client has several users: its upload is clipped as a whole"
    single = sizes.users == sizes.clients
    require(single or cohort.privacy_unit == "client", cohort, "privacy_unit", rule)
    rule = "0 for privacy = 'distributed_dp': who drops out takes a share of the noise along"
    require(cohort.privacy == "central_dp" or not cohort.dropped, cohort, "dropped", rule)
    count_noise = 2 * COUNT_NOISE * cohort.participation * sizes.clients
    rule = f"0 where the noise multiplier is above {count_noise:.3g}: too few clients to count"
    counted = not cohort.clip_quantile or cohort.noise_multiplier < count_noise
    require(counted, cohort, "clip_quantile", rule)


def weighed_alike(data: Data) -> Data:
    """The data with clients that weigh 1 each: sums over clients count every row once."""
    weigh = lambda clients: clients._replace(weight=(clients.weight > 0).astype(jnp.float32))
    return data._replace(clients=tuple(map(weigh, data.clients)))


def releases(cohort: CohortConfig, rounds: int) -> tuple[Release, ...]:
    """What rounds release of a noisy sum. A server that adds uploads knows who sent one."""
    sampling = cohort.participation if cohort.privacy == "central_dp" else 1.0
    return (Release("rounds", cohort.noise_multiplier, rounds, sampling),)


def draw(cohort: CohortConfig, clients: Clients, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Which clients of a bucket a round computes, and which of their uploads arrive.

    Returns rows of the bucket, int32 [`places`], and bool of the same shape; a row beyond the
    bucket's last one stands for nobody. Who is drawn depends on the clients' ids, not on their
    order nor on padding.
    """
    count = len(clients.client)
    key_choice, key_last, key_drop = jax.random.split(key, 3)
    size = places(cohort, count)
    chosen, present = jnp.arange(count), jnp.ones(size, bool)
    if cohort.sampled:  # every client decides by itself
        luck = jnp.where(clients.weight > 0, _uniform(key_choice, clients.client), 2.0)
        chosen = jnp.pad(jnp.argsort(luck)[:size], (0, max(0, size - count)), constant_values=count)
        present = luck.at[chosen].get(mode="fill", fill_value=2.0) < cohort.participation
    elif cohort.participation < 1:
        real = clients.weight > 0
        chosen = jnp.argsort(jnp.where(real, _uniform(key_choice, clients.client), 2.0))[:size]
        # One place more is filled so often that each client's chance is exactly `participation`.
        expected = cohort.participation * real.sum()
        rest = jax.random.bernoulli(key_last, expected - jnp.floor(expected))
        present = jnp.arange(size) < jnp.floor(expected) + rest
    if cohort.dropped > 0:
        present &= _uniform(key_drop, clients.client[chosen]) >= cohort.dropped
    return chosen, present


def places(cohort: CohortConfig, count: int) -> int:
    """How many of a bucket's clients a round can compute: a Poisson sample is larger with
    a chance of 1e-9."""
    mean = cohort.participation * count
    if not cohort.sampled:
        return math.ceil(mean)
    part = block(cohort, count)
    return math.ceil(min(count, mean + 6 * math.sqrt(mean) + 12) / part) * part


def block(cohort: CohortConfig, count: int) -> int:
    """How many of a bucket's clients are computed at once.

    Blocks of a Poisson sample have room for one deviation more than its mean: five samples in six
    fill one block, and a block that nobody fills is not computed.
    """
    mean = cohort.participation * count
    most = math.ceil(mean + math.sqrt(mean) if cohort.sampled else mean)
    return max(1, min(cohort.block or most, most, count))


def noise_key(key: jax.Array) -> jax.Array:
    """The key of the noise in a bucket that `draw` was given `key` for."""
    return jax.random.fold_in(jax.random.split(key, 3)[2], 1)


def _uniform(key: jax.Array, client: jax.Array) -> jax.Array:
    """A number in [0, 1) for each client id [C]."""
    return jax.vmap(lambda c: jax.random.uniform(jax.random.fold_in(key, c)))(client)

"""The accountant: what noisy releases spend of a privacy budget, and the noise that a budget needs.

    releases -> epsilon                 (dp-accounting: PLD, or RDP as a looser bound)
    epsilon, releases(noise) -> noise

Each release is a Gaussian mechanism for adding or removing one user or client, Poisson-sampled
where `Release.sampling` is below 1. Gaussian mechanisms without sampling compose to one of them,
for which epsilon is exact.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any, Literal

import numpy as np

from jaxrec.types import Release, SettingError

How = Literal["pld", "rdp"]
ADJACENCY = "add or remove one"
LEAST, MOST = 2.0**-6, 2.0**20  # noise multipliers that are tried
CLOSE = 2e-3  # fraction of the budget that noise may leave unspent
TRIES = 60
SLOPE = 1.5  # epsilon falls about as noise ** -1.5
HOPELESS = 500.0  # an epsilon that promises nothing: its bound by RDP is enough
GRID = 4e-3  # of a privacy loss, as a fraction of epsilon: its error grows with GRID^2 x times


@lru_cache(maxsize=4096)
def epsilon(releases: tuple[Release, ...], delta: float, how: How = "pld") -> float:
    """The epsilon that the releases spend together, at `delta`; infinite where one has no noise.

    Raises SettingError where dp-accounting is missing.
    """
    dp = _library()
    made = [one for one in releases if one.times and one.sampling]
    if any(not one.noise_multiplier for one in made):
        return math.inf
    whole, sampled = _as_one_gaussian(made), [one for one in made if one.sampling < 1]
    with _quiet():
        if not sampled and how == "pld":
            return float(dp.get_epsilon_gaussian(whole, delta)) if whole else 0.0
        event = _event(dp, whole, sampled)
        bound = float(dp.rdp.RdpAccountant().compose(event).get_epsilon(delta))
        if how == "rdp" or bound > HOPELESS:
            return bound
        times = max(16, sum(one.times for one in sampled))
        grid = GRID * times**-0.5 * max(0.1, bound)
        pld = dp.pld.PLDAccountant(value_discretization_interval=grid)
        return min(float(pld.compose(event).get_epsilon(delta)), bound)


def accountant_of(releases: tuple[Release, ...]) -> str:
    """The name of what `epsilon` takes for releases."""
    sampled = any(one.sampling < 1 for one in releases)
    return "PLD" if sampled else "analytic Gaussian"


def noise_multiplier_for(
    budget: float, delta: float, releases_of: Callable[[float], tuple[Release, ...]]
) -> float:
    """The least noise multiplier, to a few thousandths, whose releases keep within `budget`.

    Args:
      releases_of: noise multiplier -> all that is released with it.

    Raises SettingError where no noise does, or where dp-accounting is missing.
    """

    def excess(log_noise: float, how: How = "pld") -> float:
        spent = epsilon(releases_of(math.exp(log_noise)), delta, how)
        return math.log(max(spent, 1e-9 * budget) / budget)

    below, enough = math.log(LEAST), math.log(MOST)
    if excess(enough) > 0:
        spent = epsilon(releases_of(MOST), delta)
        raise SettingError(
            f"epsilon = {budget:g}: no noise keeps within it at delta = {delta:g}; a "
            f"noise_multiplier of {MOST:,.0f} spends {spent:.3g}. Raise epsilon or delta"
        )
    if excess(below, "rdp") <= 0:
        return LEAST
    if excess(enough, "rdp") < 0:  # it costs little and is never below PLD, nor far above it
        enough = _least(partial(excess, how="rdp"), below, enough, 0.1)
    return math.exp(_least(excess, below, enough, CLOSE))


def _least(excess: Callable[[float], float], below: float, enough: float, close: float) -> float:
    """A place between `below` and `enough` where a falling function is in [-close, 0].

    Secant steps from `enough`, halves of what is left where one leads out of it.
    """
    last, here = (below, math.inf), (enough, excess(enough))
    for _ in range(TRIES):
        if -close <= here[1] <= 0:
            break
        below, enough = (here[0], enough) if here[1] > 0 else (below, here[0])
        fall = (last[1] - here[1]) / (here[0] - last[0])
        slope = fall if 0 < fall < math.inf else SLOPE
        place = here[0] + (here[1] + close / 2) / slope
        last, place = here, place if below < place < enough else (below + enough) / 2
        here = place, excess(place)
    return here[0] if here[1] <= 0 else enough


def _event(dp: Any, whole: float, sampled: list[Release]) -> Any:
    """A Gaussian of noise multiplier `whole`, if any, and sampled releases, as dp-accounting's."""
    events = [dp.GaussianDpEvent(whole)] if whole else []
    for one in sampled:
        event = dp.PoissonSampledDpEvent(one.sampling, dp.GaussianDpEvent(one.noise_multiplier))
        events.append(dp.SelfComposedDpEvent(event, one.times))
    return dp.ComposedDpEvent(events)


def _as_one_gaussian(releases: list[Release]) -> float:
    """The noise multiplier of all releases without sampling, as one release; 0 for none."""
    precision = sum(one.times / one.noise_multiplier**2 for one in releases if one.sampling >= 1)
    return precision**-0.5 if precision else 0.0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's words on orders of RDP that it leaves out and on logarithms of 0."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with np.errstate(divide="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _library() -> Any:
    try:
        import dp_accounting
    except ImportError as error:
        raise SettingError(
            "epsilon: a privacy budget needs dp-accounting; pip install 'jaxrec[privacy]'"
        ) from error
    return dp_accounting

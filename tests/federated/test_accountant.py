"""The accountant: pinned epsilons, the exact Gaussian, the least noise of a budget."""

import math
import sys

import pytest
from scipy.stats import norm

from jaxrec.federated.accountant import accountant_of, epsilon, noise_multiplier_for
from jaxrec.types import Release, SettingError


def rounds(noise, times=1, sampling=1.0):
    return (Release("rounds", noise, times, sampling),)


@pytest.mark.parametrize(
    ("noise", "sampling", "times", "rdp", "pld"),
    [(1.5, 0.04, 2250, 7.32911, None), (1.0, 0.01, 1000, 2.1014, 1.8282)],
)
def test_the_pinned_epsilons(noise, sampling, times, rdp, pld):
    """RDP depends on the orders that are tried, in the fourth digit after the point."""
    releases = rounds(noise, times, sampling)
    assert epsilon(releases, 1e-5, "rdp") == pytest.approx(rdp, abs=3e-4)
    assert epsilon(releases, 1e-5) < rdp
    if pld:
        assert epsilon(releases, 1e-5) == pytest.approx(pld, abs=1e-4)
    assert accountant_of(releases) == "PLD"


def test_releases_without_sampling_are_one_gaussian():
    """Balle and Wang (2018): delta = F(m / 2 - e / m) - exp(e) F(-m / 2 - e / m), where
    m^2 = sum of times / noise^2."""
    releases = (Release("counts", 8.0), Release("rounds", 5.0, 12), Release("none", 1.0, 0))
    m = math.sqrt(1 / 8**2 + 12 / 5**2)
    spent = epsilon(releases, 1e-6)
    delta = norm.cdf(m / 2 - spent / m) - math.exp(spent) * norm.cdf(-m / 2 - spent / m)
    assert delta == pytest.approx(1e-6, rel=1e-4)
    assert accountant_of(releases) == "analytic Gaussian"
    assert spent < epsilon(releases, 1e-6, "rdp") < 1.2 * spent
    # sampling hides who was there; the bound of a sum of both parts is never below one of them
    sampled = releases + rounds(5.0, 12, 0.1)
    assert spent < epsilon(sampled, 1e-6) < epsilon(releases + rounds(5.0, 12), 1e-6)


def test_nothing_spends_nothing_and_no_noise_spends_everything():
    assert epsilon((), 1e-6) == 0
    assert epsilon(rounds(1.0, 0), 1e-6) == 0
    assert epsilon(rounds(0.0, 3), 1e-6) == math.inf


@pytest.mark.parametrize(("budget", "sampling"), [(0.02, 1.0), (8.0, 1.0), (1.0, 0.1)])
def test_the_noise_of_a_budget_is_the_least(budget, sampling):
    """A tenth of the precision, 1 / noise^2, goes to counts."""
    asked = []

    def releases_of(noise):
        asked.append(noise)
        return Release("counts", noise * math.sqrt(10)), *rounds(noise, 30, sampling)

    noise = noise_multiplier_for(budget, 1e-6, releases_of)
    assert epsilon(releases_of(noise), 1e-6) <= budget < epsilon(releases_of(noise / 1.004), 1e-6)
    assert len(asked) < 30


def test_a_budget_that_no_noise_meets_is_refused():
    """One of the releases has a noise of its own, which spends more than the budget alone."""
    with pytest.raises(SettingError, match=r"epsilon = 1: no noise .* delta = 1e-06.* Raise"):
        noise_multiplier_for(1.0, 1e-6, lambda noise: rounds(noise) + rounds(2.0))


def test_a_missing_accountant_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(SettingError, match=r"pip install 'jaxrec\[privacy\]'"):
        epsilon(rounds(1.25), 1e-6)

"""The set-up under a budget: what it finds where noise is nothing, and what it spends."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrec.methods import rqfedrec
from jaxrec.methods.rqfedrec import private_setup
from jaxrec.types import Clients, Data, Sizes

GROUPS, EACH, USERS, OWN, PADDED = 4, 6, 60, 4, 2
ITEMS = GROUPS * EACH
SIZES = Sizes(USERS, ITEMS, USERS)
CONFIG = rqfedrec.Config(
    privacy="central_dp", epsilon=8.0, clip=1.0, width=GROUPS - 1, codes=8, setup_noise=0.2
)


def planted():
    """One-user clients, each with `OWN` items of one group, and how many users items have."""
    draw = np.random.default_rng(0)
    items = [EACH * (u % GROUPS) + draw.permutation(EACH)[: OWN + PADDED] for u in range(USERS)]
    shape = USERS, OWN + PADDED
    clients = Clients(
        user=jnp.zeros(shape, int),
        item=jnp.asarray(np.stack(items)),
        mask=jnp.broadcast_to(jnp.arange(OWN + PADDED) < OWN, shape),
        users=jnp.arange(USERS)[:, None],
        client=jnp.arange(USERS),
        weight=jnp.full(USERS, float(OWN)),
    )
    counts = np.bincount(np.stack(items)[:, :OWN].ravel(), minlength=ITEMS)
    return Data((clients,)), counts


@pytest.mark.parametrize("privacy", ["central_dp", "distributed_dp"])
def test_without_noise_it_finds_counts_and_planted_groups(privacy):
    data, counts = planted()
    config = replace(CONFIG, privacy=privacy)  # no multiplier was solved for: it is 0
    made = jax.jit(partial(private_setup.counts_and_vectors, config, SIZES))
    found, vectors = map(np.asarray, made(data, jax.random.key(0)))
    np.testing.assert_allclose(found, counts, rtol=1e-3)
    assert vectors.shape == (ITEMS, GROUPS - 1)
    apart = vectors - np.average(vectors, axis=0, weights=counts)
    assert np.average(np.sum(apart**2, axis=1), weights=counts) == pytest.approx(1, abs=1e-3)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    group = np.arange(ITEMS) // EACH
    same = group[:, None] == group
    cosine = unit @ unit.T
    # An item that few users have may lie anywhere.
    assert np.median(cosine[same]) > 0.95
    assert np.median(cosine[~same]) < 0.1


def test_its_releases_compose_to_the_set_up_s_noise():
    config = replace(CONFIG, noise_multiplier=3.0)
    *spent, rounds = rqfedrec.make(config, SIZES).releases(7)
    assert [(release.times, release.sampling) for release in spent] == [(1, 1.0), (1, 1.0)]
    together = sum(release.noise_multiplier**-2 for release in spent) ** -0.5  # of two Gaussians
    assert together == pytest.approx(3.0 * CONFIG.setup_noise)
    deviations = tuple(release.noise_multiplier for release in spent)
    assert private_setup.noises(config) == deviations  # what is accounted is what is added
    assert (rounds.noise_multiplier, rounds.times) == (3.0, 7)

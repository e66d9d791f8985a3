"""A tiny method for the tests of the run side; run as a script, the command line that knows it."""

import runpy
import sys
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.methods import METHODS
from jaxrec.settings.fields import check, setting
from jaxrec.types import Attendance, Method, Traffic, Traits

TRAITS = Traits(run={"rounds": 6, "evaluate_every": 2, "patience": 0, "baselines": ()})


@dataclass(frozen=True)
class Config:
    """Settings of the toy."""

    width: int = setting(8, at_least=1)
    """Numbers a user or item has."""
    noise: float = 0.1
    """Standard deviation of what is added each round."""
    nan_at: int = 0
    """Round whose loss is NaN; 0: none."""
    nan_score: bool = False
    """Whether scores are NaN."""
    nan_state_at: int = 0
    """Round that leaves a NaN in the state; 0: none."""
    on_host: bool = False
    """Whether rounds are stepped in Python."""
    shots: str | None = None
    """one: a one-shot method."""

    __post_init__ = check


class State(NamedTuple):
    user: jax.Array  # f32 [U, D]
    item: jax.Array  # f32 [I, D]
    client: tuple[jax.Array, ...]  # a bucket: f32 [C, D]
    round: jax.Array  # int32 []
    key: jax.Array
    nothing: jax.Array  # f32 [0, 3]


class Metrics(NamedTuple):
    loss: jax.Array
    participants: jax.Array
    refreshed: jax.Array


def make(config, sizes):
    """Power iteration on the interactions, with noise: better each round, random all the way."""

    def init(key, data):
        key, key_item = jax.random.split(key)
        item = jax.random.normal(key_item, (sizes.items, config.width))
        user = jnp.zeros((sizes.users, config.width))
        client = tuple(jnp.zeros((len(c.client), config.width)) for c in data.clients)
        return State(user, item, client, jnp.int32(0), key, jnp.zeros((0, 3)))

    def step(state, data, key):
        user, item, client = jnp.zeros_like(state.user), jnp.zeros_like(state.item), []
        for c in data.clients:
            ids = jnp.take_along_axis(c.users, c.user, axis=1)
            chosen = jnp.where(c.mask[..., None], state.item[c.item], 0)
            user = user.at[ids].add(chosen, mode="drop")
            client.append(chosen.sum(1))
        for c in data.clients:
            ids = jnp.take_along_axis(c.users, c.user, axis=1)
            item = item.at[c.item].add(jnp.where(c.mask[..., None], user[ids], 0))
        item = 10 * item / jnp.linalg.norm(item)
        item += config.noise * jax.random.normal(key, item.shape)
        number = state.round + 1
        loss = jnp.abs(item - state.item).mean()
        loss = jnp.where(number == config.nan_at, jnp.nan, loss)
        alive = sum(jnp.sum(c.weight > 0) for c in data.clients) - number % 2
        next_key = jax.random.fold_in(state.key, 0)
        item = jnp.where(number == config.nan_state_at, jnp.nan, item)
        state = State(user, item, tuple(client), number, next_key, state.nothing)
        return state, Metrics(loss, alive, jnp.where(number % 3 == 0, alive - 1, 0))

    def prepare(state, data):
        return state.user, state.item + (jnp.nan if config.nan_score else 0)

    def score(served, users):
        return served[0][users] @ served[1].T

    traffic = Traffic(4.0, 8.0, setup_up=100.0, codes_down=50.0, refresh_up=2.0, refresh_down=1.0)
    return Method(
        init,
        step,
        prepare,
        score,
        not config.on_host,
        config.shots == "one",
        traffic,
        attendance=lambda metrics: Attendance(metrics.participants, metrics.refreshed),
    )


if __name__ == "__main__":
    METHODS["toy"] = sys.modules[__name__]
    runpy.run_module("jaxrec.train", run_name="__main__")

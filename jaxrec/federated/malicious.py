"""Clients that lie, to test what a federation withstands: the same ones in every round.

Who lies depends on a client's id alone. Some lie about their data, before any work:

    label_flip  every row's item i becomes item I - 1 - i
    promote     every user has the target item in place of one of its own; collusion

and some about what they made of it:

    noise       normal noise, `attack_scale` times as large as the upload that it replaces
    sign_flip   the upload's opposite
    scale       the upload times `attack_scale`, which may be negative
    non_finite  NaN
    promote     the upload times `attack_scale`, so that a few can outvote many
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxrec.federated.uploads import beside
from jaxrec.settings.fields import check, setting
from jaxrec.types import Clients, Data, Method, SettingError, Sizes

Attack = Literal["noise", "sign_flip", "scale", "label_flip", "non_finite", "promote"]
ABOUT_DATA = ("label_flip", "promote")
RENAMED = {"noisy": "attackers", "noise_scale": "attack_scale"}  # settings of stored runs
assert set(ABOUT_DATA) < set(get_args(Attack))


@dataclass(frozen=True)
class AttackConfig:
    """Settings of the clients that lie; a cohort's settings inherit them."""

    attackers: float = setting(0.0, at_least=0, below=1)
    """Share of clients that lie, to test robustness, 0 to 1. They are the same in every round."""
    attack: Attack = "noise"
    """What they do. noise, sign_flip, scale, non_finite: to their uploads; label_flip: to their
    rows; promote: to both, for the target item."""
    attack_scale: float = setting(10.0)
    """Size of the noise, in root mean squares of the upload that it replaces, or the factor of a
    scaled or promoting upload."""
    target_item: int = setting(0, at_least=0)
    """The item that attack = promote recommends to everybody."""

    __post_init__ = check


def lies_about_uploads(config: AttackConfig) -> bool:
    """Whether some clients send anything else than what they made."""
    return config.attackers > 0 and config.attack != "label_flip"


def attackers(config: AttackConfig, client: jax.Array) -> jax.Array:
    """Which of the clients with these ids [C] lie, bool [C]."""
    keys = jax.vmap(lambda c: jax.random.fold_in(jax.random.key(0), c))(client)
    return jax.vmap(lambda key: jax.random.bernoulli(key, config.attackers))(keys)


def falsify(config: AttackConfig, uploads: Any, client: jax.Array, key: jax.Array) -> Any:
    """The uploads of a bucket, leaves [C, ...], with lies in place of those of the attackers."""
    lies = attackers(config, client)

    def lie(number: int, leaf: jax.Array) -> jax.Array:
        if config.attack == "noise":
            keys = jax.vmap(lambda c: jax.random.fold_in(jax.random.fold_in(key, c), number))
            noise = jax.vmap(lambda key: jax.random.normal(key, leaf.shape[1:]))(keys(client))
            size = jnp.sqrt(jnp.mean(leaf**2, axis=tuple(range(1, leaf.ndim)), keepdims=True))
            return config.attack_scale * size * noise
        return FACTORS.get(config.attack, config.attack_scale) * leaf

    if not lies_about_uploads(config):
        return uploads
    leaves, structure = jax.tree.flatten(uploads)
    sent = [jnp.where(beside(lies, leaf), lie(n, leaf), leaf) for n, leaf in enumerate(leaves)]
    return structure.unflatten(sent)


FACTORS = {"sign_flip": -1.0, "non_finite": jnp.nan}  # of an upload; else `attack_scale`


def falsify_rows(config: AttackConfig, clients: Clients, items: int) -> Clients:
    """A bucket whose attackers have other rows than they should."""
    lies = attackers(config, clients.client)[:, None] & clients.mask
    if config.attack == "label_flip":
        return clients._replace(item=jnp.where(lies, items - 1 - clients.item, clients.item))
    # Of a user's rows the one that counts most: its newest, or any where no order is known.
    before = jnp.pad(clients.user[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    one = clients.user != before if clients.age is None else clients.age == 0
    return clients._replace(item=jnp.where(lies & one, config.target_item, clients.item))


def with_attackers(config: AttackConfig, sizes: Sizes, method: Method) -> Method:
    """The method whose attackers train on false rows; all users are served from their true ones.

    Raises SettingError where there is no such target item.
    """
    if not config.attackers or config.attack not in ABOUT_DATA:
        return method
    if config.target_item >= sizes.items:
        raise SettingError(
            f"target_item = {config.target_item}: there are {sizes.items:,} items, 0 to "
            f"{sizes.items - 1}"
        )

    def false(data: Data) -> Data:
        buckets = [falsify_rows(config, clients, sizes.items) for clients in data.clients]
        return data._replace(clients=tuple(buckets))

    return method._replace(
        init=lambda key, data: method.init(key, false(data)),
        step=lambda state, data, key: method.step(state, false(data), key),
    )

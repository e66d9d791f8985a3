"""EASE: the best linear weights between items in closed form, centralised.

    min_W ||R - R W||^2 + ridge ||W||^2, diag W = 0:    W = I - P / diag P,  P = (R^T R + ridge)^-1

(Steck, WWW 2019). Deterministic, and hard to beat on data with few items and many users. FedCIA has
the same model of a federation: `fedcia --model ease`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrec.models import item_weights, recency
from jaxrec.ops import co_occurrence, linalg
from jaxrec.ops.edges import edges
from jaxrec.ops.linalg import MOST_ITEMS
from jaxrec.settings.fields import check, setting
from jaxrec.types import Data, Method, SettingError, Sizes, Traits

TRAITS = Traits(run={"baselines": ()}, uses=("order",), settled=recency.settled)


@dataclass(frozen=True)
class Config:
    """Settings of EASE."""

    ridge: float = setting(300.0, above=0)
    """L2 penalty on the weights, in interactions."""
    recency: float | Literal["auto"] = setting("auto", at_least=0)
    """When serving, a row with n newer ones of its user counts 1 / (1 + n / recency); 0: all count
    1; auto: whichever of 0, 1, 5 and 20 finds users' newest train rows best."""

    __post_init__ = check


def make(config: Config, sizes: Sizes) -> Method:
    """Build the method for `sizes`; SettingError for a catalogue too large for weights I x I."""
    if sizes.items > MOST_ITEMS:
        raise SettingError(
            f"{sizes.items:,} items: the weights of EASE take {4e-9 * sizes.items**2:.1f} GB, and "
            f"{MOST_ITEMS:,} items are the most; train itemknn or als, or drop rare items: min_item"
        )
    shape = sizes.items, sizes.items
    weigh = partial(weights, config, sizes)
    return item_weights.method(config.recency, sizes, lambda: jnp.zeros(shape), weigh)


def weights(config: Config, sizes: Sizes, data: Data) -> jax.Array:
    """The weights [I, I], from how often items share a user."""
    gram = co_occurrence.whole(edges(data.clients), sizes.users, sizes.items)
    return linalg.ease(gram, config.ridge)

"""Items that too few users have: their rows stay out of every sum and of the served model.

The row of an item in a sum over users is about the users who have it. Where that is one user, it is
that user's history, whoever adds the sum. Clients learn from the public counts which items those
are, and train as if they did not have them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxrec.federated.cooccurrence import item_counts
from jaxrec.federated.privacy import PrivacyConfig
from jaxrec.types import Data


def supported_items(
    config: PrivacyConfig, data: Data, items: int, most: int | None = None
) -> jax.Array | None:
    """Which items [I] at least `config.support` users have, by a secure sum; None: any will do.

    Args:
      most: of all items, the most popular ones that may be supported. A sum of whole histories over
        fewer users than items can be taken apart by linear algebra (`attacks.sums`).
    """
    if config.support == 1:
        return None
    counts = item_counts(data, items)
    least = jnp.float32(config.support)
    if most is not None and most < items:
        least = jnp.maximum(least, jnp.sort(counts)[items - 1 - most] + 1)
    return counts >= least


def supported_counts(config: PrivacyConfig, data: Data, items: int) -> jax.Array:
    """Train rows of each item [I], 0 for those that fewer than `config.support` users have."""
    counts = item_counts(data, items)
    return jnp.where(counts >= config.support, counts, 0)


def supported(data: Data, support: jax.Array | None) -> Data:
    """The data without the clients' rows of items that are not supported [I]; None: as they are."""
    if support is None:
        return data
    clients = tuple(c._replace(mask=c.mask & support[c.item]) for c in data.clients)
    return data._replace(clients=clients)

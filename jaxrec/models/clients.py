"""What a federated client trains, as pure functions of its parameters.

A model turns item vectors E [I, D] and a client's rows R [U, I] into scores:

    item = model.items(tables.item, text)        # E [I, D], whose similarity FedCIA shares
    encoded = model.encode(tables, item, rows)   # Tables of vectors [U, F] and [I, F]
    scores = model.scores(encoded, users=U)      # [U, I], inner products where there is no head

Matrix factorisation and LightGCN stand here as plain arrays. Any Flax module may take their place:
see `models/modules.py`, and `models/kinds.py` for names.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax

from jaxrec.models import collaborative
from jaxrec.models.collaborative import Tables


class ClientModel(NamedTuple):
    """A kind of client: its functions, none of which knows of other clients."""

    name: str
    width: int  # D, of the item vectors
    init_users: Callable[[jax.Array, int], tuple[Any, Any]]  # (key, U) -> user, network
    init_items: Callable[[jax.Array, int, int], Any]  # (key, I, T) -> the items' parameters
    items: Callable[[Any, jax.Array | None], jax.Array]  # (those, text [I, T]) -> E [I, D]
    encode: Callable[[Tables, jax.Array, jax.Array], Tables]  # (tables, E, rows) -> what scores
    head: Callable[[Tables, int], jax.Array] | None = None  # None: scores are inner products
    layers: int = 0  # of LightGCN
    plain: bool = True  # users have a table [U, D] and no network
    table: bool = True  # the items' parameters are E itself

    def scores(self, encoded: Tables, users: int) -> jax.Array:
        """Scores [U, I] of encoded vectors, those of some rows of a client with so many `users`."""
        return self.head(encoded, users) if self.head else encoded.user @ encoded.item.T


def factorisation(width: int, scale: float, layers: int = 0) -> ClientModel:
    """Matrix factorisation, or LightGCN where there are `layers`; tables start at N(0, scale^2)."""

    def table(key: jax.Array, rows: int) -> jax.Array:
        return scale * jax.random.normal(key, (rows, width))

    return ClientModel(
        "lightgcn" if layers else "mf",
        width,
        init_users=lambda key, users: (table(key, users), ()),
        init_items=lambda key, items, text: table(key, items),
        items=lambda item, text: item,
        encode=partial(_encode, layers),
        layers=layers,
    )


def _encode(layers: int, tables: Tables, item: jax.Array, rows: jax.Array) -> Tables:
    return collaborative.encode(Tables(tables.user, item), rows, layers=layers)

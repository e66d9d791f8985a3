"""What FedCIA's server and clients keep between rounds, and the fixed parts of the method."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from jaxrec.federated.private_mean import Bounds
from jaxrec.methods.fedcia.config import Config
from jaxrec.methods.fedcia.similarity import Similarity
from jaxrec.models.clients import ClientModel
from jaxrec.models.collaborative import Tables
from jaxrec.types import Sizes


class Shared(NamedTuple):
    rounds: jax.Array  # int32 []  that made an S; before the first there is nothing to align to
    similarity: Similarity  # S, vectors [I, R] and values [R]
    energy: jax.Array  # f32 []  share of S's trace that the R pairs hold
    table: jax.Array  # f32 [I, D]  S as an item table where clients rebuild theirs, else [I, 0]
    support: jax.Array | None  # bool [I]  items that enough users have; None: all are learned
    bounds: Bounds | None  # what uploads are measured with


class State(NamedTuple):
    shared: Shared
    tables: tuple[Tables, ...]  # a group: [C, U, D] and [C, I, D]; rebuilt: item [C, 0, D];
    #                             of Flax modules and item encoders their parameters [C, ...]
    moments: tuple[Any, ...]  # Adam's, the same shapes; rebuilt: none


class Metrics(NamedTuple):
    loss: jax.Array  # mean loss per interaction after alignment
    distance: jax.Array  # mean ||E_c E_c^T - S||_F / ||S||_F after alignment
    energy: jax.Array  # share of S's trace that is kept
    participants: jax.Array  # clients whose upload arrived
    non_finite: jax.Array  # those of them that were dropped: some number was not finite


class FedCIA(NamedTuple):
    """The fixed parts of the method: settings, sizes and the clients' models."""

    config: Config
    sizes: Sizes
    models: tuple[ClientModel, ...]

    @property
    def rank(self) -> int:
        return min(self.config.rank, self.sizes.items)

    @property
    def rebuilt(self) -> bool:
        return self.config.tables == "rebuilt"

    @property
    def additive(self) -> bool:
        return self.config.upload == "sketch"

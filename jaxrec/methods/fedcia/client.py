"""What a client of FedCIA does: align its item table to the server's similarity, train, upload."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxrec.federated import local
from jaxrec.methods.fedcia import similarity
from jaxrec.methods.fedcia.config import ClientModel, Config
from jaxrec.methods.fedcia.state import FedCIA, Shared
from jaxrec.models.collaborative import Tables
from jaxrec.types import Clients


def aligned(config: Config, item: jax.Array, shared: Shared) -> jax.Array:
    """A client's item table [I, D], aligned to S; as it is before the first round."""

    def align(item):
        if config.align == "procrustes":
            return similarity.procrustes(item, shared.similarity, config.align_step)
        return similarity.align(
            item,
            shared.similarity,
            steps=config.align_steps,
            learning_rate=config.align_rate,
            weight_decay=config.align_decay,
        )

    return jax.lax.cond(shared.rounds > 0, align, lambda item: item, item)


def train(
    fedcia: FedCIA,
    model: ClientModel,
    shared: Shared,
    private: Any,
    clients: Clients,
    key: jax.Array,
) -> tuple[Any, Any, tuple[jax.Array, jax.Array]]:
    """One client aligns and trains; uploads its rotated item table, or a sketch and its trace."""
    key_train, key_rotate = jax.random.split(key)
    tables, moments = private
    item = shared.table if fedcia.rebuilt else aligned(fedcia.config, tables.item, shared)
    start = Tables(tables.user, item)
    new, new_moments, loss = local.train(
        start,
        fedcia.optimizer.init(start) if fedcia.rebuilt else moments,
        clients,
        key_train,
        optimizer=fedcia.optimizer,
        config=fedcia.config,
        layers=model.layers,
    )
    if fedcia.additive:
        upload = similarity.sketch(new.item, shared.similarity.vectors)
    else:
        upload = similarity.rotate(new.item, key_rotate)
    norm = jnp.linalg.norm(shared.similarity.values)
    distance = similarity.distance(item, shared.similarity) / norm
    if fedcia.rebuilt:
        new, new_moments = Tables(new.user, tables.item), ()
    return upload, (new, new_moments), (loss, distance)

"""What a client of FedCIA does: align its item table to the server's similarity, train, upload."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrec.federated import local
from jaxrec.methods.fedcia import similarity
from jaxrec.methods.fedcia.config import Config
from jaxrec.methods.fedcia.state import FedCIA, Shared
from jaxrec.models.clients import ClientModel
from jaxrec.types import Clients

ENCODER_STEPS = 20  # gradient steps that an item encoder takes towards its target


def aligned(
    config: Config, model: ClientModel, item: Any, text: jax.Array | None, shared: Shared
) -> Any:
    """A client's item parameters, aligned to S; as they are before the first round."""

    def align(item: Any) -> Any:
        if not model.table:
            return aligned_encoder(config, model, item, text, shared)
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


def aligned_encoder(
    config: Config, model: ClientModel, item: Any, text: jax.Array | None, shared: Shared
) -> Any:
    """An item encoder's parameters, moved by Adam towards the nearest minimiser as their output."""
    start = model.items(item, text)
    target = similarity.procrustes(start, shared.similarity, config.align_step)
    optimizer = optax.adam(config.weights_learning_rate)

    def step(_, carry):
        item, moments = carry
        away = jax.grad(lambda item: jnp.mean((model.items(item, text) - target) ** 2))(item)
        updates, moments = optimizer.update(away, moments, item)
        return optax.apply_updates(item, updates), moments

    return jax.lax.fori_loop(0, ENCODER_STEPS, step, (item, optimizer.init(item)))[0]


def train(
    fedcia: FedCIA,
    model: ClientModel,
    text: jax.Array | None,
    shared: Shared,
    private: Any,
    clients: Clients,
    key: jax.Array,
) -> tuple[Any, Any, tuple[jax.Array, jax.Array]]:
    """One client aligns and trains; uploads its rotated item vectors, or a sketch and its trace."""
    key_train, key_rotate = jax.random.split(key)
    tables, moments = private
    item = tables.item
    item = shared.table if fedcia.rebuilt else aligned(fedcia.config, model, item, text, shared)
    start = tables._replace(item=item)
    optimizer = local.optimizer(fedcia.config, model)
    new, new_moments, loss = local.train(
        start,
        optimizer.init(start) if fedcia.rebuilt else moments,
        clients,
        key_train,
        optimizer=optimizer,
        config=fedcia.config,
        items=fedcia.sizes.items,
        model=model,
        text=text,
    )
    before, after = (model.items(each.item, text) for each in (start, new))
    if fedcia.additive:
        upload = similarity.sketch(after, shared.similarity.vectors)
    else:
        upload = similarity.rotate(after, key_rotate)
    norm = jnp.linalg.norm(shared.similarity.values)
    distance = similarity.distance(before, shared.similarity) / norm
    if fedcia.rebuilt:
        new, new_moments = new._replace(item=tables.item), ()
    return upload, (new, new_moments), (loss, distance)

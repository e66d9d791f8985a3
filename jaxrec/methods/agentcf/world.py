"""What every agent knows and none changes: the items' contents, and what a domain can express."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrec.methods.agentcf.config import Config
from jaxrec.ops import linalg
from jaxrec.types import Data, DataError, Sizes


class World(NamedTuple):
    """Contents lie in the space of the text encoder, with each domain's mean taken away.

    What all items of a domain have in common tells nobody apart.
    """

    content: jax.Array  # [I, D]  unit vectors of the items' texts; zero without a text
    domain: jax.Array  # int32 [I]
    bases: jax.Array  # [M, D, R]  orthonormal: the directions in which a domain's items differ most


def world_of(config: Config, sizes: Sizes, data: Data) -> World:
    """The world of some data; raises DataError where the items have no text vectors.

    One memory for all domains filters nothing, so a single basis [1, D, 1] is zero.
    """
    text = text_of(data)
    items, width = text.shape
    domain = jnp.zeros(items, jnp.int32) if data.domain is None else data.domain
    given = jnp.any(text != 0, axis=1)
    each = jax.nn.one_hot(domain, sizes.domains) * given[:, None]  # [I, M]
    mean = (each.T @ text) / jnp.maximum(each.sum(0), 1)[:, None]
    content = unit(jnp.where(given[:, None], text - mean[domain], 0))
    if config.single:
        return World(content, domain, jnp.zeros((1, width, 1)))
    spread = jnp.einsum("im,id,ie->mde", each, content, content)
    _, axes = jax.vmap(linalg.eigh)(spread)
    return World(content, domain, axes[:, :, ::-1][:, :, : config.rank])


def text_of(data: Data) -> jax.Array:
    """The items' text vectors f32 [I, D]; DataError, with the remedy, where there are none."""
    if data.text is None:
        raise DataError("items: no text vectors; give the items a title or a text")
    return data.text


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors [..., D] of length 1; zero stays zero."""
    return vectors / jnp.maximum(length(vectors), 1e-12)[..., None]


def length(vectors: jax.Array) -> jax.Array:
    """The Euclidean length of vectors [..., D], [...]."""
    return jnp.sqrt(jnp.sum(vectors**2, axis=-1))

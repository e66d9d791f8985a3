"""What a server can do against clients that send noise: bound each upload, drop the extremes."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def clip_rows(upload: jax.Array, most: float) -> jax.Array:
    """Every row of [..., D] scaled down to a norm of at most `most`."""
    norm = jnp.linalg.norm(upload, axis=-1, keepdims=True)
    return upload * jnp.minimum(1, most / jnp.maximum(norm, 1e-30))


def trimmed_mean(
    uploads: tuple[jax.Array, ...], weights: tuple[jax.Array, ...], trim: float
) -> jax.Array:
    """Mean of each coordinate over clients, without its extremes (Yin et al., ICML 2018).

    Of n clients with weight, the floor(trim n) largest and smallest values of every coordinate are
    left out. Clients then count alike: a weight is a claim that a bad client would inflate.
    Uploads [C, ...] a bucket become [...]; zero without any weight.
    """
    values, present = jnp.concatenate(uploads), jnp.concatenate(weights) > 0
    number = present.sum()
    cut = jnp.floor(trim * number + 1e-4).astype(jnp.int32)  # 0.29 * 100 is 28.999998
    flags = present.reshape(-1, *(1,) * (values.ndim - 1))
    ordered = jnp.sort(jnp.where(flags, values, jnp.inf), axis=0)  # who is absent comes last
    place = jnp.arange(len(values)).reshape(flags.shape)
    kept = (place >= cut) & (place < number - cut)
    return jnp.sum(jnp.where(kept, ordered, 0), axis=0) / jnp.maximum(number - 2 * cut, 1)

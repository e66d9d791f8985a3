"""What a server makes of the uploads: their mean, and its defences against clients that send noise.

Functions take a tuple with an entry a bucket, uploads [C, ...] and weights [C]; a client of weight
0 sent nothing.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Factored(NamedTuple):
    """An upload that is a product, left^T right [I, D], before it is multiplied out.

    The product is what crosses the network. A mean of products needs none of them alone, so the
    engine keeps the factors apart where it can.
    """

    left: jax.Array  # f32 [U, I]
    right: jax.Array  # f32 [U, D]


def multiply(upload: Factored) -> jax.Array:
    """The product [I, D] of one client's factors."""
    return upload.left.T @ upload.right


def weighted_mean(uploads: tuple[Any, ...], weights: tuple[jax.Array, ...]) -> Any:
    """sum_c w_c upload_c / sum_c w_c over all buckets; zero when every weight is zero.

    Leaves [C, ...] become [...]; factors [C, U, I] and [C, U, D] become the mean product [I, D]. A
    sum over clients is all it needs, so it can run inside a secure aggregator.
    """
    total = sum(weight.sum() for weight in weights)
    if isinstance(uploads[0], Factored):
        total = jnp.maximum(total, 1e-30)
        return sum(
            jnp.einsum("c,cui,cud->id", weight / total, *upload)
            for weight, upload in zip(weights, uploads, strict=True)
        )
    sums = [
        jax.tree.map(lambda leaf, weight=weight: jnp.tensordot(weight, leaf, 1), upload)
        for upload, weight in zip(uploads, weights, strict=True)
    ]
    return jax.tree.map(lambda *leaves: sum(leaves) / jnp.maximum(total, 1e-30), *sums)


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

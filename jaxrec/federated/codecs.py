"""Fewer bits on the wire: a table as small integers and one scale for each of its rows.

A row v [D] becomes integers q and a scale s with v ~ s q. With b bits, s = max |v| / (2^(b-1) - 1)
and q = round(v / s); with one bit q = sign(v) and s = mean |v|, the scale that is nearest to v
(signSGD with error feedback: Karimireddy et al., ICML 2019). Scales travel as bfloat16, and q is
rounded against the scale as it travels. Every message has the same size, whatever it says.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Codec = Literal["float32", "int8", "int4", "sign"]
BITS = {"float32": 32, "int8": 8, "int4": 4, "sign": 1}


class Message(NamedTuple):
    """What travels: packed integers and their scales."""

    payload: jax.Array  # uint8 [..., D bits / 8], the last axis rounded up to whole bytes
    scale: jax.Array  # bfloat16 [...]


def message_bytes(codec: Codec, rows: int, width: int) -> float:
    """Bytes of a table [rows, width] on the wire."""
    if codec == "float32":
        return 4.0 * rows * width
    return float(rows * (-(-width * BITS[codec] // 8) + 2))


def round_trip(table: jax.Array, codec: Codec) -> jax.Array:
    """The table f32 [..., D] as its receiver reads it."""
    if codec == "float32":
        return table
    integers, scale = _quantize(table, BITS[codec])
    return integers * scale[..., None].astype(jnp.float32)


def encode(table: jax.Array, codec: Codec) -> Message:
    """A table f32 [..., D] as it travels; `codec` is not float32, which travels as it is."""
    bits = BITS[codec]
    integers, scale = _quantize(table, bits)
    if bits == 1:
        return Message(jnp.packbits(integers > 0, axis=-1), scale)
    levels = integers.astype(jnp.int8).view(jnp.uint8)
    if bits == 8:
        return Message(levels, scale)
    levels = jnp.pad(levels & 15, [(0, 0)] * (levels.ndim - 1) + [(0, levels.shape[-1] % 2)])
    return Message(levels[..., 0::2] << 4 | levels[..., 1::2], scale)


def decode(message: Message, codec: Codec, width: int) -> jax.Array:
    """The table f32 [..., `width`] of a message: exactly `round_trip` of what was encoded."""
    payload, bits = message.payload, BITS[codec]
    if bits == 1:
        integers = 2.0 * jnp.unpackbits(payload, axis=-1, count=width) - 1
    elif bits == 8:
        integers = payload.view(jnp.int8)
    else:
        halves = jnp.stack([payload >> 4, payload & 15], axis=-1)
        nibbles = halves.reshape(*payload.shape[:-1], -1)[..., :width].astype(jnp.int8)
        integers = jnp.where(nibbles > 7, nibbles - 16, nibbles)
    return integers * message.scale[..., None].astype(jnp.float32)


def _quantize(table: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """Integers as floats [..., D] and scales bfloat16 [...]; a row of zeros has scale 0."""
    size = jnp.abs(table)
    if bits == 1:
        return jnp.where(table > 0, 1.0, -1.0), size.mean(-1).astype(jnp.bfloat16)
    most = 2 ** (bits - 1) - 1
    scale = (size.max(-1) / most).astype(jnp.bfloat16)
    unit = scale[..., None].astype(jnp.float32)
    integers = jnp.round(table / jnp.where(unit > 0, unit, 1))
    return jnp.clip(integers, -most, most), scale

"""SASRec and GRU4Rec: a user's items in time order -> a vector after each of them.

One pass encodes every position: hidden[b, t] has seen items[b, :t + 1] and nothing later, and what
comes next is scored by `hidden @ table.T`, with the table that the items are read from.

- SASRec (Kang and McAuley, ICDM 2018): causal self-attention and learned positions.
- GRU4Rec (Hidasi et al., ICLR 2016): a gated recurrent network, then one linear layer.

A place of a row that holds item id I is padding: it is seen by nobody and its vector is 0.
Positions count from a sequence's first item, so that padding in front changes nothing and a prefix
has the same vectors alone as inside the whole. Several sequences may lie in one row, one after
another; `position`, which begins with 0 in each, then tells them apart.

    graphdef, params = nnx.split(SASRec(key, items=I, width=64, length=50))
    hidden = nnx.merge(graphdef, params)(items)     # inside jit, grad, scan
    logits = last(hidden) @ params["table"][...].T
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

EPSILON = 1e-6


def last(hidden: jax.Array) -> jax.Array:
    """The vectors [B, D] after the newest item, of sequences padded on the left, [B, L, D]."""
    return hidden[:, -1]


def places(items: jax.Array, padding: int) -> jax.Array:
    """The place of each item in its sequence, int32 [B, L], for one sequence a row."""
    return jnp.cumsum(items < padding, axis=1) - 1


def dropout(x: jax.Array, rate: float, key: jax.Array | None, site: int) -> jax.Array:
    """`x` with a share `rate`, in 256ths, set to 0 and the rest scaled up; as it is without a key.

    A random byte for each number: four times as many from a word as `jax.random.bernoulli` draws.
    """
    level = min(round(256 * rate), 255)
    if key is None or level == 0:
        return x
    words = jax.random.bits(jax.random.fold_in(key, site), (-(-x.size // 4),))
    drawn = jax.lax.bitcast_convert_type(words, jnp.uint8).ravel()[: x.size].reshape(x.shape)
    return jnp.where(drawn >= level, x * (256 / (256 - level)), 0)


def _matrix(key: jax.Array, *shape: int) -> nnx.Param:
    """Glorot's uniform: the scale keeps the variance of what passes in both directions."""
    return nnx.Param(jax.nn.initializers.glorot_uniform()(key, shape))


def _table(key: jax.Array, rows: int, width: int) -> nnx.Param:
    return nnx.Param(0.02 * jax.random.normal(key, (rows, width)))


class Norm(nnx.Module):
    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)  # first: E[x^2] - E[x]^2 would cancel
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + EPSILON)
        return x * self.scale[...] + self.bias[...]


class Block(nnx.Module):
    """Attention, then two layers position by position; each is added to what came in."""

    def __init__(self, key: jax.Array, width: int, heads: int, inner: int, rate: float, norm: str):
        k = jax.random.split(key, 4)
        self.mix = _matrix(k[0], width, 3 * width)
        self.mix_bias = nnx.Param(jnp.zeros(3 * width))
        self.out = _matrix(k[1], width, width)
        self.out_bias = nnx.Param(jnp.zeros(width))
        self.up = _matrix(k[2], width, inner)
        self.up_bias = nnx.Param(jnp.zeros(inner))
        self.down = _matrix(k[3], inner, width)
        self.down_bias = nnx.Param(jnp.zeros(width))
        self.norms = nnx.List([Norm(width), Norm(width)])
        self.heads, self.rate, self.norm = heads, rate, norm

    def __call__(self, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
        x = self._added(x, lambda x: self._attention(x, mask, key), self.norms[0], key, 1)
        return self._added(x, self._layers, self.norms[1], key, 2)

    def _added(self, x, function, norm, key, site):
        if self.norm == "pre":
            return x + dropout(function(norm(x)), self.rate, key, site)
        return norm(x + dropout(function(x), self.rate, key, site))

    def _attention(self, x: jax.Array, mask: jax.Array, key: jax.Array | None) -> jax.Array:
        mixed = (x @ self.mix[...] + self.mix_bias[...]).reshape(*x.shape[:2], 3, self.heads, -1)
        query, keys, value = (mixed[:, :, n].swapaxes(1, 2) for n in range(3))  # [B, H, L, D / H]
        scores = query @ keys.swapaxes(2, 3) * query.shape[-1] ** -0.5  # [B, H, L, L]
        # Finite, and so no NaN where a place of padding sees nothing at all.
        share = jax.nn.softmax(jnp.where(mask[:, None], scores, -1e30))
        seen = dropout(share, self.rate, key, 0) @ value
        return seen.swapaxes(1, 2).reshape(x.shape) @ self.out[...] + self.out_bias[...]

    def _layers(self, x: jax.Array) -> jax.Array:
        inner = jax.nn.gelu(x @ self.up[...] + self.up_bias[...])
        return inner @ self.down[...] + self.down_bias[...]


class SASRec(nnx.Module):
    """Causal self-attention over the items of a sequence, at most `length` of them."""

    def __init__(
        self,
        key: jax.Array,
        *,
        items: int,
        width: int,
        layers: int = 2,
        length: int,
        dropout: float = 0.0,
        heads: int = 2,
        inner: int = 4,
        norm: Literal["pre", "post"] = "pre",
    ):
        keys = jax.random.split(key, layers + 2)
        self.table = _table(keys[0], items, width)  # [I, D]
        self.position = _table(keys[1], length, width)
        self.norm = Norm(width)
        self.blocks = nnx.List(
            Block(k, width, heads, inner * width, dropout, norm) for k in keys[2:]
        )
        self.items, self.rate, self.form = items, dropout, norm

    def __call__(
        self, items: jax.Array, position: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Vectors f32 [B, L, D] after each of `items` int32 [B, L]; dropout with a `key` only."""
        position = places(items, self.items) if position is None else position
        real = items < self.items
        x = self.table[...].at[items].get(mode="fill", fill_value=0)
        x = x + self.position[...].at[position].get(mode="clip")
        x = self.norm(x) if self.form == "post" else x
        x = dropout(x, self.rate, key, 0)
        sequence = jnp.cumsum(position == 0, axis=1)  # of the row's sequences, the how manieth
        same = sequence[:, :, None] == sequence[:, None]
        mask = jnp.tril(jnp.ones(same.shape[1:], bool)) & same & real[:, None]
        for number, block in enumerate(self.blocks):
            x = block(x, mask, None if key is None else jax.random.fold_in(key, number + 1))
        x = self.norm(x) if self.form == "pre" else x
        return jnp.where(real[..., None], x, 0)


class GRU4Rec(nnx.Module):
    """Gated recurrence over the items of a sequence of any length.

    r, z = sigmoid(W [x, h]),  n = tanh(W_n x + r * (U_n h + b)),  h <- (1 - z) n + z h.
    """

    def __init__(
        self,
        key: jax.Array,
        *,
        items: int,
        width: int,
        layers: int = 1,
        dropout: float = 0.0,
    ):
        keys = jax.random.split(key, 2 * layers + 2)
        self.table = _table(keys[0], items, width)  # [I, D]
        self.out = _matrix(keys[1], width, width)
        self.out_bias = nnx.Param(jnp.zeros(width))
        self.read = nnx.List(_matrix(k, width, 3 * width) for k in keys[2::2])
        self.keep = nnx.List(_matrix(k, width, 3 * width) for k in keys[3::2])
        self.read_bias = nnx.List(nnx.Param(jnp.zeros(3 * width)) for _ in range(layers))
        self.keep_bias = nnx.List(nnx.Param(jnp.zeros(3 * width)) for _ in range(layers))
        self.items, self.rate = items, dropout

    def __call__(
        self, items: jax.Array, position: jax.Array | None = None, *, key: jax.Array | None = None
    ) -> jax.Array:
        """Vectors f32 [B, L, D] after each of `items` int32 [B, L]; dropout with a `key` only."""
        position = places(items, self.items) if position is None else position
        real = (items < self.items)[..., None]
        # A sequence begins with a hidden state of zeros; padding before or after it is skipped.
        fresh = (position == 0)[..., None]
        x = self.table[...].at[items].get(mode="fill", fill_value=0)
        for number, weights in enumerate(
            zip(self.read, self.read_bias, self.keep, self.keep_bias, strict=True)
        ):
            x = dropout(x, self.rate, key, number)
            x = _recur(x, fresh, real, *(weight[...] for weight in weights))
        x = dropout(x, self.rate, key, len(self.read)) @ self.out[...] + self.out_bias[...]
        return jnp.where(real, x, 0)


def _recur(x, fresh, real, read, read_bias, keep, keep_bias):
    """The hidden state [B, L, D] after each place; `fresh` and `real` are bool [B, L, 1]."""

    def advance(hidden, inputs):
        gates, fresh, real = inputs
        before = jnp.where(fresh, 0, hidden)
        kept = before @ keep + keep_bias
        width = before.shape[-1]
        reset, update = jnp.split(jax.nn.sigmoid((gates + kept)[:, : 2 * width]), 2, axis=-1)
        new = jnp.tanh(gates[:, 2 * width :] + reset * kept[:, 2 * width :])
        hidden = jnp.where(real, (1 - update) * new + update * before, hidden)
        return hidden, hidden

    by_time = lambda array: jnp.moveaxis(array, 1, 0)
    inputs = by_time(x @ read + read_bias), by_time(fresh), by_time(real)
    _, states = jax.lax.scan(advance, jnp.zeros_like(x[:, 0]), inputs)
    return by_time(states)

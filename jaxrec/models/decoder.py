"""Llama, Qwen2 and Qwen3: causal decoders with grouped-query attention and rotary positions.

Reads a Hugging Face folder; what such a folder may ask for and this decoder does not do is refused
by name. The layers are one layer with stacked parameters under
`lax.scan`. RMS statistics, softmax and logits are f32 whatever the parameters' type is.

    model = nnx.merge(decoder.graphdef, decoder.params)
    logits = model.logits(model(tokens, mask))

under `jax.jit`: outside of it, each call compiles its scan anew.

What is common to all rows, such as a prompt, is computed once: `model.extend(prompt[None])[1]` is
its `Cache` at batch 1, and `model(inputs, mask, (cache,))` attends to it from every row.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxrec.models.decoder_config import Config, read_config
from jaxrec.models.folder import Folder, Weights
from jaxrec.models.linear import Linear, Take
from jaxrec.types import DataError

_NOT_READ = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$"
_HIDDEN = -1e30  # a score; a row of nothing else gives equal weights, not NaN


class Decoder(NamedTuple):
    """The parts of a decoder; `nnx.merge(graphdef, params)` is its `Llama`."""

    graphdef: nnx.GraphDef
    params: nnx.State
    config: Config
    folder: Folder | None = None  # of the tokenizer


class Cache(NamedTuple):
    """Keys and values of earlier tokens. A batch of 1 serves every row."""

    key: jax.Array  # [layers, B, T, kv_heads, head_width]
    value: jax.Array
    mask: jax.Array  # bool [B, T]  the real ones


class Norm(nnx.Module):
    def __init__(self, take: Take, name: str, width: int, epsilon: float):
        self.scale = nnx.Param(take(f"{name}.weight", width))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt((y * y).mean(-1, keepdims=True) + self.epsilon)
        return (y * self.scale[...]).astype(x.dtype)


class Layer(nnx.Module):
    def __init__(self, take: Take, config: Config):
        width, inner, epsilon = config.width, config.inner, config.epsilon
        queries, keys = (n * config.head_width for n in (config.heads, config.kv_heads))
        self.attention_norm = Norm(take, "input_layernorm", width, epsilon)
        self.query = Linear(take, "self_attn.q_proj", width, queries, config.input_bias)
        self.key = Linear(take, "self_attn.k_proj", width, keys, config.input_bias)
        self.value = Linear(take, "self_attn.v_proj", width, keys, config.input_bias)
        self.output = Linear(take, "self_attn.o_proj", queries, width, config.output_bias)
        of_head = partial(Norm, take, width=config.head_width, epsilon=epsilon)
        self.query_norm = of_head("self_attn.q_norm") if config.head_norm else None
        self.key_norm = of_head("self_attn.k_norm") if config.head_norm else None
        self.inner_norm = Norm(take, "post_attention_layernorm", width, epsilon)
        self.gate = Linear(take, "mlp.gate_proj", width, inner, config.inner_bias)
        self.up = Linear(take, "mlp.up_proj", width, inner, config.inner_bias)
        self.down = Linear(take, "mlp.down_proj", inner, width, config.inner_bias)
        self.head_width = config.head_width

    def __call__(self, x, angles, allowed, earlier):
        """States after this layer [B, T, D], and its keys and values [B, T, kv_heads, head_width].

        `angles` [B, T, head_width / 2] of rotation; `allowed` [B, T, T]; `earlier` are keys,
        values and whether they are allowed, [B or 1, S, ...].
        """
        heads = (*x.shape[:2], -1, self.head_width)
        y = self.attention_norm(x)
        query, key, value = (f(y).reshape(heads) for f in (self.query, self.key, self.value))
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        query, key = rotate(query, angles), rotate(key, angles)
        mixed = attend(query, (*earlier, (key, value, allowed)))
        x = x + self.output(mixed.reshape(*x.shape[:2], -1))
        y = self.inner_norm(x)
        return x + self.down(jax.nn.silu(self.gate(y)) * self.up(y)), (key, value)


class Llama(nnx.Module):
    def __init__(self, take: Take, config: Config):
        def stacked(name, *shape):
            return jnp.stack([take(f"model.layers.{k}.{name}", *shape) for k in layers])

        layers, size = range(config.layers), (config.vocabulary, config.width)
        self.embedding = nnx.Param(take("model.embed_tokens.weight", *size))
        self.layers = Layer(stacked, config)
        self.norm = Norm(take, "model.norm", config.width, config.epsilon)
        self.head = None if config.tied else nnx.Param(take("lm_head.weight", *size))
        self.config = config

    def __call__(
        self,
        inputs: jax.Array,
        mask: jax.Array | None = None,
        context: Sequence[Cache] = (),
        *,
        position: jax.Array | None = None,
        remat: bool = False,
    ) -> jax.Array:
        """The last layer's states [B, T, D], normalised, of `inputs`; `mask` says which are real.

        `inputs` are tokens int [B, T] or vectors [B, T, D] in place of their embeddings. A token's
        position is the number of real ones before it in its row and in `context`, so padding may
        stand anywhere. `position` int32 [B, T] in its place begins with 0 in each of several
        sequences of a row, which do not see each other. `remat` keeps only each layer's input for
        the gradient.
        """
        return self._run(inputs, mask, context, remat, keep=False, position=position)[0]

    def extend(
        self, inputs: jax.Array, mask: jax.Array | None = None, context: Sequence[Cache] = ()
    ) -> tuple[jax.Array, Cache]:
        """The same states, and the keys and values of `inputs` for a later call's context."""
        return self._run(inputs, mask, context, remat=False, keep=True)

    def embed(self, tokens: jax.Array) -> jax.Array:
        """Vectors [..., D] of tokens int [...]."""
        return self.embedding[...][tokens]

    def logits(self, states: jax.Array) -> jax.Array:
        """Logits f32 [..., V] of the next token after `states` [..., D]."""
        table = self.embedding if self.head is None else self.head
        return jnp.einsum("...d,vd->...v", states, table[...], preferred_element_type=jnp.float32)

    def _run(self, inputs, mask, context, remat, keep, position=None) -> tuple[jax.Array, Any]:
        x = self.embed(inputs) if jnp.issubdtype(inputs.dtype, jnp.integer) else inputs
        x = x.astype(self.embedding.dtype)
        mask = jnp.ones(x.shape[:2], bool) if mask is None else mask.astype(bool)
        allowed = jnp.tril(jnp.ones((x.shape[1],) * 2, bool)) & mask[:, None]
        if position is None:
            position = sum(cache.mask.sum(-1, keepdims=True) for cache in context)
            position = position + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
        else:
            sequence = jnp.cumsum(position == 0, axis=1)
            allowed &= sequence[:, :, None] == sequence[:, None]
        angles = position[..., None] * jnp.asarray(frequencies(self.config), jnp.float32)
        graphdef, params = nnx.split(self.layers)

        def layer(x, inputs):
            params, earlier = inputs
            earlier = [(*kv, c.mask[:, None]) for kv, c in zip(earlier, context, strict=True)]
            x, kept = nnx.merge(graphdef, params)(x, angles, allowed, earlier)
            return x, kept if keep else None

        layer = jax.checkpoint(layer, prevent_cse=False) if remat else layer
        caches = [(cache.key, cache.value) for cache in context]
        x, kept = jax.lax.scan(layer, x, (params, caches))
        return self.norm(x), Cache(kept[0], kept[1], mask) if kept else None


def frequencies(config: Config) -> np.ndarray:
    """Radians a position of each rotated pair [head_width / 2]: theta^(-2 i / head_width)."""
    found = config.theta ** -(np.arange(0, config.head_width, 2) / config.head_width)
    if config.scaling is None:
        return found
    factor, low, high, original = config.scaling
    kept = np.clip((original * found / (2 * math.pi) - low) / (high - low), 0, 1)
    return found * (kept + (1 - kept) / factor)


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + d / 2) of `x` [B, T, H, d] by `angles` [B, T, d / 2]."""
    cos, sin = (f(angles)[:, :, None] for f in (jnp.cos, jnp.sin))
    left, right = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return turned.astype(x.dtype)


def attend(
    query: jax.Array, segments: Sequence[tuple[jax.Array, jax.Array, jax.Array]]
) -> jax.Array:
    """Attention [B, T, H, d] of `query` [B, T, H, d] over all segments' keys at once.

    A segment is keys and values [B or 1, S, G, d], each for H / G heads, and where they are
    allowed [B or 1, T or 1, S]. Those of batch 1 are read by every row and never copied.
    """
    batch, length, heads, width = query.shape
    groups = segments[0][0].shape[2]
    query = query.reshape(batch, length, groups, heads // groups, width)
    product = partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = [
        jnp.where(
            allowed[:, None, None], product("btghd,bsgd->bghts", query, key) * width**-0.5, _HIDDEN
        )
        for key, _, allowed in segments
    ]
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1).astype(query.dtype)
    ends = np.cumsum([score.shape[-1] for score in scores])[:-1]
    parts = [
        product("bghts,bsgd->btghd", part, value)
        for part, (_, value, _) in zip(jnp.split(weights, ends, axis=-1), segments, strict=True)
    ]
    return sum(parts[1:], parts[0]).reshape(batch, length, heads, width).astype(query.dtype)


def load(folder: str | Path, dtype: Any = None) -> Decoder:
    """Read the decoder in a folder, its parameters as `dtype`; by default as config.json says.

    Raises DataError, naming file, value and remedy, for a file that is missing or damaged, a
    setting that this decoder does not follow and tensors that are missing, misshapen, quantised or
    unused.
    """
    source = Folder(Path(folder).expanduser(), "decoder")
    config, stored = read_config(source)
    dtype = jnp.dtype(stored if dtype is None else dtype)
    weights = Weights(source)
    take = partial(weights.take, dtype=dtype)
    module = Llama(take, config)
    if config.tied and (name := "lm_head.weight") in weights:
        head = take(name, config.vocabulary, config.width)
        if not jnp.array_equal(head, module.embedding[...]):
            raise DataError(
                f"{weights.file}: '{name}' differs from the embedding, but {source.path}"
                "/config.json says tie_word_embeddings = True: set it to what the model was "
                "trained with, or fetch the folder again"
            )
    weights.finish(_NOT_READ)
    return Decoder(*nnx.split(module), config, source)


def random(config: Config, key: jax.Array, dtype: Any = jnp.float32) -> Decoder:
    """A decoder that was never trained, for tests of architecture and speed."""

    def take(name, *shape):
        if len(shape) == 1:
            return jnp.full(shape, name.endswith("norm.weight"), dtype)
        named = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return 0.02 * jax.random.normal(named, shape, dtype)

    return Decoder(*nnx.split(Llama(take, config)), config)

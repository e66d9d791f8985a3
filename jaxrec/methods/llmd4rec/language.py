"""LLMD4Rec's language model L: layers from elsewhere, between soft tokens and a table of items.

    h = layers(W_t text(item) + W_in e(item)),  scores = h W_out^T

The layers are those of a sentence encoder made causal, or of a causal language model. They bring
their own norms and positions; their words are not read.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.data import text
from jaxrec.data.rows import Rows
from jaxrec.methods.llmd4rec.config import LanguageConfig
from jaxrec.models import decoder, encoder, lora
from jaxrec.settings.fields import require
from jaxrec.types import SettingError

TUNED = ("query", "value", "up", "gate", "down")  # linear layers that have low-rank pairs


class Language(NamedTuple):
    """What is trained of L. Checkpoints know the parts by these names."""

    read: jax.Array  # f32 [D, D']  W_in, from C's width to L's
    read_text: jax.Array | None  # f32 [T, D']  W_t
    table: jax.Array  # f32 [I, D']  W_out
    layers: Any  # nnx.State, LoRA, or None where they are frozen


class Backbone(NamedTuple):
    """L's layers; `nnx.merge(graphdef, params)` is their module."""

    graphdef: nnx.GraphDef
    params: nnx.State
    width: int  # D'


def load_backbone(config: LanguageConfig, length: int) -> Backbone:
    """L's layers for sequences of `length`, without the tables of words that it does not read.

    Raises SettingError where `config` and the layers do not fit, DataError where the files of the
    layers are missing, damaged or of a model that is not supported.
    """
    if config.llm in ("minilm", "random"):
        return _encoder_backbone(config, length)
    folder = Path(config.llm).expanduser()
    if not folder.is_dir():
        raise SettingError(
            f"llm = {config.llm!r}: no such folder; use minilm, random, or the folder of a "
            "causal language model with config.json and model.safetensors"
        )
    loaded = decoder.load(folder, jnp.float32)
    module = nnx.merge(loaded.graphdef, loaded.params)
    module.embedding, module.head = nnx.Param(module.embedding[:1]), None
    return Backbone(*nnx.split(module), loaded.config.width)


def _encoder_backbone(config: LanguageConfig, length: int) -> Backbone:
    """The lower layers of MiniLM, or of an encoder with random weights."""
    if config.llm == "random":
        width = config.llm_width
        found = encoder.Config(
            vocabulary=1, width=width, layers=config.llm_layers or 2,
            heads=math.gcd(width, 4), inner=4 * width, positions=length, types=1,
            epsilon=1e-12, activation="gelu", max_tokens=length,
        )  # fmt: skip
        module = encoder.random(found, jax.random.key(0))
    else:
        loaded = encoder.load(text.minilm())
        module, found = nnx.merge(loaded.graphdef, loaded.params), loaded.config
    require(config.llm_layers <= found.layers, config, "llm_layers", f"{found.layers} at most")
    if length > found.positions:
        raise SettingError(f"length = {length}: must be {found.positions} at most, with this llm")
    module.layers = nnx.List(list(module.layers)[: config.llm_layers or None])
    module.word = nnx.Param(module.word[:1])
    return Backbone(*nnx.split(module), found.width)


def initialise(
    config: LanguageConfig,
    backbone: Backbone,
    shape: tuple[int, int],
    words: jax.Array | None,
    key: jax.Array,
) -> Language:
    """L before its first epoch.

    Args:
      config: L's settings.
      backbone: L's layers.
      shape: (I, D) of C's item table, which is injected.
      words: f32 [I, T], the items' text vectors; None where L reads no texts.
      key: of the random numbers.
    """
    keys = jax.random.split(key, 4)
    glorot = jax.nn.initializers.glorot_uniform()
    width = backbone.width
    if words is None:
        read_text, table = None, 0.02 * jax.random.normal(keys[1], (shape[0], width))
    else:
        read_text = glorot(keys[2], (words.shape[1], width))
        turn = jax.random.normal(keys[1], (words.shape[1], width)) * width**-0.5
        table = words if words.shape[1] == width else words @ turn
    layers = None
    if config.tune == "full":
        layers = backbone.params
    elif config.tune == "lora":
        known = {str(path[-2]) for path, _ in nnx.to_flat_state(backbone.params) if len(path) > 1}
        chosen = [name for name in TUNED if name in known]
        layers = lora.init(backbone.params, chosen, config.lora_rank, keys[3])
    return Language(glorot(keys[0], (shape[1], width)), read_text, table, layers)


def tuned_params(config: LanguageConfig, frozen: Any, layers: Any) -> nnx.State:
    """The parameters of L's layers: the `frozen` ones, and `layers` that are trained."""
    if config.tune == "lora":
        return lora.apply(frozen, layers, config.lora_alpha)
    return layers if config.tune == "full" else frozen


def encode(
    backbone: Backbone, params: nnx.State, tokens: jax.Array, rows: Rows, items: int
) -> jax.Array:
    """L's vectors f32 [B, L, D'] after each of `tokens` [B, L, D'] of `rows`; 0 for padding."""
    module, real = nnx.merge(backbone.graphdef, params), rows.item < items
    if isinstance(module, decoder.Llama):
        found = module(tokens, real, position=rows.position)
    else:
        sequence = jnp.cumsum(rows.position == 0, axis=1)
        same = sequence[:, :, None] == sequence[:, None]
        seen = jnp.tril(jnp.ones(same.shape[1:], bool)) & same & real[:, None]
        found = module.encode_vectors(tokens, module.position[...][rows.position], seen)
    return jnp.where(real[..., None], found, 0)

"""LLMD4Rec's language model L: layers from elsewhere, between soft tokens and a table of items.

    h = layers(W_t text(item) + W_in e(item)),  scores = h W_out^T

The layers are those of a sentence encoder made causal, or of a causal language model. They bring
their own norms and positions; their words are not read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.data import text
from jaxrec.data.rows import Rows
from jaxrec.methods.sequential import require
from jaxrec.models import decoder, encoder, lora
from jaxrec.types import SettingError


@dataclass(frozen=True)
class LanguageConfig:
    """Settings of L."""

    llm: str = "minilm"
    """L's layers: minilm, the folder of a causal language model, or random (tests only)."""
    llm_layers: int = 2
    """Of an encoder: the first so many; 0: all."""
    llm_width: int = 64
    """Width of random layers; others have their own."""
    tune: Literal["lora", "full", "frozen"] = "lora"
    """What is trained of L's layers: low-rank pairs beside them, all, or nothing."""
    lora_rank: int = 16
    """Rank of the pairs."""
    lora_alpha: float = 16.0
    """Scale of the pairs, in ranks."""
    texts: bool = True
    """Whether L reads item texts beside C's vectors, and its output table begins as they are."""
    llm_dropout: float = 0.2
    """Share of L's inputs and outputs set to 0 while training, 0 to below 1."""
    llm_learning_rate: float = 1e-3
    """Of L's AdamW."""
    llm_weight_decay: float = 0.0
    """Of L's AdamW, decoupled."""


class Language(NamedTuple):
    """What is trained of L."""

    read: jax.Array  # f32 [D, D']  W_in, from C's width to L's
    read_text: jax.Array | None  # f32 [T, D']  W_t
    table: jax.Array  # f32 [I, D']  W_out
    layers: Any  # nnx.State, LoRA, or None where they are frozen


class Backbone(NamedTuple):
    graphdef: nnx.GraphDef
    params: nnx.State
    width: int


def load(config: LanguageConfig, length: int) -> Backbone:
    """L's layers, without the tables of words that it does not read."""
    if config.llm in ("minilm", "random"):
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
            raise SettingError(
                f"length = {length}: must be {found.positions} at most, with this llm"
            )
        module.layers = nnx.List(list(module.layers)[: config.llm_layers or None])
        module.word = nnx.Param(module.word[:1])
        width = found.width
    else:
        folder = Path(config.llm).expanduser()
        if not folder.is_dir():
            raise SettingError(
                f"llm = {config.llm!r}: no such folder; use minilm, random, or the folder of a "
                "causal language model with config.json and model.safetensors"
            )
        loaded = decoder.load(folder, jnp.float32)
        module, width = nnx.merge(loaded.graphdef, loaded.params), loaded.config.width
        module.embedding, module.head = nnx.Param(module.embedding[:1]), None
    return Backbone(*nnx.split(module), width)


def first(
    config: LanguageConfig,
    backbone: Backbone,
    shape: tuple[int, int],
    words: jax.Array | None,
    key: jax.Array,
) -> Language:
    """L before the first epoch, for an injected table of `shape` and `words` f32 [I, T]."""
    keys = jax.random.split(key, 4)
    glorot = jax.nn.initializers.glorot_uniform()
    width = backbone.width
    if words is None:
        read_text, table = None, 0.02 * jax.random.normal(keys[1], (shape[0], width))
    else:
        read_text = glorot(keys[2], (words.shape[1], width))
        turn = jax.random.normal(keys[1], (words.shape[1], width)) * width**-0.5
        table = words if words.shape[1] == width else words @ turn
    names = ("query", "value", "up", "gate", "down")
    layers = None
    if config.tune == "full":
        layers = backbone.params
    elif config.tune == "lora":
        known = {str(path[-2]) for path, _ in nnx.to_flat_state(backbone.params) if len(path) > 1}
        chosen = [name for name in names if name in known]
        layers = lora.init(backbone.params, chosen, config.lora_rank, keys[3])
    return Language(glorot(keys[0], (shape[1], width)), read_text, table, layers)


def tuned(config: LanguageConfig, frozen: nnx.State | None, layers: Any) -> nnx.State:
    """The parameters of L's layers with what is trained of them."""
    if config.tune == "lora":
        return lora.apply(frozen, layers, config.lora_alpha)
    return layers if config.tune == "full" else frozen


def read(
    backbone: Backbone, params: nnx.State, tokens: jax.Array, rows: Rows, items: int
) -> jax.Array:
    """L's vectors f32 [B, L, D] after each of `tokens` [B, L, D]; 0 for padding."""
    module, real = nnx.merge(backbone.graphdef, params), rows.item < items
    if isinstance(module, decoder.Llama):
        found = module(tokens, real, position=rows.position)
    else:
        sequence = jnp.cumsum(rows.position == 0, axis=1)
        same = sequence[:, :, None] == sequence[:, None]
        seen = jnp.tril(jnp.ones(same.shape[1:], bool)) & same & real[:, None]
        found = module.read(tokens, module.position[...][rows.position], seen)
    return jnp.where(real[..., None], found, 0)


def check(config: LanguageConfig) -> None:
    """Refuse settings that cannot work; raises SettingError naming the first of them."""
    require(config.llm_layers >= 0, config, "llm_layers", "at least 0")
    for name in ("llm_width", "lora_rank"):
        require(getattr(config, name) >= 1, config, name, "at least 1")
    for name in ("llm_learning_rate", "lora_alpha"):
        require(0 < getattr(config, name) < math.inf, config, name, "above 0")
    require(0 <= config.llm_weight_decay < math.inf, config, "llm_weight_decay", "at least 0")
    require(0 <= config.llm_dropout < 1, config, "llm_dropout", "from 0 to below 1")

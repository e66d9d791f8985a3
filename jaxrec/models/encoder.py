"""BERT as a sentence encoder: text -> unit vector (mean of the last layer over the tokens).

Reads a sentence-transformers or Hugging Face folder: config.json, model.safetensors and
tokenizer.json. Layer norms stand after the residual sums (Devlin et al., NAACL 2019); what such
a folder may ask for and this encoder does not do is refused by name. The pooler and the heads of
pre-training have no part in a sentence vector and are not read.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

from jaxrec.models.folder import Folder, Weights
from jaxrec.models.linear import Linear, Take
from jaxrec.types import DataError

_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
}
_SUPPORTED = {  # file of the folder -> its setting -> the values that we follow
    "config.json": {
        "position_embedding_type": ("absolute",),
        "hidden_act": tuple(_ACTIVATIONS),
        "is_decoder": (False,),
    },
    "sentence_bert_config.json": {"do_lower_case": (False,)},
    "1_Pooling/config.json": {
        "pooling_mode": ("mean",),
        "pooling_mode_mean_tokens": (True,),
        "pooling_mode_cls_token": (False,),
        "pooling_mode_max_tokens": (False,),
        "pooling_mode_mean_sqrt_len_tokens": (False,),
        "pooling_mode_weightedmean_tokens": (False,),
        "pooling_mode_lasttoken": (False,),
    },
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "type_vocab_size",
)
_NOT_READ = r"pooler\.|cls\.|embeddings\.position_ids$"


@dataclass(frozen=True)
class Config:
    vocabulary: int
    width: int
    layers: int
    heads: int
    inner: int
    positions: int
    types: int
    epsilon: float
    activation: str
    max_tokens: int  # longer texts are cut


class Encoder(NamedTuple):
    """A loaded sentence encoder; `nnx.merge(graphdef, params)` is its `Bert`."""

    graphdef: nnx.GraphDef
    params: nnx.State
    folder: Folder
    config: Config


class Norm(nnx.Module):
    def __init__(self, take: Take, name: str, width: int, epsilon: float):
        self.scale = nnx.Param(take(f"{name}.weight", width))
        self.bias = nnx.Param(take(f"{name}.bias", width))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x - x.mean(-1, keepdims=True)  # first: E[x^2] - E[x]^2 would cancel
        x = x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + self.epsilon)
        return x * self.scale[...] + self.bias[...]


class Layer(nnx.Module):
    def __init__(self, take: Take, name: str, config: Config):
        width, inner, epsilon = config.width, config.inner, config.epsilon
        self.query = Linear(take, f"{name}.attention.self.query", width, width)
        self.key = Linear(take, f"{name}.attention.self.key", width, width)
        self.value = Linear(take, f"{name}.attention.self.value", width, width)
        self.output = Linear(take, f"{name}.attention.output.dense", width, width)
        self.output_norm = Norm(take, f"{name}.attention.output.LayerNorm", width, epsilon)
        self.up = Linear(take, f"{name}.intermediate.dense", width, inner)
        self.down = Linear(take, f"{name}.output.dense", inner, width)
        self.down_norm = Norm(take, f"{name}.output.LayerNorm", width, epsilon)
        self.heads, self.activation = config.heads, config.activation

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        heads = (*x.shape[:2], self.heads, -1)
        query, key, value = (f(x).reshape(heads) for f in (self.query, self.key, self.value))
        seen = mask[:, None, None] if mask.ndim == 2 else mask[:, None]
        mixed = jax.nn.dot_product_attention(query, key, value, mask=seen)
        x = self.output_norm(x + self.output(mixed.reshape(x.shape)))
        return self.down_norm(x + self.down(_ACTIVATIONS[self.activation](self.up(x))))


class Bert(nnx.Module):
    def __init__(self, take: Take, config: Config):
        width = config.width
        self.word = nnx.Param(take("embeddings.word_embeddings.weight", config.vocabulary, width))
        self.position = nnx.Param(
            take("embeddings.position_embeddings.weight", config.positions, width)
        )
        self.type = nnx.Param(take("embeddings.token_type_embeddings.weight", config.types, width))
        self.norm = Norm(take, "embeddings.LayerNorm", width, config.epsilon)
        self.layers = nnx.List(
            Layer(take, f"encoder.layer.{k}", config) for k in range(config.layers)
        )

    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        """The last layer's states [B, T, D] of tokens `ids` [B, T]; `mask` says which are real."""
        return self.encode_vectors(self.word[...][ids], self.position[: ids.shape[1]], mask)

    def encode_vectors(self, x: jax.Array, position: jax.Array, mask: jax.Array) -> jax.Array:
        """The same of vectors `x` [B, T, D] in place of the tokens' and of the positions'.

        `mask` may be bool [B, T, T] as well: which tokens see which.
        """
        x = self.norm(x + position + self.type[0])
        for layer in self.layers:
            x = layer(x, mask)
        return x


def pool(states: jax.Array, mask: jax.Array) -> jax.Array:
    """Unit vectors [B, D]: the mean of `states` [B, T, D] where `mask` [B, T], normalised."""
    total = jnp.einsum("btd,bt->bd", states, mask.astype(states.dtype))  # the mean's direction
    return total * jax.lax.rsqrt(jnp.maximum((total**2).sum(-1, keepdims=True), 1e-24))


def load(folder: str | Path) -> Encoder:
    """Read the encoder in a folder.

    Raises DataError, naming file, value and remedy, for a file that is missing or damaged, a
    setting that this encoder does not follow and tensors that are missing, misshapen or unused.
    """
    source = Folder(Path(folder).expanduser(), "sentence encoder")
    for module in source.json("modules.json", []):
        kind = module.get("type") if isinstance(module, dict) else module
        if str(kind).split(".")[-1] not in ("Transformer", "Pooling", "Normalize"):
            raise DataError(
                f"{source.path / 'modules.json'}: module {kind} is not supported, only "
                "Transformer, Pooling and Normalize; use another sentence encoder"
            )
    config = _config(source)
    weights = Weights(source, _renamed)
    module = Bert(weights.take, config)
    weights.finish(_NOT_READ)
    return Encoder(*nnx.split(module), source, config)


def tokenize(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens around it, cut at `config.max_tokens`.

    What looks like a special token in a text, such as "[SEP]" in a title, is read as letters.
    """
    tokenizer = encoder.folder.tokenizer(encoder.config.vocabulary)
    if not texts:
        return []
    most = encoder.config.max_tokens
    return tokenizer(list(texts), truncation=True, max_length=most, split_special_tokens=True)[
        "input_ids"
    ]


def encode(
    encoder: Encoder, texts: Sequence[str], *, batch: int = 64, progress: bool = False
) -> np.ndarray:
    """Unit vectors f32 [N, D] of `texts`.

    Texts of similar length run together, padded to a power of two in tokens and in texts, so that
    few shapes are compiled; `batch` is the most texts at once.
    """
    tokens = tokenize(encoder, texts)
    lengths = np.array([len(ids) for ids in tokens], int)
    padded = 2 ** np.ceil(np.log2(np.maximum(lengths, 8))).astype(int)
    padded = np.minimum(padded, encoder.config.max_tokens)
    batches = []
    for length in np.unique(padded):
        rows = np.flatnonzero(padded == length)
        batches += [(length, rows[k : k + batch]) for k in range(0, len(rows), batch)]
    vectors = np.zeros((len(texts), encoder.config.width), np.float32)
    for length, rows in track(batches, "encoding texts", disable=not progress, transient=True):
        size = min(batch, 1 << (len(rows) - 1).bit_length())
        ids = np.zeros((size, length), np.int32)
        mask = np.zeros((size, length), bool)
        for k, row in enumerate(rows):
            ids[k, : lengths[row]] = tokens[row]
            mask[k, : lengths[row]] = True
        # GPUs round the inputs of f32 products to 10 bits unless told not to.
        with jax.default_matmul_precision("highest"):
            vectors[rows] = _embed(encoder.graphdef, encoder.params, ids, mask)[: len(rows)]
    return vectors


@jax.jit(static_argnums=0)
def _embed(graphdef: nnx.GraphDef, params: nnx.State, ids: jax.Array, mask: jax.Array) -> jax.Array:
    return pool(nnx.merge(graphdef, params)(ids, mask), mask)


def random(config: Config, key: jax.Array) -> Bert:
    """An encoder that was never trained, for tests of architecture and speed."""

    def take(name, *shape):
        if len(shape) == 1:
            return jnp.full(shape, name.endswith("LayerNorm.weight"), jnp.float32)
        scale = 0.02 if name.startswith("embeddings") else shape[-1] ** -0.5
        named = jax.random.fold_in(key, zlib.crc32(name.encode()))
        return scale * jax.random.normal(named, shape)

    return Bert(take, config)


def _config(folder: Folder) -> Config:
    """The settings of a folder."""
    found = folder.config(("bert",), _SIZES)
    for name, settings in _SUPPORTED.items():
        folder.require(name, settings, found if name == "config.json" else folder.json(name, {}))
    vocabulary, width, layers, heads, inner, positions, types = (found[key] for key in _SIZES)
    if width % heads:
        raise DataError(
            f"{folder.path / 'config.json'}: hidden_size = {width} is no multiple of "
            f"num_attention_heads = {heads}; fetch the folder again"
        )
    name, key = "sentence_bert_config.json", "max_seq_length"
    limit = folder.number(name, key, folder.json(name, {}).get(key) or positions, int)
    return Config(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        inner=inner,
        positions=positions,
        types=types,
        epsilon=folder.number("config.json", "layer_norm_eps", found["layer_norm_eps"]),
        activation=found["hidden_act"],
        max_tokens=min(limit, positions),
    )


def _renamed(name: str) -> str:
    """Today's name of a tensor, without the prefix of a larger model."""
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight")
    return name.replace("LayerNorm.beta", "LayerNorm.bias")

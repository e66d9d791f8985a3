"""BERT as a sentence encoder: text -> unit vector (mean of the last layer over the tokens).

Reads a sentence-transformers or Hugging Face folder: config.json, model.safetensors and
tokenizer.json. Layer norms stand after the residual sums (Devlin et al., NAACL 2019); what such
a folder may ask for and this encoder does not do is refused by name. The pooler and the heads of
pre-training have no part in a sentence vector and are not read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.progress import track

from jaxrec.types import DataError

_ACTIVATIONS = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": jax.nn.gelu,
    "relu": jax.nn.relu,
}
_SUPPORTED = {  # file of the folder -> its setting -> the values that we follow
    "config.json": {
        "model_type": ("bert",),
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
_NOT_READ = re.compile(r"pooler\.|cls\.|embeddings\.position_ids$")


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
    tokenizer: Path
    config: Config


Take = Callable[..., jax.Array]  # (name, *shape) -> the tensor of that name, f32


class Linear(nnx.Module):
    def __init__(self, take: Take, name: str, inputs: int, outputs: int):
        self.kernel = nnx.Param(take(f"{name}.weight", outputs, inputs).T)
        self.bias = nnx.Param(take(f"{name}.bias", outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        return x @ self.kernel[...] + self.bias[...]


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
        mixed = jax.nn.dot_product_attention(query, key, value, mask=mask[:, None, None])
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
        """The last layer's states [B, T, D] of tokens `ids` [B, T], of which `mask` are real."""
        x = self.word[...][ids] + self.position[: ids.shape[1]] + self.type[0]
        x = self.norm(x)
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
    folder = Path(folder).expanduser()
    for module in _json(folder / "modules.json", []):
        if module["type"].split(".")[-1] not in ("Transformer", "Pooling", "Normalize"):
            raise DataError(
                f"{folder / 'modules.json'}: module {module['type']} is not supported, only "
                "Transformer, Pooling and Normalize; use another sentence encoder"
            )
    for file, settings in _SUPPORTED.items():
        found = _json(folder / file, {})
        for key, values in settings.items():
            if (value := found.get(key, values[0])) not in values:
                raise DataError(
                    f"{folder / file}: {key} = {value!r} is not supported, only "
                    f"{' or '.join(map(repr, values))}; use another sentence encoder"
                )
    config = _config(folder)
    file = folder / "model.safetensors"
    tensors = _tensors(file)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}

    def take(name: str, *shape: int) -> jax.Array:
        if shapes.get(name) != shape:
            raise DataError(
                f"{file}: tensor '{name}' of shape {shape} is wanted, found {shapes.get(name)}; "
                "the weights and config.json are not of one model: fetch the folder again"
            )
        return tensors.pop(name).astype(jnp.float32)

    module = Bert(take, config)
    if unused := [name for name in tensors if not _NOT_READ.match(name)]:
        raise DataError(
            f"{file}: {len(unused)} tensors have no place in this model, the first '{unused[0]}'; "
            "it is not a plain BERT: use another sentence encoder"
        )
    return Encoder(*nnx.split(module), folder / "tokenizer.json", config)


def tokenize(encoder: Encoder, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each text, with the special tokens, cut at `config.max_tokens`."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(encoder.tokenizer))
    except Exception as error:  # what tokenizers raises has no narrower type
        raise _unreadable(encoder.tokenizer, error) from error
    if (size := tokenizer.get_vocab_size()) > encoder.config.vocabulary:
        raise DataError(
            f"{encoder.tokenizer}: {size} tokens, but the model knows {encoder.config.vocabulary}; "
            "use the tokenizer that came with the weights"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(encoder.config.max_tokens)
    return [tokens.ids for tokens in tokenizer.encode_batch(list(texts))]


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


def _config(folder: Path) -> Config:
    file = folder / "config.json"
    found = _json(file)
    limit = _json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    try:
        config = Config(
            vocabulary=found["vocab_size"],
            width=found["hidden_size"],
            layers=found["num_hidden_layers"],
            heads=found["num_attention_heads"],
            inner=found["intermediate_size"],
            positions=found["max_position_embeddings"],
            types=found["type_vocab_size"],
            epsilon=found["layer_norm_eps"],
            activation=found["hidden_act"],
            max_tokens=min(limit or math.inf, found["max_position_embeddings"]),
        )
    except KeyError as error:
        raise DataError(f"{file}: no setting {error}; fetch the folder again") from error
    if config.width % config.heads:
        raise DataError(
            f"{file}: hidden_size = {config.width} is no multiple of num_attention_heads = "
            f"{config.heads}; fetch the folder again"
        )
    return config


def _tensors(file: Path) -> dict[str, jax.Array]:
    """The tensors of a weight file under today's names without the prefix of a larger model."""
    from safetensors import SafetensorError
    from safetensors.flax import load_file

    try:
        tensors = load_file(file)
    except (OSError, SafetensorError) as error:
        raise _unreadable(file, error) from error
    renamed = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("bert.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        renamed[name.replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    return renamed


def _json(file: Path, default: Any = None) -> Any:
    """The content of a JSON file; `default`, if there is one, where there is no such file."""
    if default is not None and not file.exists():
        return default
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> DataError:
    problem = str(error) if file.exists() else "there is no such file"
    return DataError(
        f"{file}: {problem}. A sentence encoder is a folder with config.json, model.safetensors "
        "and tokenizer.json; fetch it again"
    )

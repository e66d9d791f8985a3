"""The settings of a Llama, Qwen2 or Qwen3 decoder, and how a Hugging Face folder names them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxrec.models.folder import Folder
from jaxrec.types import DataError

_FAMILIES = ("llama", "qwen2", "qwen3")
_SUPPORTED = {
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False, None),
    "quantization_config": (None,),
    "dtype": (None, "float32", "bfloat16", "float16"),
}
_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
)


class Scaling(NamedTuple):
    """Llama 3.1's longer context: wavelengths over original / low are stretched by `factor`,
    those under original / high are kept, those between are interpolated."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class Config:
    """The sizes and the variant of a decoder."""

    vocabulary: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    inner: int
    positions: int  # the longest text it was trained on
    epsilon: float = 1e-6
    theta: float = 1e4
    scaling: Scaling | None = None
    tied: bool = False  # the embedding is the head
    input_bias: bool = False  # of query, key and value
    output_bias: bool = False  # of attention's output
    inner_bias: bool = False
    head_norm: bool = False  # of each query and key
    stop: tuple[int, ...] = ()  # tokens that end an answer


def read_config(folder: Folder) -> tuple[Config, str]:
    """The settings of a folder and the type of its parameters.

    Raises DataError, naming file, value and remedy, for a setting that `decoder` does not follow.
    """
    name = "config.json"
    found = folder.config(_FAMILIES, _SIZES)
    folder.require(name, _SUPPORTED, found)
    if sliding := set(found.get("layer_types") or ()) - {"full_attention"}:
        raise folder.unsupported(name, "layer_types", sliding.pop(), ("full_attention",))
    stop = folder.json("generation_config.json", {}).get("eos_token_id", found["eos_token_id"])
    theta, scaling = _rope(folder, found["rope_parameters"])
    vocabulary, width, layers, heads, inner, positions = (found[key] for key in _SIZES)
    kv_heads = found["num_key_value_heads"] or heads
    head_width = found.get("head_dim") or width // heads
    family, bias = found["model_type"], found.get("attention_bias", False)
    config = Config(
        vocabulary=vocabulary,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=folder.number(name, "num_key_value_heads", kv_heads, int),
        head_width=folder.number(name, "head_dim", head_width, int),
        inner=inner,
        positions=positions,
        epsilon=folder.number(name, "rms_norm_eps", found["rms_norm_eps"]),
        theta=theta,
        scaling=scaling,
        tied=found["tie_word_embeddings"],
        input_bias=bias or family == "qwen2",
        output_bias=bias and family != "qwen2",
        inner_bias=found.get("mlp_bias", False) and family == "llama",
        head_norm=family == "qwen3",
        stop=_stop(folder, stop),
    )
    if heads % config.kv_heads or config.head_width % 2:
        raise DataError(
            f"{folder.path / name}: num_attention_heads = {heads}, num_key_value_heads = "
            f"{config.kv_heads}, head_dim = {config.head_width}: the first must be a multiple of "
            "the second and the third even; fetch the folder again"
        )
    return config, found["dtype"] or "float32"


def _stop(folder: Folder, found: Any) -> tuple[int, ...]:
    """The tokens that end an answer."""
    tokens = found if isinstance(found, list) else [] if found is None else [found]
    if wrong := [token for token in tokens if type(token) is not int or token < 0]:
        problem = ValueError(f"eos_token_id = {wrong[0]!r:.40} is no token")
        raise folder.unreadable(folder.path / "generation_config.json", problem)
    return tuple(tokens)


def _rope(folder: Folder, found: Mapping[str, Any]) -> tuple[float, Scaling | None]:
    """Rotary base and scaling."""
    name, section = "config.json", "rope_parameters"
    rope = {key: value for key, value in found.items() if key != "type"}
    theta, kind = rope.pop("rope_theta", 1e4), rope.pop("rope_type", "default")
    needs = {"default": (), "llama3": Scaling._fields}
    if kind not in tuple(needs):
        raise folder.unsupported(name, f"{section}.rope_type", kind, tuple(needs))
    folder.require(name, {"partial_rotary_factor": (1.0, None)}, rope)
    rope.pop("partial_rotary_factor", None)
    for key in sorted(rope.keys() ^ set(needs[kind])):
        if key in rope:
            raise folder.unsupported(name, f"{section}.{key}", rope[key], (None,))
        raise folder.unreadable(folder.path / name, ValueError(f"no setting '{section}.{key}'"))
    for key, value in {"rope_theta": theta, **rope}.items():
        folder.number(name, f"{section}.{key}", value)
    return float(theta), Scaling(**rope) if kind == "llama3" else None

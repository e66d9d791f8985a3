"""Hugging Face model folders: settings, tokenizer and weights, each refused by name if unfit.

The package transformers reads settings and tokenizer, from the folder and never from a network.
Weights are model.safetensors, or shards that model.safetensors.index.json lists.
"""

from __future__ import annotations

import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxrec.types import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_INDEX = "model.safetensors.index.json"
LAYERS = 10_000  # more than any model has; transformers lists each


@dataclass(frozen=True)
class Folder:
    """A model's folder. `kind` says in messages what is looked for: "decoder"."""

    path: Path
    kind: str

    def config(self, families: Sequence[str], sizes: Sequence[str]) -> dict[str, Any]:
        """config.json under transformers' present names, its defaults for what the file leaves out.

        Raises DataError where `model_type` is none of `families`, one of `sizes` is absent or no
        positive whole number, or transformers refuses the file.
        """
        file = self.path / "config.json"
        found = self.json(file.name)
        for name in ("model_type", *sizes):
            if name not in found:
                raise self.unreadable(file, ValueError(f"no setting '{name}'"))
        self.require(file.name, {"model_type": families}, found)
        for name in sizes:
            most = LAYERS if name == "num_hidden_layers" else 2**31
            if type(found[name]) is not int or not 1 <= found[name] < most:
                raise DataError(
                    f"{file}: {name} = {found[name]!r:.40} is no positive whole number below "
                    f"{most:,}; fetch the folder again"
                )
        try:
            kind = _transformers().CONFIG_MAPPING[found["model_type"]]
            return kind.from_dict(found).to_dict()
        except Exception as error:  # each check there has its own type of error
            raise self.unreadable(file, error) from error

    def tokenizer(self, vocabulary: int) -> PreTrainedTokenizerFast:
        """tokenizer.json, with its chat template; refused if it has more than `vocabulary` tokens.

        The class is the one that takes the file as it is: AutoTokenizer's, such as BertTokenizer,
        build a tokenizer anew from the file's vocabulary.
        """
        file = self.path / "tokenizer.json"
        self.json(file.name)
        try:
            kind = _transformers().PreTrainedTokenizerFast
            tokenizer = kind.from_pretrained(self.path, local_files_only=True)
        except Exception as error:  # what tokenizers raises has no narrower type
            raise self.unreadable(file, error) from error
        if (size := len(tokenizer)) > vocabulary:
            raise DataError(
                f"{file}: {size} tokens, but the model knows {vocabulary}; "
                "use the tokenizer that came with the weights"
            )
        return tokenizer

    def json(self, name: str, default: Any = None) -> Any:
        """The content of a JSON file; `default`, if there is one, where there is no such file."""
        file = self.path / name
        if default is not None and not file.exists():
            return default
        wanted = dict if default is None else type(default)
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(found, wanted):
                raise ValueError(f"a JSON {wanted.__name__} is wanted, found {found!r:.40}")
        except (OSError, ValueError, RecursionError) as error:
            raise self.unreadable(file, error) from error
        return found

    def require(
        self, name: str, supported: Mapping[str, Sequence], found: Mapping[str, Any]
    ) -> None:
        """Refuse settings `found` in a file beyond those supported; the first is the default."""
        for key, values in supported.items():
            if (value := found.get(key, values[0])) not in values:
                raise self.unsupported(name, key, value, values)

    def number(self, name: str, key: str, value: Any, kind: type = float) -> Any:
        """A positive number found in a file; DataError for anything else."""
        right = type(value) is int or (kind is float and type(value) is float)
        if not (right and 0 < value < math.inf):
            problem = ValueError(f"{key} = {value!r:.40} is no positive number")
            raise self.unreadable(self.path / name, problem)
        return value

    def unsupported(self, name: str, key: str, value: Any, values: Sequence) -> DataError:
        """An error for a setting that the model may have and this library does not follow."""
        return DataError(
            f"{self.path / name}: {key} = {value!r:.80} is not supported, only "
            f"{' or '.join(map(repr, values))}; use another {self.kind}"
        )

    def unreadable(self, file: Path, error: Exception) -> DataError:
        """An error for a file that is missing or damaged."""
        told = " ".join(str(error).split())
        problem = f"{told:.500}" if file.exists() else "there is no such file"
        return DataError(
            f"{file}: {problem}. A {self.kind} is a folder with config.json, model.safetensors "
            f"(or shards and {_INDEX}) and tokenizer.json; fetch it again"
        )


@functools.cache
def _transformers() -> ModuleType:
    """The package, which takes a second to import, without its advice to install PyTorch."""
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    import transformers

    return transformers


class Weights:
    """A folder's tensors, read one by one; each can be taken once."""

    def __init__(self, folder: Folder, rename: Callable[[str], str] = str):
        from safetensors import SafetensorError, safe_open

        self.folder, self.file = folder, folder.path / "model.safetensors"
        shards = [self.file.name]
        if not self.file.exists() and (folder.path / _INDEX).exists():
            self.file = folder.path / _INDEX
            named = folder.json(_INDEX).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(v, str) for v in named.values()):
                raise folder.unreadable(self.file, ValueError("no weight_map of tensors to shards"))
            shards = sorted(set(named.values()))
        self.places = {}
        for file in (folder.path / shard for shard in shards):
            try:
                shard = safe_open(file, "flax")
            except (OSError, SafetensorError) as error:
                raise folder.unreadable(file, error) from error
            self.places |= {rename(name): (file, shard, name) for name in shard.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self.places

    def take(self, name: str, *shape: int, dtype: Any = jnp.float32) -> jax.Array:
        """The tensor of that name and shape, which can be taken once."""
        file, shard, stored = self.places.pop(name, (self.file, None, name))
        found = None if shard is None else shard.get_slice(stored)
        size = None if found is None else tuple(found.get_shape())
        if shard is None or found is None or size != shape:
            raise DataError(
                f"{file}: tensor '{name}' of shape {shape} is wanted, found {size}; "
                "the weights and config.json are not of one model: fetch the folder again"
            )
        if (kind := found.get_dtype()) not in ("F32", "BF16", "F16"):
            raise DataError(
                f"{file}: tensor '{name}' holds {kind}, not F32, BF16 or F16: weights that are "
                f"quantised or of other types are not supported; use another {self.folder.kind}"
            )
        return shard.get_tensor(stored).astype(dtype)

    def finish(self, ignored: str) -> None:
        """Refuse tensors that nobody took and whose names the pattern `ignored` does not match."""
        if unused := [name for name in self.places if not re.match(ignored, name)]:
            raise DataError(
                f"{self.places[unused[0]][0]}: {len(unused)} tensors have no place in this model, "
                f"the first '{unused[0]}'; config.json does not describe it: "
                f"use another {self.folder.kind}"
            )

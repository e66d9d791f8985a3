"""Low-rank adapters (Hu et al., LoRA, ICLR 2022): W + alpha / R A B in place of some kernels W.

A LoRA is a pytree of its own, {name of a linear layer: Pair}, and the only thing that is trained:

    loss = lambda lora: objective(nnx.merge(graphdef, apply(params, lora, alpha))(inputs))
    jax.grad(loss)(lora)

Names are those of a model's linear layers, `layers.gate` in the decoder, where A and B are stacked
like the layers, and `layers.0.query` in the encoder. A leading axis of clients is put on a LoRA by
`jax.vmap`, over `init` as over `loss`, and the kernels are shared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrec.files import writing
from jaxrec.models.linear import LowRank
from jaxrec.types import DataError, SettingError


class Pair(NamedTuple):
    down: jax.Array  # f32 [..., inputs, R]  A
    up: jax.Array  # f32 [..., R, outputs]  B


LoRA = dict[str, Pair]


def init(params: nnx.State, names: Iterable[str], rank: int, key: jax.Array) -> LoRA:
    """Pairs for the linear layers of `params` whose names end in one of `names`, which are regexes.

    A is uniform in +-inputs^-1/2 and B is zero, so that the model is at first unchanged.
    """
    flat = dict(nnx.to_flat_state(params))
    sizes = {name: _shape(flat[path].get_value()) for name, path in _linears(params).items()}
    chosen = set()
    for ending in names:
        found = {name for name in sizes if re.fullmatch(rf"(.*\.)?({ending})", name)}
        if not found:
            raise SettingError(
                f"no linear layer's name ends in '{ending}'; there are {', '.join(sizes)}"
            )
        chosen |= found
    if rank < 1:
        raise SettingError(f"rank = {rank}: at least 1 is needed")
    lora = {}
    keys = jax.random.split(key, len(chosen))
    for name, stream in zip(sorted(chosen), keys, strict=True):
        *lead, inputs, outputs = sizes[name]
        bound = inputs**-0.5
        down = jax.random.uniform(stream, (*lead, inputs, rank), minval=-bound, maxval=bound)
        lora[name] = Pair(down, jnp.zeros((*lead, rank, outputs)))
    return lora


def apply(
    params: nnx.State,
    lora: LoRA,
    alpha: float,
    *,
    dropout: float = 0.0,
    key: jax.Array | None = None,
) -> nnx.State:
    """`params` with each pair beside its kernel: x W + (x A) B alpha / R.

    Training makes neither W + A B nor its gradient. `dropout` is the probability, drawn with
    `key`, that an entry of A's input is dropped. The result may be given another LoRA.
    """
    if dropout and key is None:
        raise SettingError(f"dropout = {dropout} needs a key")
    keys = jax.random.split(key, len(lora)) if dropout and key is not None else [None] * len(lora)
    streams = dict(zip(sorted(lora), keys, strict=True))

    def beside(name, kernel, pair):
        stream, lead = streams[name], _shape(kernel)[:-2]
        if stream is not None and lead:
            stream = jax.random.split(stream, lead)
        # The scale is put on B, the smaller product.
        return LowRank(kernel, pair.down, pair.up * _scale(pair, alpha), stream, dropout)

    return _replace(params, lora, beside)


def merge(params: nnx.State, lora: LoRA, alpha: float) -> nnx.State:
    """`params` with W + alpha / R A B for each kernel W: the same model, as fast as before.

    The same call with -alpha undoes it, up to rounding.
    """

    def add(name, kernel, pair):
        if isinstance(kernel, LowRank):
            return replace(kernel, kernel=add(name, kernel.kernel, pair))
        change = jnp.matmul(pair.down, pair.up, precision="highest") * _scale(pair, alpha)
        return (kernel.astype(jnp.float32) + change).astype(kernel.dtype)

    return _replace(params, lora, add)


def save(path: str | Path, lora: LoRA, alpha: float) -> None:
    """Write a LoRA, and nothing of the model, as safetensors; rank, alpha and names as metadata."""
    from safetensors.flax import save_file

    tensors = {f"{name}.{part}": t for name, p in lora.items() for part, t in p._asdict().items()}
    ranks = {str(pair.down.shape[-1]) for pair in lora.values()}
    about = {"rank": ",".join(sorted(ranks)), "alpha": repr(float(alpha)), "names": ",".join(lora)}
    with writing(Path(path)):
        save_file(tensors, path, about)


def load(path: str | Path, params: nnx.State) -> tuple[LoRA, float]:
    """A saved LoRA and its alpha.

    Raises DataError, naming file, layer and remedy, if it is not of the model with `params`.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with safe_open(path, "flax") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        alpha, names = float(about["alpha"]), about["names"].split(",")
        lora = {
            name: Pair(*(tensors.pop(f"{name}.{part}") for part in Pair._fields)) for name in names
        }
        if tensors:
            raise ValueError(f"'{min(tensors)}' belongs to no pair")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        problem = error if path.exists() else "there is no such file"
        raise DataError(
            f"{path}: {problem}. It is no LoRA of ours: write it again by save"
        ) from error
    _check(params, lora, path, clients=True)
    return lora, alpha


def _linears(params: nnx.State) -> dict[str, tuple]:
    """Where each linear layer's kernel is in `params`."""
    paths = (path for path, _ in nnx.to_flat_state(params))
    return {".".join(map(str, path[:-1])): path for path in paths if path[-1] == "kernel"}


def _shape(kernel: jax.Array | LowRank) -> tuple[int, ...]:
    return _shape(kernel.kernel) if isinstance(kernel, LowRank) else kernel.shape


def _scale(pair: Pair, alpha: float) -> float:
    return alpha / pair.down.shape[-1]


def _replace(params: nnx.State, lora: LoRA, change: Callable) -> nnx.State:
    """`params` with change(name, kernel, pair) in place of each kernel that has a pair."""
    flat, places = dict(nnx.to_flat_state(params)), _linears(params)
    _check(params, lora, "this LoRA")
    for name, pair in lora.items():
        variable = flat[places[name]]
        flat[places[name]] = variable.replace(change(name, variable.get_value(), pair))
    return nnx.from_flat_state(flat)


def _check(params: nnx.State, lora: LoRA, source: str | Path, clients: bool = False) -> None:
    """Refuse pairs that fit no kernel; with `clients`, more axes may lead."""
    flat, places = dict(nnx.to_flat_state(params)), _linears(params)
    for name, (down, up) in lora.items():
        if name not in places:
            raise DataError(
                f"{source}: the model has no linear layer '{name}', only {', '.join(places)}; "
                "use the LoRA with the model it was trained for"
            )
        *lead, inputs, outputs = wanted = _shape(flat[places[name]].get_value())
        rank, extra = down.shape[-1], down.shape[: -len(wanted)] if clients else ()
        fits = (*extra, *lead, inputs, rank), (*extra, *lead, rank, outputs)
        if (down.shape, up.shape) != fits:
            raise DataError(
                f"{source}: '{name}' has A {down.shape} and B {up.shape}, which do not fit a "
                f"kernel {wanted}; use the LoRA with the model it was trained for"
                + ("" if clients else ", and a LoRA of many clients under jax.vmap")
            )

"""The linear layer that the encoder and the decoder share, and low-rank pairs beside its kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

Take = Callable[..., jax.Array]  # (name, *shape) -> the tensor of that name


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """What stands for a kernel W while W + A B is trained: `kernel` W, `down` A and `up` B.

    `key` drops each entry of A's input with probability `rate`. Kernels may nest.
    """

    kernel: jax.Array | LowRank  # [..., inputs, outputs]
    down: jax.Array  # [..., inputs, R]
    up: jax.Array  # [..., R, outputs]
    key: jax.Array | None = None  # [...]
    rate: float = field(default=0.0, metadata={"static": True})


def multiply(x: jax.Array, kernel: jax.Array | LowRank) -> jax.Array:
    """x W, or x W + (x A) B: W + A B, and its gradient, are never made."""
    if not isinstance(kernel, LowRank):
        return x @ kernel
    product = multiply(x, kernel.kernel)
    if kernel.rate and kernel.key is not None:
        kept = jax.random.bernoulli(kernel.key, 1 - kernel.rate, x.shape)
        x = jnp.where(kept, x / (1 - kernel.rate), 0)
    return product + x @ kernel.down.astype(x.dtype) @ kernel.up.astype(x.dtype)


class Linear(nnx.Module):
    def __init__(self, take: Take, name: str, inputs: int, outputs: int, bias: bool = True):
        self.kernel = nnx.Param(take(f"{name}.weight", outputs, inputs).mT)
        self.bias = nnx.Param(take(f"{name}.bias", outputs)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        x = multiply(x, self.kernel.get_value())
        return x if self.bias is None else x + self.bias[...]

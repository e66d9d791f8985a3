"""Many devices: the axis that a method's work is divided along, and where its arrays then lie.

    mesh = "clients=8"  the clients of a federation, each with its own rows
    mesh = "batch=8"    the sequences of a step: sequential, llmd4rec
    mesh = "users=8"    the memories of users: agentcf

Arrays are placed and XLA divides what is computed from them, so no method has code for sending and
receiving, and a mesh changes no result beyond rounding. The devices may be those of many processes.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast, get_args

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.types import Data, SettingError, Sizes

Axis = Literal["clients", "batch", "users"]
AXES = get_args(Axis)
Tree = TypeVar("Tree")


def _same(leaf: jax.Array) -> jax.Array:  # one function, compiled once for each form of a leaf
    return leaf


def on_host(tree: Tree) -> Tree:
    """The arrays of `tree` as NumPy's, whole in every process."""

    def whole(leaf: Any) -> Any:
        if getattr(leaf, "is_fully_addressable", True) or leaf.is_fully_replicated:
            return leaf
        everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
        gathered = jax.jit(_same, out_shardings=everywhere)(leaf)
        return gathered.block_until_ready()  # two sums at once would mix their messages on CPUs

    return jax.device_get(jax.tree.map(whole, tree))


def parse(words: str) -> tuple[Axis, int]:
    """ "batch=8" -> its axis and number of devices; one device, along clients, of no words.

    Raises SettingError for anything else.
    """
    if not words:
        return "clients", 1
    match = re.fullmatch(rf"({'|'.join(AXES)})=([1-9]\d*)", words)
    if not match:
        rule = f"AXIS=N, N devices along one of {', '.join(AXES)}"
        raise SettingError(f"mesh = {words!r}: must be {rule}")
    return cast(Axis, match[1]), int(match[2])


def check(words: str, method: str, own: str) -> None:
    """SettingError where the mesh is not along the axis that `method` divides its steps by."""
    axis, number = parse(words)
    if words and axis != own:
        remedy = f"set mesh = '{own}={number}'" if own else "it works on one: leave mesh out"
        divides = own or "no work over devices"
        raise SettingError(f"mesh = {words!r}: {method} divides {divides}; {remedy}")


def make(words: str) -> Mesh | None:
    """The mesh of the setting; None for one device. SettingError where there are fewer devices."""
    axis, number = parse(words)
    devices = jax.devices()
    if len(devices) < number:
        kind = devices[0].platform
        raise SettingError(f"mesh = {words!r}: jax sees {len(devices)} {kind} device(s)")
    if jax.process_count() > 1 and number != len(devices):
        many = f"{jax.process_count()} processes have {len(devices)} devices"
        raise SettingError(f"mesh = {words!r}: {many}; divide the work over all of them")
    return None if number == 1 else Mesh(np.array(devices[:number]), (axis,))


def shardings(tree: Any, data: Data, sizes: Sizes, mesh: Mesh | None) -> Any:
    """How each array of `tree` lies on the mesh; None without one.

    Divided along its first axis is an array with a row for each client of a bucket of `data`, or
    for each user where the devices divide the users evenly. All else is copied to every device.
    """
    if mesh is None:
        return None
    (axis,) = mesh.axis_names
    lengths = {
        "clients": {len(bucket.client) for bucket in data.clients},
        "batch": set(),
        "users": {sizes.users} - ({sizes.users} if sizes.users % mesh.size else set()),
    }[axis]
    along, copied = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((axis,), ()))
    divided = lambda leaf: leaf.ndim > 0 and leaf.shape[0] in lengths
    return jax.tree.map(lambda leaf: along if divided(leaf) else copied, tree)


def within(devices: Mesh | None) -> contextlib.AbstractContextManager:
    """Where the mesh, if there is one, is set for what is compiled."""
    return jax.set_mesh(devices) if devices else contextlib.nullcontext()


def divide(tree: Tree, axis: Axis | None = None) -> Tree:
    """The arrays of `tree`, divided along their first axis where a mesh is set, of `axis` if given.

    Arrays must have a first axis that the devices divide evenly.
    """
    own = _axis()
    if own is None or axis not in (None, own):
        return tree
    return jax.lax.with_sharding_constraint(tree, PartitionSpec(own))


def by_rows(function: Callable, *arrays: jax.Array) -> jax.Array:
    """What a function makes of each row of arrays; where a mesh is set, each device of its own."""
    own = _axis()
    if own is None:
        return function(*arrays)
    rows = PartitionSpec(own)
    return jax.shard_map(function, in_specs=rows, out_specs=rows, check_vma=False)(*arrays)


def _axis() -> str | None:
    """The axis of the mesh that is set, if it is one that jaxrec divides work along."""
    names = jax.sharding.get_abstract_mesh().axis_names
    return next((name for name in names if name in AXES), None)

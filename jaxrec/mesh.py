"""Many devices: the axis that a method's work is divided along, and where its arrays then lie.

    mesh = "clients=8"  the clients of a federation, each with its own rows
    mesh = "batch=8"    the sequences of a step: sequential, llmd4rec
    mesh = "users=8"    the memories of users: agentcf

Arrays are placed and XLA divides what is computed from them, so no method has code for sending and
receiving, and a mesh changes no result beyond rounding. The devices may be those of many processes.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, get_args

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxrec.types import Data, SettingError, Sizes

Axis = Literal["clients", "batch", "users"]
AXES = get_args(Axis)
Tree = TypeVar("Tree")
FORCED = "--xla_force_host_platform_device_count"
PATIENCE = 24 * 3600  # seconds
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def _in_order() -> None:
    """Devices that are CPUs start their sums in one order, where XLA is yet to read its flags.

    In the order in which threads come to them, as is XLA's own choice, the devices of a process
    wait for each other without end, and processes take one sum's messages for another's.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if IN_ORDER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {IN_ORDER}".strip()


if FORCED in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ:
    _in_order()


def join(launch: str) -> None:
    """Become one of the processes of a launch, which then see each other's devices.

    `launch` is "auto" where JAX finds out by itself (Slurm, Open MPI, Kubernetes, Cloud TPU), else
    "HOST:PORT,N,K": where process 0 listens, how many there are, and which of them this one is.
    To be called before anything is computed. Raises SettingError where it cannot be done.
    """
    match = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", launch)
    if launch != "auto" and not match:
        raise SettingError(f"distributed = {launch!r}: must be auto or HOST:PORT,N,K")
    told = (match[1], int(match[2]), int(match[3])) if match else ()
    _in_order()
    try:
        jax.distributed.initialize(*told)
    except (RuntimeError, ValueError) as error:
        raise SettingError(f"distributed = {launch!r}: {error}") from error


def first() -> bool:
    """Whether this process is the one that writes and tells, as a process on its own is."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Wait until every process of a launch has come to `where`, however much later.

    By a message to the first process: a sum over devices that are CPUs waits half a minute only.
    """
    if (number := jax.process_count()) > 1:
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(where, timeout=PATIENCE, processes=set(range(number)))


def anywhere(*flags: bool) -> list[bool]:
    """Whether each is so in one process of a launch or more; every process has to ask."""
    if jax.process_count() == 1:
        return list(flags)
    return multihost_utils.process_allgather(np.array(flags)).any(0).tolist()


@contextlib.contextmanager
def together(what: str) -> Iterator[None]:
    """What every process of a launch does by itself; where one of them fails, all do.

    Raises SettingError where it is another one.
    """
    try:
        yield
    except Exception:
        meet(what)
        anywhere(True)
        raise
    meet(what)
    if anywhere(False)[0]:
        raise SettingError(f"{what}: another process of the launch failed; it says why")


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


def read(words: str) -> tuple[Axis, int]:
    """ "batch=8" -> its axis and number of devices; one device, along clients, of no words.

    Raises SettingError for anything else.
    """
    if not words:
        return "clients", 1
    match = re.fullmatch(rf"({'|'.join(AXES)})=([1-9]\d*)", words)
    if not match:
        rule = f"AXIS=N, N devices along one of {', '.join(AXES)}"
        raise SettingError(f"mesh = {words!r}: must be {rule}")
    return match[1], int(match[2])


def check(words: str, method: str, own: str) -> None:
    """SettingError where the mesh is not along the axis that `method` divides its steps by."""
    axis, number = read(words)
    if words and axis != own:
        remedy = f"set mesh = '{own}={number}'" if own else "it works on one: leave mesh out"
        divides = own or "no work over devices"
        raise SettingError(f"mesh = {words!r}: {method} divides {divides}; {remedy}")


def make(words: str) -> Mesh | None:
    """The mesh of the setting; None for one device. SettingError where there are fewer devices."""
    axis, number = read(words)
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

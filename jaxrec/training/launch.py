"""Many processes as one run: how they join, wait for each other and agree."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxrec.types import SettingError

FORCED = "--xla_force_host_platform_device_count"
PATIENCE = 24 * 3600  # seconds
IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"


def order_collectives(*, always: bool = False) -> None:
    """Make devices that are CPUs start their collective sums in one order.

    XLA starts them in the order in which threads come to them: the devices of a process can then
    wait for each other without end, and processes take one sum's messages for another's. XLA reads
    its flags once, when a first array is made, so this must be called before. Without `always` it
    does so only where the environment makes several devices of the CPU.
    """
    forced = FORCED in os.environ.get("XLA_FLAGS", "") or "JAX_NUM_CPU_DEVICES" in os.environ
    if not (always or forced):
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if IN_ORDER not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {IN_ORDER}".strip()


def join(launch: str) -> None:
    """Become one of the processes of a launch, which then see each other's devices.

    `launch` is "auto" where JAX finds out by itself (Slurm, Open MPI, Kubernetes, Cloud TPU), else
    "HOST:PORT,N,K": where process 0 listens, how many there are, and which of them this one is.
    To be called before anything is computed. Raises SettingError where it cannot be done.
    """
    match = re.fullmatch(r"([^,\s]+:\d+),(\d+),(\d+)", launch)
    if launch != "auto" and not match:
        raise SettingError(f"distributed = {launch!r}: must be auto or HOST:PORT,N,K")
    order_collectives(always=True)
    try:
        if match:
            jax.distributed.initialize(match[1], int(match[2]), int(match[3]))
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        raise SettingError(f"distributed = {launch!r}: {error}") from error


def is_main_process() -> bool:
    """Whether this process is the one that writes and tells, as a process on its own is."""
    return jax.process_index() == 0


def barrier(where: str) -> None:
    """Wait until every process of a launch has come to `where`, however much later.

    By a message to the first process: a sum over devices that are CPUs waits half a minute only.
    """
    if (number := jax.process_count()) > 1:
        from orbax.checkpoint import multihost

        multihost.sync_global_processes(where, timeout=PATIENCE, processes=set(range(number)))


def any_process(*flags: bool) -> list[bool]:
    """Whether each is so in one process of a launch or more; every process has to ask."""
    if jax.process_count() == 1:
        return list(flags)
    return multihost_utils.process_allgather(np.array(flags)).any(0).tolist()


@contextlib.contextmanager
def all_or_none(what: str) -> Iterator[None]:
    """What every process of a launch does by itself; where one of them fails, all do.

    Raises SettingError where another process failed.
    """
    try:
        yield
    except Exception:
        barrier(what)
        any_process(True)
        raise
    barrier(what)
    if any_process(False)[0]:
        raise SettingError(f"{what}: another process of the launch failed; it says why")

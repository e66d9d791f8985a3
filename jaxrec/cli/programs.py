"""Compiled programs, kept in the user's cache folder for the commands to come."""

from __future__ import annotations

import hashlib
import os
import platform
from contextlib import suppress
from pathlib import Path

import jax

from jaxrec.files import cache_folder

MOST = 10**9  # bytes; what was used least lately goes first
WORTHWHILE = 0.2  # seconds of compiling from which on a program is kept


def keep_programs() -> None:
    """Let JAX keep what it compiles, where none of its own variables says if and where.

    JAX_ENABLE_COMPILATION_CACHE=false switches it off. Processes share the folder, under a lock;
    machines of other processors have folders of their own.
    """
    told = jax.config.values
    if told["jax_compilation_cache_dir"] or not told["jax_enable_compilation_cache"]:
        return
    folder = cache_folder() / "programs" / _processor()
    with suppress(OSError):  # without a place for them all works as well
        folder.mkdir(parents=True, exist_ok=True)
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", MOST)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", WORTHWHILE)


def _processor() -> str:
    """A name for the instructions that this machine has: code for others could crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        told = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"

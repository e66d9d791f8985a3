"""Compiled programs, kept in the user's cache folder for the commands to come."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from contextlib import suppress
from pathlib import Path

import jax

from jaxrec.files import cache_folder

FOLDER = "jax_compilation_cache_dir"
BOUNDS = {
    "jax_compilation_cache_max_size": 10**9,  # bytes; what was used least lately goes first
    "jax_persistent_cache_min_compile_time_secs": 0.2,  # from which on a program is kept
}
WRITING = 60.0  # seconds that an entry may be half written before it counts as broken off


def keep_programs() -> None:
    """Let JAX keep what it compiles, where none of its own variables says if and where.

    JAX_ENABLE_COMPILATION_CACHE=false switches it off. Processes of a user share the folder, under
    a lock; other users and other processors have folders of their own.
    """
    if FOLDER.upper() in os.environ or not jax.config.values["jax_enable_compilation_cache"]:
        return
    with suppress(OSError, RuntimeError):  # without a place for them, or a home, all works as well
        folder = cache_folder() / "programs" / _whose()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_broken(folder)
        if os.access(folder, os.W_OK):
            jax.config.update(FOLDER, str(folder))
            for name, bound in BOUNDS.items():
                if name.upper() not in os.environ:
                    jax.config.update(name, bound)


def keep_no_programs() -> None:
    """Undo `keep_programs`: of several processes some would find a program and others not."""
    jax.config.update(FOLDER, os.environ.get(FOLDER.upper()))


def _remove_broken(folder: Path) -> None:
    """Remove entries that a kill cut short: JAX writes the time of its last use after an entry."""
    for entry in folder.glob("*-cache"):
        used = entry.with_name(entry.name.removesuffix("-cache") + "-atime")
        if not used.exists() and time.time() - entry.stat().st_mtime > WRITING:
            entry.unlink(missing_ok=True)


def _whose() -> str:
    """A name for the user and the instructions of this machine: code for others could crash."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told = next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        told = platform.processor()
    user = os.getuid() if hasattr(os, "getuid") else 0
    return f"{platform.machine()}-{hashlib.sha256(told.encode()).hexdigest()[:12]}-{user}"

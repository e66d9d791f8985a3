"""Compiled programs of a command lie in the user's cache folder, unless JAX was told otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax, jax.numpy as jnp
from jaxrec.cli import programs
programs.BOUNDS["jax_persistent_cache_min_compile_time_secs"] = 0
programs.keep_programs()
print(jax.config.jax_compilation_cache_dir)
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((4, 4))).block_until_ready()
"""


def started(cache, **more):
    given = {name: text for name, text in os.environ.items() if not name.startswith("JAX_")}
    given |= {"JAXREC_CACHE": str(cache)} | more
    done = subprocess.run(
        [sys.executable, "-c", CODE], env=given, capture_output=True, text=True, check=True
    )
    return done.stdout.strip(), sorted(path for path in cache.rglob("*-cache"))


def test_a_program_is_kept_and_found_again(tmp_path):
    folder, kept = started(tmp_path)
    assert folder.startswith(str(tmp_path / "programs"))
    assert kept
    assert started(tmp_path) == (folder, kept)


def test_an_entry_that_a_kill_cut_short_is_made_again(tmp_path):
    _, kept = started(tmp_path)
    kept[0].write_bytes(b"half")
    kept[0].with_name(kept[0].name.removesuffix("-cache") + "-atime").unlink()
    os.utime(kept[0], (1, 1))
    assert started(tmp_path)[1] == kept and kept[0].stat().st_size > 100


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("JAX_ENABLE_COMPILATION_CACHE", "false", "None"),
        ("JAX_COMPILATION_CACHE_DIR", "own", "own"),
    ],
)
def test_what_jax_is_told_holds(tmp_path, monkeypatch, name, value, expected):
    monkeypatch.chdir(tmp_path)
    assert started(tmp_path / "cache", **{name: value}) == (expected, [])


def test_a_bound_of_the_users_own_holds(tmp_path):
    least = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"}
    folder, kept = started(tmp_path, **least)
    assert folder.startswith(str(tmp_path)) and kept == []


def test_without_a_place_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    assert started(tmp_path / "file" / "cache") == ("None", [])

"""Compiled programs of a command lie in the user's cache folder, unless JAX was told otherwise."""

import os
import subprocess
import sys

import pytest

CODE = """
import jax, jax.numpy as jnp
from jaxrec.cli import programs
programs.WORTHWHILE = 0
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


def test_without_a_place_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    assert started(tmp_path / "file" / "cache") == ("None", [])

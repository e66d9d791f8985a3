"""Fixtures every test may use. Tests never touch the network or the user's cache."""

import importlib.util
import os
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jaxrec.methods import METHODS

# Programs here are compiled more than run. In the environment, for other processes too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
jax.config.update(
    "jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
)

if jax.default_backend() != "cpu":  # references are of float64: TF32 has three of its digits
    jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def data_root() -> Path:
    """The folder of dataset folders that JAXREC_DATA names; skips, with the reason, without it."""
    root = os.environ.get("JAXREC_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("JAXREC_DATA does not name a folder of datasets: real-data tests are skipped")
    return Path(root)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Downloads go to a fresh cache folder for each test."""
    monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_end_with_their_file():
    """A process may map 65,530 pieces of memory on Linux, a program takes several, and XLA crashes
    where there are no more: a worker of the whole suite would get there."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def programs(tmp_path_factory):
    """A worker compiles each program once, for the processes that it starts too.

    Workers do not share programs: one might read what another has written half of.
    """
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("programs")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def beside(name):
    """The module of a file in this folder, and its spec, which is yet to be run."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{name}.py")
    return importlib.util.module_from_spec(spec), spec


@pytest.fixture
def toy(monkeypatch):
    """The module of a method for tests of runs, known by the name toy."""
    module, spec = beside("toy")
    monkeypatch.setitem(sys.modules, "toy", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, "toy", module)
    return module


@pytest.fixture(scope="session")
def loopback():
    """The module of the scripted model and its server."""
    module, spec = beside("loopback")
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(loopback, monkeypatch):
    """Starts `Loopback` servers, which see every request in spite of any proxy."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started = []

    def start(answer=loopback.scripted, fault=lambda number, body: None, port=0):
        started.append(loopback.Loopback(answer, fault, port))
        return started[-1]

    yield start
    for server in started:
        server.close()


def pytest_collection_modifyitems(items):
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    reasons = {
        "gpu": "needs a GPU: jax.devices() shows none",
        "parity": f"needs {' and '.join(missing)} to compute the reference again: jaxrec[parity]",
    }
    if any(device.platform == "gpu" for device in jax.devices()):
        del reasons["gpu"]
    if not missing:
        del reasons["parity"]
    for item in items:
        for marker, reason in reasons.items():
            if marker in item.keywords:
                item.add_marker(pytest.mark.skip(reason=reason))

"""What `import jaxrec` reads: not what only some of its users need."""

import json
import subprocess
import sys

import pytest

from jaxrec.methods import METHODS

LOADED = """
import json, sys
import jaxrec
print(json.dumps(sorted(sys.modules)))
"""


@pytest.fixture(scope="module")
def loaded():
    run = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True)
    return set(json.loads(run.stdout))


@pytest.mark.parametrize(
    "name",
    [
        "flax",
        "jaxrec.methods.agentcf.vector_engine",
        "jaxrec.methods.fedcia.method",
        "scipy",
        "matplotlib",
        "orbax",
        "tokenizers",
        "transformers",
        "safetensors",
        "tyro",
        "openai",
    ],
)
def test_what_takes_long_is_read_when_it_is_used(loaded, name):
    assert "jax" in loaded
    assert name not in loaded


def test_a_method_is_one_module_by_whatever_name():
    import jaxrec.methods
    import jaxrec.methods.popularity as imported
    from jaxrec.methods import popularity

    assert METHODS["popularity"] is popularity is imported is jaxrec.methods.popularity
    assert popularity.Config is METHODS["popularity"].Config

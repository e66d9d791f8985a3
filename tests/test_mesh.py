"""Many devices, in one process or two, compute what one computes; a mesh goes with its method."""

import os
import subprocess
import sys

import pytest

import jaxrec
from jaxrec import mesh
from jaxrec.types import SettingError

DATA = dict(users=41, items=40, clients=10, length=14)
QUICK = {"rounds": 2, "evaluate_every": 2, "progress": False, "baselines": (), "text": "tfidf"}
SHORT = {"width": 4, "inner": 4, "heads": 1, "length": 8, "batch": 40}
TINY = {
    "fedavg": {"width": 4, "block": 2},
    "fedmf": {"width": 4},
    "fedcia": {"width": 4, "rank": 8},
    "rqfedrec": {"width": 4},
    "local_only": {"width": 4},
    "sequential": {"width": 4, "inner": 4, "heads": 1, "length": 8, "batch": 40},
    "llmd4rec": {"width": 4, "length": 8, "batch": 40},
    "agentcf": {"groups": 2, "rank": 4, "width": 8, "candidates": 5},
}
SAME = f"""
import sys
import jax
import numpy as np
import jaxrec
from jaxrec.data.synthetic import synthetic

dataset, scores = synthetic(**{DATA}), []
name, axis, settings = sys.argv[1], sys.argv[2], {TINY}[sys.argv[1]]
for mesh in ("", f"{{axis}}=8"):
    run = jaxrec.train(name, dataset, mesh=mesh, **{QUICK}, **settings)
    score = lambda state, data: run.method.score(run.method.prepare(state, data), np.arange(41))
    scores.append(np.asarray(jax.jit(score)(run.state, run.data)))
np.testing.assert_allclose(*scores, atol=1e-3 * np.abs(scores[0]).max(), err_msg=name)
print("equal")
"""


@pytest.mark.parametrize("name", TINY)
def test_eight_devices_equal_one(name):
    pass

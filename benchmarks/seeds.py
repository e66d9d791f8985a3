"""Seeds in one program or one after another: `jax.vmap` over states and keys against a loop.

    python -m benchmarks seeds [--quick]

Each method trains a few rounds on `synthetic` with 4 seeds, 2 with `--quick`, from the same split
and with the same compiled steps; the table says whether the states agree to the bit.
"""

from __future__ import annotations

import jax
import numpy as np

import jaxrec
from benchmarks.common import Bench, timed
from jaxrec.config import read_settings, reads_text
from jaxrec.prepare import prepare

SEEDS, ROUNDS = 4, 5
METHODS = "fedavg", "fedcia", "rqfedrec", "sequential", "agentcf"


def main(bench: Bench, quick: bool) -> None:
    keys = jax.random.split(jax.random.key(0), SEEDS // 2 if quick else SEEDS)
    for name in METHODS:
        run, config = read_settings(name, None, {"data": "synthetic"})
        prepared = prepare(run, text=reads_text(name, config), progress=False)
        method, data = jaxrec.METHODS[name].make(config, prepared.sizes), prepared.data

        def train(key, data, method=method):
            step = lambda state, key: method.step(state, data, key)
            return jax.lax.scan(step, method.init(key, data), jax.random.split(key, ROUNDS))[0]

        forms = {
            "one after another": lambda keys, data, train=train: jax.lax.map(
                lambda key: train(key, data), keys
            ),
            "one vmap": jax.vmap(train, in_axes=(0, None)),
        }
        states = []
        for form, function in forms.items():
            state, timing = timed(function, keys, data)
            states.append(jax.tree.leaves(state))
            bench.report(f"{name}, {len(keys)} seeds, {ROUNDS} rounds, {form}", timing)
        same = all(np.array_equal(one, other) for one, other in zip(*states, strict=True))
        print(f"    same bits: {'yes' if same else 'no'}")

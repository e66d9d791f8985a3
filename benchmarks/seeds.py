"""Seeds in one program or one after another: `jax.vmap` over states and keys against a loop.

    python -m benchmarks seeds [--quick]

Each method trains a few rounds on `synthetic` with 4 seeds, 2 with `--quick`, from the same split
and with the same compiled steps; the table says whether the states agree to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

import jaxrec
from benchmarks.common import Bench, timed
from jaxrec.training.prepared import prepare
from jaxrec.training.settings import read_settings, reads
from jaxrec.types import Method

SEEDS, ROUNDS = 4, 5
SPLITS = {
    "fedavg": "ratio", "fedcia": "ratio", "rqfedrec": "ratio",
    "sequential": "leave-one-out", "agentcf": "leave-one-out",
}  # fmt: skip


def both(method: Method) -> dict[str, Callable]:
    """Functions (keys, data) -> the states that the keys lead to, by what they do."""

    def train(key, data):
        step = lambda state, key: method.step(state, data, key)
        return jax.lax.scan(step, method.init(key, data), jax.random.split(key, ROUNDS))[0]

    in_turn = lambda keys, data: jax.lax.map(lambda key: train(key, data), keys)
    return {"one after another": in_turn, "one vmap": jax.vmap(train, in_axes=(0, None))}


def main(bench: Bench, quick: bool) -> None:
    keys = jax.random.split(jax.random.key(0), SEEDS // 2 if quick else SEEDS)
    for name, split in SPLITS.items():
        run, config = read_settings(name, None, {"data": "synthetic", "split": split})
        prepared = prepare(run, None, reads({name: config}), progress=False)
        method, data = jaxrec.METHODS[name].make(config, prepared.sizes), prepared.data
        states = []
        for form, function in both(method).items():
            state, timing = timed(function, keys, data)
            states.append(jax.tree.leaves(state))
            bench.report(f"{name}, {len(keys)} seeds, {ROUNDS} rounds, {form}", timing)
        same = all(np.array_equal(one, other) for one, other in zip(*states, strict=True))
        print(f"    same bits: {'yes' if same else 'no'}")

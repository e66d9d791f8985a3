"""What a run compiles before it trains: programs, their size, and seconds, cold and warm.

    python -m benchmarks compile [--quick]

Each method runs as far as its first evaluation, with no baselines and no result on the test split,
in a process of its own: once with an empty cache of programs and once more with what that has left.
A line of StableHLO is an operation; programs of eager operations count too. Seconds are those in
which the process traced, lowered or compiled, and CPU seconds those of the whole process, with its
imports, its data and its rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import Bench
from jaxrec.methods import METHODS
from jaxrec.training.settings import build

ASKS = ("agentcf_text",)  # a server of a language model, and compiles little

RUN = """
import json, sys, time
import jax
from jaxrec import train
from jaxrec.training.timing import timed

settings = json.loads(sys.argv[1])
count = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: count.append(event.endswith("backend_compile_duration"))
)
_, seconds = timed(lambda: train(hold_test=True, progress=False, **settings).state)
print(json.dumps([sum(count), seconds.compiling, time.process_time()]))
"""


def main(bench: Bench, quick: bool) -> None:
    del bench  # there is no limit of the device to compare with
    data = "synthetic" if quick else "movielens-100k"
    for method in (name for name in METHODS if name not in ASKS):
        cold, warm, lines = measured(method, data)
        programs, compiling, used = cold
        print(f"{method} on {data}: {programs} programs, {lines:,} lines of StableHLO")
        for name, seconds, again in (
            ("tracing, lowering, compiling", compiling, warm[1]),
            ("CPU of the process", used, warm[2]),
        ):
            print(f"    {name}: {seconds:.1f} s, with the programs kept {again:.1f} s")


def measured(method: str, data: str) -> tuple[list[Any], list[Any], int]:
    """Programs, seconds of compiling and CPU seconds, cold and warm, and lines of StableHLO."""
    run, _ = build(method, {"data": data})
    settings = {"method": method, "data": data, "baselines": [], "rounds": run.evaluate_every}
    with tempfile.TemporaryDirectory() as folder:
        texts = Path(folder) / "texts"
        cache = {
            "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        cold = _process(settings, cache)
        warm = _process(settings, cache)
        # Apart, for writing them takes time.
        _process(settings, {"JAX_DUMP_IR_TO": str(texts), "JAX_DUMP_IR_MODES": "stablehlo"})
        lines = sum(len(text.read_text().splitlines()) for text in texts.glob("*.mlir"))
    return cold, warm, lines


def _process(settings: dict[str, Any], variables: dict[str, str]) -> list[Any]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(settings)],
        env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])

"""Many interactions: bytes and seconds from a parquet of text ids to arrays, and for one round.

    python -m benchmarks large [--quick]

The rows are amazon-books' over and over: each copy has users of its own, the items are the same.
For each method the rows are read, split leave-one-out, federated, packed and planned (`prepare`),
and trained on for one round without evaluation, in a process of its own: the first with an empty
cache, those after it with what that left there. The peak is the most memory that the process had
resident, which counts pages of mapped files that the system may take back, and what Python and JAX
take by themselves. `--quick` leaves the largest size out.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import Bench, Timing

SIZES = (1_000_000, 10_000_000, 100_000_000)
ROUNDS = {  # the methods that are trained, small, and the settings that let them fit
    "popularity": {},
    "fedavg": {"width": 16, "loss": "bpr", "upload": "change", "block": 1},
    "sequential": {"width": 16, "heads": 1, "inner": 2, "length": 20, "loss": "binary"},
}
PATIENT = 10**7  # rows; with more a round of FedAvg takes too long for a benchmark on a CPU


def write(file: Path, wanted: int) -> None:
    """At least `wanted` rows of user, item and timestamp, ids as text, a copy a row group."""
    from jaxrec.data import load

    rows = load("amazon-books").interactions
    user, item = rows["user"].to_numpy(), rows["item"].to_numpy()
    names = lambda mark, start, number: pa.array(f"{mark}{start + n:010}" for n in range(number))
    users, items = int(user.max()) + 1, names("B", 0, int(item.max()) + 1)
    columns = {"item": items.take(pa.array(item)), "timestamp": rows["timestamp"].to_numpy()}
    schema = pa.schema({"item": "string", "timestamp": "int64", "user": "string"})
    with pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for copy in range(-(-wanted // len(rows))):
            own = names("A", copy * users, users).take(pa.array(user))
            writer.write_table(pa.table(columns | {"user": own}))


def measure(file: Path, name: str) -> dict:
    """Seconds of `prepare` for a method and of its round, and the peak after each."""
    import jax

    from jaxrec.methods import method_module
    from jaxrec.training.prepared import prepare
    from jaxrec.training.settings import read_settings, reads

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    asked = {"data": str(file), "split": "leave-one-out", "baselines": ()}
    began = time.perf_counter()
    run, config = read_settings(name, None, asked | ROUNDS[name])
    prepared = prepare(run, **reads({name: config}), progress=False)
    jax.block_until_ready(prepared.data)
    found = {"rows": len(prepared.dataset.interactions), "users": prepared.sizes.users}
    found["prepare"] = time.perf_counter() - began, peak()
    method = method_module(name).make(config, prepared.sizes)
    state = jax.jit(method.init)(jax.random.key(0), prepared.data)
    step = jax.jit(method.step, donate_argnums=0)
    step = step.lower(state, prepared.data, jax.random.key(1)).compile()
    began = time.perf_counter()
    jax.block_until_ready(step(state, prepared.data, jax.random.key(1)))
    found["a round"] = time.perf_counter() - began, peak()
    return found


def main(bench: Bench, quick: bool) -> None:
    for wanted in SIZES[: -1 if quick else None]:
        with tempfile.TemporaryDirectory(prefix="large-") as folder:
            file = Path(folder) / "interactions.parquet"
            write(file, wanted)
            environment = os.environ | {"JAXREC_CACHE": f"{folder}/cache"}
            names = [name for name in ROUNDS if wanted <= PATIENT or name != "fedavg"]
            for name, cache in [(names[0], "empty cache"), *((name, "kept") for name in names)]:
                words = [sys.executable, "-m", "benchmarks.large", str(file), name]
                done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                rows, users = found.pop("rows"), found.pop("users")
                for what, (seconds, peak) in found.items():
                    title = f"{rows:,} rows of {users:,} users, {name}, {cache}: {what}"
                    bench.report(title, Timing(0.0, seconds, 0.0, 1))
                    each = f"{peak / rows:,.0f} bytes a row"
                    print(f"    resident at most so far: {peak / 1e6:,.0f} MB, {each}", flush=True)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2])))

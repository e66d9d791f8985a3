"""A federation of real processes beside its simulation: seconds a round, and where they go.

    python -m benchmarks flower [--quick]

Five clients are processes on this machine, each with a fifth of the users, and the server is this
process; all share its cores. The simulation runs the same rounds on the same rows in one program.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import pandas as pd

from benchmarks.common import Bench
from jaxrec.data.pack import pack
from jaxrec.data.sources import load
from jaxrec.data.split import split
from jaxrec.deployment.catalogue import read_list
from jaxrec.deployment.coordinator import Coordinator
from jaxrec.deployment.flower.superlink import SuperLink
from jaxrec.deployment.opening import open_terms, public_data
from jaxrec.methods import method_module
from jaxrec.training.settings import RunConfig, build

CLIENTS, ROUNDS, PORT = 5, 12, 9391
METHODS = {"fedcia": {}, "fedavg": {}, "fedcia in clear": {"privacy": "plain"}}
IMPORTS = ("jax", "flwr.app", "jaxrec.cli.participate")


def main(bench: Bench, quick: bool) -> None:
    del bench  # seconds here are of processes and messages; no limit of the device bounds them
    data = "synthetic" if quick else "movielens-100k"
    for module in IMPORTS:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        print(f"a process that imports {module}: {time.perf_counter() - began:.1f} s")
    for name, settings in METHODS.items():
        method = name.partition(" ")[0]
        run, config = build(method, {"rounds": ROUNDS, "participation": 1.0, **settings})
        with tempfile.TemporaryDirectory() as folder:
            rows = _files(data, Path(folder))
            connected, first, later, sent, wire = _together(method, run, config, Path(folder))
        alone = _alone(method, config, rows)
        middle, most = np.median(later), max(later)
        print(
            f"{name} on {data}, {CLIENTS} clients: {connected:.1f} s until all are connected, "
            f"{first:.1f} s for the set-up and the first round, then {middle:.2f} s a round (at "
            f"most {most:.2f}); the simulation {alone:.4f} s a round"
        )
        print(
            f"    a client sends {sent[0] / CLIENTS / ROUNDS:,.0f} bytes a round and gets "
            f"{sent[1] / CLIENTS / ROUNDS:,.0f}; Flower adds {wire:,.0f} bytes to a message"
        )


def _files(data: str, folder: Path) -> pd.DataFrame:
    """A table of items and one of rows for each client; returns the rows of all."""
    dataset = load(data)
    items = dataset.items[[name for name in ("item", "title") if name in dataset.items]]
    items.to_csv(folder / "items.csv", index=False)
    rows = dataset.interactions[["user", "item"]]
    rows = rows.assign(client=rows["user"] * CLIENTS // dataset.num_users)
    for client, own in rows.groupby("client"):
        own[["user", "item"]].to_csv(folder / f"{client}.csv", index=False)
    return rows


def _together(method: str, run: RunConfig, config: object, folder: Path):
    """Seconds until clients are connected, of the first round and of later ones; bytes sent."""
    began = time.perf_counter()
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", "jaxrec.participate", f"{folder}/{number}.csv", "--items",
             f"{folder}/items.csv", "--server", f"127.0.0.1:{PORT}", "--insecure", "--quiet",
             "--no-secure-sum", "--out", f"{folder}/client-{number}"],
        )
        for number in range(CLIENTS)
    ]  # fmt: skip
    try:
        with SuperLink("127.0.0.1", PORT, None, timeout=300) as link:
            while len(link.names()) < CLIENTS:
                time.sleep(0.05)
            connected, items = time.perf_counter() - began, read_list(f"{folder}/items.csv")
            terms = open_terms(
                method, run, config, items, link.ask, link.names(), clients=CLIENTS, progress=False
            )
            coordinator = Coordinator(terms, public_data(terms, items), link.ask)
            coordinator.enrol(link.names())
            began, seconds = time.perf_counter(), []
            state = coordinator.init()
            for number in range(ROUNDS):
                state, _ = jax.block_until_ready(coordinator.step(state, number))
                seconds.append(time.perf_counter() - began)
                began = time.perf_counter()
            assert not coordinator.left_out
            up, down, messages = map(sum, zip(*coordinator.sent.values(), strict=True))
            wire = (sum(link.traffic) - up - down) / messages
            return connected, seconds[0], seconds[1:], coordinator.sent["rounds"], wire
    finally:
        for client in clients:
            client.kill()
            client.wait()


def _alone(method: str, config: object, rows: pd.DataFrame) -> float:
    """Seconds of a round that one program simulates on the same rows."""
    dataset = split(load(rows), "ratio", 0.1, 0.2, 0)
    data, sizes = pack(dataset, by_time=False)
    made = method_module(method).make(config, sizes)
    state, step = jax.jit(made.init)(jax.random.key(0), data), jax.jit(made.step)
    seconds = []
    for number in range(ROUNDS):
        began = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, data, jax.random.key(number)))
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds[1:]))

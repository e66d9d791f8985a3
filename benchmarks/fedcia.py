"""One FedCIA round of 100 clients, as the paper describes it and in the factored form.

    python -m benchmarks fedcia [--quick]

The naive form descends ||E E^T - S||_F by automatic differentiation with I x I matrices, one client
after another, and averages I x I uploads; its clients train exactly as ours do. What is too slow
to run whole is timed on a few clients or steps and multiplied, and says so. Work counted: the flop
of the matrix products each form needs; for a round of ours also the bytes of one pass over the
tables and Adam's moments per local step and one over the uploads per server iteration.
`--quick` leaves out I = 17,000 and 100,000. A round alone, with the memory that its process takes:
`python -m benchmarks.fedcia I BLOCK`, BLOCK clients at once.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd

from benchmarks.common import RUNS, Bench, Timing, Work, measure, repeated, timed
from jaxrec.data.pack import pack
from jaxrec.federated import local
from jaxrec.methods import fedcia
from jaxrec.methods.fedcia import similarity
from jaxrec.models.collaborative import Tables
from jaxrec.types import Clients, Data, Dataset, Method, Sizes

CLIENTS, USERS, SMALL, MOVIES, MIDDLE, LARGE = 100, 943, 1_682, 3_706, 17_000, 100_000
CONFIG = fedcia.method.settled(  # the paper's alignment, for an equal result
    fedcia.Config(width=64, align="gradient", privacy="plain", upload="factor")
)
D, R, STEPS, RATE = CONFIG.width, CONFIG.rank, CONFIG.align_steps, CONFIG.align_rate
BLOCK = 4  # clients computed at once at the largest size
MEMORY = 16e9  # bytes a round at the largest size may take


class Problem(NamedTuple):
    method: Method
    data: Data
    sizes: Sizes


def problem(items: int, config: fedcia.Config = CONFIG) -> Problem:
    """ml100k's shape: 943 users of 76 train rows in the mean, 9 or 10 a client, skewed items."""
    rng = np.random.default_rng(0)
    number = np.clip(rng.lognormal(3.95, 0.95, USERS), 10, 600).astype(int)
    popularity = (np.arange(items) + 20.0) ** -0.9
    popularity /= popularity.sum()
    rows = pd.DataFrame({"user": np.repeat(np.arange(USERS), number), "split": 0})
    draws = [rng.choice(items, n, replace=False, p=popularity) for n in number]
    rows["item"], rows["client"] = np.concatenate(draws), rows.user * CLIENTS // USERS
    tables = pd.DataFrame({"item": range(items)}), pd.DataFrame({"user": range(USERS)})
    data, sizes = pack(Dataset("random", rows, *tables))
    return Problem(fedcia.make(config, sizes), data, sizes)


def align_flop(items: int, steps: int) -> float:
    """Of one client: the projections, linear in I, and the iterations, without I."""
    projections = 2 * items * (3 * R * D + 2 * D**2)
    return projections + steps * 2 * (R**2 * D + 2 * R * D**2 + 3 * D**3)


def train_flop(items: int) -> float:
    """Of one client's local training: scores and the gradients of both tables."""
    return CONFIG.local_steps * 3 * 2 * USERS / CLIENTS * items * D


def server_flop(items: int, iterations: int) -> float:
    """Products with the stacked factors, and as many QR decompositions of [I, R]."""
    return (iterations + 1) * (CLIENTS * 4 * items * D * R + 4 * items * R**2)


def round_work(items: int, align: float | None = None) -> Work:
    """A round of ours; the reported distance and the upload's rotation included.

    `align` is the flop of one client's alignment, by default that of the descent.
    """
    extra = 2 * items * (2 * R * D + D**2) + 2 * items * D**2
    align = align_flop(items, STEPS) if align is None else align
    client = align + train_flop(items) + extra
    table = 4.0 * CLIENTS * items * D
    passes = 6 * CONFIG.local_steps + 2 + CONFIG.server_iterations + 1
    flop = CLIENTS * client + server_flop(items, CONFIG.server_iterations)
    return Work(flop, passes * table)


def naive_work(items: int) -> Work:
    """A round of the naive form: three products with I x I a step, and the upload's."""
    product = 2.0 * items**2 * D
    return Work(CLIENTS * (STEPS * 3 * product + product + train_flop(items)))


def naive_align(table: jax.Array, target: jax.Array, steps: int) -> jax.Array:
    """E [I, D] after SGD on ||E E^T - S||_F for a dense S [I, I]."""
    gradient = jax.grad(lambda table: jnp.linalg.norm(table @ table.T - target))
    step = lambda _, table: table - RATE * gradient(table)
    return jax.lax.fori_loop(0, steps, step, table)


def naive_client(total, tables, moments, clients, target, steps):
    """One client's part of a round: align, train, and add its A_c [I, I] to the running sum."""
    tables = Tables(tables.user, naive_align(tables.item, target, steps))
    tables, moments, _ = local.train(
        tables,
        moments,
        clients,
        jax.random.key(0),
        optimizer=optax.adam(CONFIG.learning_rate),
        config=CONFIG,
        items=len(tables.item),
    )
    return total + tables.item @ tables.item.T / CLIENTS, tables, moments


def first_round(setting: Problem):
    """The compiled step, its seconds to compile, and the state after the first round."""
    method, data, _ = setting
    state = jax.jit(method.init)(jax.random.key(0), data)
    start = time.perf_counter()
    step = jax.jit(method.step, donate_argnums=0).lower(state, data, jax.random.key(1)).compile()
    seconds = time.perf_counter() - start
    state, _ = step(state, data, jax.random.key(0))
    return step, seconds, jax.block_until_ready(state)


def naive_round(setting: Problem, state: fedcia.State, steps: int, clients: int) -> Timing:
    """Seconds of a naive round from some whole clients, or from a few steps of one."""
    target = dense(state.shared.similarity)
    bucket = len(setting.data.clients) // 2
    member = lambda tree, c: jax.tree.map(lambda leaf: leaf[c], tree)
    group = state.tables[bucket], state.moments[bucket], setting.data.clients[bucket]
    total, times, compiling = jnp.zeros_like(target), {}, 0.0
    for count in {0, steps} if steps < STEPS else {steps}:
        function = jax.jit(partial(naive_client, steps=count), donate_argnums=0)
        start = time.perf_counter()
        compiled = function.lower(total, *(member(part, 0) for part in group), target).compile()
        compiling += time.perf_counter() - start
        times[count] = []
        for c in range(clients + 1):
            args = [member(part, c) for part in group]
            start = time.perf_counter()
            total, *_ = jax.block_until_ready(compiled(total, *args, target))
            times[count].append(time.perf_counter() - start)
        times[count] = np.array(times[count][1:])  # the first touches its memory for the first time
    whole = times[steps]
    if steps < STEPS:
        rest = np.median(times[0])
        whole = rest + (times[steps] - rest) * STEPS / steps
    low, middle, high = np.percentile(whole, [25, 50, 75])
    return Timing(compiling, CLIENTS * middle, CLIENTS * (high - low) / 2, clients)


def dense(pairs: similarity.Similarity) -> jax.Array:
    """S [I, I]."""
    return (pairs.vectors * pairs.values) @ pairs.vectors.T


def compare_tables(which: str, state: fedcia.State) -> None:
    """How far ours and the naive form lie apart after one alignment from the same start.

    The paper's step is constant while its gradient keeps its length, so close to the minimum the
    descent jumps about and rounding grows; how much is shown by the naive form itself, from a
    start one unit in the last place away.
    """
    table, pairs = state.tables[0].item[0], state.shared.similarity
    factored = partial(similarity.align, steps=STEPS, learning_rate=RATE)
    naive = jax.jit(partial(naive_align, steps=STEPS))
    ours, theirs = jax.jit(factored)(table, pairs), naive(table, dense(pairs))
    nearby = naive(jnp.nextafter(table, jnp.inf), dense(pairs))
    size = jnp.linalg.norm(theirs)
    gap = lambda other: jnp.linalg.norm(other - theirs) / size
    print(
        f"    {which} alignment: tables of ours and of the naive form differ by {gap(ours):.1e}, "
        f"of the naive form and itself by {gap(nearby):.1e}; they moved by {gap(table):.2f}"
    )


def compare_rounds(items: int, bench: Bench, *, steps: int, clients: int) -> None:
    """Ours and the naive form of one round, and how far their aligned tables lie apart."""
    setting = problem(items)
    shapes = ", ".join(f"{len(c.client)} x {c.item.shape[1]:,}" for c in setting.data.clients)
    print(f"\nA round: C={CLIENTS}, I={items:,}, D=R={D}; buckets of clients x rows: {shapes}")
    step, compiling, state = first_round(setting)
    if steps == STEPS:
        compare_tables("first", state)
    keys = jax.random.split(jax.random.key(1), RUNS)
    advance = lambda state, key: step(state, setting.data, key)[0]
    state, ours = repeated(advance, state, keys)
    bench.report(f"a round, I={items:,}, ours", ours._replace(compile=compiling), round_work(items))

    if steps == STEPS:
        compare_tables(f"{state.shared.rounds}th", state)
    naive = naive_round(setting, state, steps, clients)
    part = f"{clients} whole clients" if steps == STEPS else f"{steps} steps of one client"
    bench.report(f"a round, I={items:,}, naive, extrapolated from {part}", naive, naive_work(items))
    print(f"    ours is {naive.median / ours.median:,.0f} times as fast", flush=True)


def procrustes(items: int, bench: Bench) -> None:
    """A round with the default alignment, which needs no descent."""
    setting = problem(items, replace(CONFIG, align="procrustes"))
    step, compiling, state = first_round(setting)
    advance = lambda state, key: step(state, setting.data, key)[0]
    _, timing = repeated(advance, state, jax.random.split(jax.random.key(1), RUNS))
    work = round_work(items, align=2 * items * D * (R + D))
    bench.report(f"a round, I={items:,}, Procrustes", timing._replace(compile=compiling), work)


def parts(bench: Bench) -> None:
    """Where a round of ours at the smallest size spends its time, and the server's eigenpairs."""
    setting = problem(SMALL)
    step, _, state = first_round(setting)
    old = jax.tree.map(jnp.copy, state.shared.similarity)  # the next step consumes the state
    state, _ = step(state, setting.data, jax.random.key(2))
    table, pairs = jnp.concatenate([t.item for t in state.tables]), state.shared.similarity
    print(f"\nParts of that round, each alone: C={CLIENTS}, I={SMALL:,}")

    align = partial(similarity.align, steps=STEPS, learning_rate=RATE)
    every = lambda function: jax.vmap(function, (0, None))
    work = Work(CLIENTS * align_flop(SMALL, STEPS))
    bench.report("alignment", timed(every(align), table, pairs)[1], work)
    _, timing = timed(every(similarity.distance), table, pairs)
    work = Work(CLIENTS * 2.0 * SMALL * (2 * R * D + D**2))
    bench.report("the reported distance", timing, work)
    _, timing = timed(jax.vmap(similarity.rotate), table, clients_keys())
    bench.report("rotation of the upload", timing, Work(CLIENTS * 2.0 * SMALL * D**2))
    _, timing = timed(train_all, state.tables, state.moments, setting.data.clients)
    passes = 6.0 * CONFIG.local_steps * table.nbytes
    bench.report("local training", timing, Work(CLIENTS * train_flop(SMALL), passes))

    weights = jnp.full(CLIENTS, 1 / CLIENTS)

    def server(table, start, iterations):
        operator = similarity.stacked([table], [weights])
        return similarity.top_eigenpairs(operator, start, iterations)[0]

    print(f"\nThe server's {R} leading eigenpairs, C={CLIENTS}, I={SMALL:,}")
    exact, whole = timed(dense_pairs, table)
    work = Work(2.0 * SMALL**2 * CLIENTS * D + 4 / 3 * SMALL**3)
    bench.report("dense: mean of E E^T, then eigh", whole, work)
    size = jnp.linalg.norm(exact.values)
    for iterations in (CONFIG.server_iterations, 8):
        found, timing = timed(partial(server, iterations=iterations), table, old.vectors)
        work = Work(server_flop(SMALL, iterations))
        bench.report(f"subspace, warm start, {iterations} iterations", timing, work)
        # <V L V^T, W M W^T> = sum_rs l_r m_s <v_r, w_s>^2
        cross = (found.vectors.T @ exact.vectors) ** 2
        gap = found.values**2 @ jnp.ones(R) + size**2 - 2 * found.values @ cross @ exact.values
        print(
            f"    {whole.median / timing.median:,.1f} times as fast as dense; relative error of "
            f"S_R {jnp.sqrt(jnp.maximum(gap, 0)) / size:.1e}, of its trace "
            f"{1 - found.values.sum() / exact.values.sum():.1e}",
            flush=True,
        )


def clients_keys() -> jax.Array:
    return jax.random.split(jax.random.key(0), CLIENTS)


def train_all(tables, moments, buckets):
    """Local training of every bucket, nothing else."""

    def train(tables, moments, clients: Clients):
        optimizer = optax.adam(CONFIG.learning_rate)
        key = jax.random.key(0)
        return local.train(
            tables, moments, clients, key,
            optimizer=optimizer, config=CONFIG, items=len(tables.item),
        )  # fmt: skip

    return [jax.vmap(train)(*group) for group in zip(tables, moments, buckets, strict=True)]


def dense_pairs(table: jax.Array) -> similarity.Similarity:
    """The leading pairs from S [I, I] itself; table [C, I, D]."""
    stacked = jnp.moveaxis(table, 0, 1).reshape(table.shape[1], -1)
    values, vectors = jnp.linalg.eigh(stacked @ stacked.T / CLIENTS)
    return similarity.Similarity(vectors[:, : -R - 1 : -1], values[: -R - 1 : -1])


def alignment(sizes: tuple[int, ...], bench: Bench, clients: int = 10) -> None:
    """Alignment time by I: iterations by difference of 1,001 steps and 1, projections the rest."""
    print(f"\nAlignment of {clients} clients, {STEPS} steps, D=R={D}")
    for items in sizes:
        keys = jax.random.split(jax.random.key(0), clients + 2)
        vectors = jnp.linalg.qr(jax.random.normal(keys[0], (items, R)))[0]
        # As after some rounds of training: spectra of S and E E^T fall off alike.
        values = jnp.sort(items * 0.02 * jax.random.uniform(keys[1], (R,)))[::-1]
        pairs = similarity.Similarity(vectors, values)
        table = jax.vmap(lambda key, n=items: 0.1 * jax.random.normal(key, (n, D)))(keys[2:])
        times = []
        for steps in (1, 1 + 10 * STEPS):
            one = partial(similarity.align, steps=steps, learning_rate=RATE)
            times.append(timed(jax.vmap(one, (0, None)), table, pairs)[1])
        short, long = times
        spread = (short.spread**2 + long.spread**2) ** 0.5
        iterations = Timing(long.compile, (long.median - short.median) / 10, spread / 10, long.runs)
        work = align_flop(items, STEPS) - align_flop(items, 0)
        bench.report(f"I={items:,}: iterations", iterations, Work(clients * work))
        work = Work(clients * align_flop(items, 1))
        bench.report(f"I={items:,}: projections and one step", short, work)


def own_process(items: int, block: int) -> None:
    """Rounds of ours in a process of its own, for its peak memory."""
    command = [sys.executable, "-m", "benchmarks.fedcia", str(items), str(block)]
    subprocess.run(command, check=True)


def measured_round(items: int, block: int, bench: Bench) -> None:
    """A round of ours: seconds, what XLA plans to hold, and the most the process ever held."""
    setting = problem(items, replace(CONFIG, block=block))
    print(
        f"\nA round in a process of its own, 4 clients at once: C={CLIENTS}, I={items:,}, D=R={D}"
    )
    step, compiling, state = first_round(setting)
    advance = lambda state, key: step(state, setting.data, key)[0]
    _, ours = repeated(advance, state, jax.random.split(jax.random.key(1), RUNS))
    bench.report("ours", ours._replace(compile=compiling), round_work(items))
    plan, peak = step.memory_analysis(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0
    assert plan, "XLA tells what a round takes on CPUs and GPUs"
    print(
        f"    peak {peak / 1e9:.1f} GB resident, {'within' if peak <= MEMORY else 'OVER'} "
        f"{MEMORY / 1e9:.0f} GB; XLA: state and data {plan.argument_size_in_bytes / 1e9:.1f} GB, "
        f"in place {plan.alias_size_in_bytes / 1e9:.1f} GB, "
        f"temporary {plan.temp_size_in_bytes / 1e9:.1f} GB",
        flush=True,
    )


def main(bench: Bench, quick: bool) -> None:
    compare_rounds(SMALL, bench, steps=STEPS, clients=1 if quick else 3)
    procrustes(MOVIES, bench)
    parts(bench)
    alignment((SMALL,) if quick else (SMALL, MIDDLE, LARGE), bench)
    if not quick:
        compare_rounds(MIDDLE, bench, steps=2, clients=2)
        own_process(LARGE, BLOCK)


if __name__ == "__main__":
    measured_round(int(sys.argv[1]), int(sys.argv[2]), measure())

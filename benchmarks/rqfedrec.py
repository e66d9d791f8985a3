"""One RQFedRec round of 600 of 6,040 one-user clients, ML-1M's shape: full catalogue, and sampled.

    python -m benchmarks rqfedrec [--quick]

Forms of the round side by side, FedMF's beside them, and the naive form: one client after another,
the code vectors of all items gathered [I, P, D], gradients by automatic differentiation; timed on
21 clients and multiplied. Then rounds with 1,024 sampled rivals as the catalogue grows.

Work counted. FLOP of the products as computed: two for each user step and one for the scores, with
[J, D + 1] features; each client's sums by code, with the 0/1 matrix [I, P K]; or, where plain
gradients are averaged, one product for the gradient of the item table. Bytes: what users chose
[C, J], written once and read in every user step and at the end; features gathered in the sampled
mode; uploads [P, K, D], written and read. A context adds the fit of users to older rows and, for
each row that is predicted, its scores and their way back. All of it may stay in a large cache.
`--quick` leaves out the larger catalogues, the naive form and most codecs.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from benchmarks.common import Bench, Timing, Work, repeated, timed
from jaxrec.data.pack import pack
from jaxrec.federated import codecs
from jaxrec.methods import fedavg, rqfedrec
from jaxrec.ops import fold_in, quantize
from jaxrec.types import Data, Dataset, Method, Sizes

COHORT, USERS, ITEMS, TEXT = 600, 6_040, 3_706, 64
SAMPLED_USERS, NEGATIVES, CATALOGUES = 2_000, 1_024, (3_706, 37_060, 370_600, 1_000_000)
NAIVE = 3  # clients of each bucket that the naive form is timed on
CONFIG = rqfedrec.Config(
    codes=64, start="cold", passes=1, participation=COHORT / USERS, privacy="plain", text_scale=0.0,
    next_rows=0,
)  # fmt: skip
FEDMF = fedavg.Config(
    width=CONFIG.width, loss="softmax", layers=0, upload="gradient", damping=CONFIG.damping,
    local_steps=CONFIG.user_steps, participation=COHORT / USERS, privacy="plain",
)  # fmt: skip


class Problem(NamedTuple):
    data: Data
    sizes: Sizes


def problem(users: int, items: int) -> Problem:
    """ML-1M's shape: 164 rows a user in the mean, 18 to 2,000, skewed items; random text vectors.

    How many rows a user has does not depend on `items`.
    """
    rng = np.random.default_rng(0)
    number = np.clip(rng.lognormal(4.65, 0.95, users), 18, 2_000).astype(int)
    popularity = np.cumsum((np.arange(items) + 30.0) ** -0.9)

    def draw(n: int) -> np.ndarray:
        found = np.empty(0, int)
        while len(found) < n:
            more = np.searchsorted(popularity, popularity[-1] * rng.random(4 * n))
            found = pd.unique(np.append(found, more))
        return found[:n]

    rows = pd.DataFrame({"user": np.repeat(np.arange(users), number), "split": 0})
    rows["item"], rows["client"] = np.concatenate([draw(n) for n in number]), rows.user
    rows["timestamp"] = np.arange(len(rows))
    tables = pd.DataFrame({"item": range(items)}), pd.DataFrame({"user": range(users)})
    data, sizes = pack(Dataset("random", rows, *tables))
    return Problem(data._replace(text=jnp.asarray(rng.standard_normal((items, TEXT)), "f4")), sizes)


def first_state(setting: Problem, method: Method) -> Any:
    """A state before the first round; says what it took, compilation included."""
    start = time.perf_counter()
    state = jax.block_until_ready(jax.jit(method.init)(jax.random.key(0), setting.data))
    print(f"set-up and its compilation: {time.perf_counter() - start:.1f} s", flush=True)
    return state


def rounds(method: Method, data: Data, state: Any, runs: int = 12) -> tuple[Any, Timing]:
    """The compiled step and its time over `runs` rounds after two first ones; `state` stays."""
    start = time.perf_counter()
    step = jax.jit(method.step, donate_argnums=0).lower(state, data, jax.random.key(0)).compile()
    compiling = time.perf_counter() - start
    advance = lambda state, key: step(state, data, key)[0]
    keys = jax.random.split(jax.random.key(1), runs + 2)
    state, _ = repeated(advance, jax.tree.map(jnp.copy, state), keys[:2])
    return step, repeated(advance, state, keys[2:])[1]._replace(compile=compiling)


def work(config: rqfedrec.Config, items: int) -> Work:
    """Of a round over the full catalogue."""
    scores, levels = COHORT * items, 2 * config.levels
    flop = 2.0 * scores * (config.width + 1) * (2 * config.user_steps + 1)
    moved = 4.0 * scores * (2 + config.user_steps)
    if config.uplink == "float32" and config.codebook_steps == 1:
        return Work(flop + 2.0 * scores * config.width, moved)
    # A step on a client's own codebooks looks its scores up by the same matrix.
    products = 1 if config.codebook_steps == 1 else 2 * config.codebook_steps
    uploads = COHORT * levels * config.codes * config.width
    flop += products * 2.0 * scores * levels * config.codes
    if config.next_rows:  # users fitted to older rows in twice the steps, then two products a row
        flop += 2.0 * scores * (config.width + 1) * 4 * config.user_steps
        flop += 2.0 * scores * config.width * 2 * config.next_rows
        moved += 4.0 * scores * (2 * config.user_steps + 2 * config.next_rows)
        uploads *= 2
    return Work(flop, moved + 2 * 4.0 * config.codebook_steps * uploads)


def say_traffic(method: Method) -> None:
    up, down = method.traffic.up, method.traffic.down
    print(f"    a client and round: {up:,.0f} B up, {down:,.0f} B down", flush=True)


def full_catalogue(bench: Bench, quick: bool) -> None:
    """The forms of a round, FedMF's, the largest product alone, and the naive form."""
    setting = problem(USERS, ITEMS)
    data, sizes = setting
    shapes = ", ".join(f"{len(c.client)} x {c.item.shape[1]:,}" for c in data.clients)
    print(
        f"\nA round: C={COHORT} of {USERS:,}, I={ITEMS:,}, D={CONFIG.width}, 2 x {CONFIG.levels} x "
        f"K codes, {CONFIG.user_steps} user steps; buckets of clients x rows: {shapes}"
    )
    forms = {
        "K=64, float32 uplink (users first, one product)": {"uplink": "float32"},
        "K=64, int8 uplink": {},
        "K=64, int4 uplink": {"uplink": "int4"},
        "K=64, sign uplink": {"uplink": "sign"},
        "K=64, int8 uplink, 3 steps on each client's own codebooks": {"codebook_steps": 3},
        "K=256, int8 uplink": {"codes": 256},
        "K=64, int8 uplink, context learned from 16 rows": {"next_rows": 16},
    }
    start, timings = {}, []
    for name, settings in list(forms.items())[: 2 if quick else None]:
        config = replace(CONFIG, **settings)
        method = rqfedrec.make(config, sizes)
        if (size := (config.codes, config.next_rows)) not in start:
            start[size] = first_state(setting, method)
        state = start[size]
        if config.uplink == "sign":  # the one form whose clients keep what was rounded off
            shape = state.shared.codebooks.shape
            error = tuple(jnp.zeros((len(c.client), *shape)) for c in data.clients)
            state = state._replace(error=error)
        _, timing = rounds(method, data, state)
        bench.report(name, timing, work(config, ITEMS))
        say_traffic(method)
        timings.append(timing)

    method = fedavg.make(FEDMF, sizes)
    _, timing = rounds(method, data, first_state(setting, method))
    # FedMF's features lack the popularity column: D in place of D + 1.
    products = 2.0 * COHORT * ITEMS * CONFIG.width * (2 * CONFIG.user_steps + 2)
    bench.report("FedMF", timing, Work(products, work(CONFIG, ITEMS).bytes))
    say_traffic(method)

    user, table = jnp.ones((COHORT, CONFIG.width + 1)), jnp.ones((CONFIG.width + 1, ITEMS))
    _, timing = timed(jnp.matmul, user, table)
    flop, moved = 2.0 * user.size * ITEMS, 4.0 * (user.size + table.size + COHORT * ITEMS)
    bench.report("the product of users and features alone", timing, Work(flop, moved))
    if not quick:
        compare_naive(setting, start[CONFIG.codes, 0], timings[0], bench)


def compare_naive(setting: Problem, state: rqfedrec.State, ours: Timing, bench: Bench) -> None:
    """The naive form on a few clients, the same that ours takes all at once for the comparison."""
    few = lambda tree: jax.tree.map(lambda leaf: leaf[:NAIVE], tree)
    data = setting.data._replace(clients=tuple(few(c) for c in setting.data.clients))
    state = rqfedrec.State(state.shared, tuple(map(few, state.user)), tuple(map(few, state.error)))
    config = replace(CONFIG, uplink="float32", participation=1.0)
    after, _ = jax.jit(rqfedrec.make(config, setting.sizes).step)(state, data, jax.random.key(0))
    change = after.shared.moments[0].mu[0] / 0.1  # Adam's first moment is a tenth of its input

    shared = state.shared
    sent = codecs.round_trip(shared.codebooks, config.downlink)
    features = jnp.append(
        quantize.decode(shared.codes.table, sent), shared.popularity[:, None], axis=1
    )[shared.anchors]
    curvature = fold_in.curvature(features, jnp.full(len(features), 1 / len(features)))
    client = jax.jit(partial(naive_client, config=config))
    total, seconds, weight = 0.0, [], 0.0
    for users, clients in zip(state.user, data.clients, strict=True):
        for c, user in enumerate(users[:, 0]):
            chosen = jnp.zeros(ITEMS).at[clients.item[c]].add(clients.mask[c])
            args = sent, user, chosen, shared.codes.table, shared.popularity, curvature
            jax.block_until_ready(client(*args))
            begin = time.perf_counter()
            total += jax.block_until_ready(client(*args))
            seconds.append(COHORT * (time.perf_counter() - begin))
            weight += clients.weight[c]
    low, middle, high = np.percentile(seconds, [25, 50, 75])
    timing = Timing(0.0, middle, (high - low) / 2, len(seconds))
    bench.report(f"naive, K=64, float32 uplink (from {len(seconds)} clients)", timing, Work())
    gap = jnp.linalg.norm(total / weight - change) / jnp.linalg.norm(change)
    print(
        f"    ours is {middle / ours.median:,.0f} times as fast; their mean codebook gradients of "
        f"the {len(seconds)} clients differ by {gap:.1e}",
        flush=True,
    )


def naive_client(codebooks, user, chosen, codes, popularity, curvature, config) -> jax.Array:
    """One client's codebook gradient [P, K, D], code vectors gathered wherever scores are made."""

    def loss(codebooks, user):
        vectors = codebooks[jnp.arange(codes.shape[1]), codes]  # [I, P, D]
        scores = jnp.sum(vectors, axis=1) @ user[:-1] + user[-1] * popularity
        return -jnp.vdot(chosen, jax.nn.log_softmax(scores))

    prior = jnp.zeros_like(user).at[-1].set(1.0)
    scale = 1 / (chosen.sum() * curvature.values + config.l2)
    for _ in range(config.user_steps):
        gradient = jax.grad(loss, 1)(codebooks, user) + config.l2 * (user - prior)
        user -= config.damping * curvature.vectors @ (scale * (gradient @ curvature.vectors))
    return jax.grad(loss)(codebooks, user)


def sampled_catalogues(bench: Bench, quick: bool) -> None:
    """A round with sampled rivals as only the number of items grows."""
    config = replace(CONFIG, negatives=NEGATIVES, participation=COHORT / SAMPLED_USERS)
    for items in CATALOGUES[: 2 if quick else None]:
        setting = problem(SAMPLED_USERS, items)
        data, sizes = setting
        print(f"\nA round with {NEGATIVES:,} rivals: C={COHORT} of {SAMPLED_USERS:,}, I={items:,}")
        method = rqfedrec.make(config, sizes)
        step, timing = rounds(method, data, first_state(setting, method))
        shares = [(len(c.client) * config.participation, c.item.shape[1]) for c in data.clients]
        scores = sum(share * (rows + NEGATIVES) for share, rows in shares)
        columns = config.width + 1
        products = 2.0 * scores * columns * (2 * config.user_steps + 1)
        moved = 4.0 * scores * (2 + config.user_steps + 2 * columns + 2 * config.levels)
        uploads = 8.0 * COHORT * 2 * config.levels * config.codes * config.width
        bench.report(f"I={items:,}", timing, Work(products, moved + uploads))
        plan = step.memory_analysis()
        print(
            f"    {resident() / 1e9:.2f} GB resident; XLA: state and data "
            f"{plan.argument_size_in_bytes / 1e6:,.0f} MB, in place "
            f"{plan.alias_size_in_bytes / 1e6:,.0f} MB, temporary "
            f"{plan.temp_size_in_bytes / 1e6:,.0f} MB",
            flush=True,
        )


def resident() -> float:
    """Bytes of this process in memory now (Linux)."""
    with open("/proc/self/statm") as file:
        return float(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(bench: Bench, quick: bool) -> None:
    full_catalogue(bench, quick)
    sampled_catalogues(bench, quick)

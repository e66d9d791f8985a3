"""How the seconds of a round grow: with clients, with items, with users.

    python -m benchmarks scale [--quick]

Each curve takes one size from small to large while everything else stands still, and is a round of
a method, compiled, on random rows: ten a user, items skewed. The exponent is the slope of the
seconds over the size, both as logarithms, over the larger half of a curve; beside it stands the
one that the algorithm's work should have. Less means that something else still outweighs the work.
`--quick` leaves the largest size of each curve out.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from benchmarks.common import RUNS, Bench, Timing, repeated
from jaxrec.data.pack import history, pack
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.federated.uploads import Table, summed
from jaxrec.methods import agentcf, fedavg, fedcia, rqfedrec, sequential
from jaxrec.methods.fedcia import newton
from jaxrec.methods.fedcia.similarity import Similarity
from jaxrec.types import TEST, TRAIN, Clients, Data, Dataset, Method

ROWS, TEXT = 10, 32
BLOCK, STREAM_ITEMS = 10_000, 10_000  # clients at once of a round whose rows are never all there


class Curve(NamedTuple):
    """Seconds over one size; of the full ranking of random vectors, where no method is given."""

    name: str
    sizes: tuple[int, ...]
    exponent: float  # of the work
    problem: Callable[[int], tuple[int, int, int]]  # size -> users, clients, items
    method: ModuleType | None = None
    config: Any = None


FEW = 1_000
STREAMED = (100_000, 1_000_000, 10_000_000)
CLIENTS, ITEMS = (100, FEW, 10_000, 100_000), (FEW, 10_000, 100_000, 1_000_000)
by_clients = lambda size: (size, size, FEW)
by_users = lambda size: (size, 1, FEW)
by_items = lambda size: (FEW, FEW, size)

PAIRS = fedavg.Config(
    width=16, loss="bpr", upload="change", local_steps=1, block=256, privacy="plain"
)
CODES = rqfedrec.Config(
    width=16, codes=16, levels=2, negatives=256, start="cold", passes=1, block=256,
    next_rows=0,
)  # fmt: skip
SLOPES = fedcia.Config(width=16, block=256, privacy="plain")
NEXT = sequential.Config(width=32, length=10, batch=2_560, heads=1)
AGENTS = agentcf.Config(groups=4)
CURVES = (
    Curve("FedAvg, clients", CLIENTS, 1, by_clients, fedavg, PAIRS),
    Curve("RQFedRec, clients", CLIENTS, 1, by_clients, rqfedrec, CODES),
    Curve("RQFedRec, items", ITEMS, 0, by_items, rqfedrec, CODES),
    Curve("FedCIA, clients", CLIENTS, 1, by_clients, fedcia, SLOPES),
    Curve("FedCIA, items", ITEMS, 1, by_items, fedcia, SLOPES),
    Curve("FedCIA, streamed users", STREAMED, 1, by_clients),
    Curve("SASRec, users", CLIENTS[1:], 1, by_users, sequential, NEXT),
    Curve("SASRec, items", ITEMS[:3], 1, by_items, sequential, NEXT),
    Curve("AgentCF++, users", CLIENTS[1:], 1, by_users, agentcf, AGENTS),
    Curve("full ranking, users", CLIENTS[1:], 1, by_users),
    Curve("full ranking, items", ITEMS[:3], 1, by_items),
)


def dataset(users: int, clients: int, items: int) -> Dataset:
    """`ROWS` train rows and one test row a user, items skewed, two domains, in a random order."""
    rng = np.random.default_rng(0)
    total = np.cumsum((np.arange(items) + 30.0) ** -0.9)
    drawn = np.searchsorted(total, total[-1] * rng.random((users, ROWS + 1)))
    user = np.repeat(np.arange(users), ROWS + 1)
    rows = pd.DataFrame({"user": user, "item": np.minimum(drawn, items - 1).ravel()})
    rows["split"] = np.tile([TRAIN] * ROWS + [TEST], users)
    rows["client"], rows["timestamp"] = rows["user"] * clients // users, np.arange(len(rows))
    rows = rows.drop_duplicates(["user", "item"], ignore_index=True)
    described = pd.DataFrame({"item": range(items), "domain": np.arange(items) % 2})
    return Dataset("random", rows, described, pd.DataFrame({"user": range(users)}))


def seconds(curve: Curve, size: int) -> Timing:
    """Of a round, or of the evaluation."""
    if curve.sizes == STREAMED:
        return _streamed(size)
    made = dataset(*curve.problem(size))
    if curve.method is None:
        return _evaluation(made)
    data, sizes = pack(made)
    text = np.random.default_rng(1).standard_normal((sizes.items, TEXT), np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    domain = jnp.asarray(made.items["domain"].to_numpy(), jnp.int32)
    data = data._replace(text=jnp.asarray(text), domain=domain, history=history(made))
    return _round(curve.method.make(curve.config, sizes), data)


def _round(method: Method, data: Data) -> Timing:
    state = jax.jit(method.init)(jax.random.key(0), data)
    step = jax.jit(method.step, donate_argnums=0)
    advance = lambda state, key: step(state, data, key)[0]
    keys = jax.random.split(jax.random.key(1), RUNS + 1)
    state = jax.block_until_ready(advance(state, keys[0]))
    return repeated(advance, state, keys[1:])[1]


def _streamed(users: int) -> Timing:
    """A round of so many clients of one user whose rows are made block by block, and forgotten."""
    config = fedcia.method.settled(SLOPES)
    similarity = newton.of_table(jax.random.normal(jax.random.key(0), (STREAM_ITEMS, 16)) / 10)

    def block(number: jax.Array) -> Clients:
        key = jax.random.fold_in(jax.random.key(1), number)
        skewed = jax.random.uniform(key, (BLOCK, ROWS)) ** 3  # few items have most rows
        item = (STREAM_ITEMS * skewed).astype(jnp.int32)
        ids = number * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
        nobody = jnp.zeros_like(item)
        return Clients(nobody, item, nobody == 0, ids[:, None], ids, jnp.ones(BLOCK))

    def advance(similarity: Similarity, _: int) -> Similarity:
        train = lambda clients: newton.train(config, similarity, (), clients, None)[0]

        def add(total: Table, number: jax.Array) -> tuple[Table, None]:
            found = summed(jax.vmap(train)(block(number)), jnp.ones(BLOCK))
            return jax.tree.map(jnp.add, total, found), None

        start = Table(jnp.zeros((STREAM_ITEMS, 16)), jnp.zeros((16, 16)))
        total, _ = jax.lax.scan(add, start, jnp.arange(users // BLOCK))
        return newton.moved(config, similarity, newton.slope_of(similarity, total))

    step = jax.jit(advance)
    similarity = jax.block_until_ready(step(similarity, 0))
    return repeated(step, similarity, range(2))[1]


def _evaluation(made: Dataset) -> Timing:
    vectors = lambda number: jnp.asarray(
        np.random.default_rng(0).standard_normal((number, 32), np.float32)
    )
    method = Method(
        init=None, step=None, prepare=lambda state, data: state,
        score=lambda served, users: served[0][users] @ served[1].T,
    )  # fmt: skip
    evaluate = evaluator(method, make_plan(made, TEST), lists=False)
    state = vectors(made.num_users), vectors(made.num_items)
    evaluate(state, None)
    return repeated(lambda *_: evaluate(state, None).means["MRR"], None, range(RUNS))[1]


def exponent(sizes: list[int], times: list[float]) -> float:
    """The slope of log seconds over log size, over the larger half of the sizes, at least two."""
    last = max(2, -(-len(sizes) // 2))
    return float(np.polyfit(np.log(sizes[-last:]), np.log(times[-last:]), 1)[0])


def main(bench: Bench, quick: bool) -> None:
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for curve in CURVES:
        sizes = list(curve.sizes[: -1 if quick else None])
        times = []
        for size in sizes:
            timing = seconds(curve, size)
            bench.report(f"{curve.name}: {size:,}", timing)
            times.append(timing.median)
        found = exponent(sizes, times)
        print(f"{curve.name}: exponent {found:.2f}, of the work {curve.exponent:.0f}", flush=True)
        axes.plot(sizes, times, "o-", label=f"{curve.name}: {found:.2f} ({curve.exponent:.0f})")
    axes.set(xscale="log", yscale="log", xlabel="clients, items or users", ylabel="seconds a round")
    axes.legend(fontsize="x-small", title="exponent (of the work)")
    axes.set_title(bench.device)
    bench.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(bench.out / "scale.png", dpi=150)
    plt.close(figure)

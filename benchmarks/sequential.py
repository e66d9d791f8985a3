"""A SASRec epoch of ML-1M's shape: B = 128 rows, L = 200, D = 64, softmax over the full catalogue.

    python -m benchmarks sequential [--quick]

The epoch as `methods/sequential.py` takes it, then its parts on the first batch: the network, and
the loss with its gradients in three forms: by rows (`losses.next_item`), by automatic
differentiation of the whole scores [N, I], and by columns, chunk after chunk of the catalogue with
the scores computed twice. Last, how rows are filled with several users in each and with one.

Work counted. FLOP: the products of real places, forward and twice again backward; attention over
all L places of a row. Bytes, the memory floor: weights, gradients and AdamW's two moments, read and
written once a step; what a layer makes, [N, D] and [N, L], and its gradient, written and read once;
the scores [N, I], written and read once, where a form keeps them; by rows they stay in the cache.
`--quick` takes a twentieth of the users.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.common import Bench, Work, timed
from jaxrec.data.rows import Rows, fill_rows
from jaxrec.methods import sequential
from jaxrec.ops import losses
from jaxrec.types import Data, History, Sizes

USERS, ITEMS, ROWS, LENGTH, WIDTH = 6_040, 3_706, 128, 200, 64
CONFIG = sequential.Config(
    width=WIDTH, layers=2, heads=1, inner=1, length=LENGTH, batch=ROWS * LENGTH, dropout=0.2
)


def problem(users: int) -> Data:
    """ML-1M's shape: 164 rows a user in the mean, 18 to 2,000; skewed items at random."""
    rng = np.random.default_rng(0)
    number = np.clip(rng.lognormal(4.65, 0.95, users), 18, 2_000).astype(int)
    chance = (np.arange(ITEMS) + 30.0) ** -0.9
    item = rng.choice(ITEMS, number.sum(), p=chance / chance.sum())
    start = np.append(0, np.cumsum(number))
    arrays = History(np.repeat(np.arange(users), number), item, start, np.arange(number.sum()))
    return Data((), History(*(jnp.asarray(array, jnp.int32) for array in arrays)))


def softmax_work(places: int, kept: bool = False) -> Work:
    """Of the loss and its gradients; `kept`: the scores are written to memory and read again."""
    return Work(6.0 * places * ITEMS * WIDTH, 4.0 * places * ITEMS * 2 * kept)


def network_work(places: int, slots: int) -> Work:
    inner = CONFIG.inner * WIDTH
    block = places * (4 * WIDTH**2 + 2 * WIDTH * inner) + 2 * slots * LENGTH * WIDTH
    made = places * (8 * WIDTH + 2 * inner) + slots * LENGTH * CONFIG.heads
    return Work(6.0 * CONFIG.layers * block, 4.0 * CONFIG.layers * made * 4)


def whole_scores(hidden, table, target, *, where):
    """The loss without chunks, by automatic differentiation."""
    share = jax.nn.log_softmax(hidden @ table.T)
    gain = jnp.take_along_axis(share, target[:, None], axis=1, mode="clip")[:, 0]
    return -jnp.sum(gain, where=where)


def by_columns(hidden, table, target, *, where, chunk=1_024):
    """The loss over chunks of the catalogue, each computed again for its gradient."""
    padding = -len(table) % chunk
    tables = jnp.pad(table, ((0, padding), (0, 0))).reshape(-1, chunk, table.shape[1])
    there = (jnp.arange(len(table) + padding) < len(table)).reshape(-1, chunk)

    @jax.checkpoint
    def add(carry, part):
        top, total = carry
        scores = jnp.where(part[1], hidden @ part[0].T, -jnp.inf)
        higher = jax.lax.stop_gradient(jnp.maximum(top, scores.max(1)))
        total = total * jnp.exp(top - higher) + jnp.exp(scores - higher[:, None]).sum(1)
        return (higher, total), None

    start = jnp.full(len(hidden), -1e30), jnp.zeros(len(hidden))
    (top, total), _ = jax.lax.scan(add, start, (tables, there))
    own = jnp.sum(hidden * table.at[target].get(mode="clip"), axis=1)
    return jnp.sum(jnp.log(total) + top - own, where=where)


def epoch(bench: Bench, data: Data) -> tuple[Rows, Any]:
    """The method's own epoch; returns its rows and the model's weights."""
    users = len(data.history.start) - 1
    method = sequential.make(CONFIG, Sizes(users, ITEMS, users))
    state = jax.jit(method.init)(jax.random.key(0), data)
    order = jax.random.permutation(jax.random.key(2), users)
    fill = partial(fill_rows, items=ITEMS, length=LENGTH, ahead=1, multiple=ROWS)
    (rows, used), laying = timed(fill, data.history, order)
    places, steps = int((rows.item < ITEMS).sum()), -(-int(used) // ROWS)
    weights = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    print(
        f"\nAn epoch: {users:,} users, {places:,} places in {int(used):,} rows, "
        f"{places / (int(used) * LENGTH):.0%} full (one user a row: "
        f"{places / (users * LENGTH):.0%}), laid in {laying.median * 1e3:.0f} ms; "
        f"{steps} steps, {weights:,} weights"
    )
    _, timing = timed(method.step, state, data, jax.random.key(1))
    parts = softmax_work(places), network_work(places, steps * ROWS * LENGTH)
    flop = sum(part.flop for part in parts)
    moved = sum(part.bytes for part in parts) + 4.0 * 8 * steps * weights
    bench.report("SASRec epoch", timing, Work(flop, moved))
    floor = moved / bench.copy
    print(f"    {timing.median / floor:.2f} times the memory floor, {floor:.2f} s", flush=True)
    return rows, state.params


def parts(bench: Bench, rows: Rows, params: Any) -> None:
    """The network and the loss on one batch, forward and backward."""
    batch = rows.batch(jnp.int32(0), ROWS)
    target, where = batch.target.ravel(), batch.item.ravel() < ITEMS
    places = int(where.sum())
    graphdef = nnx.graphdef(sequential.build(jax.random.key(0), CONFIG, ITEMS))
    run = lambda params, key: nnx.merge(graphdef, params)(batch.item, batch.position, key=key)
    train = jax.grad(lambda params, key: jnp.sum(run(params, key) ** 2))
    print(f"\nA batch: {ROWS} rows, {places:,} places of {target.size:,}")
    _, timing = timed(train, params, jax.random.key(0))
    bench.report("network with dropout", timing, network_work(places, target.size))

    hidden, table = run(params, None).reshape(-1, WIDTH), params["table"][...]
    forms = {
        "softmax, by rows (ours)": losses.next_item,
        "softmax, whole scores": whole_scores,
        "softmax, by columns": by_columns,
    }
    for name, loss in forms.items():
        both = jax.value_and_grad(lambda h, e, loss=loss: loss(h, e, target, where=where), (0, 1))
        _, timing = timed(both, hidden, table)
        bench.report(name, timing, softmax_work(places, kept=loss is not losses.next_item))


def main(bench: Bench, quick: bool) -> None:
    parts(bench, *epoch(bench, problem(USERS // 20 if quick else USERS)))

"""Full ranking of 6,040 users x 3,706 items at D = 64, beside a ranking by argsort.

    python -m benchmarks ranking [--quick]

Work counted: the score product, 2 U I D flop; one comparison (counted as one flop) for each user,
target and item; 9 bytes for each user and item (its score written and read, its mark read).
Where scores tie, a sort goes by item id and ours against the target: those ranks differ.
`--quick` takes a tenth of the users.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from benchmarks.common import Bench, Work, timed
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.ops.ranking import mark, ranks
from jaxrec.types import TEST, TRAIN, Dataset, Method

USERS, ITEMS, WIDTH, SEEN = 6040, 3706, 64, 132


def by_counting(user, item, targets, seen):
    """Ranks int32 [U, T], block by block."""

    def block(args):
        user, targets, seen = args
        return ranks(user @ item.T, targets, targets < ITEMS, mark(seen, ITEMS))

    return jax.lax.map(block, (user, targets, seen))


def by_argsort(user, item, targets, seen):
    """The same from the place of each target in the sorted scores."""

    def block(args):
        user, targets, seen = args
        scores = jnp.where(mark(seen, ITEMS), -jnp.inf, user @ item.T)
        order = jnp.argsort(-scores, axis=-1)
        place = jnp.argsort(order, axis=-1)
        return 1 + jnp.take_along_axis(place, targets, axis=-1)

    return jax.lax.map(block, (user, targets, seen))


def by_numpy(user, item, targets, seen):
    """The same on the host; one block at a time."""
    found = []
    for block_user, block_targets, block_seen in zip(user, targets, seen, strict=True):
        scores = block_user @ item.T
        np.put_along_axis(scores, block_seen, -np.inf, axis=-1)
        order = np.argsort(-scores, axis=-1)
        place = np.empty_like(order)
        np.put_along_axis(place, order, np.arange(ITEMS)[None], axis=-1)
        found.append(1 + np.take_along_axis(place, block_targets, axis=-1))
    return np.stack(found)


def problem(users, number, rng):
    """Random vectors, `number` targets and `SEEN` other items a user, in blocks."""
    blocks = -(-users // 512) if jax.default_backend() == "cpu" else 1
    shape = (blocks, users // blocks)
    items = np.argsort(rng.random((*shape, ITEMS)), axis=-1).astype(np.int32)
    vectors = lambda *size: rng.standard_normal((*size, WIDTH)).astype(np.float32)
    targets, seen = np.split(items[..., : number + SEEN], [number], axis=-1)
    return vectors(*shape), vectors(ITEMS), targets, seen


def interactions(users, rng):
    """A dataset of MovieLens-1M's size and skew: 165 items a user, a fifth of them to test."""
    number = np.minimum(20 + rng.lognormal(4.3, 1.1, users), ITEMS // 2).astype(int)
    rows = pd.DataFrame({"user": np.repeat(np.arange(users), number)})
    rows["item"] = np.concatenate([rng.choice(ITEMS, n, replace=False) for n in number])
    rows["split"] = np.where(rng.random(len(rows)) < 0.2, TEST, TRAIN)
    items, users = pd.DataFrame({"item": range(ITEMS)}), pd.DataFrame({"user": range(users)})
    return Dataset("random", rows, items, users)


def main(bench: Bench, quick: bool) -> None:
    users, rng = USERS // 10 if quick else USERS, np.random.default_rng(0)

    for number in (1, 32):
        inputs = problem(users, number, rng)
        total = inputs[0][..., 0].size
        on_device = jax.device_put(inputs)
        product = 2.0 * total * ITEMS * WIDTH
        work = Work(flop=product + total * ITEMS * number, bytes=9.0 * total * ITEMS)
        print(f"\n{total:,} users x {ITEMS:,} items, {number} targets a user, {SEEN} items seen")
        found, ours = timed(by_counting, *on_device)
        bench.report(f"scores + ranks by counting (ours), {number} targets a user", ours, work)
        scores = lambda user, item: jax.lax.map(lambda u: jnp.max(u @ item.T, axis=-1), user)
        _, timing = timed(scores, *on_device[:2])
        bench.report("scores alone (their maximum kept)", timing, Work(flop=product))
        for name, naive, args, host in (
            ("argsort of the scores (jax)", by_argsort, on_device, False),
            ("argsort of the scores (numpy)", by_numpy, inputs, True),
        ):
            expected, timing = timed(naive, *args, host=host)
            bench.report(name, timing)
            differ = np.abs(np.asarray(found) - expected)
            print(
                f"    ours is {timing.median / ours.median:,.0f} times as fast; "
                f"{np.sum(differ > 0):,} of {differ.size:,} ranks differ, by {differ.max()} at most"
            )

    dataset = interactions(users, rng)
    plan = make_plan(dataset, TEST)
    vectors = [rng.standard_normal((n, WIDTH)).astype(np.float32) for n in (users, ITEMS)]
    method = Method(
        init=None,
        step=None,
        prepare=lambda state, data: state,
        score=lambda served, users: served[0][users] @ served[1].T,
    )
    tested = dataset.interactions.split.eq(TEST).sum()
    print(f"\nThe whole evaluation: {users:,} users, {tested:,} targets, 6 metrics at 3 cut-offs")
    work = Work(flop=2.0 * users * ITEMS * WIDTH + float(tested) * ITEMS, bytes=9.0 * users * ITEMS)
    for lists, name in ((False, "evaluator"), (True, "evaluator with coverage and Gini")):
        evaluate = evaluator(method, plan, lists=lists)
        _, timing = timed(evaluate, jax.device_put(vectors), None, host=True)
        bench.report(name, timing, work)

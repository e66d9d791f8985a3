"""LLMD4Rec's step: distillation over the full catalogue, and an epoch of each model.

    python -m benchmarks llmd4rec [--quick]

"by rows" is `methods/llmd4rec/distill.py`: scores of both models, ranks, weights, both losses and
the gradient are made some rows at a time. "whole scores" holds them all, [N, I], and differentiates
through them. Then an epoch of C alone, of L beside C, and of C beside L, on random sequences of the
lengths and the catalogue of beauty-s3rec; L has one random layer of MiniLM's width. `--quick` takes
a tenth of the users and one catalogue.

Work counted: products. With a teacher of width D' and a student of width D, a place costs 2 I D'
for the teacher's scores and 6 I D for the student's, forward and back.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.common import Bench, Work, timed
from jaxrec.methods import llmd4rec
from jaxrec.methods.llmd4rec import distill
from jaxrec.types import Data, History, Sizes

USERS, ITEMS, WIDTH, TAUGHT = 22_363, 12_101, 64, 384
HEAT = 2.0


def whole_scores(hidden, table, teacher, teacher_table, target):
    """The same loss with all scores in memory: (loss, ranks of student and teacher)."""
    scores = hidden @ table.T
    theirs = jax.lax.stop_gradient(teacher @ teacher_table.T)
    ranks = [distill.ranks(jax.lax.stop_gradient(each), target) for each in (scores, theirs)]
    goal = jax.nn.log_softmax(theirs / HEAT)
    apart = jnp.sum(jnp.exp(goal) * (goal - jax.nn.log_softmax(scores / HEAT)), axis=1)
    cross = optax.softmax_cross_entropy_with_integer_labels(scores, target)
    return jnp.sum(cross + HEAT**2 * distill.weights(*ranks) * apart), ranks


def by_rows(hidden, table, teacher, teacher_table, target):
    where = jnp.ones(len(target), bool)
    learnt = distill.learn(
        hidden, table, teacher, teacher_table, target, where=where, temperature=HEAT
    )
    return learnt.loss, [learnt.student, learnt.teacher]


def losses(items: int, places: int, bench: Bench) -> None:
    """Both forms, forward and backward: time, memory, and how far they differ."""
    keys = jax.random.split(jax.random.key(0), 5)
    draw = lambda key, *shape: jax.random.normal(key, shape) / shape[-1] ** 0.5
    hidden, teacher = 3 * draw(keys[0], places, WIDTH), 3 * draw(keys[1], places, TAUGHT)
    tables = draw(keys[2], items, WIDTH), draw(keys[3], items, TAUGHT)
    target = jax.random.randint(keys[4], (places,), 0, items)
    work = Work(flop=places * items * (2.0 * TAUGHT + 6.0 * WIDTH))
    found = []
    for name, form in (("by rows", by_rows), ("whole scores", whole_scores)):
        both = jax.value_and_grad(form, (0, 1), has_aux=True)
        args = hidden, tables[0], teacher, tables[1], target
        result, timing = timed(both, *args)
        bench.report(f"CE + KD + ranks, {name}, N = {places:,}, I = {items:,}", timing, work)
        found.append(result)
    ((one, ranks), gradients), ((other, expected), others) = found
    apart = max(
        float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
        for a, b in zip(gradients, others, strict=True)
    )
    moved = sum(int(jnp.sum(a != b)) for a, b in zip(ranks, expected, strict=True))
    print(
        f"    relative differences: loss {abs(float(one / other) - 1):.1e}, gradients {apart:.1e}; "
        f"{moved} of {2 * places:,} ranks differ"
    )


def problem(users: int) -> Data:
    """Sequences of beauty-s3rec's mean length, 9 items of which 2 are held out, at least 3."""
    rng = np.random.default_rng(0)
    lengths = 3 + rng.geometric(1 / 4.9, users) - 1
    start = np.concatenate([[0], np.cumsum(lengths)])
    item = rng.integers(0, ITEMS, start[-1])
    user = np.repeat(np.arange(users), lengths)
    columns = (jnp.asarray(each, jnp.int32) for each in (user, item, start, np.arange(start[-1])))
    text = jnp.asarray(rng.normal(size=(ITEMS, TAUGHT)) / TAUGHT**0.5, jnp.float32)
    return Data((), history=History(*columns), text=text)


def epochs(users: int, bench: Bench) -> None:
    """An epoch of each kind; the first of its phase, which also takes the teacher's vectors."""
    data, sizes = problem(users), Sizes(users, ITEMS, users)
    config = llmd4rec.Config(
        width=WIDTH, pretrain=1, epochs_down=1, epochs_up=1, llm="random", llm_layers=1,
        llm_width=TAUGHT,
    )  # fmt: skip
    method = llmd4rec.make(config, sizes)
    state = jax.jit(method.init)(jax.random.key(0), data)
    places = int(jnp.sum(jnp.diff(data.history.start) - 1))
    step = partial(method.step, data=data, key=jax.random.key(1))
    print(f"\nEpochs: {users:,} users, {places:,} places, I = {ITEMS:,}")
    per_place = 6.0 * WIDTH, 6.0 * TAUGHT + 2.0 * WIDTH, 6.0 * WIDTH + 2.0 * TAUGHT
    for name, cost in zip(("C alone", "L beside C", "C beside L"), per_place, strict=True):
        (state, _), timing = timed(step, state)
        bench.report(f"{name}, D = {WIDTH} and {TAUGHT}", timing, Work(places * ITEMS * cost))


def main(bench: Bench, quick: bool) -> None:
    for items in (ITEMS, 100_000)[: 1 if quick else 2]:
        losses(items, 1024, bench)
    epochs(USERS // 10 if quick else USERS, bench)

"""AgentCF++'s log: events per second against a plain loop, as users and items grow.

    python -m benchmarks agentcf [--quick]

Random logs first. Then the log of movies-toys (JAXREC_DATA), its vectors random unit ones, is
replayed level by level at two widths of the vectors, and one event after another by a NumPy loop
that does the same arithmetic, timed on its first events; and what the text engine would take for
all rows of the folder: rounds of calls in each order, and tokens. `--quick` leaves the largest
random log out.

Work counted, for each event: FLOP of the filter (both private memories through the bases of all
domains and back through one) and of the products of a choice; bytes of one user's memory and two
items' memories, read and written, and two contents, read.
"""

from __future__ import annotations

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import jaxrec
from benchmarks.common import Bench, Work, timed
from jaxrec.data.pack import history, history_of
from jaxrec.data.split import split
from jaxrec.methods.agentcf import schedule, text_engine
from jaxrec.methods.agentcf.events import Events, draw_events
from jaxrec.methods.agentcf.interaction import Memory, Rates, interact
from jaxrec.methods.agentcf.schedule import Memories
from jaxrec.methods.agentcf.text_engine.dataflow import Log
from jaxrec.methods.agentcf.text_engine.forecast import call_rounds, forecast
from jaxrec.methods.agentcf.world import World, unit
from jaxrec.types import EVER, Data, Dataset, Sizes

DATA, RANK, LOOP = "movies-toys", 32, 2_000
RATES = Rates()


def problem(events: Events, users: int, domain: jax.Array, width: int) -> tuple[Memories, World]:
    """Empty memories and random contents."""
    items, domains = len(domain), int(domain.max()) + 1
    key_content, key_bases = jax.random.split(jax.random.key(0))
    content = unit(jax.random.normal(key_content, (items, width)))
    bases = jnp.linalg.qr(jax.random.normal(key_bases, (domains, width, RANK)))[0]
    nothing = jnp.zeros((users, domains, width))
    user = Memory(nothing, nothing, nothing[..., 0], jnp.stack([nothing, nothing], axis=2))
    return Memories(user, content), World(content, domain, bases)


def work(events: int, domains: int, width: int) -> Work:
    """Of a whole log."""
    flop = 2 * 2 * domains * domains * width * RANK + 2 * 2 * domains * width * RANK + 4 * width
    floats = 2 * (4 * domains * width + domains) + 2 * 2 * width + 2 * width
    return Work(flop=float(events * flop), bytes=4.0 * events * floats)


def measure(
    name: str, events: Events, users: int, domain, width: int, bench: Bench, lanes: int = 0
) -> float:
    """Replay a log, `lanes` events at once if given; prints and returns events per second."""
    start, world = problem(events, users, domain, width)
    rule = partial(interact, rates=RATES)
    level = jax.jit(schedule.levels, static_argnums=(1, 2))(events, users, len(domain))
    lanes = lanes or schedule.default_lanes()

    def replay(start, events, level, world):
        found, likely = schedule.replay(rule, start, events, level, lanes, world)
        return found.item.sum(), likely

    _, timing = timed(replay, start, events, level, world)
    number = len(events.user)
    bench.report(
        f"{name}: {number:,} events, {users:,} users, {len(domain):,} items, D = {width}, "
        f"{int(level.max()) + 1:,} levels, {lanes} at once",
        timing, work(number, int(domain.max()) + 1, width),
    )  # fmt: skip
    print(f"    {number / timing.median:,.0f} events/s", flush=True)
    return number / timing.median


def plain_loop(events: Events, users: int, domain: jax.Array, width: int) -> float:
    """Events per second of the first ones, in NumPy, one after another."""
    start, world = jax.tree.map(np.array, problem(events, users, domain, width))
    like, dislike, count, fused = start.user
    items, content, bases = start.item, world.content, world.bases
    log = np.stack([np.asarray(part[:LOOP]) for part in events], axis=1).tolist()
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    norm = lambda x: x / max(np.sqrt(x @ x), 1e-12)
    begin = time.perf_counter()
    for u, i, j in log:
        t = world.domain[i]
        v, w = items[i], items[j]
        drawn = fused[u, t, 0] - RATES.aversion * fused[u, t, 1]
        likely = sigmoid(drawn @ (v - w) / RATES.temperature)
        pace = max(1 / (count[u, t] + 1), RATES.newest_weight)
        pace *= 1 - RATES.surprise + 2 * RATES.surprise * (1 - likely)
        pace = min(pace, 1) if count[u, t] else 1
        like[u, t] += pace * (v - like[u, t])
        dislike[u, t] += pace * (w - dislike[u, t])
        count[u, t] += 1
        kept = np.stack([like[u], dislike[u]]) @ bases[t]  # [2, M, R]
        share = (kept[0] ** 2).sum(-1) / np.maximum((like[u] ** 2).sum(-1), 1e-12)
        gate = sigmoid((share - RATES.threshold) / RATES.sharpness)
        weight = RATES.transfer * gate * (np.arange(len(share)) != t) * count[u]
        weight = weight / (count[u, t] + 1e-3 + weight.sum())
        merged = (weight @ kept) @ bases[t].T
        merged += (1 - weight.sum()) * np.stack([like[u, t], dislike[u, t]])
        renewal = RATES.renewal if fused[u, t, 0].any() else 1.0
        for k in range(2):
            fused[u, t, k] = norm((1 - renewal) * fused[u, t, k] + renewal * norm(merged[k]))
        step, taste = RATES.item * (1 - likely), fused[u, t, 0]
        items[i] = norm(v + step * taste + RATES.anchor * (content[i] - v))
        items[j] = norm(w - RATES.rejected * step * taste + RATES.anchor * (content[j] - w))
    return len(log) / (time.perf_counter() - begin)


def text_rounds(dataset: Dataset, domain: jax.Array, seeds: int) -> None:
    """Rounds of calls to a language model, median over negatives, and its tokens an event."""
    data = Data((), history(dataset, EVER), domain)
    rows = history_of(data)
    draw = jax.jit(draw_events)
    logs = [draw(jax.random.key(seed), rows, domain) for seed in range(seeds)]
    logs = [Log(*(np.asarray(part).tolist() for part in events)) for events in logs]
    number = len(rows.user)
    print(f"\nText engine, {dataset.name}, {number:,} events, median of {seeds} seeds")
    for order in ("sequential", "waves", "dataflow"):
        rounds = [call_rounds(each, np.asarray(domain), order) for each in logs]
        print(
            f"    {order}: {np.median(rounds):,.0f} rounds of calls, {min(rounds):,} to "
            f"{max(rounds):,}; {4 * number / np.median(rounds):,.0f} calls at once"
        )
    sizes = Sizes(dataset.num_users, dataset.num_items, 1, int(domain.max()) + 1)
    print(f"    {forecast(text_engine.Config(groups=-1), sizes, data, 1, 0, 10)}")


def random_log(users: int, items: int, number: int) -> Events:
    """Skewed items, even users, in random order."""
    rng = np.random.default_rng(0)
    popularity = np.cumsum((np.arange(items) + 30.0) ** -0.9)
    draw = lambda: np.searchsorted(popularity, popularity[-1] * rng.random(number))
    item = draw()
    other = (item + rng.integers(1, items, number)) % items
    arrays = rng.integers(users, size=number), item, other
    return Events(*(jnp.asarray(array, jnp.int32) for array in arrays))


def main(bench: Bench, quick: bool) -> None:
    for users, items in ((1_000, 1_000), (10_000, 10_000), (100_000, 100_000))[: 2 if quick else 3]:
        log = random_log(users, items, 100_000)
        measure("random", log, users, jnp.arange(items) % 2, 128, bench)
        levels = partial(schedule.levels, users=users, items=items)
        bench.report(f"levels of {users:,} users", timed(levels, log)[1])
    dataset = split(jaxrec.load(DATA), "leave-one-out")
    domain = jnp.asarray(dataset.items["domain"].to_numpy(), jnp.int32)
    events = jax.jit(draw_events)(jax.random.key(0), history(dataset), domain)
    for lanes in (8, 32, 128):
        measure(DATA, events, dataset.num_users, domain, 384, bench, lanes)
    for width in (384, 128):
        speed = measure(DATA, events, dataset.num_users, domain, width, bench)
        loop = plain_loop(events, dataset.num_users, domain, width)
        print(f"    plain loop {loop:,.0f} events/s: {speed / loop:.0f}x", flush=True)
    text_rounds(dataset, domain, 3 if quick else 20)

"""What a service takes for a request, beside a plain NumPy server with the same vectors.

    python -m benchmarks serve

Clients on this machine ask for 20 items of one user of MovieLens-1M: 1, 10 and 100 of them, each as
soon as it has its answer, and then 100 requests a second whatever the answers take, the time being
counted from when a request was due. The other server has the same web framework, the vectors of the
same run and NumPy: one product, one partition and one sort a request. Servers and clients share
this machine's cores. Then the run is replaced under load, and what was lost is counted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from pydantic import BaseModel

import jaxrec
from benchmarks.common import Bench, Timing, Work
from jaxrec.serving.export import vectors
from jaxrec.serving.model import Model

CLIENTS, RATE, K = (1, 10, 100), 100, 20


def main(bench: Bench, quick: bool) -> None:
    with tempfile.TemporaryDirectory() as place:
        run, other, link = (Path(place) / name for name in ("run", "other", "link"))
        data = "movielens-100k" if quick else "movielens-1m"
        settings = {"rounds": 1, "baselines": (), "clients": 10, "partition": "blocks"}
        settings |= {"split": "ratio", "privacy": "plain", "width": 64}
        jaxrec.train("fedavg", data, out=run, progress=False, **settings)
        shutil.copytree(run, other)
        link.symlink_to(run)
        model = jaxrec.open(run)
        work = Work(2 * 64 * len(model.items.raw), 4 * 64 * len(model.items.raw))
        save(model, Path(place) / "vectors.npz")
        users = [json.dumps({"users": [int(u)], "k": K}).encode() for u in model.users.raw]
        seconds = 3 if quick else 8
        gc.freeze()  # or the collector would now and then look through all that training left
        serve = [sys.executable, "-m", "jaxrec.serve", str(link), "--port", "0"]
        plain = [sys.executable, "-m", "benchmarks.serve", str(Path(place) / "vectors.npz")]
        for name, words in (("jaxrec", serve), ("NumPy", plain)):
            with served(words) as port:
                measured(bench, name, port, users, seconds, work)
                if name == "jaxrec":
                    asyncio.run(swapped(port, users, link, other))


def measured(
    bench: Bench, name: str, port: int, users: list[bytes], seconds: float, work: Work
) -> None:
    """Report the times of one server at each load."""
    for clients in CLIENTS:
        ask = lambda clients=clients, seconds=seconds: closed(port, users, clients, seconds)
        asyncio.run(closed(port, users, clients, 1))
        _tell(bench, f"{name}, {clients} clients", asyncio.run(ask()), seconds, work)
    found = asyncio.run(opened(port, users, RATE, seconds))
    _tell(bench, f"{name}, {RATE} requests a second", found, seconds, work)


def _tell(bench: Bench, name: str, found: list[float], seconds: float, work: Work) -> None:
    low, half, high, most = np.percentile(found, [25, 50, 75, 99])
    bench.report(name, Timing(0.0, float(half), float(high - low) / 2, len(found)), work)
    print(
        f"    p50 {half * 1e3:.1f} ms, p99 {most * 1e3:.1f} ms, {len(found) / seconds:,.0f} "
        f"requests a second; load of the machine {os.getloadavg()[0]:.1f}",
        flush=True,
    )


Ask = Callable[[bytes], Awaitable[dict]]


async def client(port: int) -> Ask:
    """A connection that is kept: a body in, what the answer holds out."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"

    async def ask(body: bytes) -> dict:
        writer.write(head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        told = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(told.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        content = await reader.readexactly(length)
        if not told.startswith(b"http/1.1 200"):
            raise RuntimeError(content.decode())
        return json.loads(content)

    return ask


async def closed(port: int, users: list[bytes], clients: int, seconds: float) -> list[float]:
    """The time of each request of clients that ask again as soon as they are answered."""
    found: list[float] = []
    end = time.perf_counter() + seconds

    async def one(seed: int) -> None:
        ask, draw = await client(port), np.random.default_rng(seed)
        while (start := time.perf_counter()) < end:
            await ask(users[draw.integers(len(users))])
            found.append(time.perf_counter() - start)

    await asyncio.gather(*map(one, range(clients)))
    return found


async def opened(port: int, users: list[bytes], rate: int, seconds: float) -> list[float]:
    """The time of each request since it was due; they come at random, as many as a rate says."""
    found: list[float] = []
    draw = np.random.default_rng(0)
    due = np.sort(draw.uniform(0, seconds, int(rate * seconds)))
    free: asyncio.Queue[Ask] = asyncio.Queue()
    for _ in range(rate):
        free.put_nowait(await client(port))
    begun = time.perf_counter()

    async def one(when: float) -> None:
        await asyncio.sleep(begun + when - time.perf_counter())
        ask = await free.get()
        await ask(users[draw.integers(len(users))])
        free.put_nowait(ask)
        found.append(time.perf_counter() - begun - when)

    await asyncio.gather(*map(one, due))
    return found


async def swapped(port: int, users: list[bytes], link: Path, other: Path) -> None:
    """Put another run in place while clients ask, and print what became of their requests."""
    runs: dict[str, int] = {}
    longest, lost = 0.0, 0
    end = time.perf_counter() + 120
    link.with_name("next").symlink_to(other)
    os.replace(link.with_name("next"), link)

    async def one(seed: int) -> None:
        nonlocal longest, lost
        ask, draw = await client(port), np.random.default_rng(seed)
        while str(other) not in runs and time.perf_counter() < end:
            start = time.perf_counter()
            try:
                run = (await ask(users[draw.integers(len(users))]))["run"]
                runs[run] = runs.get(run, 0) + 1
            except (OSError, RuntimeError, EOFError):
                lost += 1
            longest = max(longest, time.perf_counter() - start)
            await asyncio.sleep(0.1)

    await asyncio.gather(*map(one, range(10)))
    done = "swapped" if str(other) in runs else "NOT swapped"
    print(
        f"{done} under {sum(runs.values())} requests: {lost} lost, the longest "
        f"{longest * 1e3:,.0f} ms",
        flush=True,
    )


@contextmanager
def served(words: list[str]) -> Iterator[int]:
    """The port of a server that is ready, which prints its address first."""
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        port = int(process.stderr.readline().partition("127.0.0.1:")[2].split(";")[0])
        print(process.stderr.readline(), end="", flush=True)
        yield port
    finally:
        process.terminate()
        process.wait()


def save(model: Model, path: Path) -> None:
    """What the NumPy server needs."""
    user, item = vectors(model.run)
    rows = model.run.dataset.interactions[["user", "item"]].to_numpy()
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    start = np.searchsorted(rows[:, 0], np.arange(len(model.users.raw) + 1))
    titles = np.asarray(model.titles, str)
    np.savez(
        path, user=user, item=item, seen=rows[:, 1], start=start, titles=titles,
        users=model.users.raw.astype(str), items=model.items.raw.astype(str),
    )  # fmt: skip


class Form(BaseModel):
    """A request."""

    users: list[int]
    k: int


def plain(path: str) -> None:
    """The NumPy server."""
    import uvicorn
    from fastapi import FastAPI

    has = dict(np.load(path))
    place = {user: n for n, user in enumerate(has["users"].tolist())}
    titles, items = has["titles"].tolist(), has["items"].tolist()
    app = FastAPI()

    @app.post("/recommend")
    def recommend(form: Form) -> dict:
        lists = []
        for user in form.users:
            n = place[str(user)]
            scores = has["item"] @ has["user"][n]
            scores[has["seen"][has["start"][n] : has["start"][n + 1]]] = -np.inf
            best = np.argpartition(-scores, form.k)[: form.k]
            best = best[np.argsort(-scores[best])].tolist()
            found = {"item": [items[i] for i in best], "title": [titles[i] for i in best]}
            lists.append({"user": user} | found | {"score": scores[best].tolist()})
        return {"lists": lists}

    config = uvicorn.Config(app, port=0, http="h11", ws="none", log_level="warning")
    listening = config.bind_socket()
    listening.listen()
    print(f"http://127.0.0.1:{listening.getsockname()[1]}\nNumPy", file=sys.stderr, flush=True)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    plain(sys.argv[1])

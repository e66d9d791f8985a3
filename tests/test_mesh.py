"""Many devices, in one process or two, compute what one computes; a mesh goes with its method."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxrec
from jaxrec import mesh
from jaxrec.data.synthetic import synthetic
from jaxrec.training import launch
from jaxrec.types import SettingError

DATA = {"users": 41, "items": 40, "clients": 10, "length": 14}
QUICK = {"rounds": 1, "progress": False, "baselines": (), "text": "tfidf"}
TINY = {
    "fedavg": ("clients", {"width": 4, "participation": 0.5}),
    "fedals": ("clients", {"width": 4}),
    "local_only": ("clients", {"width": 4}),
    "popularity": ("clients", {}),
    "fedcia": ("clients", {"width": 4}),
    "fedcia:steps": ("clients", {"width": 4, "rank": 8, "training": "steps"}),
    "rqfedrec": ("clients", {"width": 4, "codes": 4, "levels": 2}),
    "sequential": ("batch", {"width": 4, "inner": 4, "heads": 1, "length": 8, "batch": 40}),
    "llmd4rec": ("batch", {"width": 4, "inner": 4, "heads": 1, "length": 8, "batch": 40}),
    "agentcf": ("users", {"groups": 2, "rank": 4, "candidates": 5}),
}
SAME = f"""
import sys
from functools import partial
import jax
import numpy as np
import jaxrec
from jaxrec.data.synthetic import synthetic
from jaxrec.evaluation.evaluator import evaluator
from jaxrec.evaluation.plan import make_plan
from jaxrec.mesh import by_rows, divide, within
from jaxrec.ops import ranking
from jaxrec.types import TEST

def watch(score, *args):
    found = score(*args)
    jax.debug.inspect_array_sharding(found, callback=ranked.append)
    return found

dataset, scores, work, ranked = synthetic(**{DATA}), [], [], []
name = sys.argv[1]
axis, settings = {TINY}[name]
for mesh in ("", f"{{axis}}=8"):
    run = jaxrec.train(name.partition(":")[0], dataset, mesh=mesh, **{QUICK}, **settings)
    score = lambda state, data: run.method.score(run.method.prepare(state, data), np.arange(41))
    scores.append(np.asarray(jax.jit(score)(run.state, run.data)))
    if name == "fedavg":
        (part, *_) = run.data.clients
        devices = getattr(part.client.sharding, "mesh", None)
        with within(devices):
            step = jax.jit(run.method.step).lower(run.state, run.data, jax.random.key(0))
            work.append(step.compile().cost_analysis()["flops"])
        watched = run.method._replace(score=partial(watch, run.method.score))
        plan = make_plan(run.dataset, TEST, ks=(10,), multiple=8)
        found = evaluator(watched, plan, devices=devices)(run.state, run.data).means
        for metric in ("NDCG@10", "coverage@10"):
            # another program than the run's: its means may round otherwise
            np.testing.assert_allclose(found[metric], run.values["test/" + metric], rtol=1e-6)
        lists = jax.jit(partial(by_rows, partial(ranking.top, k=10)))
        with within(devices):
            table = jax.jit(divide)(np.zeros((48, 40), np.float32))
            assert "all-gather" not in lists.lower(table, table > 0).compile().as_text()
np.testing.assert_allclose(*scores, atol=1e-3 * np.abs(scores[0]).max(), err_msg=name)
if work:
    assert work[1] < 0.6 * work[0], work
    assert ranked[1].shard_shape((48, 40)) == (6, 40), ranked
print("equal")
"""


RESUMED = f"""
import sys
import pandas as pd
import jaxrec

few, many = ([(user, (user + item) % 60, item) for item in range(number) for user in users]
             for users, number in ((range(5), 6), (range(5, 12), 26)))
pd.DataFrame(few + many, columns=["user", "item", "timestamp"]).to_csv("rows.csv", index=False)
settings = {{**{QUICK}, "partition": "user", "width": 4}}
lengths = lambda run: [len(bucket.client) for bucket in run.data.clients]
one = jaxrec.train("fedavg", "rows.csv", out="run", **settings)
eight = jaxrec.train(resume="run", mesh="clients=8", rounds=2, progress=False)
again = jaxrec.train(resume="run", mesh="", rounds=3, progress=False)
assert lengths(one) == lengths(again) == [5, 7], lengths(one)
assert lengths(eight) == [8, 8], lengths(eight)
print("equal")
"""


def program(words, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, *map(str, words)], env=env, text=True, **pipes)


def ended(process, status=0):
    try:
        out, error = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == status, error[-3000:]
    return out


@contextlib.contextmanager
def launched(words, devices=4, own=((), ())):
    """Two processes that are one run, each also with words of its own."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    words = ["-m", "jaxrec.train", *words, "--mesh", f"clients={2 * devices}", "--distributed"]
    place = f"localhost:{port},2"
    processes = [program([*words, f"{place},{n}", *own[n]], devices) for n in range(2)]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()


SLOW = set(TINY) - {"fedavg", "sequential"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in TINY]
)
def test_eight_devices_equal_one(name):
    assert ended(program(["-c", SAME, name], 8)) == "equal\n"


@pytest.mark.slow
def test_buckets_that_are_padded_to_one_length_go_on(tmp_path, monkeypatch):
    root = str(Path(jaxrec.__file__).parents[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", root)
    assert ended(program(["-c", RESUMED], 8)) == "equal\n"


@pytest.mark.slow
def test_two_processes_equal_one_and_a_run_goes_on_with_other_devices(tmp_path):
    words = ["fedavg", "--width", "4", "--evaluate-every", "1", "--quiet"]
    words += ["--baselines", "popularity"]
    alone = ["-m", "jaxrec.train", *words]

    def run(*more):
        with launched([*words, *more]) as processes:
            first, second = map(ended, processes)
        assert "run folder" in first
        assert "run folder" not in second

    def values(folder):
        found = json.loads((tmp_path / folder / "result.json").read_text())
        numbers = {name: value for name, value in found.items() if not isinstance(value, str)}
        return {name: value for name, value in numbers.items() if "seconds" not in name}

    run("--rounds", 1, "--out", tmp_path / "two")
    ended(program([*alone, "--mesh", "clients=8", "--rounds", 1, "--out", tmp_path / "one"], 8))
    assert values("two") == values("one")

    resume = "--rounds", 2, "--resume"
    ended(program([*alone, *resume, tmp_path / "two", "--mesh", ""], 1))
    run(*resume, tmp_path / "one")
    assert values("two") == pytest.approx(values("one"), rel=1e-3, abs=1e-3)
    assert values("two")["rounds"] == 2


def test_a_signal_to_one_process_of_a_launch_stops_all_after_one_save(tmp_path):
    words = ["fedavg", "--width", "4", "--rounds", "100000", "--evaluate-every", "1", "--quiet"]
    words += ["--patience", "0", "--out", tmp_path / "run"]
    measured, until = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    with launched(words, devices=1) as processes:
        while not (measured.exists() and measured.stat().st_size):
            time.sleep(0.1)
            assert time.monotonic() < until and processes[0].poll() is None
        processes[1].send_signal(signal.SIGTERM)
        for process in processes:
            ended(process, status=130)
    memory = json.loads((tmp_path / "run" / "checkpoint" / "index.json").read_text())["memory"]
    assert memory["round"] == len(measured.read_text().splitlines())


def test_where_one_process_cannot_read_its_data_all_end(tmp_path):
    words = ["popularity", "--quiet", "--out", tmp_path / "run"]
    with launched(words, devices=1, own=((), ("--data", "nowhere"))) as processes:
        for process in processes:
            ended(process, status=2)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("fedavg", "clients", "must be AXIS=N, N devices along one of clients, batch, users"),
        ("fedavg", "clients=0", "must be AXIS=N"),
        ("fedavg", "items=2", "must be AXIS=N"),
        ("fedavg", "clients=99", "jax sees "),
        ("fedavg", "batch=1", "fedavg divides clients; set mesh = 'clients=1'"),
        ("sequential", "clients=1", "sequential divides batch; set mesh = 'batch=1'"),
        ("agentcf", "batch=1", "agentcf divides users"),
    ],
)
def test_a_mesh_goes_with_its_method(name, words, message):
    with pytest.raises(SettingError, match=f"^mesh = '{words}': .*{message}"):
        jaxrec.train(name, synthetic(**DATA), mesh=words, candidates=5, **QUICK)


def test_a_method_that_is_not_tested_here_divides_nothing():
    sizes, hosted = jaxrec.Sizes(users=41, items=40, clients=10), {"agentcf_text": {"model": "any"}}
    for name in set(jaxrec.METHODS) - set(TINY):
        module = jaxrec.METHODS[name]
        config = module.Config(**hosted.get(name, {}))
        assert module.make(config, sizes).axis == "", name


def test_a_method_may_divide_nothing():
    with pytest.raises(SettingError, match="no work over devices; it works on one: leave mesh out"):
        mesh.check("users=1", "agentcf_text", "")


@pytest.mark.parametrize("told", ["", "localhost", "localhost:1", "localhost:1,2", "a,1,0"])
def test_a_launch_that_cannot_be_read_is_refused(told):
    with pytest.raises(SettingError, match="must be auto or HOST:PORT,N,K"):
        launch.join(told)

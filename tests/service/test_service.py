"""A run over real HTTP: the answers are those of the model, and nothing a client does breaks it."""

import gc
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path

import pytest

import jaxrec
from jaxrec.cli.serve import main
from jaxrec.data.synthetic import synthetic
from jaxrec.service import forms
from jaxrec.service.server import Service
from jaxrec.service.settings import Settings

USERS, ITEMS = 60, 40
SLOW = 1.5
SETTINGS = Settings(
    port=0, watch=0.1, max_users=4, max_k=50, max_items=30, max_body=20_000, max_waiting=4,
    max_connections=50, slow=SLOW, timeout=60,
)  # fmt: skip
GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """EASE with the baseline popularity, which is a run of its own."""
    place = tmp_path_factory.mktemp("runs") / "ease"
    data = synthetic(users=USERS, items=ITEMS, clients=4, length=10)
    settings = {"model": "ease", "baselines": ("popularity",), "min_support": 1, "rounds": 1}
    jaxrec.train("fedcia", data, out=place, progress=False, **settings)
    return place


@pytest.fixture(scope="module")
def model(runs):
    return jaxrec.open(runs)


@pytest.fixture(scope="module")
def service(runs, tmp_path_factory):
    """Serves a link to the run."""
    link = tmp_path_factory.mktemp("served") / "run"
    link.symlink_to(runs)
    service = Service(link, SETTINGS)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        until(lambda: get(service, "/health")[0] == 200)
        yield service
    finally:
        service.stop()
        thread.join()


def until(what, seconds=120):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def request(service, verb, path, body=None, headers=None):
    """(status, headers, body) of one request on a connection of its own."""
    host, port = service.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=120)
    connection.request(verb, path, body, {"Content-Type": "application/json"} | (headers or {}))
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, answer.headers, content


def get(service, path):
    status, _, body = request(service, "GET", path)
    return status, body.decode()


def post(service, path, asked):
    """(status, what the answer holds)."""
    body = asked if isinstance(asked, str | bytes) else json.dumps(asked)
    status, _, content = request(service, "POST", path, body)
    return status, json.loads(content)


def lists(table, whose="user"):
    """A model's table as the service writes it."""
    found = []
    for owner, own in table.groupby(whose, sort=False):
        fields = {name: own[name].tolist() for name in ("item", "title", "score")}
        by = {"by": own["by"].iloc[0]} if "by" in own else {}
        found.append({whose: owner} | fields | by)
    return found


def count(service, line):
    """The value of a line of /metrics."""
    found = re.search(rf"^{re.escape(line)} (\S+)$", get(service, "/metrics")[1], re.MULTILINE)
    return float(found[1]) if found else 0.0


@contextmanager
def device_busy(service):
    """Nothing is answered meanwhile."""
    free = threading.Event()
    service.batches.thread.submit(free.wait)
    try:
        yield
    finally:
        free.set()


def test_answers_are_those_of_the_model(service, model):
    asked = {"users": [3, "5", 3], "k": 4, "exclude": [7], "filters": {"domain": 0}}
    status, told = post(service, "/recommend", asked)
    expected = model.recommend([3, 5], 4, exclude=[7], filters={"domain": 0})
    assert (status, told["lists"], told["unknown"]) == (200, lists(expected), [])
    told = post(service, "/recommend", {"users": [3, "x"], "k": 2, "unknown": "popularity"})[1]
    assert told["lists"] == lists(model.recommend([3, "x"], 2, unknown="popularity"))
    new = {"ann": [1, 2, 3], "bob": [9]}
    told = post(service, "/recommend", {"histories": new, "k": 3, "exclude_seen": False})[1]
    assert told["lists"] == lists(model.recommend_from_items(new, 3, exclude_seen=False))
    told = post(service, "/recommend", {"items": [1, 2], "k": 3})[1]
    assert told["lists"] == lists(model.recommend_from_items([1, 2], 3))
    told = post(service, "/similar", {"items": [5, 6], "k": 3, "allowed": [1, 2, 9]})[1]
    assert told["lists"] == lists(model.similar_items([5, 6], 3, allowed=[1, 2, 9]), "to")
    told = post(service, "/score", {"users": [1, 2], "items": [3]})[1]
    assert told["score"] == model.score([1, 2], 3)["score"].tolist()
    told = post(service, "/explain", {"user": 4, "item": 3, "k": 5})[1]
    assert told["contribution"] == model.explain(4, 3, 5)["contribution"].tolist()


def test_answers_have_the_types_that_openapi_shows(service):
    status, page = get(service, "/openapi.json")
    schemas = json.loads(page)["components"]["schemas"]
    assert status == 200 and {"Recommend", "Lists", "Refusal"} <= set(schemas)
    for path, asked, form in (
        ("/recommend", {"users": [1]}, forms.Lists),
        ("/similar", {"items": [1]}, forms.SimilarItems),
        ("/score", {"users": [1], "items": [1]}, forms.Scores),
        ("/explain", {"user": 1, "item": 1}, forms.Reasons),
    ):
        form.model_validate(post(service, path, asked)[1])
    forms.Health.model_validate_json(get(service, "/health")[1])
    assert "swagger" in get(service, "/docs")[1]


def test_unknown_ids_are_refused_or_left_out_as_asked(service, model):
    for path, asked in (
        ("/recommend", {"users": [1, "who"]}),
        ("/recommend", {"items": ["who"]}),
        ("/recommend", {"users": [1], "exclude": ["who"]}),
        ("/similar", {"items": ["who"]}),
        ("/score", {"users": [1], "items": ["who"]}),
        ("/explain", {"user": "who", "item": 1}),
    ):
        status, told = post(service, path, asked)
        assert status == 404 and re.search("are not among the .*: who; ", told["error"]), asked
    skip = {"k": 2, "unknown": "skip"}
    told = post(service, "/recommend", {"users": ["who", 1]} | skip)[1]
    assert (told["lists"], told["unknown"]) == (lists(model.recommend(1, 2)), ["who"])
    told = post(service, "/recommend", {"histories": {"a": ["who"], "b": [1, "who"]}} | skip)[1]
    assert told["lists"] == lists(model.recommend_from_items({"b": [1]}, 2))
    assert told["unknown"] == ["a"]
    told = post(service, "/recommend", {"users": [1], "allowed": []})[1]
    assert told["lists"] == [{"user": 1, "item": [], "score": []}]
    told = post(service, "/score", {"users": [1, "x"], "items": 2 * [3], "unknown": "skip"})[1]
    assert told["score"] == [*model.score(1, 3)["score"], None]


@pytest.mark.parametrize(
    ("asked", "status", "why"),
    [
        ('{"users": [1],', 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "body"),
        ("[" * 9_000, 400, ""),
        ('{"users": [%s]}' % ("9" * 5_000), 400, ""),
        ("7", 422, "body"),
        ({}, 422, "nobody: give one of users, items and histories"),
        ({"users": [1], "items": [1]}, 422, "users and items: give one of"),
        ({"user": [1]}, 422, "user: Extra inputs"),
        ({"users": []}, 422, "users: "),
        ({"users": [1.5]}, 422, r"users\.0: .*a text or a whole number, not 1\.5"),
        ({"users": [True]}, 422, "a text or a whole number"),
        ({"users": [2**70]}, 422, "64 bits"),
        ({"users": ["x" * 300]}, 422, "at most 256 letters"),
        ('{"users": ["\\ud800"]}', 422, "lone surrogate"),
        ('{"histories": {"\\ud800": [1]}}', 422, "lone surrogate"),
        ({"users": [1], "k": 0}, 422, "k: "),
        ({"users": [1], "k": "many"}, 422, "k: .*not 'many'"),
        ({"users": [1], "k": 51}, 422, "k: 51 in one request, at most 50"),
        ({"users": list(range(5))}, 422, "users: 5 in one request, at most 4"),
        ({"items": 31 * [1]}, 422, "items of new: 31 in one request, at most 30"),
        ({"users": [1], "filters": {"colour": "red"}}, 422, "the items have no 'colour'"),
        ({"users": [1], "unknown": "perhaps"}, 422, "unknown: "),
    ],
)
def test_what_is_malformed_is_refused_in_a_line(service, asked, status, why):
    found, told = post(service, "/recommend", asked)
    assert found == status and list(told) == ["error"]
    assert re.search(why, told["error"]) and "\n" not in told["error"]
    assert len(told["error"]) < 300


def test_addresses_verbs_and_forms_that_are_not_there(service):
    assert get(service, "/nothing")[0] == 404
    assert get(service, "/recommend")[0] == 405
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    status, _, body = request(service, "POST", "/recommend", '{"users": [1]}', form)
    assert status == 415 and b"Content-Type: application/json" in body
    status, told = post(service, "/score", {"users": [1, 2, 3], "items": [1, 2]})
    assert status == 422 and "3 users and 2 items" in told["error"]


def test_a_huge_body_is_refused_before_it_is_read(service):
    long = json.dumps({"users": [1], "exclude": list(range(9_000))})
    assert post(service, "/recommend", long)[0] == 413
    pieces = iter([long.encode()] * 2)  # without a length: in chunks
    assert request(service, "POST", "/recommend", pieces)[0] == 413
    with raw(service) as connection:  # a client that asks before it sends
        connection.sendall(
            b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        assert connection.recv(99).startswith(b"HTTP/1.1 413")
    with raw(service) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nx: " + 100_000 * b"x")
        assert connection.recv(99).startswith(b"HTTP/1.1 400")


@contextmanager
def raw(service):
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        yield connection


def drip(service, begin):
    """What a client is told that sends `begin` at once, and then a letter from time to time."""
    with raw(service) as connection:
        connection.sendall(begin)
        connection.settimeout(0.1)
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                return connection.recv(4096)
            except TimeoutError:
                connection.sendall(b"a")
    raise AssertionError("the service waits for ever")


def test_slow_clients_are_cut_off(service):
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n"
    with ThreadPoolExecutor() as pool:
        for found in pool.map(lambda begin: drip(service, begin), [b"", head, head + b"\r\n{"]):
            assert found.startswith(b"HTTP/1.1 408")
    with raw(service) as connection:  # asks much and reads nothing
        before = count(service, 'jaxrec_connections_cut_total{reason="reading"}')
        connection.settimeout(2 * SLOW)
        with pytest.raises(OSError):  # the buffers are full, or it is cut
            connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 200_000)
        until(lambda: count(service, 'jaxrec_connections_cut_total{reason="reading"}') > before)


def test_connections_are_counted(service):
    before = count(service, 'jaxrec_connections_cut_total{reason="connections"}')
    host, port = service.url.removeprefix("http://").split(":")
    held = [socket.create_connection((host, int(port))) for _ in range(51)]
    until(lambda: len(service.server.server_state.connections) <= 50)
    told = held[-1].recv(4096)
    assert told.startswith(b"HTTP/1.1 503") and b"Retry-After: 1" in told
    for connection in held:
        connection.close()
    until(lambda: not service.server.server_state.connections)
    assert count(service, 'jaxrec_connections_cut_total{reason="connections"}') > before


def test_requests_share_calls_and_get_their_own_rows(service, model):
    calls = 'jaxrec_batch_requests_count{path="/recommend"}'
    users = 'jaxrec_batch_users_sum{path="/recommend"}'
    before = count(service, calls), count(service, users)
    waiting = lambda: len(service.batches.jobs)
    ask = lambda user, k: post(service, "/recommend", {"users": [user], "k": k})
    with ThreadPoolExecutor(16) as pool:
        with device_busy(service):
            first = pool.submit(ask, 0, 3)
            until(lambda: count(service, "jaxrec_requests_in_flight") == 2 and not waiting())
            others = [pool.submit(ask, user, 2 + user) for user in range(1, 4)]
            bad = pool.submit(ask, "nobody", 5)
            until(lambda: waiting() == SETTINGS.max_waiting)
            status, headers, body = request(service, "POST", "/recommend", '{"users": [1]}')
            assert (status, headers["Retry-After"]) == (503, "1")
            assert b"4 requests wait already" in body
        assert first.result()[0] == 200
        for user, found in enumerate(others, 1):
            status, told = found.result()
            assert (status, told["lists"]) == (200, lists(model.recommend(user, 2 + user)))
        status, told = bad.result()
        assert status == 404 and "nobody" in told["error"]
    assert (count(service, calls), count(service, users)) == (before[0] + 2, before[1] + 4)


def test_a_call_that_fails_is_made_again_for_each(service, monkeypatch):
    model = service.place.current.model
    real = model.recommend

    def broken(users, *args, **options):
        if "3" in list(users):
            raise FloatingPointError("scores of user 3 hold NaN or +inf")
        return real(users, *args, **options)

    monkeypatch.setattr(model, "recommend", broken)
    ask = lambda user: post(service, "/recommend", {"users": [user]})
    with ThreadPoolExecutor(8) as pool:
        with device_busy(service):
            found = [pool.submit(ask, user) for user in range(5)]
            until(lambda: count(service, "jaxrec_requests_in_flight") == 6)
        assert [each.result()[0] for each in found] == [200, 200, 200, 500, 200]
        assert found[3].result()[1] == {"error": "scores of user 3 hold NaN or +inf"}


def test_an_answer_that_takes_too_long_is_given_up(service, monkeypatch):
    monkeypatch.setattr(service.batches, "settings", replace(SETTINGS, timeout=0.1))
    with device_busy(service):
        status, told = post(service, "/score", {"users": [1], "items": [1]})
        assert (status, told["error"]) == (504, "the answer took too long")
    monkeypatch.undo()
    assert post(service, "/score", {"users": [1], "items": [1]})[0] == 200


def test_metrics_count_requests_by_path_and_status(service):
    lines = [
        'jaxrec_requests_total{path="/similar",status="200"}',
        'jaxrec_requests_total{path="/similar",status="404"}',
        'jaxrec_requests_total{path="other",status="404"}',
        'jaxrec_request_seconds_count{path="/similar"}',
    ]
    before = [count(service, line) for line in lines]
    post(service, "/similar", {"items": [1]})
    post(service, "/similar", {"items": ["who"]})
    get(service, "/never/heard/of")
    after = [count(service, line) for line in lines]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1, 1, 1, 2]


def put(link, run):
    """Put another run behind a link in one step."""
    link.with_name("next").symlink_to(run)
    os.replace(link.with_name("next"), link)


def test_a_new_run_is_swapped_in_and_no_request_is_lost(service, runs, model):
    popular = runs / "baselines" / "popularity"
    expected = {
        str(runs): lists(model.recommend([1], 5)),
        str(popular): lists(jaxrec.open(popular).recommend([1], 5)),
    }
    old = weakref.ref(service.place.current.model)
    found, stop = [], threading.Event()

    def keep_asking():
        while not stop.is_set():
            found.append(post(service, "/recommend", {"users": [1], "k": 5}))

    with ThreadPoolExecutor(4) as pool:
        asking = [pool.submit(keep_asking) for _ in range(4)]
        put(service.place.run, popular)
        until(lambda: service.place.current.name == str(popular))
        until(lambda: found[-1][1]["run"] == str(popular))
        stop.set()
        for each in asking:
            each.result()
    assert {status for status, _ in found} == {200}
    assert {told["run"] for _, told in found} == set(expected)
    assert all(told["lists"] == expected[told["run"]] for _, told in found)
    until(lambda: gc.collect() >= 0 and old() is None)
    assert json.loads(get(service, "/health")[1])["opened"] == found[-1][1]["opened"]
    assert post(service, "/similar", {"items": [1]})[0] == 422  # this method has none


def test_a_broken_new_run_leaves_the_old_one_serving(service, runs, tmp_path, capsys):
    before = service.place.current
    refused = count(service, 'jaxrec_runs_opened_total{outcome="refused"}')
    broken = shutil.copytree(runs, tmp_path / "broken")
    whole = (broken / "config.json").read_bytes()
    (broken / "config.json").write_bytes(whole[:40])
    put(service.place.run, broken)
    until(lambda: count(service, 'jaxrec_runs_opened_total{outcome="refused"}') == refused + 1)
    status, told = get(service, "/health")
    assert status == 200 and "config.json" in json.loads(told)["refused"]
    assert service.place.current is before
    assert post(service, "/recommend", {"users": [1]})[0] == 200
    assert "the new run is not served, the old one is: " in capsys.readouterr().err
    (broken / "config.json").write_bytes(whole)  # mended in its place
    until(lambda: service.place.current is not before)
    told = json.loads(get(service, "/health")[1])
    assert (told["run"], told["refused"]) == (str(broken), None)


def test_sigterm_answers_what_is_in_flight_and_ends_well(runs):
    words = [sys.executable, "-m", "jaxrec.serve", str(runs), "--port", "0", "--max-users", "1"]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r"http://127.0.0.1:(\d+)", process.stderr.readline())[1])
        assert process.stderr.readline().startswith("serving ")
        asked = b'{"users": [1]}'
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(
                b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(asked), asked[:5])
            )
            time.sleep(0.3)  # until its headers are read
            process.send_signal(signal.SIGTERM)
            until(lambda: refused(port))
            connection.sendall(asked[5:])
            answer = b""
            while piece := connection.recv(4096):
                answer += piece
        assert answer.startswith(b"HTTP/1.1 200") and b'"lists"' in answer
        assert process.wait(60) == 0
        assert process.stderr.read() == "no request is left; stopped\n"
    finally:
        process.kill()
        process.stderr.close()


def refused(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_cannot_be_served_is_a_line_and_status_2(tmp_path, capsys, monkeypatch):
    assert main([str(tmp_path / "nothing"), "--port", "0"]) == 2
    assert re.search(r"\nerror: .*nothing", capsys.readouterr().err)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main([str(tmp_path), "--port", port]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: cannot listen at 127.0.0.1, port {port}: ")
    assert main([str(tmp_path), "--max-k", "0"]) == 2
    assert "max_k = 0: must be at least 1" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "jaxrec.service.server")
    assert main([str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "error: serve: needs the package uvicorn, which is not installed: "
        "pip install 'jaxrec[serve]'\n"
    )


def test_the_guide_runs(runs, model, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "shop").symlink_to(runs)
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    names: dict = {}
    exec(block, names)
    assert lists(names["lists"]) == lists(model.recommend([3, 14], k=5, filters={"domain": 0}))
    assert len(names["scores"]) == 2 and not names["reasons"].empty


def test_the_guide_tells_every_limit_and_its_default():
    told = dict(re.findall(r"^\| `--([a-z-]+)` \| ([\d,]+) \|", GUIDE.read_text(), re.MULTILINE))
    defaults = {field.name.replace("_", "-"): field.default for field in fields(Settings)}
    assert set(told) == set(defaults) - {"host", "port"}
    assert {name: float(value.replace(",", "")) for name, value in told.items()} == {
        name: defaults[name] for name in told
    }

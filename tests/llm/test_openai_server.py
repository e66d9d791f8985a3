"""Every answer arrives once and is kept, whatever the server does; the key goes nowhere else."""

import json
import logging
import os
import pickle
import signal
import time
import traceback
from email.utils import formatdate
from importlib.util import find_spec

import numpy as np
import pytest

from jaxrec.llm import estimate, openai_server, openai_settings
from jaxrec.llm.protocol import Answer, Prompt, Usage
from jaxrec.types import LLMError, SettingError

KEY = "sk-very-secret-0123456789"
needs_openai = pytest.mark.skipif(
    not find_spec("openai"),
    reason="the package openai is not installed: pip install jaxrec[agents]",
)
pytestmark = needs_openai


def prompts(number, start=0):
    return [Prompt("You are terse.", f"NOTES: {k}", seed=k) for k in range(start, start + number)]


def connect(loopback, folder=None, usage=None, **settings):
    settings = {"retries": 4, "timeout": 5.0} | settings
    return openai_server.server(loopback.url, "toy", folder=folder, usage=usage, **settings)


def answered(status):
    """A fault of the loopback server, which asks for no long pause."""
    return status, {"Retry-After": "0.01"}


def expected(loopback, asked):
    return [Answer(loopback.scripted(p.system, p.user, p.seed)) for p in asked]


def test_answers_come_in_the_order_of_prompts_and_equal_prompts_are_asked_once(serve):
    loopback, usage = serve(), Usage()
    asked = prompts(20) + prompts(5)
    assert connect(loopback, usage=usage)(asked) == expected(loopback, asked)
    assert len(loopback.bodies) == usage.calls == 20
    assert (usage.prompt_tokens, usage.answer_tokens) == (200, 100)
    body = loopback.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("toy", 0.0, 512)


def test_no_more_calls_than_the_limit_are_under_way(serve):
    under_way, most = [0], [0]

    def answer(system, user, seed):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        time.sleep(0.03)
        under_way[0] -= 1
        return "yes"

    connect(serve(answer), concurrency=3)(prompts(12))
    assert 2 <= most[0] <= 3


@pytest.mark.parametrize(
    "fault",
    [answered(429), answered(500), answered(503), "cut", "malformed", "other", "page"],
    ids=str,
)
def test_a_server_that_fails_now_and_then_loses_nothing(serve, tmp_path, fault):
    loopback, usage = serve(fault=lambda number, body: fault if number % 3 == 0 else None), Usage()
    asked = prompts(12)
    complete = connect(loopback, tmp_path, usage, retries=9)
    assert complete(asked) == expected(loopback, asked)
    assert (usage.calls, usage.failures) == (12, 0)
    assert usage.retries == len(loopback.bodies) - 12 > 0
    before = len(loopback.bodies)
    assert complete(asked) == expected(loopback, asked)
    assert usage.cached == 12
    assert len(loopback.bodies) == before


def test_a_time_out_is_tried_again(serve):
    loopback, usage = serve(fault=lambda number, body: "slow" if number == 0 else None), Usage()
    assert connect(loopback, usage=usage, timeout=0.2)(prompts(1)) == expected(loopback, prompts(1))
    assert usage.retries == 1


@pytest.mark.parametrize("asked_for", ["0.4", "date"])
def test_retry_after_is_honoured(serve, asked_for):
    def fault(number, body):
        after = formatdate(time.time() + 2, usegmt=True) if asked_for == "date" else asked_for
        return (429, {"Retry-After": after}) if number == 0 else None

    began = time.perf_counter()
    connect(serve(fault=fault))(prompts(1))
    assert time.perf_counter() - began > 0.39


@pytest.mark.parametrize("fault", ["malformed", "other", "page"])
def test_what_is_never_of_the_protocol_is_one_clear_error(serve, fault):
    loopback, usage = serve(fault=lambda number, body: fault), Usage()
    with pytest.raises(LLMError, match=r"not an answer of the chat.*3 tries.*base_url") as caught:
        connect(loopback, usage=usage, retries=2)(prompts(1))
    assert len(loopback.bodies) == 3
    assert (usage.calls, usage.retries) == (0, 2)
    assert caught.value.__cause__ is None and caught.value.__context__ is None


def test_a_call_that_waits_when_the_list_ends_is_not_sent_again(serve):
    def fault(number, body):
        if body["seed"] == 0:
            return 503, {"Retry-After": "0.5"}
        time.sleep(0.1)
        return 401, {}

    loopback = serve(fault=fault)
    with pytest.raises(LLMError, match="answered 401"):
        connect(loopback, concurrency=2)(prompts(2))
    assert len(loopback.bodies) == 2


def test_a_prompt_that_is_refused_fails_alone_and_is_not_kept(serve, tmp_path):
    bad = lambda number, body: (400, {}) if body["seed"] == 1 else None
    loopback, usage = serve(fault=bad), Usage()
    answers = connect(loopback, tmp_path, usage)(prompts(3))
    assert [answer.text is None for answer in answers] == [False, True, False]
    assert "400" in answers[1].failure
    assert usage.failures == 1
    connect(loopback, tmp_path, usage)(prompts(3))
    assert len(loopback.bodies) == 4


@pytest.mark.parametrize(
    ("status", "remedy"), [(401, "MY_KEY"), (404, "base_url"), (403, "MY_KEY"), (402, "see that")]
)
def test_what_no_retry_can_mend_ends_at_once(serve, status, remedy):
    loopback = serve(fault=lambda number, body: (status, {}))
    with pytest.raises(LLMError, match=rf"127.0.0.1.*{status}.*{remedy}"):
        connect(loopback, api_key_env="MY_KEY", concurrency=1)(prompts(10))
    assert len(loopback.bodies) <= 2


def test_a_server_that_stays_broken_ends_the_list_but_not_what_has_arrived(serve, tmp_path):
    broken = [True]
    fault = lambda number, body: answered(500) if body["seed"] == 7 and broken[0] else None
    loopback, usage = serve(fault=fault), Usage()
    with pytest.raises(LLMError, match=r"answered 500.*5 tries.*are kept"):
        connect(loopback, tmp_path, usage, concurrency=2)(prompts(10))
    paid = usage.calls
    broken[0] = False
    answers = connect(loopback, tmp_path, usage)(prompts(10))
    assert answers == expected(loopback, prompts(10))
    assert usage.calls == 10
    assert usage.cached == paid


def test_an_unreachable_server_is_one_clear_error(serve):
    loopback = serve()
    loopback.close()
    with pytest.raises(LLMError, match=r"127.0.0.1.*no connection.*3 tries.*server runs") as caught:
        connect(loopback, retries=2)(prompts(10))
    assert caught.value.__cause__ is None


def test_what_is_another_question_has_another_file(serve, tmp_path):
    loopback = serve()
    one = Prompt("s", "NOTES: x", 1, 20)
    connect(loopback, tmp_path)([one, one._replace(seed=2), one._replace(max_tokens=30)])
    connect(loopback, tmp_path)([one._replace(user="NOTES: y"), one._replace(system="t")])
    connect(loopback, tmp_path, temperature=0.5)([one])
    openai_server.server(loopback.url, "another", folder=tmp_path)([one])
    assert len(list(tmp_path.rglob("*.json"))) == len(loopback.bodies) == 7


def test_the_same_model_on_another_server_is_another_one(serve, tmp_path):
    one, other = serve(), serve(lambda *_: "NOTES: other")
    assert connect(one, tmp_path)(prompts(2)) == expected(one, prompts(2))
    assert connect(other, tmp_path)(prompts(2)) == [Answer("NOTES: other")] * 2
    openai_server.server(other.url + "/", "toy", folder=tmp_path)(prompts(2))
    assert len(one.bodies) == len(other.bodies) == 2


def test_an_answer_cut_at_its_limit_is_neither_used_nor_kept(serve, tmp_path):
    short = [True]
    cut = lambda number, body: "length" if body["seed"] == 1 and short[0] else None
    loopback, usage = serve(fault=cut), Usage()
    complete = connect(loopback, tmp_path, usage)
    first, second, third = complete(prompts(3))
    assert [first, third] == expected(loopback, prompts(3))[::2]
    assert second.text is None
    assert "max_tokens = 512" in second.failure
    assert "spare_tokens" in second.failure
    assert (usage.calls, usage.cut, usage.failures, usage.retries) == (3, 1, 0, 0)
    assert usage.answer_tokens == 15  # what was cut is paid for
    assert len(list(tmp_path.rglob("*.json"))) == 2
    short[0] = False
    assert complete(prompts(3)) == expected(loopback, prompts(3))
    assert len(loopback.bodies) == 4


def test_an_answer_is_on_disk_before_the_list_is_through(serve, tmp_path):
    seen = []

    def answer(system, user, seed):
        seen.append(len(list(tmp_path.rglob("*.json"))))
        return "yes"

    connect(serve(answer), tmp_path, concurrency=1)(prompts(4))
    assert seen == [0, 1, 2, 3]
    assert not list(tmp_path.rglob(".*"))


def test_after_ctrl_c_what_is_under_way_is_kept_and_nothing_else_is_asked(serve, tmp_path):
    def answer(system, user, seed):
        if seed == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)
        return "yes"

    loopback = serve(answer)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            connect(loopback, tmp_path, concurrency=1)(prompts(6))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(loopback.bodies) == len(list(tmp_path.rglob("*.json"))) == 2


def test_a_cache_that_cannot_be_written_stops_the_paying(serve, tmp_path):
    (tmp_path / "file").write_text("")
    loopback = serve()
    with pytest.raises(LLMError, match="cannot be kept"):
        connect(loopback, tmp_path / "file", concurrency=1)(prompts(10))
    assert len(loopback.bodies) <= 2


@pytest.mark.parametrize("fault", [None, (400, {}), (401, {}), answered(500)], ids=str)
def test_the_key_reaches_the_server_and_nothing_else(
    serve, tmp_path, monkeypatch, caplog, capfd, fault
):
    monkeypatch.setenv("MY_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    parrot = lambda system, user, seed: f"NOTES: your key is {KEY}"
    loopback = serve(parrot, lambda number, body: fault if number < 3 else None)
    told = []
    try:
        complete = connect(loopback, tmp_path, api_key_env="MY_KEY", retries=1)
        told.append(repr(complete(prompts(2))))
    except LLMError as error:
        told += [str(error), "".join(traceback.format_exception(error)), repr(pickle.dumps(error))]
        assert "[key]" in told[0]
    assert loopback.keys == {f"Bearer {KEY}"}
    told += [record.getMessage() for record in caplog.records] + [*capfd.readouterr()]
    told += [path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()]
    assert not any(KEY in one for one in told)


@pytest.mark.parametrize("key", ["sk-one\nsk-two", "sk-one two", "sk-\N{EN DASH}one", "sk-\x7fone"])
def test_a_key_that_no_server_can_be_sent_is_refused_unseen(serve, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    loopback = serve()
    with pytest.raises(SettingError, match="environment variable MY_KEY") as caught:
        connect(loopback, api_key_env="MY_KEY")(prompts(1))
    assert "sk-" not in "".join(traceback.format_exception(caught.value))
    assert not loopback.bodies


@pytest.mark.parametrize("key", ["sk-7", "sk-se\\cret'9", "sk-" + "7" * 400], ids=len)
def test_no_key_is_in_an_error_however_short_or_long_or_escaped(serve, monkeypatch, key):
    monkeypatch.setenv("MY_KEY", f" {key}\n")
    loopback = serve(fault=lambda number, body: (401, {}))
    with pytest.raises(LLMError, match=r"\[key\]") as caught:
        connect(loopback, api_key_env="MY_KEY")(prompts(1))
    assert loopback.keys == {f"Bearer {key}"}
    assert "sk-" not in openai_settings.hide_key(key, f"{key} {key!r} {json.dumps(key)}")
    assert "sk-" not in "".join(traceback.format_exception(caught.value))


def test_a_key_that_is_a_word_changes_no_answer(serve, monkeypatch):
    monkeypatch.setenv("MY_KEY", "none")
    assert connect(serve(lambda *_: "none"), api_key_env="MY_KEY")(prompts(1)) == [Answer("none")]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base_url": "localhost:8000"}, "base_url = 'localhost:8000'.*http://"),
        ({"base_url": f"http://me:{KEY}@host/v1"}, "base_url: that of host holds a user"),
        ({"base_url": f"http://host/v1?key={KEY}"}, "base_url: that of host holds"),
        ({"api_key_env": KEY}, "api_key_env: must be the name"),
        ({"model": ""}, "model = ''"),
        ({"concurrency": 0}, "concurrency = 0"),
        ({"retries": -1}, "retries = -1"),
        ({"timeout": 0.0}, "timeout = 0.0"),
        ({"timeout": float("nan")}, "timeout = nan"),
    ],
)
def test_settings_that_cannot_work_are_refused_and_no_key_is_shown(settings, message):
    settings = {"base_url": "http://host/v1", "model": "m"} | settings
    with pytest.raises(SettingError, match=message) as caught:
        openai_server.server(**settings)
    assert KEY not in str(caught.value)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(openai_settings, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match=r"jaxrec\[agents\]"):
        openai_server.server("http://host/v1", "m")


def test_an_estimate_is_the_slower_of_rounds_and_throughput():
    took = estimate.estimate(
        1000, 4_000_000, 500_000, rounds=50, concurrency=10, answer_seconds=2.0, prices=(1.0, 4.0)
    )
    assert took == (1000, 4_000_000, 500_000, 200.0, 6.0)
    assert estimate.estimate(1000, 1, 1, rounds=500, concurrency=10).seconds == 500
    assert "cost 6.00" in estimate.tell(took)
    free = estimate.estimate(10, 10, 10)
    assert free.cost is None
    assert "cost" not in estimate.tell(free)
    np.testing.assert_array_equal(list(Usage(calls=3).values().values()), [3] + [0] * 7)
